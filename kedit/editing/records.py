"""JSON and JSON Lines files as (place, record) pairs, so that every complaint names file and line.

Knows nothing of what the records mean.
"""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from kedit.editing.sources import DataError

HALF = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
"""One of a pair of codes; alone, JSON lets it pass, and neither UTF-8 nor a tokenizer takes it."""
VALUE = re.compile(r"[^\s,]")
"""The beginning of a value, behind what parts it from the one before."""


def existing_file(path: str | Path, option: str) -> Path:
    """The path, if a file stands there.

    Args:
        path: where it should stand.
        option: the option that said so, to be named in the complaint.

    Raises:
        DataError: none stands there.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no file {path}: check {option!r}")
    return path


def read_json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield ("file:line", value) for every line that is not blank.

    Raises:
        DataError: a line is not JSON, or not UTF-8, or holds half a character, a key twice, or one value in another
            deeper than can be read.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{path}:{number}", _parsed(line.strip(), path, number)


def read_json_list(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield ("file, entry n", value) for every entry (counted from 1) of a file that is one JSON list.

    Raises:
        DataError: the file is something other than a list, or it is no JSON for a reason as above.
    """
    entries = _parsed(path.read_bytes(), path, 1)
    if not isinstance(entries, list):
        raise DataError(f"{path}: wanted one JSON list of records, got {_kind(entries)}")
    for number, entry in enumerate(entries, start=1):
        yield f"{path}, entry {number}", entry


def fields(record: Any, where: str, **kinds: type) -> list[Any]:
    """The values of the named keys, in the order asked for.

    Raises:
        DataError: the record is no JSON object, lacks a key or holds a value of another kind under it.
    """
    if not isinstance(record, dict):
        raise DataError(f"{where}: wanted a JSON object with {', '.join(kinds)}, got {_kind(record)}")
    for key, kind in kinds.items():
        if key not in record:
            raise DataError(f"{where}: no {key!r} here, only {', '.join(map(repr, record)) or 'an empty object'}")
        if not isinstance(record[key], kind):
            raise DataError(f"{where}: {key!r} is {_kind(record[key])}, wanted {kind.__name__}")
    return [record[key] for key in kinds]


def strings(values: list[Any], where: str, key: str) -> list[str]:
    """The values, if each is a string.

    Raises:
        DataError: one is not.
    """
    for value in values:
        if not isinstance(value, str):
            raise DataError(f"{where}: {key!r} holds {_kind(value)}, wanted only strings")
    return values


def _parsed(raw: bytes, path: Path, first_line: int) -> Any:
    try:
        text = raw.decode("utf-8-sig")  # Windows editors write a mark in front
        value = _DECODER.decode(text)
    except UnicodeDecodeError as error:
        line = first_line + raw[: error.start].count(b"\n")
        raise DataError(f"{path}:{line}: not UTF-8 text ({error.reason})") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{first_line + error.lineno - 1}: not JSON: {error.msg}, column {error.colno}"
        ) from error
    except (ValueError, RecursionError) as error:  # among them a number of thousands of digits
        what = str(error) if isinstance(error, ValueError) else "values stand in one another too deep to be read"
        raise DataError(f"{path}:{first_line + _lines_before(text)}: {what}") from error
    if half := HALF.search(raw):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            line = first_line + raw[: half.start()].count(b"\n")
            raise DataError(
                f"{path}:{line}: half a character (such as {half[0].decode()}) that no text holds"
            ) from error
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, whose keys must differ: JSON itself lets the last one win."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise DataError(f"{next(key for key in found if keys.count(key) > 1)!r} stands twice in one object: keep one")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_once)


def _lines_before(text: str) -> int:
    """How many lines stand before the value that cannot be read: an entry where the text is a list."""
    at = len(text) - len(text.lstrip())
    if text[at] == "[":
        at += 1
        with suppress(ValueError, RecursionError):
            while found := VALUE.search(text, at):
                at = found.start()
                _, at = _DECODER.raw_decode(text, at)
    return text.count("\n", 0, at)


def _kind(value: Any) -> str:
    return f"{type(value).__name__} {json.dumps(value, ensure_ascii=False)[:60]}"
