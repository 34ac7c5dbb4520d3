"""How far a student's next-token distributions stand from a teacher's, through large heads, never holding [N, V].

    L = T^2 sum_n w_n D_n,   y = z / T,   p = softmax(y_teacher),   q = softmax(y_student),   z = h W^T + b

    forward_kl   D = sum_v p log(p/q)                        dD/dy_student = q - p
    reverse_kl   D = sum_v q log(q/p)                        dD/dy_student = q (log(q/p) - D)
    jsd          D = B KL(p||m) + (1-B) KL(q||m)             dD/dy_student = (1-B) q (log(q/m) - KL(q||m))
                 with m = B p + (1-B) q
    top-k        D = sum_k p_k log(p_k/q_k) + r log(r/s)     dD/dy_student = q - p_k on k, q - q r/s beside it
                 with tails r = 1 - sum_k p_k and s = 1 - sum_k q_k

Each chunk of positions computes its logits, its divergences and its gradients at once and forgets the logits. The
teacher gets no gradient. Pure functions.

Shapes: N positions, D width (student's and teacher's may differ), V vocabulary, K ids kept.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Kind = Literal["forward_kl", "reverse_kl", "jsd"]

CHUNK_ELEMENTS = 10 << 20
"""Logits held at a time: 40 MiB in float32, in three or four buffers (buffers under 32 MiB glibc keeps when freed)."""
CHUNK_ROWS = 256
"""Positions held at a time on a CPU, whose caches they should fit."""


class Head(NamedTuple):
    """What turns final states into logits.

    Args:
        weight_VD: output weight.
        bias_V: output bias or None.
    """

    weight_VD: Tensor
    bias_V: Tensor | None = None


class TopK(NamedTuple):
    """The likeliest ids of a teacher, likeliest first.

    Args:
        ids_NK: int32, distinct in a row.
        log_probs_NK: their log-probabilities at the teacher's temperature.
    """

    ids_NK: Tensor
    log_probs_NK: Tensor

    @property
    def mass_N(self) -> Tensor:
        """Probability that the kept ids hold, float32."""
        return self.log_probs_NK.float().exp().sum(1)


def linear_divergence(
    student_ND: Tensor,
    student_head: Head,
    teacher_ND: Tensor,
    teacher_head: Head,
    weights_N: Tensor,
    kind: Kind = "forward_kl",
    temperature: float = 1.0,
    beta: float = 0.5,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """T^2 times the weighted sum of divergences under logits h W^T + b, in nats.

    Gradients flow to the student's states, head weight and head bias; they are computed in the forward pass and serve
    one backward pass. Where both sides hold the same numbers, loss and gradients are exactly 0. NaN or infinite logits
    on either side leave NaN in the loss. States are cast to their head's dtype, under autocast both to its dtype;
    logits of a low dtype are compared in float32.

    Args:
        student_ND: final states of the student.
        student_head: its head.
        teacher_ND: final states of the teacher at the same positions, on the same device.
        teacher_head: its head, of the same vocabulary.
        weights_N: weight of each position in the sum; no gradient flows into it.
        kind: forward_kl is KL(teacher || student), reverse_kl KL(student || teacher), jsd lies between.
        temperature: T.
        beta: the teacher's share in the mixture of jsd, between 0 and 1 without the ends.
        chunk: positions at a time; by default as many as keep the logits under `CHUNK_ELEMENTS`.

    Returns:
        the loss, and the unweighted divergences float32 [N] without gradient and without T^2.

    Raises:
        ValueError: the heads have different vocabularies.
    """
    check_vocabularies(student_head, teacher_head)
    student_ND, student_head = _cast(student_ND, student_head)
    with torch.no_grad():
        teacher_ND, teacher_head = _cast(teacher_ND, teacher_head)
    comparisons: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
        "forward_kl": _forward_kl, "reverse_kl": _reverse_kl, "jsd": partial(_jsd, beta=beta)
    }  # fmt: skip

    def rows(part: slice, log_q: Tensor) -> tuple[Tensor, Tensor]:
        return comparisons[kind](log_q, _log_probs(teacher_ND[part], *teacher_head, temperature))

    return _weighted(student_ND, student_head, weights_N, rows, temperature, chunk)


def linear_divergence_top_k(
    student_ND: Tensor,
    student_head: Head,
    ids_NK: Tensor,
    log_probs_NK: Tensor,
    weights_N: Tensor,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The forward KL of `linear_divergence` with everything but the teacher's top ids in one bucket, the tail.

    A lower bound of the full one, which it equals at K = V.

    Args:
        student_ND: final states of the student.
        student_head: its head.
        ids_NK: the teacher's ids, distinct in a row.
        log_probs_NK: their log-probabilities at this temperature; finite.
        weights_N: weight of each position in the sum.
        temperature: T.
        chunk: positions at a time.

    Returns:
        as `linear_divergence`.
    """
    student_ND, student_head = _cast(student_ND, student_head)

    def rows(part: slice, log_q: Tensor) -> tuple[Tensor, Tensor]:
        return _top_k_kl(log_q, ids_NK[part].long(), log_probs_NK[part].detach().to(log_q.dtype))

    return _weighted(student_ND, student_head, weights_N, rows, temperature, chunk)


