"""Leftovers of markup out of plain text, white space folded, holes closed; the spans move along.

Knows character offsets; knows nothing of how wikitext is parsed.
"""

import re
from bisect import bisect_right
from collections.abc import Callable

# Markup that the parser could not close stays behind as text.
LEFTOVER = re.compile(
    r"\[\[|\]\]|\{\{+|\}\}+|\{\||\|\}|'''*|</?[a-zA-Z][^<>\n]{0,200}>|</?ref\b[^<>\n]*>?|<!--+|--+>|__[A-Z]{3,}__"
)
MARKS = ("[[", "]]", "{{", "}}", "{|", "|}", "''", "<", "-->", "__")
LEFTOVER_LINE = re.compile(r"^[ \t]*[|!}][^\n]*\n?", re.MULTILINE)  # rows of a table or a template never closed
BREAKS = "\n\r\v\f\x85\u2028\u2029"
INVISIBLE = "\u200b\u200e\u200f\ufeff\u2060\u00ad\x00-\x08"
# Each pattern starts with a plain set or letter, so that `re` skips the rest of the text fast.
SPACE = re.compile(rf"[\s{INVISIBLE}](?:[\s{INVISIBLE}]+|(?<! ))")
HOLE = re.compile(  # what a dropped template leaves behind: "( )", "(; ", " ,"
    r"  *(?:\([ ,;:/–-]*\)|\[ *\]|(?=[,;)](?!\w))|(?=\.(?:\s|$)))"
    r"|\([ ,;:/–-]*\)|\[ *\]|,[ ,;:]*(?=\)|\.(?:\s|$))|;[ ,;:]*(?=\))"
    r"|\([ ,;:]+(?P<opening>)|,(?: ?,)+(?= |$)(?P<comma>)"
)


def tidy(text: str, spans: list[list[int]]) -> tuple[str, list[list[int]], int]:
    """Remove leftovers, fold white space and close the holes of dropped templates; (text, spans, leftovers)."""
    leftovers = 0
    if "\n|" in text or "\n!" in text or "\n}" in text or text[:1] in "|!}":
        text, spans, count = edit(text, spans, LEFTOVER_LINE, _nothing)
        leftovers += count
    if any(mark in text for mark in MARKS):
        text, spans, count = edit(text, spans, LEFTOVER, _nothing)
        leftovers += count
    text, spans, _ = edit(text, spans, HOLE, _closed)
    text, spans, _ = edit(text, spans, SPACE, _folded)
    lead = len(text) - len(text.lstrip())
    text = text.strip()
    spans = [[min(max(a - lead, 0), len(text)), min(max(b - lead, 0), len(text))] for a, b in spans]
    if any(mark in text for mark in ("[[", "]]", "{{", "}}", "'''", "<ref")):  # two halves that met
        text, spans, count = tidy(text, spans)
        leftovers += count
    return text, spans, leftovers


def _nothing(match: re.Match[str]) -> str:
    return ""


def _closed(match: re.Match[str]) -> str:
    return match.group()[0] if match.lastgroup else ""


def _folded(match: re.Match[str]) -> str:
    space = match.group()
    if space == "\n":
        return space
    if not space.isspace():
        space = "".join(filter(str.isspace, space))
    return "\n" if any(mark in space for mark in BREAKS) else " " if space else ""


def edit(
    text: str, spans: list[list[int]], pattern: re.Pattern[str], new_text: Callable[[re.Match[str]], str]
) -> tuple[str, list[list[int]], int]:
    """Replace every match and move the spans along; (text, spans, number of replacements)."""
    starts: list[int] = []
    ends: list[int] = []
    moved = [0]
    pieces: list[str] = []
    last = 0
    for match in pattern.finditer(text):
        new = new_text(match)
        start, end = match.span()
        if end - start == 1 and new == text[start]:
            continue
        pieces.append(text[last:start])
        pieces.append(new)
        starts.append(start)
        ends.append(end)
        moved.append(moved[-1] + len(new) - (end - start))
        last = end
    if not starts:
        return text, spans, 0
    pieces.append(text[last:])

    def place(position: int) -> int:
        before = bisect_right(ends, position)
        if before < len(starts) and starts[before] < position:  # inside what was replaced
            return starts[before] + moved[before]
        return position + moved[before]

    return "".join(pieces), [[place(a), place(b)] for a, b in spans], len(starts)
