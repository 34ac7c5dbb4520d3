"""A comparison as one self-contained HTML page: nothing is fetched, all text is escaped, no script but its own runs.

What it says comes from `verdict`, what stands in its tables from `columns`; here it is only put together.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from kedit.comparing import charts
from kedit.comparing.columns import MISSING, Column, all_columns, cells_of, cost_columns, main_columns
from kedit.comparing.drawing import swatch
from kedit.comparing.explanations import about, about_base, note, prices, words
from kedit.comparing.results import Comparison, Contestant
from kedit.comparing.standings import standings
from kedit.comparing.verdict import Verdict, cautions, verdicts

ASPECTS = {"reliability": "as told", "generality": "in other words", "portability": "what follows",
           "locality": "unrelated"}  # fmt: skip
KEPT = "of all taught so far, after 1, 10, 100, … of them"
GAINED = "new facts right, unrelated answers changed (square-root scale); upper left is best"
WIDTHS = (("wide", 580), ("narrow", 358))
"""Of a chart on a desk and on a phone, in pixels: the page shows one of the two."""
LONGEST = 300
"""Letters of an answer that are shown."""


def report_page(comparison: Comparison) -> str:
    """The page's HTML."""
    source = files("kedit.comparing")
    style, script, page = (
        source.joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js", "html")
    )
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(page)
    told = verdicts(comparison)
    use = {(one.base, one.use[0]) for one in told if one.use}
    digest = hashlib.sha256(script.encode()).digest()
    return template.render(
        comparison=comparison,
        about=about(comparison),
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(digest).decode(),
        cautions=cautions(comparison),
        cards=[_card(comparison, one) for one in told],
        any_use=bool(use),
        main=_grid("main", comparison, main_columns(comparison), use),
        cost=_grid("cost", comparison, cost_columns(), use, take_out=True),
        every=[
            {"title": title, **_grid(f"every-{number}", comparison, columns, use)}
            for number, (title, columns) in enumerate(all_columns(comparison).items())
        ],
        charts=_charts(comparison),
        examples=_examples(comparison),
        words=words(comparison),
    )


def _card(comparison: Comparison, one: Verdict) -> dict[str, Any]:
    names = [contestant.name for contestant in comparison.of(one.base)]
    first = next((found for found in standings(comparison.of(one.base)) if found.name in one.use[:1]), None)
    return {
        "about": about_base(comparison, one.base),
        "headline": one.headline,
        "ties": f"Not to be told from it: {', '.join(one.use[1:])}" if one.use[1:] else "",
        "sentences": [_with_names(sentence, names) for sentence in one.sentences],
        "gives": prices(first)[:2] if first else [],
        "takes": prices(first)[2:] if first else [],
    }


def _with_names(sentence: str, names: Sequence[str]) -> Markup:
    """The sentence, contestants in bold and intervals in one piece."""
    known = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    parts = []
    for part in re.split(rf"({known}|\[[^]]*–[^]]*\])", sentence):
        tag = "<b>{}</b>" if part in names else '<span class="nowrap">{}</span>' if part[:1] == "[" else "{}"
        parts.append(Markup(tag).format(part))
    return Markup().join(parts)


def _grid(
    name: str, comparison: Comparison, columns: Sequence[Column], use: set[tuple[str, str]], take_out: bool = False
) -> dict[str, Any]:
    """A table's columns, and by model its rows: those without figures last."""
    groups = []
    for base in comparison.bases:
        group = comparison.of(base.name)
        looks = charts.styles(group)
        rows: list[dict[str, Any]] = [
            {
                "name": one.name,
                "reason": one.reason,
                "status": one.status.capitalize(),
                "note": note(one),
                "swatch": Markup(swatch(looks[one.name])),
                "use": (base.name, one.name) in use,
                "cells": cells,
                "more": [_taken_out(one)] if take_out else [],
            }
            for one, cells in zip(group, cells_of(columns, group), strict=True)
        ]
        rows.sort(key=lambda row: bool(row["reason"]))
        if rows:
            groups.append({"about": about_base(comparison, base.name), "rows": rows})
    more = ["Can one fact be taken out again?"] if take_out else []
    return {"name": name, "columns": columns, "groups": groups, "more": more}


def _taken_out(one: Contestant) -> str:
    if one.method == "base":
        return MISSING.text
    can = {True: "Yes", False: "No", None: "Not known"}[one.costs.can_take_out]
    return f"{can}, {one.costs.take_out}" if one.costs.take_out else can


def _charts(comparison: Comparison) -> list[dict[str, Any]]:
    groups = []
    for number, base in enumerate(comparison.bases):
        group = comparison.of(base.name)
        looks, those = charts.styles(group), standings(group)
        kept = {size: Markup(charts.retention(group, looks, f"kept-{number}-{size}", width)) for size, width in WIDTHS}
        gain = {
            size: Markup(charts.gain_and_damage(those, looks, f"gain-{number}-{size}", width)) for size, width in WIDTHS
        }
        figures = [
            {"caption": "Facts still said", "note": KEPT, **kept},
            {"caption": "Gain against damage", "note": GAINED, **gain},
        ]
        if shown := [figure for figure in figures if figure["wide"]]:
            groups.append({"about": about_base(comparison, base.name), "figures": shown})
    return groups


def _examples(comparison: Comparison) -> list[dict[str, Any]]:
    """Each probe once, with what was said: right answers first, each with all who gave it."""
    several = len({one.base for one in comparison.contestants}) > 1
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for one in comparison.contestants:
        for example in one.examples:
            shown = found.setdefault((example.aspect, example.prompt), {
                "aspect": ASPECTS[example.aspect], "prompt": example.prompt, "wanted": example.wanted, "answers": {},
            })  # fmt: skip
            by_base = shown["answers"].setdefault((not example.right, _cut(example.said)), {})
            by_base.setdefault(one.base, []).append(one.name)
    for shown in found.values():
        shown["answers"] = [
            (said, not wrong, [(base if several else "", names) for base, names in by_base.items()])
            for (wrong, said), by_base in sorted(shown["answers"].items(), key=lambda answer: answer[0][0])
        ]
    return list(found.values())


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
