"""When checkpoints are written: at the end of optimiser steps only, where a run also stops; `last.ckpt` at the end of
training and when a run is stopped, too. Knows no method.
"""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class StepCheckpoint(ModelCheckpoint):
    """ModelCheckpoint that waits for the end of the optimiser step: what was accumulated is in no checkpoint.

    Lightning saves in the middle when an interval of time is over then, and after the first batch of a run that goes on
    from a step whose number is due. It also stops there, as at `trainer.max_time`: the stop waits, too.
    """

    _stop_is_due = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_is_due = False
        if self.dirpath is not None and not self.last_model_path:
            # it is ours also where other settings than before have left its state unread: no last-v1.ckpt beside it
            self.last_model_path = str(Path(self.dirpath) / f"{self.CHECKPOINT_NAME_LAST}{self.FILE_EXTENSION}")
        super().on_train_start(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        if trainer.fit_loop._should_accumulate():
            # Lightning calls us last, so that nobody tells it to stop behind this
            self._stop_is_due, trainer.should_stop = self._stop_is_due or trainer.should_stop, False
            return
        trainer.should_stop, self._stop_is_due = trainer.should_stop or self._stop_is_due, False
        super().on_train_batch_end(trainer, pl_module, *rest)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]  # Lightning saves nothing before, but here
            super().on_train_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up scores and files; where the run's folder was moved, those of the same names that lie in it now."""
        super().load_state_dict(_moved(state_dict, Path(self.dirpath)) if self.dirpath is not None else state_dict)

    @property
    def state_key(self) -> str:
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__)


def _moved(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A ModelCheckpoint's state with its files in `folder`; as it is where none of them lies there: it is another's."""

    def here(path: str) -> str:
        return str(folder / Path(path).name) if path else path

    names = ("best_model_path", "kth_best_model_path", "last_model_path")
    files = [*(state.get(name) for name in names), *state.get("best_k_models", {})]
    if state.get("dirpath") in (None, str(folder)) or not any(Path(here(file)).exists() for file in files if file):
        return state
    paths: dict[str, Any] = {name: here(state.get(name, "")) for name in names}
    best = {here(path): score for path, score in state.get("best_k_models", {}).items()}
    return state | paths | {"dirpath": str(folder), "best_k_models": best}


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
