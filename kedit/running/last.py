"""When checkpoints are written: at the end of optimiser steps only, and `last.ckpt` at the end of training and when a
run is stopped, too. Knows no method.
"""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class StepCheckpoint(ModelCheckpoint):
    """ModelCheckpoint that waits for the end of the optimiser step: what was accumulated is in no checkpoint.

    Lightning saves in the middle when an interval of time is over then, and after the first batch of a run that goes on
    from a step whose number is due.
    """

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        if not trainer.fit_loop._should_accumulate():
            super().on_train_batch_end(trainer, pl_module, *rest)

    @property
    def state_key(self) -> str:
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__)


class LastCheckpoint(Callback):
    """Writes `last.ckpt` when training ends after the step that `save_last` saved last."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        callback = trainer.checkpoint_callback
        if (
            isinstance(callback, ModelCheckpoint)
            and callback.save_last
            and callback._last_global_step_saved != trainer.global_step
        ):
            save_last(trainer)


def save_last(trainer: Trainer) -> Path | None:
    """Write `last.ckpt` of the present state, as ModelCheckpoint would; on all processes at once.

    Returns:
        The checkpoint; None where the run saves none.
    """
    callback = trainer.checkpoint_callback
    if not isinstance(callback, ModelCheckpoint) or callback.dirpath is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    path = Path(callback.dirpath) / f"{callback.CHECKPOINT_NAME_LAST}.ckpt"
    # in the state that is saved, or ModelCheckpoint would take it for another's and write last-v1.ckpt beside it
    callback.last_model_path = str(path)
    trainer.save_checkpoint(path)
    callback._last_global_step_saved, callback._last_checkpoint_saved = trainer.global_step, str(path)
    return path
