"""A comparison as Markdown: the same verdict and tables as the page has, without its drawings."""

from collections.abc import Sequence

from kedit.comparing.columns import Cell, Column, all_columns, cells_of, cost_columns, main_columns
from kedit.comparing.explanations import about, about_base, note, words
from kedit.comparing.results import Comparison
from kedit.comparing.standings import kept
from kedit.comparing.verdict import cautions, interval, verdicts


def report_text(comparison: Comparison) -> str:
    """The report."""
    parts = [_head(comparison), "## Side by side"]
    parts.append("Bold: best of its model, or not to be told from the best. In brackets: 95 % intervals.")
    parts += _tables(comparison, main_columns(comparison))
    if curves := _curves(comparison):
        parts += ["## Facts still said, of all taught so far", *curves]
    parts += ["## Cost", *_tables(comparison, cost_columns())]
    if any(one.examples for one in comparison.contestants):
        parts += ["## Examples", _examples(comparison)]
    for title, columns in all_columns(comparison).items():
        parts += [f"## {title}", *_tables(comparison, columns)]
    parts += ["## How it was measured", "\n".join(f"- **{name}**: {escaped(text)}" for name, text in words(comparison))]
    parts += ["## Again", _fenced(comparison.command), _fenced(comparison.config)]
    return "\n\n".join(parts) + "\n"


def summary_text(comparison: Comparison) -> str:
    """The verdict and the main table, for a terminal: columns that line up, and no marks."""
    lines = [*cautions(comparison)]
    for one in verdicts(comparison):
        lines += ["", f"{about_base(comparison, one.base)}", one.headline, *one.sentences]
        group = comparison.of(one.base)
        done = [each for each in group if each.status == "done"]
        if done:
            columns = main_columns(comparison)
            cells = cells_of(columns, done)
            rows = [["", *(column.head for column in columns)]]
            rows += [[each.name, *(cell.text for cell in row)] for each, row in zip(done, cells, strict=True)]
            lines += ["", *_lined_up(rows)]
        lines += [f"{each.name}: {said}" for each in done if (said := note(each))]
        lines += [f"{each.name}: {each.status}: {each.reason}" for each in group if each.status != "done"]
    return "\n".join(lines).strip() + "\n"


def _head(comparison: Comparison) -> str:
    parts = [f"# {escaped(comparison.title)}", escaped(about(comparison))]
    parts += [f"> **Note:** {escaped(caution)}" for caution in cautions(comparison)]
    parts.append("## Which should I use, and what does it cost me?")
    for one in verdicts(comparison):
        parts.append(f"### {escaped(about_base(comparison, one.base))}\n\n**{escaped(one.headline)}**")
        parts += map(escaped, one.sentences)
    return "\n\n".join(parts)


def _lined_up(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        numbers = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *numbers]))
    return lines


def escaped(text: str) -> str:
    """The text as Markdown shows it: one line, nothing of it taken for marks, tags or the bar between two cells."""
    flat = text.replace("\r", " ").replace("\n", " ")
    for mark in "\\`*_[]|#":
        flat = flat.replace(mark, f"\\{mark}")
    return flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _tables(comparison: Comparison, columns: Sequence[Column]) -> list[str]:
    parts = []
    for base in comparison.bases:
        group = comparison.of(base.name)
        done = [one for one in group if one.status == "done"]
        if done:
            rows = [
                [escaped(one.name), *map(_cell, cells)]
                for one, cells in zip(done, cells_of(columns, done), strict=True)
            ]
            parts.append(_table([escaped(base.name), *(column.head for column in columns)], rows))
        if noted := [one for one in done if note(one)]:
            parts.append("\n".join(f"- {escaped(one.name)}: {note(one)}" for one in noted))
        if without := [one for one in group if one.status != "done"]:
            parts.append("\n".join(f"- {escaped(one.name)}: {one.status}, {escaped(one.reason)}" for one in without))
    return parts


def _cell(cell: Cell) -> str:
    text = f"**{escaped(cell.text)}**" if cell.best else escaped(cell.text)
    return f"{text} [{escaped(cell.note)}]" if cell.note else text


def _curves(comparison: Comparison) -> list[str]:
    parts = []
    for base in comparison.bases:
        curves = [one for one in comparison.of(base.name) if one.retention]
        facts = sorted({point.facts for one in curves for point in one.retention})
        rows = [
            [
                escaped(one.name),
                *(interval(point.reliability) if (point := kept(one, number)) else "–" for number in facts),
            ]
            for one in curves
        ]
        if rows:
            parts.append(_table([escaped(base.name), *(f"{number:,}" for number in facts)], rows))
    return parts


def _examples(comparison: Comparison) -> str:
    found: dict[tuple[str, str, str], list[str]] = {}
    for one in comparison.contestants:
        for example in one.examples:
            who = f"{'✓' if example.right else '✗'} {escaped(one.name)} ({escaped(one.base)})"
            answers = found.setdefault((example.aspect, example.prompt, example.wanted), [])
            answers.append(f"  - {who}: {escaped(example.said)}")
    return "\n".join(
        f"- {aspect}: **{escaped(prompt.strip())}** … wanted: {escaped(wanted)}\n" + "\n".join(said)
        for (aspect, prompt, wanted), said in found.items()
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *(["---:"] * (len(head) - 1))], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _fenced(text: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text.rstrip()}\n{fence}"
