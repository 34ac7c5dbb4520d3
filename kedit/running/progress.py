"""How far training and judging are: Lightning's bar on a terminal, elsewhere a plain line now and then."""

import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary, ProgressBar, TQDMProgressBar

from kedit.running.pace import Pace


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
