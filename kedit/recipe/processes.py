"""What the processes of a step know of one another: the keys of all, and how many there are of anything.

A step's edits and negatives are dealt out in turn, place p to process p mod `world`, filled up so that all have equally
many. Knows no text and no network. Shapes: M rows of one process, N of all, D width.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kedit.recipe.loss import Summed


def dealt(count: int, rank: int, world: int) -> list[int]:
    """Which of `count` places a process has: as many as any other, the first place once more where one is missing."""
    own = list(range(rank, count, world))
    return own + [0] * (-(-count // world) - len(own))


class Alone:
    """One process, which has everything.

    Attributes:
        world: how many processes there are.
    """

    world = 1

    def gather(self, own_MD: Tensor, count: int) -> Tensor:
        """Rows [count, D] of all processes in the order in which they were dealt out; gradients flow back to all."""
        return own_MD

    def total(self, values: Tensor) -> Tensor:
        """The sum over processes, without gradient."""
        return values

    def means(self, sums: Mapping[str, Summed]) -> dict[str, Tensor]:
        """What this process adds to each mean over the queries, or tokens, of all; times `world`, for the gradients of
        processes are averaged.
        """
        counts = self.total(torch.stack([one.number.float() for one in sums.values()]))
        return {
            name: one.total * self.world / count.clamp_min(1)
            for (name, one), count in zip(sums.items(), counts, strict=True)
        }


class Together(Alone):
    """One of several processes. All must call the same, in the same order.

    Args:
        world: how many there are.
    """

    def __init__(self, world: int) -> None:
        self.world = world

    def gather(self, own_MD: Tensor, count: int) -> Tensor:
        every_WMD: Tensor = _Gather.apply(own_MD)
        return every_WMD.transpose(0, 1).flatten(0, 1)[:count]

    def total(self, values: Tensor) -> Tensor:
        values = values.detach().clone()
        torch.distributed.all_reduce(values)
        return values


class _Gather(torch.autograd.Function):
    """[M, D] to [world, M, D]. A row's gradient is the sum of what all processes want of it."""

    @staticmethod
    def forward(ctx: Any, own_MD: Tensor) -> Tensor:
        parts = [torch.empty_like(own_MD) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, own_MD.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        given = gradients[0]
        summed = torch.promote_types(given.dtype, torch.float32)
        every_WMD = given.to(summed, copy=True, memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(every_WMD)
        return every_WMD[torch.distributed.get_rank()].to(given.dtype)
