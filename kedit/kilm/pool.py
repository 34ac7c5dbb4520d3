"""Runs jobs in processes and shows how far they are. Knows nothing of what they do."""

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from kedit.editing.sources import DataError

Advance = Callable[[int], None]
PR_SET_PDEATHSIG = 1  # of Linux' prctl
LINE_SECONDS = 30.0  # between lines where there is no terminal


@dataclass
class Job:
    """A call `run(*arguments, advance)`; `advance(n)` reports n more of `size`.

    Args:
        run: a module-level function.
        arguments: its arguments, without the last.
        size: all there is to do, in the unit that is shown.
    """

    run: Callable[..., None]
    arguments: tuple[Any, ...]
    size: int


class Progress:
    """A bar on a terminal; elsewhere a line every half minute."""

    def __init__(self, label: str, total: int, done: int, unit: str) -> None:
        self.label, self.total, self.done, self.unit = label, total, done, unit
        self.begun = self.said = time.monotonic()
        self.first = done
        self.bar = None
        if sys.stderr.isatty():
            self.bar = tqdm(desc=label, total=total, initial=done, unit=unit, unit_scale=True, smoothing=0.1)

    def show(self, done: int) -> None:
        if self.bar is not None:
            self.bar.update(done - self.done)
        elif time.monotonic() - self.said >= LINE_SECONDS:
            self._line(done)
        self.done = done

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        else:
            self._line(self.done)

    def _line(self, done: int) -> None:
        self.said = time.monotonic()
        rate = (done - self.first) / max(self.said - self.begun, 1e-9)
        left = f", {(self.total - done) / rate:.0f} s left" if rate and done < self.total else ""
        name, scale = ("MB", 1e6) if self.unit == "B" else (f"{self.unit}s", 1)
        shown = (
            f"{self.label}: {done / scale:,.6g} of {self.total / scale:,.6g} {name}, {rate / scale:,.3g} {name}/s{left}"
        )
        print(shown, file=sys.stderr, flush=True)


def run_jobs(label: str, jobs: Sequence[Job], workers: int | None, unit: str = "B", done: int = 0) -> None:
    """Run all jobs; the first error ends them, after those under way were let finish; Ctrl-C ends all at once.

    Args:
        label: what is being done.
        jobs: in the order of their start.
        workers: processes, as many as cores for None; 1 runs them here.
        unit: of the sizes.
        done: what was done before, in that unit.

    Raises:
        DataError: a process was killed, or what a job raises.
    """
    if not jobs:
        return
    progress = Progress(label, done + sum(job.size for job in jobs), done, unit)
    count = min(workers or os.cpu_count() or 1, len(jobs))
    try:
        if count == 1:
            for job in jobs:
                job.run(*job.arguments, lambda n: progress.show(progress.done + n))
        else:
            _run_in_processes(jobs, count, progress, done)
    except BrokenProcessPool:
        raise DataError(
            f"{label}: a worker process was killed, perhaps for want of memory. What was finished is kept: run the "
            f"same command again, with fewer --workers than {count}"
        ) from None
    finally:
        progress.close()


def _run_in_processes(jobs: Sequence[Job], count: int, progress: Progress, done: int) -> None:
    # forked workers need no import of the package; macOS and Windows cannot
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    counter = context.Value("q", done)
    others = multiprocessing.active_children()
    with ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(counter, os.getpid())) as pool:
        pending = {pool.submit(_work, job) for job in jobs}
        try:
            while pending:
                finished, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                progress.show(counter.value)
                for future in finished:
                    future.result()
        except BaseException as error:
            if not isinstance(error, Exception):
                for worker in set(multiprocessing.active_children()).difference(others):
                    worker.kill()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


_counter: Any = None
_parent = 0


def _begin(counter: Any, parent: int) -> None:
    global _counter, _parent
    _counter, _parent = counter, parent
    # the parent ends the workers; its own handlers were inherited by the fork
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _end_with_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process is one core


def _end_with_parent() -> None:
    if os.getppid() != _parent:
        os._exit(1)


def _advance(count: int) -> None:
    _end_with_parent()
    with _counter.get_lock():
        _counter.value += count


def _work(job: Job) -> None:
    job.run(*job.arguments, _advance)
