"""Files and folders that get their name only when they are complete: partial, then committed, and what a kill left in
between settled. Knows names and the disk, not what is in a checkpoint.

A file is renamed over the old one at once. A folder cannot be: the old one steps aside (`.NAME.old`), the new one takes
the name, the old one goes. A kill in between leaves both complete under hidden names, where `interrupted` finds them.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from kedit.editing.sources import DataError
from kedit.running.files import sync

SUFFIX = ".ckpt"
MANIFEST = "MANIFEST.json"
"""The last file that is written into a folder: without it the folder is incomplete."""
MARGIN = 1.2
"""Free space wanted for a checkpoint, as a multiple of its size."""


def partial_of(path: Path) -> Path:
    """Where what is to become `path` is written."""
    return path.with_name(f".{path.name}.partial")


def commit(partial: Path, path: Path) -> None:
    """Give what is complete its name. What bore it goes afterwards; at every moment one of the two is there."""
    old = path.with_name(f".{path.name}.old")
    # neither a folder over anything, nor anything over a folder, can be renamed at once
    aside = os.path.lexists(path) and (partial.is_dir() or _is_folder(path))
    if aside:
        os.rename(path, old)
    os.replace(partial, path)
    sync(path.parent)
    if aside:
        remove(old)


def remove(path: Path) -> None:
    """Delete a file or a folder; a folder that is half deleted has no checkpoint's name."""
    if not _is_folder(path):
        path.unlink(missing_ok=True)
        return
    gone = path if path.name.endswith(".removed") else path.with_name(f".{path.name.lstrip('.')}.removed")
    if gone != path:
        os.rename(path, gone)
    shutil.rmtree(gone)


def settle(folder: Path) -> None:
    """Finish or undo what a killed process left in a folder of checkpoints. For the one process that writes there."""
    for path in [*folder.glob(f".*{SUFFIX}.removed"), *folder.glob(f".*{SUFFIX}.old.removed")]:
        remove(path)
    for partial in folder.glob(f".*{SUFFIX}.partial"):
        target = _target(partial)
        if (partial / MANIFEST).is_file() and not os.path.lexists(target):
            os.rename(partial, target)
        else:
            remove(partial)
    for old in folder.glob(f".*{SUFFIX}.old"):
        if os.path.lexists(_target(old)):
            remove(old)
        else:
            os.rename(old, _target(old))


def interrupted(folder: Path) -> Iterator[Path]:
    """Folders that were complete when a kill interrupted their renaming, so that none bears the name now."""
    for kind in ("partial", "old"):
        for path in folder.glob(f".*{SUFFIX}.{kind}"):
            if (path / MANIFEST).is_file() and not os.path.lexists(_target(path)):
                yield path


def sync_file(path: Path) -> None:
    """Force a file's contents to disk, and out of memory, so that the next reader gets what the disk holds."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def require_space(path: Path, size: float, kept: Callable[[], str]) -> None:
    """See that there is room before anything is written.

    Args:
        path: what is to be written, in an existing folder.
        size: its expected size in bytes.
        kept: gives what else to say, asked only where there is no room.

    Raises:
        DataError: there is less than `MARGIN` times that size.
    """
    needed, free = MARGIN * size, shutil.disk_usage(path.parent).free
    if free < needed:
        raise DataError(
            f"no space for {path}: {_mebibytes(needed)} needed ({MARGIN} times its size), {_mebibytes(free)} free; "
            f"nothing was written; {kept()}\n"
            "free some, keep fewer by --checkpoint.save_top_k, or write elsewhere by --run.checkpoints"
        )


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder; 0 where there is none."""
    if _is_folder(path):
        return sum(part.stat().st_size for part in path.rglob("*") if part.is_file())
    return path.stat().st_size if path.exists() else 0


def _target(hidden: Path) -> Path:
    return hidden.with_name(hidden.name.lstrip(".").rsplit(".", 1)[0])


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _mebibytes(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB"
