"""How much more similar than the sentinel the best key must be, so that texts that no edit concerns rarely fire one.

The more keys are stored, the more similar the best of them is to anything. So the margin is not learned but read off:
a few thousand held-out texts are compared with the very keys that are stored, and the margin is what all but the wanted
share of them stay under. Knows no text and no network.

Shapes: C texts for calibration, N keys, D width.
"""

import math

import torch
from torch import Tensor

BLOCK = 65_536


class Gate:
    """Decides whether a query means the edit whose key is most similar to it.

    Args:
        queries_CD: of the texts for calibration; none leaves the sentinel alone to decide.
        thresholds_C: the sentinel's similarities to them.
        rate: share of such texts that may fire an edit.

    Raises:
        ValueError: the rate is no share.
    """

    def __init__(self, queries_CD: Tensor, thresholds_C: Tensor, rate: float = 0.01) -> None:
        if not 0 < rate < 1:
            raise ValueError(f"the wanted rate of false activations is {rate}: give a share between 0 and 1, as 0.01")
        self.queries_CD, self.thresholds_C, self.rate = queries_CD, thresholds_C, rate
        self.forget()

    def forget(self) -> None:
        """Begin anew, with no key stored."""
        self._best_C = torch.full_like(self.thresholds_C, -torch.inf)

    def observe(self, keys_ND: Tensor) -> None:
        """Take account of more keys. A key that is taken out later still counts until `forget`: the margin is then
        larger than it need be, never smaller.
        """
        for block_ND in keys_ND.split(BLOCK):
            best_C = (self.queries_CD @ block_ND.to(self.queries_CD).T).amax(1) if len(block_ND) else self._best_C
            self._best_C = torch.maximum(self._best_C, best_C)

    @property
    def excess_C(self) -> Tensor:
        """By how much the best key of every text for calibration exceeds the sentinel; -inf without keys."""
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
