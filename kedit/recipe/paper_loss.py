"""The paper's losses, in the form of its code.

With s(q, k) the similarity, theta the sentinel, k_1..k_K the keys, k_i the key that q_i means, P a softmax of s:

    L_q1 = mean -log P(k_i   | q_i; all keys and theta)                    queries that mean an edit, one role
    L_q2 = mean' -log P(theta | q_i; theta and all keys but k_i)            the same kind, the other role
    L_q3 = mean' -log P(theta | q_i; all keys and theta)                   queries that mean none
    L_rel, L_gen = mean' -log P(y_t | prompt vectors, text before t)       target tokens y_t
    L_loc = mean KL(p without prompt vectors || p with them)               `kedit.lm.divergences.linear_divergence`

mean' is the hinged mean: over those whose label has less than h times the probability of the runner-up, the second
largest of all; 0 where there are none. log P stands for log(P + 1e-8). Pure functions.

Shapes: Q queries, K keys, C candidates, N tokens or queries.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from kedit.recipe.loss import Summed

EPSILON = 1e-8


class ContrastiveLoss(NamedTuple):
    """Sums of L_q1, L_q2 and L_q3, with what they are to be divided by."""

    own: Summed
    without_own: Summed
    unrelated: Summed


def contrastive_loss(
    similarity_QK: Tensor, threshold_Q: Tensor, own_Q: Tensor, seeks_own_Q: Tensor | None = None, hinge: float = 1.2
) -> ContrastiveLoss:
    """How well queries find their own key, and the sentinel where it is not there.

    Args:
        similarity_QK: of every query to every key.
        threshold_Q: the sentinel's similarity.
        own_Q: number of the key that a query means, -1 where it means none.
        seeks_own_Q: which of the queries that mean an edit stand in L_q1; the others stand in L_q2 (see `roles`). By
            default each stands in both, as in the paper's equations (which add what is averaged here).
        hinge: h.
    """
    keys = similarity_QK.shape[1]
    logits_QC = torch.cat([similarity_QK, threshold_Q[:, None]], 1)
    is_own_QC = torch.arange(keys + 1, device=own_Q.device) == own_Q[:, None]
    without_own_QC = logits_QC.masked_fill(is_own_QC, -torch.inf)
    sentinel_Q = torch.full_like(own_Q, keys)
    means_Q = own_Q >= 0
    first_Q = means_Q if seeks_own_Q is None else means_Q & seeks_own_Q
    second_Q = means_Q if seeks_own_Q is None else means_Q & ~seeks_own_Q
    return ContrastiveLoss(
        hinge_nll(logits_QC[first_Q], own_Q[first_Q], math.inf),
        hinge_nll(without_own_QC[second_Q], sentinel_Q[second_Q], hinge),
        hinge_nll(logits_QC[~means_Q], sentinel_Q[~means_Q], hinge),
    )


def roles(own_Q: Tensor, generality_Q: Tensor, coin_B: Tensor) -> Tensor:
    """Which queries seek their own key, bool [Q]: of an edit where the coin is true the one of generality, else the
    one of reliability. It says nothing of queries that mean none.
    """
    return generality_Q == coin_B[own_Q.clamp_min(0)]


def hinge_nll(logits_NC: Tensor, targets_N: Tensor, hinge: float = 1.2) -> Summed:
    """The hinged sum of -log P(target), in nats, and of how many it is.

    Args:
        logits_NC: at least two candidates in a row.
        targets_N: the labels.
        hinge: h, at least 1; infinity for the plain mean.
    """
    if not hinge >= 1:
        raise ValueError(
            f"hinge is {hinge}, wanted at least 1: below that a label is let go before it is the likeliest"
        )
    log_p_NC = logits_NC.float().log_softmax(1)
    log_p_N = log_p_NC.gather(1, targets_N[:, None])[:, 0]
    runner_up_N = log_p_NC.detach().topk(2).values[:, 1]
    kept_N = torch.ones_like(log_p_N) if hinge == math.inf else log_p_N < runner_up_N + math.log(hinge)
    nll_N = -(log_p_N.exp() + EPSILON).log()
    return Summed((nll_N * kept_N).sum(), kept_N.sum())
