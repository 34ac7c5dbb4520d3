"""What the language model alone has at the targets of locality probes: computed once for each, and kept.

In batches that are always the same, so that a run that was resumed reads the same numbers, bit for bit. Knows no
network. Shapes: n target tokens, H width of final states.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from kedit.editing.edits import Edit
from kedit.recipe.prefix import PrefixedModel

BATCH = 32
Asked = tuple[str, str]
"""Prompt and target."""


class Unedited:
    """Final states of the unedited model at targets.

    Args:
        model: the frozen language model.
        edits: whose probes of locality may be asked for.
    """

    def __init__(self, model: PrefixedModel, edits: Iterable[Edit]) -> None:
        self.model = model
        every = {(one.prompt, one.span) for edit in edits for one in edit.asked("locality") if one.span}
        order = sorted(every, key=lambda asked: (len(asked[0]) + len(asked[1]), asked))
        self._batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
        self._batch_of = {asked: number for number, batch in enumerate(self._batches) for asked in batch}
        self._kept: dict[Asked, Tensor] = {}

    @torch.no_grad()
    def states(self, asked: Sequence[Asked]) -> Tensor:
        """Final states [n, H] that predict the targets' tokens, one probe after another."""
        for number in dict.fromkeys(self._batch_of[one] for one in asked if one not in self._kept):
            batch = self._batches[number]
            rows = self.model.asking.rows(*zip(*batch, strict=True))
            states_nH, row_n = self.model.target_states(rows).cpu(), rows.row_n
            self._kept |= {one: states_nH[row_n == place] for place, one in enumerate(batch)}
        return torch.cat([self._kept[one] for one in asked])