@torch.no_grad()
def top_k(states_ND: Tensor, head: Head, k: int, temperature: float = 1.0, chunk: int | None = None) -> TopK:
    """The teacher's side of `linear_divergence_top_k`.

    Raises:
        ValueError: k is not between 1 and the vocabulary's size.
    """
    vocabulary = head.weight_VD.shape[0]
    if not 1 <= k <= vocabulary:
        raise ValueError(f"top_k is {k}, wanted 1 to {vocabulary}, the size of the vocabulary")
    device, positions = states_ND.device, len(states_ND)
    states_ND, head = _cast(states_ND, head)
    chunk = chunk or _chunk_rows(vocabulary, positions, device)
    ids_NK = torch.empty(positions, k, dtype=torch.int32, device=device)
    log_probs_NK = torch.empty(positions, k, dtype=torch.float32, device=device)
    with torch.autocast(device.type, enabled=False):
        for start in range(0, positions, chunk):
            part = slice(start, start + chunk)
            log_probs_NK[part], ids_NK[part] = _log_probs(states_ND[part], *head, temperature).topk(k, dim=1)
    return TopK(ids_NK, log_probs_NK)


def check_vocabularies(student_head: Head, teacher_head: Head, error: type[ValueError] = ValueError) -> None:
    """Raises `error` where two heads speak of different ids."""
    student, teacher = len(student_head.weight_VD), len(teacher_head.weight_VD)
    if student != teacher:
        raise error(
            f"the student's vocabulary has {student} ids and the teacher's {teacher}, wanted the same: "
            "take models of one tokenizer, padded to the same backbone.vocabulary_multiple"
        )


