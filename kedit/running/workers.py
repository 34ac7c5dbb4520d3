"""The processes that make batches: what they hear, what is told when one dies, and how they end. Knows no batch."""

import atexit
import multiprocessing.util  # its own farewell is registered first, and so comes after ours
import re
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kedit.running.errors import chain

LOST = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: ([^.]+)|exited unexpectedly)")
"""What torch says of a worker that died."""
_alive: "weakref.WeakSet[multiprocessing.process.BaseProcess]" = weakref.WeakSet()


class _Watch:
    """When the death of a worker is told: torch raises an exception from a signal handler, wherever the main process is
    just then. In the midst of a save that costs the file, and the exception can get lost in what writes it.
    """

    def __init__(self) -> None:
        self.looks: Callable[..., Any] | None = None  # torch's handler: raises if a worker has died
        self.asked = False

    def __call__(self, number: int, frame: Any) -> None:
        if self.asked and self.looks is not None:
            self.looks(number, frame)


_watch = _Watch()


def adopt(batches: object) -> None:
    """Watch the workers of a DataLoader's iterator that was just made, and end them with this process."""
    _alive.update(getattr(batches, "_workers", ()))
    number = getattr(signal, "SIGCHLD", None)  # Windows has none
    if not _alive or number is None or threading.current_thread() is not threading.main_thread():
        return
    found = signal.getsignal(number)
    if callable(found) and found is not _watch:
        _watch.looks = found
        signal.signal(number, _watch)


@contextmanager
def watched() -> Iterator[None]:
    """Within it the death of a worker, or one that came before, raises torch's RuntimeError."""
    _watch.asked = True
    try:
        _watch(0, None)
        yield
    finally:
        _watch.asked = False


def dead_worker(patience: float = 1.0) -> str:
    """What to tell of a worker that has died, as `lost_worker` does; empty where none has within so many seconds.

    What a dying process leaves half sent is met before the death itself is known: files and connections that are gone.
    """
    until = time.monotonic() + patience
    while True:
        try:
            with watched():
                pass
        except RuntimeError as error:
            return lost_worker(error)
        if time.monotonic() > until:
            return ""
        time.sleep(0.05)


def lost_worker(error: BaseException) -> str:
    """What to tell of a process that made batches and was killed; empty where the exception says nothing of that."""
    found = next((match for one in chain(error) if (match := LOST.search(str(one)))), None)
    if found is None:
        return ""
    how = f"was killed ({found[2].strip()})" if found[2] else "was killed or ended"
    return (
        f"the process {found[1].strip()} that makes batches {how}, as happens where memory is short: lower "
        "data.num_workers, and go on by --ckpt_path last"
    )


def deaf(worker: int) -> None:
    """What stops a run is for its main process: sent to all, it would cost the run a worker before it can save."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def _end() -> None:
    """An exception's traceback keeps a loader alive until the end, and Python would then ask workers to end by a signal
    that they do not hear, and wait for ever.
    """
    for worker in list(_alive):
        if worker.is_alive():
            worker.kill()
