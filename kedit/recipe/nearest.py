"""The key that a query means most, where similarity is less than an inner product. Knows no edit.

Shapes: B queries, D key width, C candidates of each, N keys.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from kedit.recipe.networks import MemoryNetworks

CANDIDATES = 4
FURTHER = 4
"""Times as many candidates, where the first are not enough."""
MOST = 256
"""Candidates beyond which all keys are compared."""
QUERIES, KEYS = 256, 4096
"""Compared at once, when all keys are."""
ROUNDING = 1e-6
"""By which an inner product may be larger than the similarity of the same vectors, and mean no more."""


class Nearest(NamedTuple):
    """What is most similar to each query.

    Args:
        similarity_B: -inf where there is no key.
        number_B: the key's; -1 where there is none.
    """

    similarity_B: Tensor
    number_B: Tensor


class Keys(Protocol):
    """Keys by number, as in `search.Index`."""

    def __len__(self) -> int: ...

    def search(self, queries_BD: Tensor, k: int = 1) -> tuple[Tensor, Tensor]: ...

    def keys(self, numbers: np.ndarray) -> Tensor: ...

    def blocks(self) -> Iterator[tuple[np.ndarray, Tensor]]: ...


def nearest(
    stored: Keys, networks: MemoryNetworks, queries_BD: Tensor, floor_B: Tensor, count: int = CANDIDATES
) -> Nearest:
    """The key of each query's largest similarity.

    As no similarity exceeds the inner product, the best candidate is the best of all keys once the last candidate's
    inner product is no more than it. Where no key can exceed the floor, any candidate may be told.

    Args:
        stored: where candidates are found.
        networks: say what is similar.
        queries_BD: of the questions.
        floor_B: similarities up to which it does not matter what is found, as the sentinel's.
        count: candidates, to begin with.
    """
    pairwise = networks.pairwise
    scores_BC, numbers_BC = (one.to(queries_BD.device) for one in stored.search(queries_BD, k=count if pairwise else 1))
    if pairwise is None:
        return Nearest(scores_BC[:, 0], numbers_BC[:, 0])
    there_BC = numbers_BC >= 0
    similarity_BC = torch.full_like(scores_BC, -torch.inf)
    keys_PD = stored.keys(numbers_BC[there_BC].cpu().numpy()).to(queries_BD)
    similarity_BC[there_BC] = pairwise(queries_BD[there_BC.nonzero()[:, 0]], keys_PD)
    similarity_B, place_B = similarity_BC.max(1)
    number_B = numbers_BC.gather(1, place_B[:, None])[:, 0]
    unsure = (scores_BC[:, -1] > torch.maximum(similarity_B, floor_B) + ROUNDING).nonzero()[:, 0]
    if len(unsure) and count < len(stored):
        further = min(FURTHER * count, len(stored))
        asked_BD, floor = queries_BD[unsure], floor_B[unsure]
        again = (
            nearest(stored, networks, asked_BD, floor, further)
            if further <= MOST
            else _of_all(stored, networks, asked_BD)
        )
        similarity_B[unsure], number_B[unsure] = again
    return Nearest(similarity_B, number_B)


def _of_all(stored: Keys, networks: MemoryNetworks, queries_BD: Tensor) -> Nearest:
    """The same by comparing every key, block by block."""
    similarity_B = torch.full((len(queries_BD),), -torch.inf, device=queries_BD.device)
    number_B = torch.full_like(similarity_B, -1, dtype=torch.int64)
    for numbers, keys_ND in stored.blocks():
        for first in range(0, len(numbers), KEYS):
            part_ND = keys_ND[first : first + KEYS].to(queries_BD)
            part_N = torch.from_numpy(numbers[first : first + KEYS]).to(number_B)
            for asked in torch.arange(len(queries_BD), device=queries_BD.device).split(QUERIES):
                best_B, place_B = networks.similarities(queries_BD[asked], part_ND).max(1)
                better_B = best_B > similarity_B[asked]
                similarity_B[asked] = torch.where(better_B, best_B, similarity_B[asked])
                number_B[asked] = torch.where(better_B, part_N[place_B], number_B[asked])
    return Nearest(similarity_B, number_B)
