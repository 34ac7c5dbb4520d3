"""Learning edits by gradients all together: times through them in shuffled mini-batches, with one optimiser.

The loss is that of `tuning`. Knows not which weights are trained, and no Lightning.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from kedit.editing.edits import Edit
from kedit.recipe.finetune import FineTune, LoraTune
from kedit.recipe.prefix import PrefixedModel
from kedit.recipe.tuning import SURE, Learned, Tuned, Tuning, worst
from kedit.running.order import epoch_order, step_count, step_items

Lessons = Callable[[Sequence[Edit]], Sequence[Edit]]
"""What is learned for edits: prompts with their targets, as further edits."""


class Joint(Tuned):
    """Learns all edits of a call together.

    Of `tuning`, `steps` is how many times at most it goes through them, `batch` how many are learned in a step, and
    `until` ends it after a time through at which every token was as likely when its turn came. What the report tells of
    the end was seen at the last time through.

    Args:
        model: its weights are changed in place; nothing else changes them meanwhile.
        tuning: how edits are learned.
        order: seed of the mini-batches.
        lessons: what is learned for the edits of a call; by default these themselves.
        more: of the kind of fine-tuning.
    """

    def __init__(
        self, model: PrefixedModel, tuning: Tuning | None = None, *, order: int = 0, lessons: Lessons | None = None,
        **more: Any,
    ) -> None:  # fmt: skip
        super().__init__(model, tuning, **more)
        self.order, self.lessons = order, lessons

    def _grouped(self, edits: list[Edit]) -> list[list[Edit]]:
        return [edits] if edits else []

    def _learn_group(self, weights: Sequence[nn.Parameter], edits: Sequence[Edit]) -> Learned:
        settings, lessons = self.tuning, list(edits if self.lessons is None else self.lessons(edits))
        optimizer, limits = self._optimizer(weights), self._limits()
        steps, means = 0, []
        for turn in range(settings.steps):
            order = epoch_order(len(lessons), self.order, turn)
            total, seen = 0.0, []
            for number in range(step_count(len(lessons), settings.batch)):
                batch = [lessons[place] for place in step_items(order, number, settings.batch)]
                rows = self._rows(batch)
                loss, nll_n = self._loss(rows, batch, steps + 1)
                self._step(optimizer, loss, limits)
                total += float(loss.detach()) * len(batch)
                seen.append(worst(rows, nll_n.detach()))
                steps += 1
            means.append(total / len(lessons))
            worst_R = torch.cat(seen)
            if bool((worst_R <= -math.log(settings.until)).all()):
                break
        # of as many edits as there are, whatever their lessons
        learned = round(float((worst_R < -math.log(SURE)).float().mean()) * len(edits))
        return Learned(steps, learned, means[0], means[-1])


class JointFineTune(Joint, FineTune):
    """The model's own weights learn all edits of a call together; options as for `FineTune`."""


class JointLora(Joint, LoraTune):
    """One adapter learns all edits of a call together; options as for `LoraTune`."""
