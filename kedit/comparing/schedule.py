"""Trials one after another, each in a process of its own, its record kept on disk: what is there is not done again.

Knows no method and no figure.
"""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kedit.comparing.facts import FactSet
from kedit.comparing.record import Judging, Trial
from kedit.comparing.trial import run_trial
from kedit.comparing.way import Base, Way
from kedit.editing.sources import Question
from kedit.running.errors import told
from kedit.running.files import write_whole
from kedit.running.workers import forking

START = "spawn"
"""A process of its own from the beginning: its memory is its own, and nothing of CUDA is inherited."""
SECONDS = 0.2
"""Between two looks at a process."""
STOPPED = 128 + signal.SIGTERM
"""Exit code of a process that was told to end."""
PATIENCE = 5
"""Seconds in which a process that is stopped may give back what it holds of the system."""


@dataclass(frozen=True)
class Job:
    """A trial to be run.

    Args:
        base: the model's name.
        name: the contestant's.
        seed: of what it draws.
        way: the contestant.
        model: the model.
        plain: asks the model as it is; None where this is that.
        record: file of its record, named by everything that matters.
    """

    base: str
    name: str
    seed: int
    way: Way
    model: Base
    plain: Way | None
    record: Path

    @property
    def log(self) -> Path:
        """What the process printed."""
        return self.record.with_suffix(".log")

    @property
    def failure(self) -> Path:
        """Why it failed, in a few words."""
        return self.record.with_suffix(".failed")

    @property
    def work(self) -> Path:
        """For what lies on the disk while it runs."""
        return self.record.parent / "work"

    def __str__(self) -> str:
        return f"{self.base}: {self.name}" + (f", seed {self.seed}" if self.way.seeded else "")


@dataclass(frozen=True)
class Asked:
    """What is the same for all trials: facts, how they are judged, questions of general knowledge, plain texts."""

    facts: FactSet
    judging: Judging
    questions: Sequence[Question] = ()
    texts: Sequence[str] = ()


def finished(job: Job) -> Trial | None:
    """The trial's record, if it is there whole."""
    try:
        return Trial.from_json(json.loads(job.record.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def run_job(job: Job, asked: Asked, progress: "Progress") -> Trial | str:
    """A trial in a process of its own.

    Returns:
        Its record, or why there is none: other trials are not concerned.
    """
    if (trial := finished(job)) is not None:
        progress.skipped()
        return trial
    job.record.parent.mkdir(parents=True, exist_ok=True)
    job.failure.unlink(missing_ok=True)
    shutil.rmtree(job.work, ignore_errors=True)  # what a killed one left
    job.work.mkdir()
    progress.begun(job)
    context: Any = multiprocessing.get_context(START)
    process = context.Process(target=_work, args=(job, asked, os.getpid()))
    with forking({signal.SIGINT}):
        process.start()
    try:
        while process.is_alive():
            process.join(SECONDS)
            progress.tick()
    finally:
        try:
            if process.is_alive():
                process.terminate()
                process.join(PATIENCE)
        finally:
            if process.is_alive():  # or the user has no patience
                process.kill()
                process.join()
    trial = finished(job)
    reason = "" if trial is not None else _reason(job, process.exitcode or 0)
    progress.ended(reason)
    return reason if trial is None else trial


def _reason(job: Job, code: int) -> str:
    if job.failure.exists():
        return job.failure.read_text(encoding="utf-8")
    code = -signal.SIGTERM if code == STOPPED else code
    how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"
    short = ", as happens where memory is short" if code == -signal.SIGKILL else ""
    return f"its process {how}{short}; see {job.log}"


def _work(job: Job, asked: Asked, parent: int) -> None:
    """In the new process: run the trial, and write its record whole or not at all."""
    with job.log.open("w", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits for this one
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        trial = run_trial(
            job.way, job.model, asked.facts, asked.judging, job.seed, job.plain, asked.questions, asked.texts, job.work
        )
    except Exception as error:
        traceback.print_exc()
        reason = told(error) or f"{type(error).__name__}: {error}"
        write_whole(job.failure, " ".join(reason.split()))
        sys.exit(1)
    write_whole(job.record, json.dumps(trial.to_json(), ensure_ascii=False).encode("utf-8", "replace").decode())


def _end_with(parent: int) -> None:
    """End this process when the one that waits for it has gone."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


class Progress:
    """A line for the whole: what is done, what runs, how long it may take.

    On a terminal it is one line that changes; elsewhere a line a trial.

    Args:
        total: how many trials there are.
    """

    def __init__(self, total: int) -> None:
        self.total, self.done, self.failed, self.ran, self.spent = total, 0, 0, 0, 0.0
        self.is_terminal = sys.stderr.isatty()
        self.job: Job | None = None
        self.since = 0.0
        self.shown = 0.0

    def skipped(self) -> None:
        """A trial whose record was there."""
        self.done += 1

    def begun(self, job: Job) -> None:
        self.job, self.since = job, time.monotonic()
        self.tick()

    def tick(self) -> None:
        """Called often."""
        now = time.monotonic()
        if self.is_terminal and now - self.shown >= 1:
            self.shown = now
            self._show(f"{self.job}: {_clock(now - self.since)}{self._left()}")

    def ended(self, reason: str) -> None:
        """The trial that was begun has ended; the reason why it failed."""
        spent = time.monotonic() - self.since
        self.done, self.ran, self.spent = self.done + 1, self.ran + 1, self.spent + spent
        self.failed += bool(reason)
        told = f"failed: {reason}" if reason else _clock(spent)
        self._show(f"{self.job}: {told}{self._left()}", end="\n")

    def stopped(self) -> None:
        """The user stops the command while a trial runs."""
        kept = self.done - self.failed
        told = f"{kept} of {self.total} trials are finished and kept: the same command goes on from there"
        print(f"{chr(10) if self.is_terminal else ''}compare: {told}", file=sys.stderr, flush=True)

    def _show(self, text: str, end: str = "") -> None:
        line = f"compare {self.done}/{self.total}  {text}"
        if self.is_terminal:
            width = max(20, os.get_terminal_size(sys.stderr.fileno()).columns - 1)
            line = f"\r\033[K{line if end else line[:width]}"
        print(line, end=end, file=sys.stderr, flush=True)

    def _left(self) -> str:
        left = self.total - self.done
        return f", about {_clock(self.spent / self.ran * left)} left" if self.ran and left else ""


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
