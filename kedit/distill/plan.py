"""Which sentences make up step number k: edits made jointly, independently of each other, or one after another.

A pure function of (seed, epoch, step), so that a run resumes exactly. Knows row numbers; no text, no model.

Shapes: n rows of a step; E facts edited side by side, b rows of each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np

from kedit.running.order import epoch_order, step_count, step_items


@dataclass
class Protocol:
    """How the edits are made.

    Args:
        edits: joint (all facts at once), independent (each stage starts from the base model; with LoRA the facts of a
            stage are learned side by side, each by an adapter of its own) or sequential (each stage goes on from the
            one before, and every earlier fact is asked again).
        group: facts of a stage, for independent and sequential edits. By default one, but all of them for independent
            edits by LoRA. Without LoRA the facts of a stage are learned jointly.
        passes: times a stage goes through its sentences; for joint edits trainer.max_epochs serves as well.
        reference: the paper's algorithm: one sentence at a time, `repeats` consecutive steps on each, with a fresh
            optimiser for every sentence.
        repeats: these steps.
    """

    edits: Literal["joint", "independent", "sequential"] = "joint"
    group: int | None = None
    passes: int = 1
    reference: bool = False
    repeats: int = 5

    def __post_init__(self) -> None:
        for name in ("group", "passes", "repeats"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"data.protocol.{name} is {value}, wanted at least 1")
        if self.edits == "joint" and self.group is not None:
            raise ValueError(
                f"data.protocol.group is {self.group}, but joint edits are one group: for groups that each start from "
                "the base model take edits independent, for groups one after another sequential"
            )


@dataclass(frozen=True)
class Stage:
    """Facts that are learned together, and the steps of an epoch that are theirs: [first, first + steps)."""

    facts: tuple[int, ...]
    first: int
    steps: int


class Plan:
    """The steps of an epoch, stage by stage.

    Args:
        rows_of: the rows of each fact.
        protocol: how the edits are made.
        batch: rows of a step over all processes; where edits are made side by side, rows of each of them.
        seed: of the order.
        side_by_side: whether the facts of a stage are learned each by an adapter of its own.
        kept_of: regularising rows of each fact, of which every pass takes the next `ratio` for each of its own rows.
        ratio: how many these are.
    """

    def __init__(
        self, rows_of: Sequence[Sequence[int]], protocol: Protocol, batch: int, seed: int, side_by_side: bool,
        kept_of: Sequence[Sequence[int]] = (), ratio: float = 0.0,
    ) -> None:  # fmt: skip
        self.own_of = [np.asarray(rows, dtype=np.int64) for rows in rows_of]
        self.kept_of = [
            np.asarray(rows, dtype=np.int64)[epoch_order(len(rows), seed, 0)] for rows in kept_of or [[]] * len(rows_of)
        ]
        self.taken_of = [
            min(len(kept), round(ratio * len(own))) for own, kept in zip(self.own_of, self.kept_of, strict=True)
        ]
        self.protocol, self.seed, self.side_by_side = protocol, seed, side_by_side
        self.batch = 1 if protocol.reference else batch
        facts = [fact for fact, rows in enumerate(rows_of) if len(rows)]
        whole = protocol.edits == "joint" or (protocol.edits == "independent" and side_by_side)
        group = min(protocol.group or (len(facts) if whole else 1), len(facts))
        self.stages: list[Stage] = []
        first = 0
        sizes_of = [len(own) + taken for own, taken in zip(self.own_of, self.taken_of, strict=True)]
        if side_by_side:  # those of one size together: each has the steps that it has alone
            facts.sort(key=sizes_of.__getitem__)
        alike = [list(same) for _, same in groupby(facts, sizes_of.__getitem__ if side_by_side else lambda _: 0)]
        for members in (tuple(same[start : start + group]) for same in alike for start in range(0, len(same), group)):
            sizes = [sizes_of[fact] for fact in members]
            a_pass = step_count(max(sizes) if side_by_side else sum(sizes), self.batch)
            steps = a_pass * protocol.passes * (protocol.repeats if protocol.reference else 1)
            self.stages.append(Stage(members, first, steps))
            first += steps
        self.steps = first

    def rows_of(self, fact: int, turn: int) -> np.ndarray:
        """What is read of a fact in a pass: all its own rows, and the next of those that keep the model as it was."""
        taken = self.taken_of[fact]
        if not taken:
            return self.own_of[fact]
        next_ones = np.arange(turn * taken, (turn + 1) * taken)
        return np.concatenate([self.own_of[fact], np.take(self.kept_of[fact], next_ones, mode="wrap")])

    def stage_of(self, step: int) -> int:
        """Number of the stage that a step of the epoch belongs to."""
        return next(number for number, stage in enumerate(self.stages) if step < stage.first + stage.steps)

    def rows(self, epoch: int, step: int) -> np.ndarray:
        """The rows of a step: int64 [n], or [E, b] where edits are made side by side, all of one size.

        A stage's order is that of a run of its facts alone, so that an edit does not hang on those beside it.
        """
        stage = self.stages[self.stage_of(step)]
        step = (step - stage.first) // (self.protocol.repeats if self.protocol.reference else 1)
        steps = stage.steps // self.protocol.passes // (self.protocol.repeats if self.protocol.reference else 1)
        turn, step = divmod(step, steps)
        turn += epoch * self.protocol.passes
        if not self.side_by_side:
            rows = np.concatenate([self.rows_of(fact, turn) for fact in stage.facts])
            order = rows[epoch_order(len(rows), self.seed, turn)]
            return step_items(order, step, self.batch)
        picked = []
        for fact in stage.facts:
            rows = self.rows_of(fact, turn)
            order = rows[epoch_order(len(rows), self.seed, turn)]
            picked.append(step_items(order, step, self.batch))
        return np.stack(picked)
