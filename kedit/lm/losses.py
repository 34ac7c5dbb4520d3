"""Cross-entropy through a large output head that never holds [tokens, vocabulary].

    L = sum_t w_t * (logsumexp_v z_tv - z_ty),   z = h W^T + b

Each chunk of tokens computes its logits, its loss and its gradients at once and forgets the logits. Pure functions.

Shapes: N tokens, D width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 25
"""Logits held at a time: 128 MiB in float32."""


def _chunk_tokens(vocabulary: int, tokens: int) -> int:
    return max(1, min(tokens, CHUNK_ELEMENTS // vocabulary))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor, weights_N: Tensor,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        train_hidden, train_weight, train_bias = ctx.needs_input_grad[:3]
        nll_N = torch.empty(len(targets_N), dtype=torch.float32, device=hidden_ND.device)
        grad_hidden = torch.empty_like(hidden_ND) if train_hidden else None
        # summed over chunks in float32: many small terms
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if train_weight else None
        grad_bias = torch.zeros_like(bias_V, dtype=torch.float32) if train_bias and bias_V is not None else None
        for start in range(0, len(targets_N), chunk):
            part = slice(start, start + chunk)
            hidden, targets = hidden_ND[part], targets_N[part, None]
            logits = (hidden @ weight_VD.T).float()
            if bias_V is not None:
                logits += bias_V
            target_logits = logits.gather(1, targets)[:, 0]
            normaliser = logits.logsumexp(1)
            nll_N[part] = normaliser - target_logits
            if not (train_hidden or train_weight or train_bias):
                continue
            gradient = logits.sub_(normaliser[:, None]).exp_()
            gradient.scatter_add_(1, targets, torch.full_like(targets, -1, dtype=gradient.dtype))
            gradient = gradient.mul_(weights_N[part, None])
            if grad_bias is not None:
                grad_bias += gradient.sum(0)
            gradient = gradient.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = gradient @ weight_VD
            if grad_weight is not None:
                if hidden.dtype == torch.float32:
                    grad_weight.addmm_(gradient.T, hidden)
                else:
                    grad_weight += gradient.T @ hidden
        ctx.save_for_backward(
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight_VD.dtype),
            None if grad_bias is None or bias_V is None else grad_bias.to(bias_V.dtype),
        )
        ctx.mark_non_differentiable(nll_N)
        return (nll_N * weights_N).sum(), nll_N

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        scale = grad_outputs[0]
        gradients = (None if saved is None else saved * scale.to(saved.dtype) for saved in ctx.saved_tensors)
        return *gradients, None, None, None


def linear_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    targets_N: Tensor,
    weights_N: Tensor,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Weighted sum of token cross-entropies under logits h W^T + b, in nats.

    Gradients are computed in the forward pass, the bias's where it is a parameter (GPT-J's; BART's is a buffer).

    Args:
        hidden_ND: decoder states.
        weight_VD: output head, of the same dtype (cast here under autocast).
        bias_V: output bias or None.
        targets_N: token ids.
        weights_N: weight of each token in the sum; no gradient flows into it.
        chunk: tokens at a time; by default as many as keep the logits under `CHUNK_ELEMENTS`.

    Returns:
        the weighted sum, and the unweighted losses float32 [N] without gradient.
    """
    chunk = chunk or _chunk_tokens(weight_VD.shape[0], len(targets_N))
    device = hidden_ND.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden_ND, weight_VD = hidden_ND.to(dtype), weight_VD.to(dtype)
    if not torch.is_grad_enabled():  # needs_input_grad does not know
        hidden_ND, weight_VD = hidden_ND.detach(), weight_VD.detach()
        bias_V = None if bias_V is None else bias_V.detach()
    # weights near 1, and their size put back in float32: in float16 small gradients vanish
    unit = weights_N.max().clamp_min(torch.finfo(torch.float32).tiny) if len(weights_N) else weights_N.new_ones(())
    with torch.autocast(device, enabled=False):
        loss, nll_N = _LinearCrossEntropy.apply(hidden_ND, weight_VD, bias_V, targets_N, weights_N / unit, chunk)
    return loss * unit, nll_N


@torch.no_grad()
def linear_nll(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor) -> Tensor:
    """Token losses float32 [N], for scoring."""
    ones = torch.ones(len(targets_N), device=hidden_ND.device)
    return linear_cross_entropy(hidden_ND, weight_VD, bias_V, targets_N, ones)[1]
