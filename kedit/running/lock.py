"""One process at a time trains in a run's folder: a lock that no killed process leaves behind. Knows files only."""

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from kedit.editing.sources import DataError

if sys.platform != "win32":
    import fcntl

LOCK = ".lock"
HELD = (errno.EACCES, errno.EAGAIN)


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[str]:
    """Hold the folder's lock within the `with`. A folder is made, and goes again where nothing was written into it.

    The lock is the operating system's on a file (fcntl), so it ends with the process. Unlike flock's it does not live
    on in workers that were forked; the process itself, and only it, may take it twice, and gives it up when it reads
    and closes the file.

    Yields:
        Why there is no lock, on a file system that has none; else empty.

    Raises:
        DataError: another process holds it.
    """
    made = [new for new in (folder, *folder.parents) if not new.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    with path.open("a+", encoding="utf-8") as file:
        without = _lock(file.fileno(), path)
        if not without:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        try:
            yield without
        finally:
            if [inside.name for inside in folder.iterdir()] == [LOCK]:
                path.unlink()
                with contextlib.suppress(OSError):  # somebody has begun there
                    for new in made:
                        new.rmdir()


def _lock(file: int, path: Path) -> str:
    if sys.platform == "win32":
        return "this system has no such locks"
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in HELD:
            return error.strerror or str(error)
        holder = path.read_text(encoding="utf-8", errors="replace").strip() or "another process"
        raise DataError(
            f"{holder} trains in {path.parent}: wait until it has ended, or give this run another name by --run.name"
        ) from error
    return ""
