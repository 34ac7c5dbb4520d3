"""Training counted batch by batch, so that a run goes on where it stood, in the data and in Lightning's own loops; and
validations between optimiser steps. Knows `ResumableData`, and no method.
"""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.trainer.states import TrainerFn

from kedit.editing.sources import DataError
from kedit.running.data import ResumableData, random_state, set_random_state

DUE = "validation_due"
"""Under which key a checkpoint says that the validation which follows its step has not been run."""


class TrainingPosition(Callback):
    """Counts the batches trained on, and keeps training's random numbers apart from everybody else's.

    The random state is put aside after every batch and taken up again before the next: neither validation, nor a
    loader, nor a stop and resume in between changes what training draws. Must stand before ModelCheckpoint, which
    Lightning always moves to the end.

    A run that goes on from a checkpoint of a step that a validation follows begins with that validation, unless it is
    to validate at other times. Lightning leaves it out.
    """

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if due := validation_due(trainer):
            checkpoint[DUE] = due

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Lightning counts batches, too: say the same place in those that are accumulated now, and within an epoch that
        was left before its end, as at `trainer.max_time`; Lightning would take it for done.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            return
        data, loops = _resumable(trainer), checkpoint["loops"]["fit_loop"]
        state = checkpoint.get(type(data).__qualname__, {}) if data is not None else {}
        now, then = trainer.accumulate_grad_batches, state.get("accumulated", trainer.accumulate_grad_batches)
        batches, epochs = loops["epoch_loop.batch_progress"], loops["epoch_progress"]
        if state.get("steps") and state["consumed"] % (state["steps"] * then):
            for counts in (epochs["total"], epochs["current"]):
                counts["processed"] = counts["completed"] = counts["started"] - 1
        if now != then:
            for counts in (batches["total"], batches["current"]):
                more = counts["ready"] * now // then - counts["ready"]
                counts.update({name: count + more for name, count in counts.items()})
        if checkpoint.get(DUE) == _validated_when(trainer):
            # what Lightning looks for to go back into a validation: the batch is done with, a validation is begun
            for counts in (batches["total"], batches["current"]):
                counts["completed"] = counts["processed"]
            begun = loops["epoch_loop.val_loop.batch_progress"]
            begun["current"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            begun["total"] = dict(begun["current"])

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            # one that was begun again is counted twice, and Lightning would take the next checkpoint for one within it
            progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
            progress.total.reset()
            progress.current.reset()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse, before anything is written, what the order of the data does not allow.

        Raises:
            DataError: an option would have batches that are not of the data's order, validations within a step, or
                another number of batches in later ones; or a step has less samples than batches.
        """
        window, data = trainer.accumulate_grad_batches, _resumable(trainer)
        if any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise DataError(
                "trainer.callbacks: GradientAccumulationScheduler is not for data that resume exactly; set "
                "trainer.accumulate_grad_batches"
            )
        if window > 1 and _by_clock(trainer):
            raise DataError(
                "trainer.val_check_interval is a time, which ends within accumulated batches: give a number of batches"
            )
        if data is None:
            return
        if trainer.overfit_batches:  # type: ignore[attr-defined]
            raise DataError(
                "trainer.overfit_batches wants the same batches in every epoch, and ours are in another order in each: "
                "give data of that size"
            )
        if data.batches_per_epoch % data.accumulated and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            raise DataError(
                f"trainer.limit_train_batches leaves {data.batches_per_epoch} batches an epoch, wanted a multiple of "
                f"trainer.accumulate_grad_batches, {window}"
            )
        if window > 1 and data.step_samples < window * trainer.world_size:
            raise DataError(
                f"a step has {data.step_samples} samples, too few for {window} accumulated batches on "
                f"{trainer.world_size} processes: lower trainer.accumulate_grad_batches to "
                f"{max(1, data.step_samples // trainer.world_size)}, or raise the batch size of the data"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate, and so save, between optimiser steps only: what was accumulated is in no checkpoint.

        Raises:
            DataError: the position that was read counts steps of another size.
        """
        every, window = trainer.val_check_batch, trainer.accumulate_grad_batches
        over_epochs = trainer.check_val_every_n_epoch is None
        if isinstance(every, int) and (over_epochs or every < trainer.num_training_batches):
            trainer.val_check_batch = -(-every // window) * window
        data = _resumable(trainer)
        if data is None:
            return
        steps = data.batches_per_epoch // window
        if data._steps_then not in (None, steps):
            raise DataError(
                f"the checkpoint counts {data._steps_then} steps an epoch, this run has {steps}: resume with the same "
                "data and batch size"
            )
        if data._random is not None:
            set_random_state(data._random)  # which a validation begins with, too

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        data = _resumable(trainer)
        if data is not None and data._random is not None:
            set_random_state(data._random)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        data = _resumable(trainer)
        if data is not None:
            data.consumed += 1
            data._random = random_state()


def validation_due(trainer: Trainer) -> list[Any]:
    """Whether training stands at the end of a step that a validation follows; if so, by what settings, else empty."""
    loop = trainer.fit_loop.epoch_loop
    counts: Any = loop.batch_progress.current
    at_the_end = trainer.training and counts.ready == counts.processed == counts.completed + 1
    # neither a run that is told to stop, nor one by the clock, nor one with no step left validates there again
    if not at_the_end or _by_clock(trainer) or trainer.should_stop or trainer.global_step == trainer.max_steps:
        return []
    fetcher = trainer.fit_loop._data_fetcher
    return _validated_when(trainer) if fetcher is not None and loop._should_check_val_fx(fetcher) else []


def _by_clock(trainer: Trainer) -> bool:
    return getattr(trainer, "_val_check_time_interval", None) is not None


def _validated_when(trainer: Trainer) -> list[Any]:
    when = [getattr(trainer, "val_check_interval", None), trainer.check_val_every_n_epoch, trainer.limit_val_batches]
    return [*when, trainer.accumulate_grad_batches]


def _resumable(trainer: Trainer) -> ResumableData | None:
    data = getattr(trainer, "datamodule", None)
    return data if isinstance(data, ResumableData) else None
