"""Stops a run whose loss is no longer a number, before a checkpoint is written from it."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from kedit.editing.sources import DataError


class NonFiniteLoss(DataError):
    """The training loss became infinite or not a number."""


class FiniteLoss(Callback):
    """Raises `NonFiniteLoss` as soon as it is known that a training loss is not finite.

    On the CPU that is before the backward pass. On a GPU the verdict is copied to the host while the step runs and read
    at the next step, or before a checkpoint is written, so that no step waits for it.
    """

    def __init__(self) -> None:
        self._verdict: Tensor | None = None
        self._copied: Any = None
        self._step = 0

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._read()
        self._step = trainer.global_step + 1
        finite = torch.isfinite(loss.detach()).all()
        if finite.device.type != "cuda":
            self._verdict = finite
            self._read()
            return
        if self._copied is None:
            self._host = torch.empty((), dtype=torch.bool, pin_memory=True)
            self._copied = torch.cuda.Event()
        self._verdict = self._host
        self._host.copy_(finite, non_blocking=True)
        self._copied.record()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._read()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # one process may know it of its own rows while another is about to write
        finite = self._finite()
        if not trainer.strategy.reduce_boolean_decision(finite, all=True):
            self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, NonFiniteLoss):
            for callback in trainer.checkpoint_callbacks:
                callback.save_on_exception = False  # type: ignore[attr-defined]

    def _finite(self) -> bool:
        if self._verdict is None:
            return True
        if self._copied is not None:
            self._copied.synchronize()
        return bool(self._verdict)

    def _read(self) -> None:
        if not self._finite():
            self._stop()
        self._verdict = None

    def _stop(self) -> None:
        raise NonFiniteLoss(
            f"the loss of step {self._step} is not finite; stopped, no checkpoint was written from it: go on from an "
            "earlier one by --ckpt_path last with a lower learning rate, more warm-up or --trainer.gradient_clip_val"
        )
