"""What is logged is on disk before the checkpoint that follows it: a run that is killed and goes on has every step.

TensorBoard writes every two minutes, Lightning logs a step after its checkpoint is saved, and a run that goes on logs
from the checkpoint on: what was lost by the kill would stay lost. Knows no method.
"""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

LOGGED = "logged"
"""Under which key a checkpoint holds what training logged last."""


class WholeCurves(Callback):
    """Logs a step before the checkpoint of its end is written, instead of after it, and has it written to disk.

    Nor does it log what a step has not: Lightning repeats the last value of what a module logs now and then, until the
    epoch ends or the run is gone on with.

    A run that goes on with the validation of its last step takes back what was logged at that step, for the validation
    may have been logged before the kill, and logs training's part again.
    """

    def __init__(self) -> None:
        self._logged = -1
        self._last: dict[str, Any] = {"step": -1, "metrics": []}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._last = checkpoint.get(LOGGED, self._last)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        connector, loop = trainer._logger_connector, trainer.fit_loop.epoch_loop
        log_step, log = connector.update_train_step_metrics, connector.log_metrics
        self._logged = -1
        if loop.val_loop.restarted_mid_evaluation:
            self._log_again(trainer, loop._batches_that_stepped)

        def once() -> None:
            if self._logged != loop.total_batch_idx:
                self._logged = loop.total_batch_idx
                log_step()
            counts: Any = loop.batch_progress.current
            if counts.completed == counts.processed and not loop._should_accumulate():  # the step's last call
                for value in loop._results.values():
                    if value.is_tensor and not value.meta.on_epoch:
                        value.reset()

        def kept(metrics: dict[str, Any], step: int | None = None) -> None:
            if trainer.training:
                if self._last["step"] != loop._batches_that_stepped:
                    self._last = {"step": loop._batches_that_stepped, "metrics": []}
                self._last["metrics"].append(dict(metrics))
            log(metrics, step)

        connector.update_train_step_metrics = once  # type: ignore[method-assign]
        connector.log_metrics = kept  # type: ignore[method-assign]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.training and trainer._logger_connector._first_loop_iter is not None:
            trainer._logger_connector.update_train_step_metrics()
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.flush()
        logged = [{name: float(value) for name, value in metrics.items()} for metrics in self._last["metrics"]]
        checkpoint[LOGGED] = {"step": self._last["step"], "metrics": logged}

    def _log_again(self, trainer: Trainer, step: int) -> None:
        for logger in trainer.loggers if trainer.is_global_zero else ():
            if isinstance(logger, TensorBoardLogger):
                restart = Event(step=step, session_log=SessionLog(status=SessionLog.START))
                logger.experiment._get_file_writer().event_writer.add_event(restart)
        for metrics in self._last["metrics"] if self._last["step"] == step else ():
            trainer._logger_connector.log_metrics(metrics)