def _forward_kl(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """Divergences [n] and gradient in y [n, V]; like its siblings it writes over both arguments."""
    p = log_p.exp()
    divergence = log_p.sub_(log_q).mul_(p).sum(1)
    return divergence, log_q.exp_().sub_(p)


def _reverse_kl(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    q = log_q.exp()
    ratio = log_q.sub_(log_p)
    divergence = torch.mul(ratio, q, out=log_p).sum(1)
    return divergence, ratio.sub_(divergence[:, None]).mul_(q)


def _jsd(log_q: Tensor, log_p: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    # log(p/m) = -log(1 + (1-B)(q/p - 1)): exactly 0 where q = p, which logaddexp is not. At e^80 one side is nothing.
    ratio = (log_q - log_p).clamp_(-80, 80)
    log_p_m = ratio.expm1().mul_(1 - beta).log1p_().neg_()
    log_q_m = ratio.neg_().expm1_().mul_(beta).log1p_().neg_()  # log_p_m + ratio would round at the size of ratio
    teacher_side = log_p.exp_().mul_(log_p_m).sum(1)
    q = log_q.exp_()
    student_side = torch.mul(q, log_q_m, out=log_p_m).sum(1)
    gradient = log_q_m.sub_(student_side[:, None]).mul_(q).mul_(1 - beta)
    return beta * teacher_side + (1 - beta) * student_side, gradient


def _top_k_kl(log_q: Tensor, ids: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    p = log_p.exp()
    kept = p.sum(1)
    divergence = (p * (log_p - log_q.gather(1, ids))).sum(1)
    if ids.shape[1] == log_q.shape[1]:
        gradient = log_q.exp_().mul_(kept[:, None])
    else:
        tail = (1 - kept).clamp_min_(0)  # rounding may carry the sum over 1
        rest = log_q.scatter(1, ids, -torch.inf)
        log_s = rest.logsumexp(1)  # not log(1 - sum q_k): nothing is left of that where the ids hold nearly all
        divergence += torch.xlogy(tail, tail) - tail * log_s
        gradient = log_q.exp_().mul_((kept + tail)[:, None])
        gradient -= rest.sub_(log_s[:, None]).exp_().mul_(tail[:, None])
    return divergence, gradient.scatter_add_(1, ids, -p)


def _chunk_rows(vocabulary: int, rows: int, device: torch.device) -> int:
    most = CHUNK_ROWS if device.type == "cpu" else rows
    return max(1, min(rows, most, CHUNK_ELEMENTS // vocabulary))


def _cast(states_ND: Tensor, head: Head) -> tuple[Tensor, Head]:
    device = states_ND.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else head.weight_VD.dtype
    return states_ND.to(dtype), Head(head.weight_VD.to(dtype), head.bias_V)


def _log_probs(states: Tensor, weight_VD: Tensor, bias_V: Tensor | None, temperature: float) -> Tensor:
    logits = states @ weight_VD.T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if bias_V is not None:
        logits += bias_V
    return torch.log_softmax(logits.div_(temperature), 1)


def _weighted(
    student_ND: Tensor, head: Head, weights_N: Tensor, rows: Callable[[slice, Tensor], tuple[Tensor, Tensor]],
    temperature: float, chunk: int | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Loss and divergences; `rows(part, log_q)` gives those of a chunk and their gradient in y."""
    chunk = chunk or _chunk_rows(len(head.weight_VD), len(student_ND), student_ND.device)
    # weights near 1, and their size put back in float32: in float16 small gradients vanish
    unit = weights_N.max().clamp_min(torch.finfo(torch.float32).tiny) if len(weights_N) else weights_N.new_ones(())
    with torch.autocast(student_ND.device.type, enabled=False):
        loss, divergences_N = _LinearDivergence.apply(
            student_ND, *head, weights_N / unit, rows, temperature, chunk, torch.is_grad_enabled()
        )
    return loss * (unit * temperature**2), divergences_N


class _LinearDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, weights_N: Tensor,
        rows: Callable[[slice, Tensor], tuple[Tensor, Tensor]], temperature: float, chunk: int, train: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        # needs_input_grad does not know of torch.no_grad()
        train_hidden, train_weight, train_bias = (train and needed for needed in ctx.needs_input_grad[:3])
        compared = torch.promote_types(weight_VD.dtype, torch.float32)
        divergences_N = torch.empty(len(hidden_ND), dtype=compared, device=hidden_ND.device)
        grad_hidden = torch.empty_like(hidden_ND) if train_hidden else None
        # summed over chunks in float32: many small terms
        grad_weight = torch.zeros_like(weight_VD, dtype=compared) if train_weight else None
        grad_bias = torch.zeros(len(weight_VD), dtype=compared, device=hidden_ND.device) if train_bias else None
        for start in range(0, len(hidden_ND), chunk):
            part = slice(start, start + chunk)
            hidden = hidden_ND[part]
            divergences_N[part], gradient = rows(part, _log_probs(hidden, weight_VD, bias_V, temperature))
            if not (train_hidden or train_weight or train_bias):
                continue
            gradient.mul_(weights_N[part, None] / temperature)
            if grad_bias is not None:
                grad_bias += gradient.sum(0)
            gradient = gradient.to(weight_VD.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = gradient @ weight_VD
            if grad_weight is not None:
                if grad_weight.dtype == weight_VD.dtype:
                    grad_weight.addmm_(gradient.T, hidden)
                else:
                    grad_weight += gradient.T @ hidden
        # not save_for_backward: backward scales them in place and hands them out, the head's has no second copy
        ctx.gradients = (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight_VD.dtype),
            None if grad_bias is None or bias_V is None else grad_bias.to(bias_V.dtype),
        )
        loss = (divergences_N * weights_N).sum()
        divergences_N = divergences_N.float()
        ctx.mark_non_differentiable(divergences_N)
        return loss, divergences_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("a second backward pass through linear_divergence: compute the loss anew instead")
        gradients, ctx.gradients = ctx.gradients, None
        scale = grad_outputs[0]
        return *(None if x is None else x.mul_(scale.to(x.dtype)) for x in gradients), None, None, None, None, None
