"""The order of training data as a pure function of (seed, epoch, step): nothing to save, the same for any number of
processes and of accumulated batches. Knows row numbers only.
"""

from typing import NamedTuple

import numpy as np


def epoch_order(items: int, seed: int, epoch: int) -> np.ndarray:
    """The rows 0 .. items - 1 in the order of this epoch, int64 [items].

    RandomState rather than Generator: numpy promises its stream for good, so a run resumes after an upgrade too.
    """
    bits = np.random.MT19937(np.random.SeedSequence([seed, epoch]))
    return np.random.RandomState(bits).permutation(items)


def step_count(items: int, global_batch: int) -> int:
    """Steps of an epoch; the last, partial one counts."""
    return -(-items // global_batch)


def step_items(order: np.ndarray, step: int, global_batch: int) -> np.ndarray:
    """The rows of an optimiser step, of all processes and accumulated batches.

    Args:
        order: the epoch's order, [items].
        step: number of the step within the epoch, from 0.
        global_batch: rows of a step.

    Raises:
        IndexError: the epoch has no such step.
    """
    if not 0 <= step < step_count(len(order), global_batch):
        raise IndexError(f"step {step} of {step_count(len(order), global_batch)} steps")
    return order[step * global_batch : (step + 1) * global_batch]


class Share(NamedTuple):
    """Which part of a step's rows one process reads in one of the batches that are accumulated.

    The rows of a step are chosen first and dealt out second, so that a step holds the same rows for 1, 2 or 8
    processes, and for any number of accumulated batches. Of a last, partial step a process may get less than another,
    or nothing.

    Args:
        step: number of the step within the epoch.
        batch: number of the batch within the step, from 0.
        batches: batches that are accumulated.
        rank: number of the process.
        world: how many processes there are.
    """

    step: int
    batch: int = 0
    batches: int = 1
    rank: int = 0
    world: int = 1

    def group(self, rows: np.ndarray) -> np.ndarray:
        """What all processes read at once: neighbours, so that rows that were sorted are alike."""
        return np.array_split(rows, self.batches)[self.batch]

    def own(self, rows: np.ndarray) -> np.ndarray:
        """What this process reads of that."""
        return self.group(rows)[self.rank :: self.world]

    def weight(self, rows: np.ndarray) -> float:
        """What the mean over this group counts in the mean over the step's rows, times `batches`: nearly 1."""
        return len(self.group(rows)) * self.batches / len(rows)
