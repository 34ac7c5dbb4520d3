"""The processes that make batches: what they hear, what is told when one dies, and how they end. Knows no batch."""

import atexit
import multiprocessing
import multiprocessing.util  # its own farewell is registered first, and so comes after ours
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from typing import Any

from kedit.running.errors import chain

LOST = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: ([^.]+)|exited unexpectedly)")
"""What torch says of a worker that died."""
STOPS = {getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)}
_pids: set[int] = set()
"""Of all workers that were made."""


class _Watch:
    """When the death of a worker is told: torch raises an exception from a signal handler, wherever the main process is
    just then. In the midst of a save that costs the file, and the exception can get lost in what writes it. So it is
    heard only while a batch is asked for. The dead are found by their exit codes: torch knows nothing of those that
    others have waited for, and its handler may be gone, as Lightning puts those back that it found.
    """

    def __init__(self) -> None:
        self.before: Callable[..., Any] | None = None  # torch's handler: raises if a worker of any loader has died
        self.asked: Sequence[BaseProcess] | None = None

    def __call__(self, number: int, frame: Any) -> None:
        if self.before is not None:
            with suppress(RuntimeError):  # of some loader's worker, and perhaps of none of those that are asked
                self.before(number, frame)
        self.look()

    def look(self) -> None:
        """Raise what torch would if one of those has died from whom a batch is asked."""
        if (death := _death(self.asked or ())) is not None:
            raise death


def _death(workers: Sequence[BaseProcess]) -> RuntimeError | None:
    """What torch would raise of the first of these that has died."""
    for worker in workers:
        if (code := worker.exitcode) is not None:
            how = f"is killed by signal: {signal.strsignal(-code)}." if code < 0 else "exited unexpectedly"
            return RuntimeError(f"DataLoader worker (pid {worker.pid}) {how}")
    return None


_watch = _Watch()


def adopt(batches: object) -> Sequence[BaseProcess]:
    """The workers of a DataLoader's iterator that was just made; they are watched, and end with this process."""
    workers = getattr(batches, "_workers", ())
    _pids.update(worker.pid for worker in workers)
    number = getattr(signal, "SIGCHLD", None)  # Windows has none
    if workers and number is not None and threading.current_thread() is threading.main_thread():
        found = signal.signal(number, _watch)
        if callable(found) and found is not _watch:
            _watch.before = found
    return workers


@contextmanager
def forking(signals: Set[int] = STOPS) -> Iterator[None]:
    """Processes that are made within it are deaf to these from their first moment; what is for this one comes after."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def watched(workers: Sequence[BaseProcess]) -> Iterator[None]:
    """Within it the death of one of these workers, or one that came before, raises torch's RuntimeError."""
    _watch.asked = workers
    try:
        _watch.look()
        yield
    finally:
        _watch.asked = None


def dead_worker(workers: Sequence[BaseProcess], patience: float = 1.0) -> str:
    """What to tell of a worker that has died, as `lost_worker` does; empty where none has within so many seconds.

    What a dying process leaves half sent is met before the death itself is known: files and connections that are gone.
    """
    until = time.monotonic() + patience
    while workers:
        if (death := _death(workers)) is not None:
            return lost_worker(death)
        if time.monotonic() > until:
            break
        time.sleep(0.05)
    return ""


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
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


@atexit.register
def _end() -> None:
    """Python asks the workers that are left to end by a signal that they do not hear, and waits for ever. There are
    some where an exception's traceback kept a loader, or one was killed while it held a lock that others wait for.
    """
    for child in multiprocessing.active_children():
        if child.pid in _pids:
            child.kill()
