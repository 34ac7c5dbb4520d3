"""What is judged, in batches: a loader for validation, test and prediction. Knows nothing of what the items are."""

from collections.abc import Iterator, Sequence
from typing import Any


class Batches:
    """Items in batches, dealt out to processes: a loader that Lightning takes as it is.

    Args:
        kind: makes a batch of a task's name and a list of items.
        task: the name.
        items: the items.
        size: items in a batch.
        rank: number of this process.
        world: how many there are.
    """

    def __init__(self, kind: Any, task: str, items: Sequence[Any], size: int, rank: int = 0, world: int = 1):
        self.kind, self.task, self.size = kind, task, size
        self.items = list(items)[rank::world]

    def __len__(self) -> int:
        return -(-len(self.items) // self.size)

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self.items), self.size):
            yield self.kind(self.task, self.items[start : start + self.size])
