"""Comparisons as JSON files, checked on their way in and out: whatever is wrong is named by its place in the record."""

import json
import math
from collections import Counter
from dataclasses import MISSING, asdict, fields, is_dataclass
from datetime import date
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from kedit.comparing.measures import measure, order
from kedit.comparing.results import Comparison, Contestant, Figure
from kedit.comparing.verdict import verdicts
from kedit.editing.records import existing_file
from kedit.editing.sources import DataError

VERSION = 1
DERIVED = "verdicts"
"""For other programs to read; made anew from the numbers when the file is read again."""


def to_json(comparison: Comparison) -> str:
    """The comparison as JSON text: the same for equal comparisons, keys in the order of the records' fields.

    Raises:
        DataError: it contradicts itself, or a value is of another type than its field.
    """
    try:
        values = json.loads(json.dumps(asdict(comparison)))  # lists, not tuples: what will be read
    except (TypeError, ValueError) as error:
        raise DataError(f"comparison: a value is none that JSON has: {error}") from error
    comparison = _made(Comparison, values, "comparison")  # 1 is 1.0 where a float is meant
    check(comparison, "comparison")
    record = {"version": VERSION, **asdict(comparison), DERIVED: [asdict(one) for one in verdicts(comparison)]}
    for contestant in record["contestants"]:
        figures = contestant["figures"]
        contestant["figures"] = {name: figures[name] for name in sorted(figures, key=order)}
    return json.dumps(record, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def from_json(text: str, where: str = "report.json") -> Comparison:
    """Read what `to_json` wrote.

    Args:
        text: the JSON.
        where: names it in complaints.

    Raises:
        DataError: it is no JSON, of another version, or no comparison; the place is named.
    """
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from error
    if not isinstance(record, dict) or record.get("version") != VERSION:
        came = record.get("version") if isinstance(record, dict) else type(record).__name__
        raise DataError(f"{where}: 'version' is {came!r}, wanted {VERSION}: compare again with this version of kedit")
    comparison = _made(
        Comparison, {key: value for key, value in record.items() if key not in ("version", DERIVED)}, where
    )
    check(comparison, where)
    return comparison


def read(path: str | Path) -> Comparison:
    """Read a report.json.

    Raises:
        DataError: it is not there, or is none.
    """
    path = existing_file(path, "report")
    try:
        return from_json(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason})") from error


def check(comparison: Comparison, where: str) -> None:
    """Refuse a comparison that contradicts itself.

    Raises:
        DataError: a name is used twice or not known, a number is none or out of range, or a reason is missing.
    """
    try:
        date.fromisoformat(comparison.date)
    except ValueError as error:
        raise DataError(f"{where}: 'date' is {comparison.date!r}, wanted a day as 2026-11-22") from error
    names = {
        "bases": [one.name for one in comparison.bases],
        "contestants": [f"{one.name} ({one.base})" for one in comparison.contestants],
    }
    for what, some in names.items():
        if not some:
            raise DataError(f"{where}: '{what}' is empty: give at least one")
        if twice := [name for name, times in Counter(some).items() if times > 1]:
            raise DataError(f"{where}: {what}: two are named {twice[0]!r}: give each its own name")
    if not comparison.seeds:
        raise DataError(f"{where}: 'seeds' is empty: give at least one")
    if comparison.facts.count < 1:
        raise DataError(f"{where}: facts.count is {comparison.facts.count}, wanted at least 1")
    for base in comparison.bases:
        for name in ("knows", "knows_in_context"):
            if figure := getattr(base, name):
                _check_figure(figure, True, len(comparison.seeds), f"{where}: bases: {base.name}: {name}")
    for one in comparison.contestants:
        if one.base not in (known := [base.name for base in comparison.bases]):
            raise DataError(f"{where}: contestants: {one.name}: base {one.base!r} is none of {', '.join(known)}")
        _check_contestant(one, len(comparison.seeds), f"{where}: contestants: {one.name}")


def _check_contestant(one: Contestant, seeds: int, where: str) -> None:
    if (one.status == "done") == bool(one.reason):
        wanted = "no reason" if one.status == "done" else "a reason"
        raise DataError(f"{where}: is {one.status}, which wants {wanted}; 'reason' is {one.reason!r}")
    if one.status != "done" and (one.figures or one.retention):
        raise DataError(f"{where}: is {one.status} and has figures: leave them out, or say done")
    for name, figure in one.figures.items():
        if (kind := measure(name)) is None:
            raise DataError(f"{where}: no figure is called {name!r}: wanted one as reliability/free, or span_nll")
        _check_figure(figure, kind.unit == "share", seeds, f"{where}: {name}")
    facts = [point.facts for point in one.retention]
    if facts != sorted(set(facts)) or any(number < 1 for number in facts):
        raise DataError(f"{where}: retention is after {facts} facts: wanted ascending numbers from 1")
    for point in one.retention:
        _check_figure(point.reliability, True, seeds, f"{where}: retention after {point.facts}")
    for name, value in asdict(one.costs).items():
        if isinstance(value, float | int) and not (math.isfinite(value) and value >= (-1 if "share" in name else 0)):
            raise DataError(f"{where}: costs.{name} is {value}, wanted a finite number of at least 0")


def _check_figure(figure: Figure, is_share: bool, seeds: int, where: str) -> None:
    if (figure.low is None) != (figure.high is None):
        raise DataError(f"{where}: has one end of an interval: give both or none")
    if figure.low is not None and figure.high is not None and figure.low > figure.high:
        raise DataError(f"{where}: the interval [{figure.low}, {figure.high}] is upside down")
    if len(figure.by_seed) > seeds:
        raise DataError(f"{where}: has values of {len(figure.by_seed)} seeds, the comparison has {seeds}")
    for value in (figure.mean, figure.low, figure.high, *figure.by_seed):
        if value is not None and not (math.isfinite(value) and (not is_share or -1e-9 <= value <= 1 + 1e-9)):
            raise DataError(f"{where}: {value} is no {'share from 0 to 1' if is_share else 'finite number'}")


def _made(kind: Any, value: Any, where: str) -> Any:
    """The value as the type that is annotated; `where` names its place."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if value is None:
            return None
        return _made(next(one for one in inner if one is not NoneType), value, where)
    if origin is Literal:
        if value not in inner:
            raise DataError(f"{where}: is {value!r}, wanted one of {', '.join(map(repr, inner))}")
        return value
    if origin is tuple:
        items = _of_kind(value, list, where)
        return tuple(_made(inner[0], item, f"{where}[{number}]") for number, item in enumerate(items))
    if origin is dict:
        return {key: _made(inner[1], item, f"{where}.{key}") for key, item in _of_kind(value, dict, where).items()}
    if is_dataclass(kind):
        return _made_record(kind, _of_kind(value, dict, where), where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return _of_kind(value, kind, where)


def _made_record(kind: Any, record: dict[str, Any], where: str) -> Any:
    hints = get_type_hints(kind)
    if unknown := record.keys() - hints.keys():
        raise DataError(f"{where}: no field is called {min(unknown)!r}: wanted {', '.join(hints)}")
    needed = [one.name for one in fields(kind) if one.default is MISSING and one.default_factory is MISSING]
    if missing := [name for name in needed if name not in record]:
        raise DataError(f"{where}: {missing[0]!r} is missing; wanted {', '.join(needed)}")
    return kind(**{name: _made(hints[name], value, f"{where}: {name}") for name, value in record.items()})


def _of_kind(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise DataError(f"{where}: is {json.dumps(value, default=str)[:60]}, wanted {kind.__name__}")
    return value
