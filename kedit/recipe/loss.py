"""Losses of the default networks: of finding the right key, and of the prompt vectors.

With s(q, k) the similarity, theta(q) the sentinel's threshold, c a scale (an inverse temperature) and m a margin:

    own key against others      L_own  = -log softmax over j of c s(q_i, k_j), at the own key
    own key against sentinel    L_fire = softplus(c (theta(q_i) + m - s(q_i, k_i)))
    sentinel against others     L_rest = softplus(c (lse_j s(q_i, k_j) + m - theta(q_i)))

where lse_j is log-sum-exp at scale c over the keys that q_i does not mean, a maximum with gradients for all. L_own and
L_fire are of queries that mean an edit, L_rest also of those that mean none. The prompt's loss is the target's
cross-entropy behind its prompt vectors.

Shapes: Q queries, K keys.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, softplus


class Summed(NamedTuple):
    """What is to be averaged, over several processes too, and so is divided last.

    Args:
        total: a sum, in nats.
        number: of how many.
    """

    total: Tensor
    number: Tensor

    @property
    def mean(self) -> Tensor:
        """0 where there are none."""
        return self.total / self.number.clamp_min(1)


class FindingLoss(NamedTuple):
    """Sums over queries."""

    own: Summed
    fire: Summed
    rest: Summed


def finding_loss(
    similarity_QK: Tensor, threshold_Q: Tensor, own_Q: Tensor, ignore_QK: Tensor, scale: Tensor | float, margin: float
) -> FindingLoss:
    """How well queries tell their own key from others and from none.

    Args:
        similarity_QK: of every query to every key.
        threshold_Q: the sentinel's similarity.
        own_Q: number of the key that a query means, -1 where it means none.
        ignore_QK: keys that are right for a query, too, or say nothing: neither own nor other.
        scale: inverse temperature.
        margin: in units of similarity.
    """
    similarity_QK, threshold_Q = similarity_QK.float(), threshold_Q.float()
    means_Q = own_Q >= 0
    columns = torch.arange(similarity_QK.shape[1], device=similarity_QK.device)
    is_own_QK = columns[None] == own_Q[:, None]
    logits_QK = (scale * similarity_QK).masked_fill(ignore_QK & ~is_own_QK, -torch.inf)
    rest_Q = logits_QK.masked_fill(is_own_QK, -torch.inf).logsumexp(1)
    rest_Q = softplus(rest_Q + scale * (margin - threshold_Q))
    own_similarity = similarity_QK[means_Q].gather(1, own_Q[means_Q, None])[:, 0]
    fire = softplus(scale * (threshold_Q[means_Q] + margin - own_similarity))
    with_own, queries = means_Q.sum(), torch.ones_like(own_Q).sum()
    return FindingLoss(
        Summed(cross_entropy(logits_QK[means_Q], own_Q[means_Q], reduction="sum"), with_own),
        Summed(fire.sum(), with_own),
        Summed(rest_Q.sum(), queries),
    )
