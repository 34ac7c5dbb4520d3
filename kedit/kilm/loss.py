"""The KILM loss.

    L = sum_t w_c(t) * nll_t / sum_t w_c(t),   c(t) in {copied, infilled, knowledge}

With all weights 1 it is the mean cross-entropy over target tokens (the paper's code); its option `separate_loss` is
copied: 0. The knowledge terms are the paper's masked knowledge reconstruction loss, the others BART's own objective.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kedit.kilm.infilling import CLASSES
from kedit.lm.losses import linear_cross_entropy


@dataclass
class ClassWeights:
    """What a target token of each class weighs.

    Args:
        copied: tokens that stand in the source too: BART's unmasked text, T5's sentinels.
        infilled: masked text.
        knowledge: title, description and their brackets.
    """

    copied: float = 0.3
    infilled: float = 1.0
    knowledge: float = 1.0

    def __post_init__(self) -> None:
        values = (self.copied, self.infilled, self.knowledge)
        if min(values) < 0 or max(values) == 0:
            raise ValueError(f"class_weights are {values}, wanted none negative and at least one positive")

    def table(self, device: torch.device) -> Tensor:
        """Weights float32 [4] by class; the last serves class -1, tokens that train nothing."""
        return torch.tensor([self.copied, self.infilled, self.knowledge, 0.0], device=device)


def kilm_loss(
    states_BTD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, where_N: Tensor, targets_N: Tensor, classes_N: Tensor,
    weights: ClassWeights, total: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Loss of packed rows.

    Args:
        states_BTD: decoder states, scaled for the head.
        weight_VD: output head.
        bias_V: its bias or None.
        where_N: real target positions in the flattened rows.
        targets_N: their ids.
        classes_N: their classes, -1 for tokens that train nothing.
        weights: of the classes.
        total: the sum of weights to divide by; by default of these tokens.

    Returns:
        L; the sums of nll [3] and the numbers of tokens [3] by class, in nats and without gradient.
    """
    states_ND = states_BTD.flatten(0, 1)[where_N]
    weights_N = weights.table(states_ND.device)[classes_N]
    total = weights_N.sum() if total is None else total
    weights_N = weights_N / total.clamp_min(torch.finfo(torch.float32).tiny)
    loss, nll_N = linear_cross_entropy(states_ND, weight_VD, bias_V, targets_N, weights_N)
    spare = len(CLASSES)
    index = torch.where(classes_N < 0, spare, classes_N)
    sums = torch.zeros(spare + 1, device=nll_N.device).index_add_(0, index, nll_N)
    counts = torch.zeros(spare + 1, device=nll_N.device).index_add_(0, index, torch.ones_like(nll_N))
    return loss, sums[:spare], counts[:spare]
