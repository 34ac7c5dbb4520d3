"""Where a short answer ends: a rule on its text, asked while it is written. Knows no model."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

Stop = Callable[[str], int | None]
"""Where a continuation ends; None as long as it goes on."""
LOOK_EVERY = 4
"""Steps between two looks at what is finished."""


def ends_at(*marks: str) -> Stop:
    """A rule for short answers: the text ends before the first of these marks, as in a newline or a full stop."""

    def stop(text: str) -> int | None:
        found = [text.find(mark) for mark in marks if mark in text]
        return min(found, default=None)

    return stop


class Stopping(StoppingCriteria):
    """Ends rows by what they have written.

    Args:
        is_done: told a row and its new ids.
        rows: how many there are; of each several beams may come.
        start: how many ids stand before the new ones.
        every: steps between two looks.
    """

    def __init__(self, is_done: Callable[[int, list[int]], bool], rows: int, start: int, every: int) -> None:
        self.is_done, self.rows, self.start, self.every = is_done, rows, start, every

    def __call__(self, input_ids: Tensor, scores: Tensor | None, **_: Any) -> Tensor:
        written = input_ids[:, self.start :]
        done = [False] * len(written)
        if written.shape[1] % self.every == 0:
            beams = len(written) // self.rows
            done = [self.is_done(beam // beams, ids) for beam, ids in enumerate(written.tolist())]
        return torch.tensor(done, device=input_ids.device)
