"""The report's two charts, as inline SVG: facts kept over facts taught, and what is gained against what is harmed.

Each is drawn for a width in pixels, so that its labels are as large on a phone as on a desk.
"""

import math
from collections.abc import Mapping, Sequence
from random import Random

from kedit.comparing.drawing import DASHES, GRID, LINE, MARKERS, MUTED, Drawing, Style, broken, kept_apart, wide
from kedit.comparing.measures import share
from kedit.comparing.results import Contestant
from kedit.comparing.standings import Standing
from kedit.comparing.verdict import interval

COLOURS = {
    "base": "#6b7280", "prompt": "#111827", "finetune": "#b45309", "lora": "#be185d", "distill": "#1d4ed8",
    "recipe": "#047857", "kilm": "#7c3aed",
}  # fmt: skip
HEIGHT = 340
ORDERS = 12
"""In how many further orders labels are placed."""


def styles(group: Sequence[Contestant]) -> dict[str, Style]:
    """By name: a method's colour, and a marker and dash that no other contestant of the group has."""
    return {
        one.name: Style(COLOURS[one.method], MARKERS[number % len(MARKERS)], DASHES[number % len(DASHES)])
        for number, one in enumerate(group)
    }


def retention(group: Sequence[Contestant], looks: Mapping[str, Style], id: str, width: int) -> str:
    """Share of all facts taught so far that is still said, over their number; empty where no one has a curve."""
    curves = [one for one in group if one.retention]
    if not curves:
        return ""
    letters = 16 if width < 480 else 24
    names = [broken(one.name, letters) for one in curves]
    left, right, top, bottom = 44, 22 + max(wide(line) for lines in names for line in lines), 14, 44
    facts = sorted({point.facts for one in curves for point in one.retention})
    ends = "; ".join(f"{one.name} {interval(one.retention[-1].reliability)}" for one in curves)
    drawing = Drawing(id, width, HEIGHT, "Facts kept over facts taught",
                      f"After the most facts each was asked: {ends}.")  # fmt: skip

    span = math.log10(facts[-1] / facts[0]) or 1.0
    plot = width - left - right

    def x(number: int) -> float:
        return left + plot * math.log10(number / facts[0]) / span

    def y(value: float) -> float:
        return top + (HEIGHT - top - bottom) * (1 - value)

    for value in (0, 0.25, 0.5, 0.75, 1):
        drawing.line([(left, y(value)), (left + plot, y(value))], GRID)
        drawing.text(left - 7, y(value), share(value).replace("\u00a0", ""), "end", MUTED)
    shown: list[int] = []
    for number in reversed(facts):  # the last is the one that is spoken of
        if not shown or x(shown[-1]) - x(number) > wide(f"{shown[-1]:,}") + 6:
            shown.append(number)
            drawing.line([(x(number), y(0)), (x(number), y(0) + 5)], MUTED)
            drawing.text(x(number), y(0) + 15, f"{number:,}", "middle", MUTED)
    drawing.text(left + plot / 2, HEIGHT - 9, "facts taught", "middle", MUTED)
    for one in curves:
        look = looks[one.name]
        points = [(x(point.facts), y(point.reliability.mean)) for point in one.retention]
        for point in one.retention:
            if point.reliability.low is not None and point.reliability.high is not None:
                at = x(point.facts)
                drawing.line([(at, y(point.reliability.low)), (at, y(point.reliability.high))], look.colour, 1.5,
                             opacity=0.45)  # fmt: skip
        drawing.line(points, look.colour, 2, look.dash)
    for one in curves:
        for point in one.retention:
            hint = f"{one.name}, after {point.facts:,}: {interval(point.reliability)}"
            drawing.marker(x(point.facts), y(point.reliability.mean), looks[one.name], hint, 4.5)
    wanted = [y(one.retention[-1].reliability.mean) for one in curves]
    middles = kept_apart(wanted, [LINE * len(lines) + 1 for lines in names], 0, HEIGHT - bottom + 10)
    for one, lines, end, middle in zip(curves, names, wanted, middles, strict=True):
        last = x(one.retention[-1].facts)
        drawing.line([(last + 6, end), (left + plot + 14, middle)], looks[one.name].colour, 0.8, opacity=0.7)
        for row, text in enumerate(lines):
            drawing.text(left + plot + 17, middle + LINE * (row - (len(lines) - 1) / 2), text,
                         colour=looks[one.name].colour, weight="600")  # fmt: skip
    return str(drawing)


