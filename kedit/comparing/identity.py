"""What makes one trial the same as another: settings as plain values, files by content, the code, in one hash."""

import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kedit

LARGE = 2**26
"""Bytes from which on a file counts by its size and time of change: reading it all would take long."""
REPORTING = ("charts", "columns", "drawing", "explanations", "measures", "merging", "report", "results", "standings",
             "verdict", "schedule", "command")  # fmt: skip
"""Modules of this package, by how their names begin, that only tell what was found."""
LIBRARIES = ("torch", "transformers", "peft", "tokenizers")


def described(value: Any) -> Any:
    """A setting in types that YAML has, objects as {class_path, init_args}."""
    if is_dataclass(value) and not isinstance(value, type):
        # where a record stood in its file does not matter
        names = [one.name for one in fields(value) if one.init and one.name != "where"]
        given = {name: described(getattr(value, name)) for name in names}
        return {"class_path": _path(value), "init_args": given}
    if isinstance(value, Mapping):
        return {str(key): described(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [described(one) for one in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, Path):
        return str(value)
    given = {key: described(one) for key, one in sorted(vars(value).items()) if not key.startswith("_")}
    return {"class_path": _path(value), "init_args": given}


def _path(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def digest(*parts: Any) -> str:
    """A hash of values that `described` gave."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def content(paths: Iterable[Path]) -> list[list[Any]]:
    """Files, and all files in folders, with what tells that they changed; what is not there counts as absent."""
    found: list[list[Any]] = []
    for path in sorted(paths):
        inside = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
        for file in inside:
            if not file.exists():
                found.append([str(file), None])
                continue
            stat = file.stat()
            is_large = stat.st_size >= LARGE
            told = stat.st_mtime_ns if is_large else hashlib.sha256(file.read_bytes()).hexdigest()
            found.append([str(file), stat.st_size, told])
    return found


def own_code(value: object) -> list[Path]:
    """The file that holds the class of an object that is none of kedit's."""
    return [] if type(value).__module__.startswith("kedit.") else [Path(inspect.getfile(type(value)))]


@cache
def code() -> str:
    """Of all that a trial's numbers come from: kedit's files but for those that only report, and the libraries."""
    root = Path(kedit.__file__).parent
    counted = [
        path for path in sorted(root.rglob("*.py"))
        if path.relative_to(root).parts[0] not in ("checking", "cli.py")
        and not (path.parent.name == "comparing" and path.stem.startswith(REPORTING))
    ]  # fmt: skip
    files = [[str(path.relative_to(root)), hashlib.sha256(path.read_bytes()).hexdigest()] for path in counted]
    return digest(files, [[name, version(name)] for name in LIBRARIES])
