"""Where a configuration lets Lightning's parts write: in the folders of its runs and nowhere else. Knows no part."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kedit.editing.sources import DataError
from kedit.running.runs import Run

FOLDERS = {"dirpath", "save_dir", "root_dir", "log_dir", "default_root_dir", "exclude_batches_path"}
NAMES = {"filename", "name", "version", "sub_dir"}
"""Keys of Lightning's callbacks, loggers, profilers and trainer for a folder, or a name within it."""


def check_places(config: Mapping[str, Any], run: Run) -> None:
    """Refuse a configuration by which something would be written elsewhere.

    Args:
        config: the parts that write: `trainer` and `checkpoint`, each as plain dictionaries and lists.
        run: names the folders of all runs' checkpoints and logs, in which the run's own are made.

    Raises:
        DataError: a folder lies outside of them or is an address, or a name leads out of its folder.
    """
    inside = [Path(folder).resolve() for folder in (run.checkpoints, run.logs)]
    for key, value in _texts(config, ""):
        last = key.rsplit(".", 1)[-1]
        if last in FOLDERS and (
            is_address(value) or not any(Path(value).resolve().is_relative_to(folder) for folder in inside)
        ):
            raise DataError(
                f"{key} is {value}: wanted a folder within those of the runs, {run.checkpoints} and {run.logs}; to "
                "write elsewhere, move these by run.checkpoints and run.logs"
            )
        if last in NAMES and (Path(value).is_absolute() or ".." in Path(value).parts):
            raise DataError(f"{key} is {value}: wanted a name in its folder, without '..'")


def is_address(text: str) -> bool:
    """Whether a text is a URL rather than a local path: these are neither read from nor written to."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", text) is not None


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            # "init_args" is no part of what a user calls the key
            yield from _texts(inner, key if name == "init_args" else f"{key}.{name}".lstrip("."))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, key)
