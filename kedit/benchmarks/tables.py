"""Records of a table and their places, whatever holds them: JSON, JSON Lines, CSV, Parquet, a data set of the hub.

Files are read here and not through `datasets`, which makes nothing of the words "NA" and "null" in a CSV, forgives
wrong types and tells no line of a broken one; data sets of the hub come through it, record by record.
"""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kedit.editing.problems import BadInput, refuse
from kedit.editing.records import existing_file, not_utf8, read_json_lines, read_json_list
from kedit.editing.sources import DataError

FORMATS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
_HUB = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(:(?P<file>[^:]+))?")


def find_table(file: str | Path) -> Path | str:
    """A local file, or the name of a data set on the hub, which is not looked for yet.

    Raises:
        DataError: there is no such file, it is of an unknown format, or this is no name of a data set.
    """
    path, text = Path(file), str(file)
    hub = _HUB.fullmatch(text)
    if path.is_dir():
        raise BadInput("", f"{path} is a folder", f"give 'file' a file in it ({', '.join(FORMATS)})", "file")
    if not path.is_file() and hub and (hub["file"] or path.suffix not in FORMATS):
        return text
    path = existing_file(path, "file")
    if path.suffix.lower() not in FORMATS:
        wanted = f"unknown format {path.suffix!r}, wanted one of {', '.join(FORMATS)}"
        raise BadInput(str(path), wanted, "name it by what it is, or convert it", "file")
    return path


def read_table(table: Path | str, split: str = "train") -> Iterator[tuple[str, Any]]:
    """Yield (place, record) for every record; what a Parquet file or the hub holds as null is left out of its record.

    Args:
        table: what `find_table` gives.
        split: of a data set on the hub.

    Raises:
        DataError: a record cannot be read; the place is named.
    """
    if isinstance(table, str):
        yield from _hub(table, split)
    elif table.suffix.lower() in (".csv", ".tsv"):
        yield from _csv(table)
    elif table.suffix.lower() == ".parquet":
        yield from _parquet(table)
    else:
        with table.open("rb") as file:
            start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        yield from read_json_list(table) if start == b"[" else read_json_lines(table)


def _csv(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Every field is text; a row has as many as the header."""
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(path, raw, 1, error) from error
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    first = 1  # line in which a row begins
    try:
        header = next(rows, [])
        if twice := [name for number, name in enumerate(header) if name in header[:number]]:
            what = f"a column comes twice among {', '.join(map(repr, header))[:200]}"
            raise BadInput(f"{path}:1", what, "rename or take out one of them", twice[0][:60])
        first = rows.line_num + 1
        for row in rows:
            where, first = f"{path}:{rows.line_num}", rows.line_num + 1
            if row and len(row) != len(header):
                what = f"{len(row)} fields, and the header has {len(header)}"
                refuse(BadInput(where, what, "quote fields that hold a separator or a line end"))
            elif row:
                yield where, dict(zip(header, row, strict=True))
    except csv.Error as error:
        if "field larger" in str(error):
            remedy = "close the quotation mark that opens it, or cut it"
        elif "unexpected end" in str(error):
            remedy = "close the quotation mark that opens it"
        else:
            remedy = 'write a quotation mark in a field as two, and the field within two: "a ""b"" c"'
        raise BadInput(f"{path}:{first}", f"no CSV: {error}", remedy) from error


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches():
                for record in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", _without_nulls(record)
    except (ArrowException, OSError) as error:
        what = f"cannot be read behind row {number:,}: {_first_line(error)}"
        raise BadInput(str(path), what, "it is no Parquet file, or damaged: make or get it again") from error


def _hub(name: str, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    found = _HUB.fullmatch(name)
    assert found is not None
    told = f"there is no file {name}, and no data set of this name can be had from the hub"
    if found["file"]:
        from huggingface_hub import hf_hub_download

        try:
            local = hf_hub_download(found["name"], found["file"], repo_type="dataset")
        except Exception as error:  # of many kinds, all of which mean this
            raise DataError(f"{told} ({_first_line(error)}): check 'file', and the connection") from error
        yield from read_table(find_table(local))
        return
    from datasets import load_dataset

    try:
        rows = load_dataset(found["name"], split=split, streaming=True)
    except Exception as error:
        raise DataError(f"{told} ({_first_line(error)}): check 'file' and 'split', and the connection") from error
    for number, record in enumerate(rows, start=1):
        yield f"{name} [{split}], row {number}", _without_nulls(record)


def _without_nulls(value: Any) -> Any:
    """A table has every column in every row: a field that a record does not have is null there."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
