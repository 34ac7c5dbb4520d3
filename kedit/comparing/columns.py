"""Columns of a report's tables: what stands in each for a contestant, and which are the best of their group.

A number is marked as best where it cannot be told from the best of its model's contestants; the model as it is, which
changes nothing and costs nothing, is never marked, and none is where more than half of them would be. Knows no HTML.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kedit.comparing import standings
from kedit.comparing.measures import Better, amount, measure, order, seconds, share
from kedit.comparing.results import Comparison, Contestant, Figure


@dataclass(frozen=True, slots=True)
class Cell:
    """What stands in a table.

    Args:
        text: for people.
        value: to sort by; None sorts last.
        note: small print: an interval, or how.
        best: whether it is of the best of its group.
    """

    text: str
    value: float | None = None
    note: str = ""
    best: bool = False


MISSING = Cell("–")
"""What was not measured."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column.

    Args:
        key: unique in its table.
        head: its name.
        note: small print under it.
        better: which way is better.
        figure: what a contestant has there, with its interval where it has one.
        write: its values as text.
    """

    key: str
    head: str
    note: str
    better: Better
    figure: Callable[[Contestant], Figure | None]
    write: Callable[[float], str]

    def cells(self, group: Sequence[Contestant]) -> list[Cell]:
        """What stands in it for each contestant of one model."""
        figures = [self.figure(one) if one.status == "done" else None for one in group]
        rivals = [figure for one, figure in zip(group, figures, strict=True) if figure and one.method != "base"]
        best = self._best(rivals)
        marked = [
            best is not None and figure is not None and one.method != "base" and self._level(figure, best)
            for one, figure in zip(group, figures, strict=True)
        ]
        if 2 * sum(marked) > len(rivals):  # to mark most of them says nothing
            marked = [False] * len(group)
        return [
            MISSING if figure is None else Cell(
                self.write(figure.mean), figure.mean, _interval(figure, self.write), is_best
            )
            for figure, is_best in zip(figures, marked, strict=True)
        ]  # fmt: skip

    def _best(self, rivals: Sequence[Figure]) -> Figure | None:
        if self.better == "neither" or len(rivals) < 2:
            return None
        return (max if self.better == "higher" else min)(rivals, key=lambda figure: figure.mean)

    def _level(self, one: Figure, best: Figure) -> bool:
        if one.low is not None and best.low is not None:
            return one.ties(best)
        return self.write(one.mean) == self.write(best.mean)


def main_columns(comparison: Comparison) -> list[Column]:
    """What a choice is made by."""
    columns = []
    if aspects := standings.asked(comparison.contestants):
        note = f"mean of the next {len(aspects)}" if len(aspects) > 1 else "as the next"
        columns.append(Column("right", "New facts right", note, "higher", _right(comparison), share))
    for aspect, note in _NOTES.items():
        if any(f"{aspect}/free" in one.figures for one in comparison.contestants):
            columns.append(_of_figure(f"{aspect}/free", note))
    if facts := max((point.facts for one in comparison.contestants for point in one.retention), default=0):
        columns.append(Column("kept", f"Kept after {facts:,}", "of all of them", "higher", _kept_after(facts), share))
    return [*columns, *cost_columns()[:3]]


def cost_columns() -> list[Column]:
    """What a contestant takes."""
    return [
        _of_cost("seconds_per_fact", "Time a fact", "to teach it", seconds),
        _of_cost("training_seconds", "Training", "once, before facts", seconds),
        _of_cost(
            "added_inference_share", "Slower", "time of an answer", lambda value: share(value, sign=True), "neither"
        ),
        _of_cost("bytes_per_fact", "Stored", "a fact", amount),
        _of_cost("memory_bytes", "Memory", "most, while taught", amount),
    ]


def all_columns(comparison: Comparison) -> dict[str, list[Column]]:
    """Every figure that anyone has, by the title of its table."""
    tables: dict[str, list[Column]] = {}
    for name in sorted({name for one in comparison.contestants for name in one.figures}, key=order):
        title = _TITLES.get(name.split("/")[-1], "Loss of the answers, and what the model could do before")
        tables.setdefault(title, []).append(_of_figure(name))
    return tables


def cells_of(columns: Sequence[Column], group: Sequence[Contestant]) -> list[list[Cell]]:
    """What stands in all columns for each contestant of one model."""
    by_column = [column.cells(group) for column in columns]
    return [[cells[number] for cells in by_column] for number in range(len(group))]


_TITLES = {"free": "Answers written freely", "forced": "With the right answer given (forced)"}
_NOTES = {"reliability": "asked as told", "generality": "in other words", "portability": "what follows",
          "locality": "answered as before"}  # fmt: skip


def _right(comparison: Comparison) -> Callable[[Contestant], Figure | None]:
    aspects = {base.name: standings.asked(comparison.of(base.name)) for base in comparison.bases}
    return lambda one: standings.right(one, aspects[one.base])


def _kept_after(facts: int) -> Callable[[Contestant], Figure | None]:
    def figure(one: Contestant) -> Figure | None:
        point = standings.kept(one, facts)
        return point.reliability if point else None

    return figure


def _of_figure(name: str, note: str = "") -> Column:
    kind = measure(name)
    if kind is None:
        raise KeyError(name)
    return Column(name, kind.label, note, kind.better, lambda one: one.figures.get(name), kind.write)


def _of_cost(name: str, head: str, note: str, write: Callable[[float], str], better: Better = "lower") -> Column:
    def figure(one: Contestant) -> Figure | None:
        return None if (value := getattr(one.costs, name)) is None else Figure(value)

    return Column(name, head, note, better, figure, write)


def _interval(figure: Figure, write: Callable[[float], str]) -> str:
    if figure.low is None or figure.high is None:
        return ""
    low, high = (write(end).removesuffix("\u00a0%") for end in (figure.low, figure.high))
    return f"{low}–{high}"
