"""Which documents share a row. Fixed for a run, so that every epoch has the same rows and resuming needs one number."""

import numpy as np

from kedit.lm.packing import best_fit

WINDOW = 4096
"""Documents packed together: rows mix what the seed's shuffle put near, not neighbours in length."""


class Rows:
    """Documents packed into rows of at most `budget` tokens.

    Args:
        documents: ids of the documents to pack.
        sizes: tokens of each.
        budget: most tokens in a row; larger documents must have been left out.
        seed: shuffles the documents before they are packed.
        packing: false for one document a row.
    """

    def __init__(self, documents: np.ndarray, sizes: np.ndarray, budget: int, seed: int, packing: bool = True):
        order = np.random.default_rng(seed).permutation(len(documents))
        documents, sizes = documents[order], sizes[order]
        if packing:
            packed = [
                row + start
                for start in range(0, len(documents), WINDOW)
                for row in best_fit(sizes[start : start + WINDOW], budget)
            ]
        else:
            packed = [np.array([index]) for index in range(len(documents))]
        self.budget = budget
        self.documents = documents[np.concatenate(packed)] if packed else documents
        self.starts = np.concatenate([[0], np.cumsum([len(row) for row in packed], dtype=np.int64)])

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.documents[self.starts[row] : self.starts[row + 1]]
