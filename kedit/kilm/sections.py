"""A page's sections by its heading lines, found without parsing: so the lead is cut out before anything is parsed.

Knows wikitext's headings; knows nothing of links or text.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator
from typing import Literal

from kedit.kilm.markup import DROPPED_SECTIONS

Setting = Literal["lead", "full"]


def sections(wikitext: str) -> list[tuple[str, int, int, int]]:
    """Sections as (heading, level, start, end of the body); the first is the lead, with heading "" and level 0.

    A line like `== x ==` inside a comment or a closed template is no heading.
    """
    protected: list[tuple[int, int]] | None = None
    found = [("", 0, 0, len(wikitext))]
    position = 0 if wikitext.startswith("==") else wikitext.find("\n==") + 1
    while position or wikitext.startswith("=="):
        end_of_line = wikitext.find("\n", position)
        end_of_line = len(wikitext) if end_of_line < 0 else end_of_line
        line = wikitext[position:end_of_line].partition("<!--")[0].rstrip()
        level = min(len(line) - len(line.lstrip("=")), len(line) - len(line.rstrip("=")), 6)
        if level >= 2 and len(line) > 2 * level:
            if protected is None and not _balanced(wikitext, found[-1][2], position):
                protected = _protected(wikitext)
            if protected is None or not _inside(protected, position):
                heading, old_level, start, _ = found[-1]
                found[-1] = (heading, old_level, start, max(position - 1, 0))
                found.append((line.strip("=").strip(), level, end_of_line, len(wikitext)))
        position = wikitext.find("\n==", end_of_line) + 1
        if not position:
            break
    return found


def _balanced(text: str, start: int, end: int) -> bool:
    return text.count("{{", start, end) == text.count("}}", start, end) and (
        text.count("<!--", start, end) == text.count("-->", start, end)
    )


def _protected(text: str) -> list[tuple[int, int]]:
    """Comments, nowiki and closed templates (the outermost), as sorted spans."""
    spans: list[tuple[int, int]] = []
    opened: list[int] = []
    for match in re.finditer(r"<!--.*?-->|<nowiki>.*?</nowiki>|\{\{|\}\}", text, re.DOTALL | re.IGNORECASE):
        mark = match.group()
        if mark == "{{":
            opened.append(match.start())
        elif mark != "}}":
            spans.append(match.span())
        elif opened:
            start = opened.pop()
            while spans and spans[-1][0] > start:
                spans.pop()
            spans.append((start, match.end()))
    return spans


def _inside(spans: list[tuple[int, int]], position: int) -> bool:
    before = bisect_right(spans, (position, 0)) - 1
    return before >= 0 and position < spans[before][1]


def stretches(wikitext: str, setting: Setting) -> Iterator[tuple[int, int, str]]:
    """The bodies of the sections as (start, end, why it is left out); "" for what is read."""
    dropped_level = 0
    for heading, level, start, end in sections(wikitext):
        if level and setting == "lead":
            yield start, len(wikitext), "outside the lead"
            return
        if not dropped_level or level <= dropped_level:
            dropped_level = level if heading.replace("'", "").strip(" :").lower() in DROPPED_SECTIONS else 0
        yield start, end, "in a dropped section" if dropped_level else ""
