"""JSON and JSON Lines files as (place, record) pairs, so that every complaint names file and line.

Knows nothing of what the records mean.
"""

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from kedit.editing.problems import BadInput, refuse, refuse_together
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
    if path.is_dir():
        raise BadInput("", f"{path} is a folder, wanted a file", f"check {option!r}", option)
    if not path.is_file():
        raise BadInput("", f"no file {path}", f"check {option!r}", option)
    return path


def read_json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield ("file:line", value) for every line that is not blank.

    Raises:
        DataError: a line is not JSON, or not UTF-8, or holds half a character, a key twice, or one value in another
            deeper than can be read.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line := line.strip():
                try:
                    value = _parsed(line, path, number)
                except DataError as error:
                    refuse(error)
                else:
                    yield f"{path}:{number}", value


def read_json_list(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield ("file, entry n", value) for every entry (counted from 1) of a file that is one JSON list.

    Raises:
        DataError: the file is something other than a list, or it is no JSON for a reason as above.
    """
    entries = _parsed(path.read_bytes(), path, 1)
    if not isinstance(entries, list):
        raise BadInput(str(path), f"wanted one JSON list of records, got {kind_of(entries)}", "put [ ] around them")
    for number, entry in enumerate(entries, start=1):
        yield f"{path}, entry {number}", entry


def fields(record: Any, where: str, **kinds: type) -> list[Any]:
    """The values of the named keys, in the order asked for.

    Raises:
        DataError: the record is no JSON object, lacks a key or holds a value of another kind under it.
    """
    if not isinstance(record, dict):
        shown = f'{{"{next(iter(kinds))}": ...}}'
        raise BadInput(
            where, f"wanted a JSON object with {', '.join(kinds)}, got {kind_of(record)}", f"make it one, as in {shown}"
        )
    wrong = []
    for key, kind in kinds.items():
        if key not in record:
            only = ", ".join(map(_short, record)) or "an empty object"
            near = difflib.get_close_matches(key, [name for name in record if name not in kinds], 1)
            remedy = f"rename {near[0]!r}, if that is it" if near else f"add {key!r}"
            wrong.append(BadInput(where, f"no {key!r} here, only {only[:200]}", remedy, key))
        elif not isinstance(value := record[key], kind) or (kind is int and isinstance(value, bool)):
            remedy = "quote it" if kind is str and isinstance(value, int | float) else f"give {_EXAMPLES[kind]}"
            wrong.append(BadInput(where, f"{key!r} is {kind_of(value)}, wanted {kind.__name__}", remedy, key))
    refuse_together(wrong)
    return [record[key] for key in kinds]


def strings(values: list[Any], where: str, key: str) -> list[str]:
    """The values, if each is a string.

    Raises:
        DataError: one is not.
    """
    for number, value in enumerate(values, start=1):
        if not isinstance(value, str):
            remedy = f"quote or leave out its value number {number}"
            raise BadInput(where, f"{key!r} holds {kind_of(value)}, wanted only strings", remedy, key)
    return values


def not_utf8(path: Path, raw: bytes, first_line: int, error: UnicodeDecodeError) -> BadInput:
    """The complaint about bytes that are no UTF-8, with what they look like.

    Args:
        path: of the file.
        raw: the bytes that were to be read, which begin in
        first_line: of the file, and in which
        error: says where they are none.
    """
    looks = next((f"it looks like {name}: {remedy}" for mark, name, remedy in _MARKS if raw.startswith(mark)), "")
    if not looks:
        is_text = raw.count(b"\0") == 0
        looks = "save it as UTF-8 (is it Latin-1?)" if is_text else "it is no text: check which file this is"
    line = first_line + raw[: error.start].count(b"\n")
    column = error.start - raw.rfind(b"\n", 0, error.start)
    return BadInput(f"{path}:{line}", f"not UTF-8 text ({error.reason}, byte {column} of the line)", looks)


def _parsed(raw: bytes, path: Path, first_line: int) -> Any:
    try:
        text = raw.decode("utf-8-sig")  # Windows editors write a mark in front
    except UnicodeDecodeError as error:
        raise not_utf8(path, raw, first_line, error) from error
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        where = f"{path}:{first_line + error.lineno - 1}"
        raise BadInput(where, f"not JSON: {error.msg}, column {error.colno}", _mend(text, error)) from error
    except BadInput as error:  # of `_once` and `_no_number`, which know no place
        raise BadInput(f"{path}:{first_line + _lines_before(text)}", error.what, error.remedy, error.field) from error
    except (ValueError, RecursionError) as error:  # among them a number of thousands of digits
        is_number = isinstance(error, ValueError)
        what = str(error).partition(";")[0] if is_number else "values stand in one another too deep to be read"
        remedy = "quote such a number" if is_number else "a record has three or four levels: check what wrote it"
        raise BadInput(f"{path}:{first_line + _lines_before(text)}", what, remedy) from error
    if half := HALF.search(raw):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            line = first_line + raw[: half.start()].count(b"\n")
            code = half[0].decode()
            raise BadInput(
                f"{path}:{line}", f"half a character (such as {code}) that no text holds", f"take {code} out"
            ) from error
    return value


def _mend(text: str, error: json.JSONDecodeError) -> str:
    """What to do about a text that is no JSON."""
    rest = text[error.pos : error.pos + 12]
    if error.msg.startswith("Extra data"):
        is_record = rest.lstrip(", ").startswith("{")
        return "put each object on a line of its own" if is_record else f"take out what stands there ({rest[:8]!r})"
    if error.msg.startswith(("Unterminated string", "Invalid control character")):
        return 'close the string by ", and write a line end in it as \\n'
    if not rest.strip():
        return "the end is missing: write the rest, or take the line out"
    if rest[0] in "'“”‘’":
        return 'JSON quotes by "'
    if rest[0] == "<":
        return "is it an error page? get the file again"
    before = text[: error.pos].rstrip()[-1:]
    if rest[0] in "}]" and before == ":":
        return "write the value behind the colon"
    if error.msg.startswith("Illegal trailing comma") or (rest[0] in "}]" and before == ","):
        return "take out the comma before it"
    if error.msg.startswith("Invalid \\"):
        return "write a backslash as two"
    return f"mend what stands there ({rest[:8]!r})"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, whose keys must differ: JSON itself lets the last one win."""
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        key = next(key for key in found if counts[key] > 1)
        raise BadInput("", f"{_short(key)} stands twice in one object", "keep one", key[:60])
    return found


def _no_number(name: str) -> NoReturn:
    raise BadInput("", f"{name} is no number of JSON", 'leave it out, or quote it where it is a word: "NaN"')


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), -float("inf")):
        raise BadInput(
            "", f"{digits[:20]} is larger than any number that can be reckoned with", "check it, or quote it"
        )
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite)
_EXAMPLES = {str: "a text in quotes", list: "a list, as in [...]", dict: "an object, as in {...}",
             int: "a whole number", float: "a number"}  # fmt: skip
_MARKS = (
    (b"\x1f\x8b", "gzip", "unpack it by gunzip"),
    (b"BZh", "bzip2", "unpack it by bunzip2"),
    (b"PK\x03\x04", "a zip archive", "unpack it"),
    (b"PAR1", "Parquet", "name it .parquet"),
    (b"\xff\xfe", "UTF-16", "save it as UTF-8"),
    (b"\xfe\xff", "UTF-16", "save it as UTF-8"),
)


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


def kind_of(value: Any) -> str:
    """What a value is, and the beginning of it, for a complaint."""
    if isinstance(value, dict | list):
        shown = json.dumps(value if len(value) < 9 else list(value)[:9], ensure_ascii=False)
    else:
        shown = json.dumps(value[:80] if isinstance(value, str) else value, ensure_ascii=False)
    return f"{type(value).__name__} {shown[:60]}"


def _short(key: str) -> str:
    return repr(key if len(key) <= 60 else f"{key[:60]}...")
