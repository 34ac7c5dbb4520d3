"""`check`: files of any kind, all their problems at once, as lines or as JSON."""

import json as json_module
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kedit.checking.guessing import guess
from kedit.checking.kinds import KINDS, Kind, Reading
from kedit.editing.problems import BadInput, Problem, Problems, collected
from kedit.editing.sources import DataError
from kedit.running.parsing import nearest

LONGEST = 400
"""Characters of a line's parts: a text of the file may be quoted in them."""
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


@dataclass
class Checked:
    """A file, and what became of it.

    Args:
        file: as it was named.
        kind: by name; empty where it could not be told.
        records: how many can be used.
        problems: what is refused.
        notes: what is taken, and worth a look.
    """

    file: Path
    kind: str
    problems: Problems
    records: int = 0
    notes: Sequence[Problem] = field(default_factory=list)

    @property
    def remedy(self) -> str:
        return KINDS[self.kind].remedy if self.kind else "name its kind by --kind"


def check(
    files: list[Path] | None = None, kind: str = "", limit: int = 20, strict: bool = False, json: bool = False
) -> None:
    """Read files as the commands would, without training, and tell all that they would refuse. Ends with 2 if there is
    anything, with 0 if the commands take all.

    Args:
        files: edits, facts, transfer sets, benchmarks, dumps, corpora, repositories, checkpoints, configurations.
        kind: what they are, where that cannot be told by their names and first records; `list` shows the kinds.
        limit: how many problems of a file are told; all are counted.
        strict: end with 2 for notes too: what the commands take, and is worth a look, as edits that contradict others.
        json: print one JSON object.
    """
    if kind == "list":
        width = max(map(len, KINDS))
        print("\n".join(f"  {name:<{width}}  {one.summary}" for name, one in KINDS.items()))
        return
    if kind and kind not in KINDS:
        near = nearest(kind, KINDS)
        raise DataError(f"--kind {kind}: " + (f"did you mean {near}?" if near else f"there are {', '.join(KINDS)}"))
    if not files:
        raise DataError("nothing to check: give FILE, or several")
    if limit < 1:
        raise DataError(f"--limit {limit}: give the number of problems to tell of a file, at least 1")
    done = []
    for file in files:
        done.append(examine(file, kind, limit))
        if not json:
            print("\n".join(_lines(done[-1], limit)), flush=True)
    bad = [one for one in done if one.problems.count]
    if json:
        print(json_module.dumps({
            "files": [_record(one, limit) for one in done], "with_problems": len(bad),
            "problems": sum(one.problems.count for one in done),
        }, indent=1))  # fmt: skip
    else:
        total = sum(one.problems.count for one in done)
        told = f"{len(bad):,} with problems ({total:,})" if bad else "none with problems"
        print(f"{len(done):,} {'file' if len(done) == 1 else 'files'}, {told}")
    if bad or (strict and any(one.notes for one in done)):
        raise SystemExit(2)


def examine(file: Path, kind: str = "", limit: int = 20) -> Checked:
    """Read a file by the reader of its kind, and keep what that refuses."""
    checked = Checked(file, kind, Problems(limit))
    with collected(limit) as checked.problems:
        try:
            if not file.exists():
                raise BadInput("", "no such file", "check the name")
            checked.kind = kind or guess(file)
            reading = _read(KINDS[checked.kind], file)
            checked.records, checked.notes = reading.records, reading.notes
        except OSError as error:
            what = f"cannot be read: {error.strerror or error}"
            raise BadInput(str(file), what, "see that you may read it, and that its disk is well") from error
    return checked


def _read(kind: Kind, file: Path) -> Reading:
    return kind.read(file)


def _lines(checked: Checked, limit: int) -> list[str]:
    problems, notes = checked.problems, checked.notes[:limit]
    lines = [_line(checked, one) for one in _sorted(checked, problems.kept)]
    if problems.count > len(problems.kept):
        lines.append(f"{_plain(str(checked.file))}: and {problems.count - len(problems.kept):,} more")
    lines += [_line(checked, one, "note: ") for one in _sorted(checked, notes)]
    if len(checked.notes) > len(notes):
        lines.append(f"{_plain(str(checked.file))}: note: and {len(checked.notes) - len(notes):,} more")
    if not problems.count:
        unit = KINDS[checked.kind].unit
        kind = "" if unit == checked.kind else f"{checked.kind}, "
        lines.append(f"{_plain(str(checked.file))}: {kind}{checked.records:,} {unit}, no problem")
    return lines


def _sorted(checked: Checked, problems: Sequence[Problem]) -> list[Problem]:
    """By line, entry or row; what has none comes last."""

    def number(problem: Problem) -> int:
        found = re.match(r":(\d+)|, (?:entry|row) (\d+)", _parts(checked, problem)["place"])
        return int(found[1] or found[2]) if found else sys.maxsize

    return sorted(problems, key=number)


def _line(checked: Checked, problem: Problem, mark: str = "") -> str:
    """`file:line: what (field); remedy`"""
    parts = _parts(checked, problem)
    where = f"{checked.file}{parts['place']}" if parts["place"] else str(checked.file)
    named = f" ({parts['field']})" if parts["field"] and parts["field"] not in parts["what"] else ""
    return _plain(f"{where}: {mark}{parts['what']}{named}; {parts['remedy']}")


def _parts(checked: Checked, problem: Problem) -> dict[str, Any]:
    """What is told of a problem; `place` is what stands behind the file's name."""
    file = str(checked.file)
    where, what, remedy = problem.where, problem.what.removeprefix("--descriptions "), problem.remedy
    if not where and (found := re.match(rf"{re.escape(file)}(:\d+|, (?:entry|row) \d+)?:? ", what)):
        where, what = file + (found[1] or ""), what[found.end() :]
    if not remedy:
        head, colon, tail = what.rpartition(": ")
        what, remedy = (head, tail) if colon and len(tail) > 8 else (what, checked.remedy)
    place = where.removeprefix(file)
    line = re.search(r":(\d+)", place)
    return {
        "line": int(line[1]) if line else None, "place": place, "field": problem.field,
        "what": _cut(what), "remedy": _cut(remedy),
    }  # fmt: skip


def _cut(text: str) -> str:
    text = " ".join(text.split("\n"))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _plain(text: str) -> str:
    """Without characters that a terminal obeys or cannot show."""
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _record(checked: Checked, limit: int) -> dict[str, Any]:
    def shown(problem: Problem) -> dict[str, Any]:
        parts = _parts(checked, problem)
        return parts | {"place": parts["place"].lstrip(":, ")}

    return {
        "file": str(checked.file), "kind": checked.kind, "records": checked.records,
        "problems": [shown(one) for one in _sorted(checked, checked.problems.kept)], "count": checked.problems.count,
        "notes": [shown(one) for one in _sorted(checked, checked.notes[:limit])],
    }  # fmt: skip
