"""The key that a query means most, where similarity is less than an inner product. Knows no edit.

Shapes: B queries, D key width, C candidates of each, P pairs of a query and a key.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from kedit.recipe.networks import Similarity

CANDIDATES = 4
FURTHER = 4
"""Times as many candidates, where the first are not enough."""


class Nearest(NamedTuple):
    """What is most similar to each query.

    Args:
        similarity_B: -inf where there is no key.
        number_B: the key's; -1 where there is none.
    """

    similarity_B: Tensor
    number_B: Tensor


class Searched(Protocol):
    """Finds keys by inner product, as `search.Index`."""

    def __len__(self) -> int: ...

    def search(self, queries_BD: Tensor, k: int = 1) -> tuple[Tensor, Tensor]: ...


def nearest(
    index: Searched,
    keys_of: Callable[[np.ndarray], Tensor],
    similarity: Similarity | None,
    queries_BD: Tensor,
    floor_B: Tensor,
    count: int = CANDIDATES,
) -> Nearest:
    """The key of each query's largest similarity.

    As no similarity exceeds the inner product, the best candidate is the best of all keys once the last candidate's
    inner product is no more than it. Where no key can exceed the floor, any candidate may be told.

    Args:
        index: finds candidates.
        keys_of: the keys [n, D] of numbers.
        similarity: of pairs; None for the inner product.
        queries_BD: of the questions.
        floor_B: similarities up to which it does not matter what is found, as the sentinel's.
        count: candidates, to begin with.
    """
    scores_BC, numbers_BC = index.search(queries_BD, k=1 if similarity is None else count)
    if similarity is None:
        return Nearest(scores_BC[:, 0], numbers_BC[:, 0])
    there_BC = numbers_BC >= 0
    similarity_BC = torch.full_like(scores_BC, -torch.inf)
    keys_PD = keys_of(numbers_BC[there_BC].cpu().numpy()).to(queries_BD)
    similarity_BC[there_BC] = similarity(queries_BD[there_BC.nonzero()[:, 0]], keys_PD)
    similarity_B, place_B = similarity_BC.max(1)
    number_B = numbers_BC.gather(1, place_B[:, None])[:, 0]
    unsure = (scores_BC[:, -1] > torch.maximum(similarity_B, floor_B)).nonzero()[:, 0]
    if len(unsure) and count < len(index):
        further = min(FURTHER * count, len(index))
        again = nearest(index, keys_of, similarity, queries_BD[unsure], floor_B[unsure], further)
        similarity_B[unsure], number_B[unsure] = again.similarity_B, again.number_B
    return Nearest(similarity_B, number_B)
