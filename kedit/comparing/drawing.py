"""Small SVG drawings as text: elements, scales, markers that are told apart without colour, and labels that keep apart.

Text is escaped by the XML writer. Knows no contestant.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, tostring

INK, MUTED, GRID = "#1b2330", "#55606f", "#dfe3e8"
SIZE = 12.5
"""Height of text, in pixels of the page: drawings are made for a width and not scaled up."""
LINE = 15
"""From one line of text to the next."""
_LETTER, _CAPITAL = 7.6, 9.8
"""Widths of letters at that size, on the large side."""
MARKERS = ("circle", "square", "triangle", "diamond", "cross", "plus", "down", "hourglass", "ring", "star")
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 4", "12 4", "1 4", "9 3 2 3 2 3", "3 6", "14 3 3 3")


@dataclass(frozen=True, slots=True)
class Style:
    """How a contestant is drawn everywhere: a colour, a marker and a dash."""

    colour: str
    marker: str
    dash: str


class Drawing:
    """An SVG with a name and a description for those who do not see it.

    Args:
        id: unique in the page.
        width: in pixels of the page.
        height: likewise.
        title: its name.
        description: what it shows, in words.
    """

    def __init__(self, id: str, width: int, height: int, title: str, description: str) -> None:
        self.width, self.height = width, height
        self.root = Element("svg", {
            "xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {width} {height}", "width": str(width),
            "height": str(height), "role": "img", "aria-labelledby": f"{id}-title {id}-desc",
            "font-size": str(SIZE), "fill": INK,
        })  # fmt: skip
        SubElement(self.root, "title", id=f"{id}-title").text = title
        SubElement(self.root, "desc", id=f"{id}-desc").text = description

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float = 1, dash: str = "",
             opacity: float = 1) -> None:  # fmt: skip
        """A line through points."""
        extra = {"stroke-dasharray": dash} if dash else {}
        extra |= {"stroke-opacity": f"{opacity:g}"} if opacity < 1 else {}
        SubElement(self.root, "polyline", {
            "points": " ".join(f"{x:.1f},{y:.1f}" for x, y in points), "fill": "none", "stroke": colour,
            "stroke-width": f"{width:g}", "stroke-linejoin": "round", **extra,
        })  # fmt: skip

    def text(self, x: float, y: float, text: str, anchor: str = "start", colour: str = INK, weight: str = "") -> None:
        """A line of text, its middle at the height y."""
        extra = {"font-weight": weight} if weight else {}
        SubElement(self.root, "text", {"x": f"{x:.1f}", "y": f"{y + SIZE * 0.35:.1f}", "text-anchor": anchor,
                                       "fill": colour, **extra}).text = text  # fmt: skip

    def marker(self, x: float, y: float, style: Style, hint: str = "", size: float = 5) -> None:
        """A contestant's marker; the hint is shown where a pointer rests on it."""
        place = SubElement(self.root, "g", {"transform": f"translate({x:.1f} {y:.1f})", "class": "marker"})
        if hint:
            SubElement(place, "title").text = hint
        add_marker(place, style, size)

    def __str__(self) -> str:
        return tostring(self.root, encoding="unicode")


def add_marker(parent: Element, style: Style, size: float = 5) -> None:
    """A marker around the origin."""
    s, solid = size, {"fill": style.colour, "stroke": "#fff", "stroke-width": "1"}
    open_ = {"fill": "none", "stroke": style.colour, "stroke-width": "2.4"}
    shapes = {
        "square": f"M{-s:g},{-s:g}h{2 * s:g}v{2 * s:g}h{-2 * s:g}z",
        "triangle": f"M0,{-1.2 * s:g}L{1.15 * s:g},{0.9 * s:g}H{-1.15 * s:g}z",
        "down": f"M0,{1.2 * s:g}L{1.15 * s:g},{-0.9 * s:g}H{-1.15 * s:g}z",
        "diamond": f"M0,{-1.3 * s:g}L{1.3 * s:g},0L0,{1.3 * s:g}L{-1.3 * s:g},0z",
        "star": f"M0,{-1.5 * s:g}L{0.4 * s:g},{-0.4 * s:g}L{1.5 * s:g},0L{0.4 * s:g},{0.4 * s:g}L0,{1.5 * s:g}"
        f"L{-0.4 * s:g},{0.4 * s:g}L{-1.5 * s:g},0L{-0.4 * s:g},{-0.4 * s:g}z",
        "hourglass": f"M{-1.1 * s:g},{-1.1 * s:g}H{1.1 * s:g}L{-1.1 * s:g},{1.1 * s:g}H{1.1 * s:g}z",
    }
    if style.marker in ("circle", "ring"):
        SubElement(
            parent, "circle", {"r": f"{s:g}"} | (solid if style.marker == "circle" else open_ | {"fill": "#fff"})
        )
    elif style.marker in ("cross", "plus"):
        path = f"M{-s:g},{-s:g}L{s:g},{s:g}M{-s:g},{s:g}L{s:g},{-s:g}" if style.marker == "cross" else (
            f"M{-1.2 * s:g},0H{1.2 * s:g}M0,{-1.2 * s:g}V{1.2 * s:g}"
        )  # fmt: skip
        SubElement(parent, "path", {"d": path, **open_})
    else:
        SubElement(parent, "path", {"d": shapes[style.marker], **solid})


def swatch(style: Style) -> str:
    """Line and marker of a style, to stand beside a name in a table."""
    root = Element("svg", {"class": "swatch", "viewBox": "-15 -8 30 16", "width": "30", "height": "16",
                           "aria-hidden": "true"})  # fmt: skip
    dash = {"stroke-dasharray": style.dash} if style.dash else {}
    SubElement(root, "path", {"d": "M-14,0H14", "stroke": style.colour, "stroke-width": "2", **dash})
    add_marker(root, style, 4.5)
    return tostring(root, encoding="unicode")


def wide(text: str) -> float:
    """About how many pixels a line of text takes."""
    return sum(_CAPITAL if letter.isupper() else _LETTER for letter in text)


def broken(text: str, letters: int) -> list[str]:
    """The text in lines of about so many letters, broken between words; at most two, the last cut short."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > letters and len(lines) < 2:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return [line if len(line) <= letters else f"{line[: letters - 1]}…" for line in lines]


def kept_apart(wanted: Sequence[float], heights: Sequence[float], low: float, high: float) -> list[float]:
    """Middles of labels near the wanted ones, in whose order they stand, that do not cover one another.

    Args:
        wanted: where each would best stand.
        heights: of each.
        low: where the first may begin.
        high: where the last must end, if there is room.
    """
    numbers = sorted(range(len(wanted)), key=lambda number: wanted[number])
    middles = list(wanted)
    edge = low
    for number in numbers:
        middles[number] = max(wanted[number], edge + heights[number] / 2)
        edge = middles[number] + heights[number] / 2
    edge = high
    for number in reversed(numbers):
        middles[number] = min(middles[number], edge - heights[number] / 2)
        edge = middles[number] - heights[number] / 2
    return middles
