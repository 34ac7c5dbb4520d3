"""Long work says how far it is: a bar on a terminal, elsewhere a plain line now and then. Knows no Lightning."""

import math
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
EVERY = 10.0
"""Seconds between two plain lines."""


class Pace:
    """Prints a line with share, rate and time left, at most every so many seconds.

    Args:
        what: what is being done, as in "training".
        total: how much there is to do; None or infinite where unknown.
        unit: what is counted, in the plural.
        done: how much is done already.
        every: seconds between two lines.
    """

    def __init__(
        self, what: str, total: float | None = None, unit: str = "steps", done: int = 0, every: float | None = None
    ) -> None:
        self.what, self.unit = what, unit
        self.total = None if total is None or math.isinf(total) or total <= 0 else int(total)
        self.every = EVERY if every is None else every
        self._first, self._done, self._told = done, done, -1
        self._start = self._printed = time.monotonic()

    def at(self, done: int, more: str = "", last: bool = False) -> None:
        """Say how far it is, if it is time to, or at the end where anything was said before.

        Args:
            done: how much is done.
            more: added to the line.
            last: whether this is the end.
        """
        self._done = done
        if done != self._told and (self.is_due or (last and self._printed > self._start)):
            self._printed, self._told = time.monotonic(), done
            print(self.line(more), file=sys.stderr, flush=True)

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self._printed >= self.every

    def line(self, more: str = "") -> str:
        seconds = max(time.monotonic() - self._start, 1e-9)
        rate = (self._done - self._first) / seconds
        parts = [f"{self.what}: {self._done:,} {self.unit}"]
        if self.total is not None:
            parts = [f"{self.what}: {self._done:,} of {self.total:,} {self.unit} ({self._done / self.total:.0%})"]
        parts.append(f"{rate:,.3g} {self.unit}/s" if rate < 1000 else f"{rate:,.0f} {self.unit}/s")
        if self.total is not None and rate > 0:
            parts.append(f"{clock((self.total - self._done) / rate)} left")
        return ", ".join([*parts, more] if more else parts)


def clock(seconds: float) -> str:
    """A time as in 2:05, or 1:02:05."""
    minutes, second = divmod(int(max(seconds, 0)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def track(items: Iterable[Item], what: str, total: float | None = None, unit: str = "items") -> Iterator[Item]:
    """The same items, with progress shown while they are taken.

    Args:
        items: what to go through.
        what: what is being done.
        total: how many there are; by default their length where they have one.
        unit: what they are, in the plural.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if sys.stderr.isatty():
        yield from tqdm(items, desc=what, total=total, unit=f" {unit}", dynamic_ncols=True)
        return
    pace, done = Pace(what, total, unit), 0
    for item in items:
        yield item
        done += 1
        pace.at(done)
    pace.at(done, last=True)
