"""How much more similar than the sentinel the best key must be, so that texts that no edit concerns rarely fire one.

The more keys are stored, the more similar the best of them is to anything. So the margin is not learned but read off:
a few thousand held-out texts are compared with the very keys that are stored, and the margin is what all but the wanted
share of them stay under. Knows no text.

Shapes: C texts for calibration, N keys, D width, P pairs of a text and a key.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from kedit.recipe.networks import MemoryNetworks

BLOCK = 8192
"""Keys compared at once."""
PAIRS = 1 << 16
"""Pairs compared at once, where few can exceed the sentinel."""
DENSE = 1 / 16
"""Share of pairs from which on all are compared."""


class Gate:
    """Decides whether a query means the edit whose key is most similar to it.

    Args:
        queries_CD: of the texts for calibration; none leaves the sentinel alone to decide.
        thresholds_C: the sentinel's similarities to them.
        rate: share of such texts that may fire an edit.
        networks: say what is similar, where it is not the inner product.

    Raises:
        ValueError: the rate is no share.
    """

    def __init__(
        self, queries_CD: Tensor, thresholds_C: Tensor, rate: float = 0.01,
        networks: MemoryNetworks | None = None,
    ) -> None:  # fmt: skip
        if not 0 < rate < 1:
            raise ValueError(f"the wanted rate of false activations is {rate}: give a share between 0 and 1, as 0.01")
        self.queries_CD, self.thresholds_C, self.rate, self._networks = queries_CD, thresholds_C, rate, networks
        self._best_C = torch.full_like(thresholds_C, -torch.inf)
        self._number_C = torch.full_like(thresholds_C, -1, dtype=torch.int64)  # of the key that is the best

    def observe(self, keys_ND: Tensor, numbers_N: Tensor | None = None) -> None:
        """Take account of more keys.

        Args:
            keys_ND: which.
            numbers_N: by which they can be forgotten; none for keys that stay.
        """
        numbers_N = torch.full((len(keys_ND),), -1) if numbers_N is None else numbers_N
        for block_ND, block_N in zip(keys_ND.split(BLOCK), numbers_N.split(BLOCK), strict=True):
            if len(block_ND):
                best_C, place_C = self._compared(block_ND.to(self.queries_CD)).max(1)
                better_C = best_C > self._best_C
                self._best_C = torch.where(better_C, best_C, self._best_C)
                self._number_C = torch.where(better_C, block_N.to(place_C)[place_C], self._number_C)

    def forget(self, numbers_N: Tensor, search: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        """Take account of keys that are gone: only the texts whose best key is among them are compared anew.

        Args:
            numbers_N: of these keys.
            search: for queries [B, D] and their sentinels' similarities [B] the similarity [B] and number [B] of the
                best key that stands.
        """
        gone_C = torch.isin(self._number_C, numbers_N.to(self._number_C))
        if gone_C.any():
            best_B, number_B = search(self.queries_CD[gone_C], self.thresholds_C[gone_C])
            self._best_C = self._best_C.masked_scatter(gone_C, best_B.to(self._best_C))
            self._number_C = self._number_C.masked_scatter(gone_C, number_B.to(self._number_C))

    def _compared(self, keys_ND: Tensor) -> Tensor:
        """Similarities [C, N]; of those that cannot exceed the sentinel the inner products."""
        scores_CN = self.queries_CD @ keys_ND.T
        if self._networks is None or (pairwise := self._networks.pairwise) is None:
            return scores_CN
        above_CN = scores_CN > self.thresholds_C[:, None]
        if above_CN.sum() > DENSE * above_CN.numel():
            parts = keys_ND.split(max(1, BLOCK // 8))
            return torch.cat([self._networks.similarities(self.queries_CD, part_ND) for part_ND in parts], 1)
        text_P, key_P = above_CN.nonzero(as_tuple=True)
        for texts, keys in zip(text_P.split(PAIRS), key_P.split(PAIRS), strict=True):
            scores_CN[texts, keys] = pairwise(self.queries_CD[texts], keys_ND[keys])
        return scores_CN

    @property
    def excess_C(self) -> Tensor:
        """By how much the best key of every text for calibration exceeds the sentinel, if it does."""
        return self._best_C - self.thresholds_C

    @property
    def margin(self) -> float:
        """What the best key's similarity must exceed the sentinel's by: 0, or more where that fires too often."""
        allowed = math.floor(self.rate * len(self._best_C))
        if allowed >= len(self._best_C):
            return 0.0
        return max(0.0, float(self.excess_C.sort(descending=True).values[allowed]))

    def fires(self, similarity_Q: Tensor, threshold_Q: Tensor) -> Tensor:
        """Whether the best key is meant: bool [Q]."""
        return similarity_Q - threshold_Q > self.margin
