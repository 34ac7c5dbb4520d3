"""The order of training data as a pure function of (seed, epoch, batch): nothing to save, the same for any number of
processes. Knows row numbers only.
"""

import numpy as np


def epoch_order(items: int, seed: int, epoch: int) -> np.ndarray:
    """The rows 0 .. items - 1 in the order of this epoch, int64 [items].

    RandomState rather than Generator: numpy promises its stream for good, so a run resumes after an upgrade too.
    """
    bits = np.random.MT19937(np.random.SeedSequence([seed, epoch]))
    return np.random.RandomState(bits).permutation(items)


def batch_count(items: int, global_batch: int) -> int:
    """Batches in an epoch; the last, partial one counts."""
    return -(-items // global_batch)


def batch_items(order: np.ndarray, batch: int, global_batch: int, rank: int = 0, world: int = 1) -> np.ndarray:
    """The rows of one process in global batch number `batch`.

    The global batch is cut first and dealt out second: it holds the same rows for 1, 2 or 8 processes. In a last,
    partial batch a process may get one row less than another, or none.

    Args:
        order: the epoch's order, [items].
        batch: number of the batch within the epoch, from 0.
        global_batch: rows in a batch, over all processes.
        rank: number of this process.
        world: how many processes there are.

    Raises:
        IndexError: the epoch has no such batch.
    """
    if not 0 <= batch < batch_count(len(order), global_batch):
        raise IndexError(f"batch {batch} of {batch_count(len(order), global_batch)} batches")
    return order[batch * global_batch : (batch + 1) * global_batch][rank::world]
