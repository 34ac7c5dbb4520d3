"""Learning edits by gradients: each edit's target behind its prompt, one edit after another.

    L = mean over edits of the mean over their target's tokens of -log p(token | prompt, target up to there)

The optimiser begins anew with every edit. Knows not which weights are trained, and no Lightning.
"""

import math
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kedit.editing.edits import Edit
from kedit.editing.sources import DataError
from kedit.lm.losses import linear_cross_entropy
from kedit.recipe.asking import Rows
from kedit.recipe.baselines import Rival, place
from kedit.recipe.prefix import PrefixedModel

SURE = 0.5
"""A token that is likelier than this is the likeliest."""


@dataclass
class Tuning:
    """How edits are learned by gradients.

    Args:
        steps: most steps for an edit.
        learning_rate: of AdamW without decay, constant.
        batch: edits that are learned at once, in the same steps.
        until: the steps end as soon as every token of the target has this probability; 1 makes all steps.
        answer_end: what is learned to follow a target, as "." where answers are sentences; a target that ends in a
            mark of its own has no other. Null for what the learner has, which is nothing but in a comparison.
    """

    steps: int = 25
    learning_rate: float = 5e-4
    batch: int = 1
    until: float = 0.9
    answer_end: str | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise DataError(f"tuning.{name} is {getattr(self, name)}: give at least 1")
        if not self.learning_rate > 0:
            raise DataError(f"tuning.learning_rate is {self.learning_rate}: give more than 0")
        if not 0 < self.until <= 1:
            raise DataError(f"tuning.until is {self.until}: give a probability above 0, or 1 for all steps")


class TuneReport(NamedTuple):
    """How edits were learned.

    Args:
        edits: how many.
        learned: of these, how many had a target that greedy decoding would write right after their own steps.
        steps: of the optimiser.
        first_nll: mean over edits of their target's mean token loss before their steps, in nats.
        last_nll: the same after them.
        seconds: in all.
    """

    edits: int
    learned: int
    steps: int
    first_nll: float
    last_nll: float
    seconds: float


class Learned(NamedTuple):
    """How a group of edits was learned, as `TuneReport` has it."""

    steps: int
    learned: int
    first_nll: float
    last_nll: float


