"""An edit stream: edits made one after another in one model, which is judged on the way and after all. Knows no method.

Each edit is judged right after it was made; all earlier ones after 1, 10, 100, ... edits, which shows what is
forgotten; everything after the last. Both on drawn samples where asking all would take too long.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol, runtime_checkable

import torch

from kedit.editing.editor import Editor
from kedit.editing.edits import Edit, check_edits
from kedit.editing.judging import Cut, Judge, Judged, Verdicts, joined
from kedit.editing.probes import Probe
from kedit.editing.sources import DataError
from kedit.editing.stream_report import Point, StreamReport

ROUNDS = 3
"""How often generation is timed; the median counts."""


@runtime_checkable
class EditedModel(Editor[Edit], Judged, Protocol):
    """An editor whose model can be judged."""


@dataclass(frozen=True)
class Stream:
    """How edits are made and judged.

    Args:
        batch: edits that are made at once. The stream stops for judging wherever it is due, so that what is judged
            does not depend on this; where a method's edits depend on their company, its results do.
        immediate: edits that are judged right after they were made, drawn from all.
        retained: most edits that are judged after 1, 10, 100, ... edits, drawn from those made until then.
        final: most edits that are judged after the last one, drawn from all; null for all.
        max_new_tokens: most tokens that are written freely.
        cut: where what is written ends as an answer: with its line, or with its first sentence.
        timed: edits by whose probes generation is timed.
        seed: of the draws.
    """

    batch: int = 1
    immediate: int = 200
    retained: int = 1000
    final: int | None = None
    max_new_tokens: int = 32
    cut: Cut = "sentence"
    timed: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("immediate", 0), ("retained", 1), ("max_new_tokens", 1), ("timed", 0)):
            if getattr(self, name) < least:
                raise DataError(f"stream.{name} is {getattr(self, name)}: give at least {least}")
        if self.final is not None and self.final < 1:
            raise DataError(f"stream.final is {self.final}: give at least 1, or null for all edits")


def seconds() -> float:
    """A clock that runs only when all devices have done what they were given."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for device in range(torch.cuda.device_count()):
            torch.cuda.synchronize(device)
    return time.perf_counter()


def run(
    editor: EditedModel,
    edits: Sequence[Edit],
    stream: Stream | None = None,
    base: Judged | None = None,
    false_activation_rate: Callable[[], float] | None = None,
    perplexity: Callable[[Judged], float] | None = None,
    clock: Callable[[], float] = seconds,
    told: Callable[[Point], None] | None = None,
) -> StreamReport:
    """Make edits in an editor that has none, and judge it.

    Args:
        editor: as it is before its first edit; it keeps the edits.
        edits: in the order in which they are made.
        stream: how they are made and judged.
        base: the unedited model, judged before the first edit and timed beside the editor after the last one; by
            default the editor itself before its edits, and then no time is told.
        false_activation_rate: asked after all edits: the share of queries that no edit concerns and one fired at.
        perplexity: the general ability of a model, asked before the first and after the last edit.
        clock: seconds, after all that was begun has ended.
        told: called with each point of the lifelong curve as soon as it is there.

    Raises:
        DataError: there are no edits, or one fails `check_edits`.
    """
    stream = stream or Stream()
    unedited = editor if base is None else base
    if not edits:
        raise DataError("there are no edits to judge: check the source's file and limit")
    conflicts = check_edits(edits)
    plan = _Plan(len(edits), stream)
    judge = Judge(stream.max_new_tokens, stream.cut)
    judge.remember(unedited, _probes(edits, plan.judged))
    timed = list(dict.fromkeys(probe.prompt for probe in _probes(edits, plan.timed)))
    before = None if perplexity is None else perplexity(unedited)

    durations: list[tuple[int, float]] = []
    immediate: list[Verdicts] = []
    curve: list[Point] = []
    start = 0
    for end in plan.stops:
        began = clock()
        editor.edit(edits[start:end])
        durations.append((end - start, clock() - began))
        start = end
        if end - 1 in plan.immediate:
            immediate.append(judge(editor, _probes(edits, [end - 1])))
        if end in plan.points:
            verdicts = judge(editor, _probes(edits, plan.after(end)))
            curve.append(Point(end, verdicts.means()))
            if told is not None:
                told(curve[-1])

    whole = [duration for duration in durations if duration[0] == stream.batch] or durations
    return StreamReport(
        edits=len(edits),
        conflicts=conflicts,
        final=verdicts,  # the last point is that of all edits
        immediate=joined(immediate),
        curve=curve,
        edit_seconds=sum(spent for _, spent in whole) / sum(made for made, _ in whole),
        added_inference_share=None
        if base is None or not timed
        else added_inference_share(base, editor, timed, stream.max_new_tokens, clock),
        false_activation_rate=None if false_activation_rate is None else false_activation_rate(),
        perplexity=None if perplexity is None or before is None else (before, perplexity(editor)),
    )


class _Plan:
    """Which edits are judged when, by their numbers; the same whatever the batch."""

    def __init__(self, edits: int, stream: Stream) -> None:
        self.order = Random(stream.seed).sample(range(edits), edits)
        self.edits, self.stream = edits, stream
        self.immediate = set(self.order[: stream.immediate])
        self.timed = sorted(self.order[: stream.timed])
        self.points = {edits, *points_before(edits)}
        self.judged = sorted(self.immediate.union(*map(self.after, self.points)))
        held = sorted({number + 1 for number in self.immediate} | self.points)
        self.stops: list[int] = []
        start = 0
        for stop in held:
            self.stops += [*range(start + stream.batch, stop, stream.batch), stop]
            start = stop

    def after(self, made: int) -> list[int]:
        """The edits that are judged when so many are made."""
        most = self.stream.final if made == self.edits else self.stream.retained
        return sorted([number for number in self.order if number < made][:most])


def _probes(edits: Sequence[Edit], numbers: Iterable[int]) -> list[Probe]:
    return [probe for number in numbers for probe in edits[number].all_probes]


def points_before(edits: int) -> list[int]:
    """1, 10, 100, ... edits, as long as more come."""
    return [10**power for power in range(len(str(edits))) if 10**power < edits]


def added_inference_share(
    base: Judged,
    editor: Judged,
    prompts: Sequence[str],
    max_new_tokens: int,
    clock: Callable[[], float] = seconds,
    rounds: int = ROUNDS,
) -> float:
    """How much longer the editor's answers take than the unedited model's, as a share: medians of rounds in turn, so
    that other work on the machine slows both, after one to warm up.
    """
    taken: dict[str, list[float]] = {"base": [], "editor": []}
    for turn in range(rounds + 1):
        for name, model in (("base", base), ("editor", editor)):
            began = clock()
            model.generate(prompts, max_new_tokens=max_new_tokens)
            if turn:
                taken[name].append(clock() - began)
    medians = {name: statistics.median(each) for name, each in taken.items()}
    return medians["editor"] / medians["base"] - 1
