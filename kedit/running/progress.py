"""Long work says how far it is: a bar on a terminal, elsewhere a plain line now and then. Knows no method."""

import math
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary, ProgressBar, TQDMProgressBar
from tqdm import tqdm

Item = TypeVar("Item")
EVERY = 10.0
"""Seconds between two plain lines."""


class Pace:
    """Prints a line with share, rate and time left, at most every so many seconds.

    Args:
        what: what is being done, as in "training".
        total: how much there is to do; None or infinite where unknown.
        unit: what is counted, in the plural.
        done: how much is done already.
        every: seconds between two lines.
    """

    def __init__(
        self, what: str, total: float | None = None, unit: str = "steps", done: int = 0, every: float | None = None
    ) -> None:
        self.what, self.unit = what, unit
        self.total = None if total is None or math.isinf(total) or total <= 0 else int(total)
        self.every = EVERY if every is None else every
        self._first, self._done = done, done
        self._start = self._printed = time.monotonic()

    def at(self, done: int, more: str = "", last: bool = False) -> None:
        """Say how far it is, if it is time to, or at the end where anything was said before.

        Args:
            done: how much is done.
            more: added to the line.
            last: whether this is the end.
        """
        self._done = done
        if self.is_due or (last and self._printed > self._start):
            self._printed = time.monotonic()
            print(self.line(more), file=sys.stderr, flush=True)

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self._printed >= self.every

    def line(self, more: str = "") -> str:
        seconds = max(time.monotonic() - self._start, 1e-9)
        rate = (self._done - self._first) / seconds
        parts = [f"{self.what}: {self._done:,} {self.unit}"]
        if self.total is not None:
            parts = [f"{self.what}: {self._done:,} of {self.total:,} {self.unit} ({self._done / self.total:.0%})"]
        parts.append(f"{rate:,.3g} {self.unit}/s" if rate < 1000 else f"{rate:,.0f} {self.unit}/s")
        if self.total is not None and rate > 0:
            parts.append(f"{_clock((self.total - self._done) / rate)} left")
        return ", ".join([*parts, more] if more else parts)


def _clock(seconds: float) -> str:
    minutes, second = divmod(int(max(seconds, 0)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def track(items: Iterable[Item], what: str, total: float | None = None, unit: str = "items") -> Iterator[Item]:
    """The same items, with progress shown while they are taken.

    Args:
        items: what to go through.
        what: what is being done.
        total: how many there are; by default their length where they have one.
        unit: what they are, in the plural.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if sys.stderr.isatty():
        yield from tqdm(items, desc=what, total=total, unit=f" {unit}", dynamic_ncols=True)
        return
    pace, done = Pace(what, total, unit), 0
    for item in items:
        yield item
        done += 1
        pace.at(done)
    pace.at(done, last=True)


def progress_bar() -> ProgressBar:
    """Lightning's bar where somebody watches, else plain lines."""
    return TQDMProgressBar(leave=True) if sys.stderr.isatty() else PlainProgress()


class ParameterCount(ModelSummary):
    """How large the model is, in a line, instead of Lightning's table, which counts no FLOPs and calls them 0."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            # under ZeRO-3 a process holds a part of each
            sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in pl_module.parameters()]
            every, trained = sum(size for size, _ in sizes), sum(size for size, is_trained in sizes if is_trained)
            print(f"{type(pl_module).__name__}: {every:,} parameters, {trained:,} of them trained", flush=True)


class PlainProgress(ProgressBar):
    """A line every few seconds for a log file: steps of how many, steps per second, time left, loss."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._pace: Pace | None = None
        self._judging: Pace | None = None
        self._judged = 0

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pace = Pace("training", trainer.estimated_stepping_batches, done=trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._enabled and self._pace is not None:
            # the loss is read (and waited for) only when a line is due
            self._pace.at(trainer.global_step, _loss(outputs) if self._pace.is_due else "")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._enabled and self._pace is not None:
            self._pace.at(trainer.global_step, last=True)

    def _begin(self, what: str, batches: Any) -> None:
        self._judged = 0
        self._judging = Pace(what, sum(batches) if isinstance(batches, list) else batches, "batches")

    def _next(self) -> None:
        self._judged += 1
        if self._enabled and self._judging is not None:
            self._judging.at(self._judged)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(
            "validation", trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        if self._enabled and found and trainer.state.fn == "fit" and not trainer.sanity_checking:
            metrics = ", ".join(f"{name.removeprefix('val/')} {value:.4g}" for name, value in found.items())
            print(f"validation after {trainer.global_step:,} steps: {metrics}", file=sys.stderr, flush=True)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin("test", trainer.num_test_batches)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin("predict", trainer.num_predict_batches)

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        self._next()

    def on_test_batch_end(self, *_: Any, **__: Any) -> None:
        self._next()

    def on_predict_batch_end(self, *_: Any, **__: Any) -> None:
        self._next()


def _loss(outputs: Any) -> str:
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
    return f"loss {float(loss):.4g}" if loss is not None else ""