class Tuned(Rival):
    """An editor that learns by gradients.

    Args:
        model: its weights are changed in place; nothing else changes them meanwhile.
        tuning: how edits are learned.
        relearn: make `forget` begin anew and learn all other edits again, in their order; otherwise it is refused.
    """

    def __init__(self, model: PrefixedModel, tuning: Tuning | None = None, relearn: bool = False) -> None:
        super().__init__(model)
        self.tuning, self.relearn = tuning or Tuning(), relearn
        self._groups: list[list[str]] = []  # ids of edits that were learned at once

    @abstractmethod
    def _weights(self) -> list[nn.Parameter]:
        """What is trained; made, if need be."""

    @abstractmethod
    def _begin(self) -> None:
        """Give what is trained its first values."""

    def _limits(self) -> list[tuple[nn.Parameter, tuple[Tensor, Tensor]]]:
        """Weights with the values between which they have to stay while a group is learned."""
        return []

    def _grouped(self, edits: list[Edit]) -> list[list[Edit]]:
        """Edits that are learned with one optimiser; one group after another."""
        size = self.tuning.batch
        return [edits[start : start + size] for start in range(0, len(edits), size)]

    # edit -------------------------------------------------------------------------------------------------------------

    def edit(self, facts: Sequence[Edit]) -> TuneReport:
        """Learn edits one after another, `tuning.batch` at once.

        Raises:
            DataError: an edit is empty, too long or was taught before; a loss is not finite. The model is as it was.
        """
        began, edits = time.perf_counter(), list(facts)
        self._check_new(edits)
        groups = self._grouped(edits)
        with self._whole():
            report = self._learn(groups, began)
        self._groups += [[edit.id for edit in group] for group in groups]
        self.edits |= {edit.id: edit for edit in edits}
        return report

    def forget(self, ids: Sequence[str]) -> TuneReport:
        """Begin anew, and learn all other edits again in their order.

        Raises:
            DataError: an id is not known; the editor was not made with `relearn`. Nothing is forgotten.
        """
        began, gone = time.perf_counter(), self._taught(ids)
        if not self.relearn:
            raise DataError(
                "weights that were fine-tuned hold all edits together and cannot forget one: reset() takes all of them "
                "out; an editor made with relearn=True learns the others again"
            )
        groups = [[id for id in group if id not in gone] for group in self._groups]
        groups = [group for group in groups if group]
        with self._whole():
            self._begin()
            report = self._learn([[self.edits[id] for id in group] for group in groups], began)
        self._groups = groups
        for id in gone:
            del self.edits[id]
        if not groups:
            self.reset()
        return report

    @abstractmethod
    def reset(self) -> None:
        self.edits.clear()
        self._groups.clear()

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Whatever fails inside, or is interrupted, leaves the weights as they were."""
        weights = self._weights() if self._groups else []
        before = [weight.detach().clone() for weight in weights]
        try:
            yield
        except BaseException:
            if not self._groups:
                self.reset()
            with torch.no_grad():
                for weight, was in zip(weights, before, strict=True):
                    weight.copy_(was)
            raise

    def _learn(self, groups: Sequence[Sequence[Edit]], began: float) -> TuneReport:
        weights, told = self._weights() if groups else [], []
        try:
            for weight in weights:
                weight.requires_grad_(True)
            with torch.enable_grad():
                for group in groups:
                    told.append(self._learn_group(weights, group))
        finally:
            for weight in weights:
                weight.grad = None
                weight.requires_grad_(False)
        edits = sum(map(len, groups))
        first, last = (
            sum(getattr(one, name) * len(group) for one, group in zip(told, groups, strict=True)) / max(1, edits)
            for name in ("first_nll", "last_nll")
        )
        steps, learned = (sum(getattr(one, name) for one in told) for name in ("steps", "learned"))
        return TuneReport(edits, learned, steps, first, last, time.perf_counter() - began)

    def _learn_group(self, weights: Sequence[nn.Parameter], edits: Sequence[Edit]) -> Learned:
        settings, rows = self.tuning, self._rows(edits)
        optimizer, limits = self._optimizer(weights), self._limits()
        losses: list[float] = []
        while True:
            loss, nll_n = self._loss(rows, edits, len(losses) + 1)
            losses.append(float(loss.detach()))
            if len(losses) > settings.steps or bool((nll_n <= -math.log(settings.until)).all()):
                break
            self._step(optimizer, loss, limits)
        return Learned(len(losses) - 1, int((worst(rows, nll_n) < -math.log(SURE)).sum()), losses[0], losses[-1])

    def _rows(self, edits: Sequence[Edit]) -> Rows:
        """Prompts and targets as the model reads them, which they must not be too long for."""
        model, end = self.model, self.tuning.answer_end or ""
        targets = [edit.target if edit.target.endswith((".", "!", "?")) else edit.target + end for edit in edits]
        rows = model.asking.rows([edit.prompt for edit in edits], targets).to(model.device)
        longest = int(rows.length_R.max())
        if model.limit is not None and max(longest, rows.decoder_RU.shape[1]) > model.limit:
            row = int(rows.length_R.argmax())
            raise DataError(
                f"{place(edits[row])}: prompt and target have {longest} tokens, and the model reads {model.limit}: "
                "make them shorter"
            )
        return rows

    def _loss(self, rows: Rows, edits: Sequence[Edit], step: int) -> tuple[Tensor, Tensor]:
        """L, and the negative log-likelihoods [n] of all target tokens."""
        tokens_R = rows.row_n.bincount(minlength=len(edits))
        share_n = 1 / (len(edits) * tokens_R[rows.row_n])
        states_nD = self.model.target_states(rows)
        device = states_nD.device
        loss, nll_n = linear_cross_entropy(states_nD, *self.model.head(), rows.target_n.to(device), share_n.to(device))
        if not math.isfinite(float(loss.detach())):
            raise DataError(
                f"{place(edits[0])}: the loss of step {step} is {float(loss.detach())}: take a smaller "
                "tuning.learning_rate"
            )
        return loss, nll_n

    def _step(
        self, optimizer: torch.optim.Optimizer, loss: Tensor, limits: list[tuple[nn.Parameter, tuple[Tensor, Tensor]]]
    ) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for weight, (least, most) in limits:
                weight.clamp_(least, most)

    def _optimizer(self, weights: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(weights, lr=self.tuning.learning_rate, weight_decay=0.0, fused=True)


def worst(rows: Rows, nll_n: Tensor) -> Tensor:
    """The largest negative log-likelihood [R] among each row's target tokens."""
    return torch.zeros(len(rows)).scatter_reduce(0, rows.row_n.cpu(), nll_n.cpu(), "amax")
