"""What is wrong with an input. A reader raises at the first problem; inside `collected` it leaves that record out, goes
on, and all problems are kept. Knows no file and no format.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeVar

from kedit.editing.sources import DataError

Record = TypeVar("Record")
Made = TypeVar("Made")


class BadInput(DataError):
    """A problem in its parts; the message is all of them.

    Args:
        where: file and line, or entry, row or byte.
        what: what came, and what was wanted.
        remedy: what to change.
        field: whose value is wrong; empty where it is the whole record.
        more: further problems of the same record.
    """

    def __init__(self, where: str, what: str, remedy: str = "", field: str = "", more: Sequence["BadInput"] = ()):
        super().__init__(": ".join(part for part in (where, what, remedy) if part))
        self.where, self.what, self.remedy, self.field, self.more = where, what, remedy, field, tuple(more)

    def __reduce__(self) -> tuple[type["BadInput"], tuple[object, ...]]:
        return type(self), (self.where, self.what, self.remedy, self.field, self.more)


@dataclass(frozen=True)
class Problem:
    """What is kept of an error: its parts, and not the frames that hold on to what was read."""

    where: str
    what: str
    remedy: str = ""
    field: str = ""


@dataclass
class Problems:
    """Problems in the order in which they were found.

    Args:
        limit: how many are kept; all are counted.
    """

    limit: int
    kept: list[Problem] = field(default_factory=list)
    count: int = 0

    def add(self, error: DataError) -> None:
        every: list[DataError] = [error, *getattr(error, "more", ())]
        for one in every:
            self.count += 1
            if len(self.kept) < self.limit:
                if isinstance(one, BadInput):
                    self.kept.append(Problem(one.where, one.what, one.remedy, one.field))
                else:
                    self.kept.append(Problem("", str(one)))


_COLLECTED: ContextVar[Problems | None] = ContextVar("problems", default=None)


@contextmanager
def collected(limit: int = 1000) -> Iterator[Problems]:
    """Inside, readers leave out what they would refuse, and it is told here; what they cannot go on after is, too."""
    problems = Problems(limit)
    token = _COLLECTED.set(problems)
    try:
        yield problems
    except DataError as error:
        problems.add(error)
    finally:
        _COLLECTED.reset(token)


def refuse(error: DataError) -> None:
    """Raise an error, or keep it where all are collected: the caller leaves the record out."""
    problems = _COLLECTED.get()
    if problems is None:
        raise error
    problems.add(error)


def refuse_together(wrong: Sequence[BadInput]) -> None:
    """Refuse a record for all that is wrong with it, if anything is.

    Raises:
        DataError: something is; the first is what is told.
    """
    if wrong:
        first = wrong[0]
        raise BadInput(first.where, first.what, first.remedy, first.field, wrong[1:])


def refuse_empty(error: DataError) -> None:
    """Raise that nothing was read, unless all there was has been refused, and told, already."""
    problems = _COLLECTED.get()
    if problems is None or not problems.count:
        raise error


def each(records: Iterable[tuple[str, Record]], read: Callable[[Record, str], Made]) -> Iterator[Made]:
    """What `read(record, where)` makes of every (where, record).

    Raises:
        DataError: `read` does, and nobody collects.
    """
    for where, record in records:
        try:
            made = read(record, where)
        except DataError as error:
            refuse(error)
        else:
            yield made