def gain_and_damage(those: Sequence[Standing], looks: Mapping[str, Style], id: str, width: int) -> str:
    """New facts right, upwards, against unrelated answers changed, to the right on a square-root scale."""
    if not those:
        return ""
    left, right, top, bottom = 44, 24, 14, 44
    said = "; ".join(f"{one.name} {share(one.right.mean)} and {share(one.damage.mean)}" for one in those)
    drawing = Drawing(id, width, HEIGHT, "New facts right against unrelated answers changed",
                      f"The upper left is best. New facts right and unrelated answers changed: {said}.")  # fmt: skip
    most = max(max(one.damage.high or 0, one.damage.mean) for one in those)
    end = next(value for value in (0.05, 0.1, 0.25, 0.5, 1) if most <= value or value == 1)
    plot = width - left - right

    def x(value: float) -> float:
        return left + plot * math.sqrt(max(value, 0) / end)

    def y(value: float) -> float:
        return top + (HEIGHT - top - bottom) * (1 - value)

    for value in (0, 0.25, 0.5, 0.75, 1):
        drawing.line([(left, y(value)), (left + plot, y(value))], GRID)
        drawing.text(left - 7, y(value), share(value).replace("\u00a0", ""), "end", MUTED)
    for value in (0, 0.01, 0.05, 0.1, 0.25, 0.5, 1):
        if value <= end:
            drawing.line([(x(value), y(0)), (x(value), y(1))], GRID)
        if value <= end and (value != 0.05 or x(0.1) - x(0.05) > 36):
            drawing.text(x(value), y(0) + 15, share(value).replace("\u00a0", ""), "middle", MUTED)
    drawing.text(left + plot / 2, HEIGHT - 9, "unrelated answers changed", "middle", MUTED)
    bars: list[Box] = []
    for one in those:
        at, height, look = x(one.damage.mean), y(one.right.mean), looks[one.name]
        if one.right.low is not None and one.right.high is not None:
            bars.append((at, y(one.right.high), at, y(one.right.low)))
            drawing.line([bars[-1][:2], bars[-1][2:]], look.colour, 1.5, opacity=0.45)
        if one.damage.low is not None and one.damage.high is not None:
            bars.append((x(one.damage.low), height, x(one.damage.high), height))
            drawing.line([bars[-1][:2], bars[-1][2:]], look.colour, 1.5, opacity=0.45)
    lines = [broken(one.name, 16 if width < 480 else 24) for one in those]
    points = [(x(one.damage.mean), y(one.right.mean)) for one in those]
    places = _labels(points, lines, bars, width)
    for one, text, (at, height), (box, anchor) in zip(those, lines, points, places, strict=True):
        look = looks[one.name]
        drawing.marker(at, height, look, f"{one.name}: {interval(one.right)} right, {interval(one.damage)} changed", 6)
        middle, edge = (box[1] + box[3]) / 2, box[0] if anchor == "start" else box[2]
        if _distance(box, (at, height)) > 11:
            nearest = (min(max(at, box[0] - 2), box[2] + 2), min(max(height, box[1]), box[3]))
            drawing.line([(at, height), nearest], look.colour, 0.8, opacity=0.7)
        for row, words in enumerate(text):
            drawing.text(edge, middle + LINE * (row - (len(text) - 1) / 2), words, anchor, look.colour, "600")
    return str(drawing)


Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""
Place = tuple[Box, str]
"""A label's box, and the end of its text that is nearer to its point."""


def _labels(
    points: Sequence[tuple[float, float]], lines: Sequence[Sequence[str]], bars: Sequence[Box], width: int
) -> list[Place]:
    """Places for labels beside points: of several orders of placing them one by one, the one that is least crowded."""
    random, orders = Random(0), [list(range(len(points)))]
    for _ in range(ORDERS):
        orders.append(random.sample(orders[0], len(points)))
    best: tuple[float, dict[int, Place]] = (math.inf, {})
    for order in orders:
        taken = [(x - 8, y - 8, x + 8, y + 8) for x, y in points]
        taken += [(left - 1, top - 1, right + 1, bottom + 1) for left, top, right, bottom in bars]
        total, found = 0.0, {}
        for number in order:
            cost, found[number] = _free_place(number, points, lines[number], taken, width)
            taken.append(found[number][0])
            total += cost
        best = min(best, (total, found), key=lambda one: one[0])
    return [best[1][number] for number in range(len(points))]


def _free_place(
    number: int, points: Sequence[tuple[float, float]], lines: Sequence[str], taken: Sequence[Box], width: int
) -> tuple[float, Place]:
    """Where beside its point a label covers little of what is taken and is nearer to its own point than to others."""
    (x, y), size, height = points[number], max(map(wide, lines)), LINE * len(lines)
    places: list[tuple[float, Place]] = []
    for far in (10, 20, 40, 70, -size / 2, -size):
        for rise in (0, -14, 14, -26, 26, -42, 42, -60, 60):
            for anchor, start in (("start", x + far), ("end", x - far - size)):
                box = (start, y + rise - height / 2, start + size, y + rise + height / 2)
                cost = 1e6 * (box[0] < 46 or box[2] > width or box[1] < 0 or box[3] > HEIGHT - 42)
                cost += sum(6 * _common(box, other) for other in taken)
                own = _distance(box, points[number])
                cost += sum(200 for other in points if _distance(box, other) < own) + 2 * own + abs(rise) / 2
                places.append((cost, (box, anchor)))
    return min(places, key=lambda place: place[0])


def _distance(box: Box, point: tuple[float, float]) -> float:
    x, y = point
    return math.hypot(max(box[0] - x, 0, x - box[2]), max(box[1] - y, 0, y - box[3]))


def _common(one: Box, other: Box) -> float:
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    return across * down if across > 0 and down > 0 else 0
