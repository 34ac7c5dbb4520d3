"""The end of training is saved, wherever the last regular checkpoint fell. Knows no method."""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class LastCheckpoint(Callback):
    """Writes `last.ckpt` when training ends after the step that `save_last` saved last."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        callback = trainer.checkpoint_callback
        if not isinstance(callback, ModelCheckpoint) or not callback.save_last or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if callback._last_global_step_saved != trainer.global_step and callback.dirpath is not None:
            trainer.save_checkpoint(Path(callback.dirpath) / f"{callback.CHECKPOINT_NAME_LAST}.ckpt")
