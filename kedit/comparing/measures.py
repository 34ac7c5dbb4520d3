"""Which figures a contestant can have, what each means and which way is better; how numbers are written for people."""

import re
from dataclasses import dataclass
from typing import Literal

from kedit.editing.edits import ASPECTS
from kedit.editing.stream_report import KINDS

Better = Literal["higher", "lower", "neither"]
Unit = Literal["share", "nats", "plain"]
SPACE = "\u00a0"
"""Between a number and its unit, where no line may break."""
PORTABILITY = ("one_hop", "two_hops", "alias", "inverse")
"""Kinds of what follows from a fact; other groups are taken, too."""
_ASPECT = re.compile(rf"({'|'.join(ASPECTS)})(?:/([a-z0-9_]+))?/({'|'.join(KINDS)})")
_WORDS = {
    "reliability": ("Told", "asked as it was told"),
    "generality": ("Reworded", "asked in other words"),
    "portability": ("Inferred", "what follows from a fact"),
    "locality": ("Unrelated kept", "what no fact concerns, answered as before"),
}
_KINDS = {
    "free": "the answer written freely is right",
    "forced": "share of the given answer's tokens that are the likeliest",
}


@dataclass(frozen=True, slots=True)
class Measure:
    """What a figure is.

    Args:
        label: what it is called in a table.
        meaning: what it says, in half a sentence.
        better: which way is better.
        unit: a share of 1, nats a token, or a number without a unit.
    """

    label: str
    meaning: str
    better: Better
    unit: Unit

    def write(self, value: float) -> str:
        """A value with its unit."""
        return share(value) if self.unit == "share" else f"{value:.3g}" if self.unit == "plain" else f"{value:.2f}"


_OTHERS = {
    "span_nll": Measure("Span NLL", "mean loss of the answers' tokens, nats", "lower", "nats"),
    "specificity_change": Measure(
        "Specificity change", "change of that loss on spans no fact concerns, nats", "neither", "nats"
    ),
    "perplexity/before": Measure("Perplexity before", "of held-out text, before the first fact", "neither", "plain"),
    "perplexity/after": Measure("Perplexity after", "of the same text, after the last fact", "lower", "plain"),
    "qa/before": Measure("QA before", "other questions answered rightly, before the first fact", "neither", "share"),
    "qa/after": Measure("QA after", "the same questions, after the last fact", "higher", "share"),
}
FIXED = tuple(f"{aspect}/{kind}" for kind in KINDS for aspect in ASPECTS) + tuple(
    f"portability/{group}/{kind}" for kind in KINDS for group in PORTABILITY
)
"""Figures of probes, in the order of a report."""


def measure(name: str) -> Measure | None:
    """What the figure of this name is: `ASPECT/KIND`, `ASPECT/GROUP/KIND` or one of those without probes; else None."""
    if found := _ASPECT.fullmatch(name):
        aspect, group, kind = found.groups()
        label, meaning = _WORDS[aspect]
        part = f": {group.replace('_', ' ')}" if group else ""
        mark = " (forced)" if kind == "forced" else ""
        return Measure(f"{label}{part}{mark}", f"{meaning}; {_KINDS[kind]}", "higher", "share")
    return _OTHERS.get(name)


def order(name: str) -> tuple[int, str]:
    """Sorts figures' names as a report has them."""
    known = [*FIXED, *_OTHERS]
    return (known.index(name), "") if name in known else (len(FIXED) - 1, name)


def share(value: float, sign: bool = False) -> str:
    """A share in per cent: whole ones, but tenths next to 0 and 100, so that nearly all is not written as all."""
    percent = 100 * value
    near_an_end = not sign and (0 < percent < 1 or 99 < percent < 100)
    text = f"{percent:.1f}" if near_an_end else f"{percent:+.0f}" if sign else f"{percent:.0f}"
    return {"100.0": ">99.9", "0.0": "<0.1", "-0": "0", "+0": "0"}.get(text, text).replace("-", "−") + f"{SPACE}%"


def seconds(value: float) -> str:
    """A time in the unit that makes it short; too short a one says nothing but that."""
    if value == 0:
        return "none"
    if value < 5e-5:
        return f"<0.1{SPACE}ms"
    for size, unit in ((3600, "h"), (60, "min"), (1, "s")):
        if value >= size * (0.995 if size > 1 else 0.1):
            return f"{_short(value / size)}{SPACE}{unit}"
    return f"{_short(1000 * value)}{SPACE}ms"


def amount(value: float) -> str:
    """Bytes in the unit that makes them short, by thousands."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size * 0.9995:
            return f"{_short(value / size)}{SPACE}{unit}"
    return "nothing" if value == 0 else f"{_short(value)}{SPACE}B"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}".removesuffix(".0") if value >= 0.995 else f"{value:.2g}"
