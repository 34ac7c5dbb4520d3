"""What is logged is on disk before the checkpoint that follows it: a run that is killed and goes on has every step.

TensorBoard writes every two minutes, Lightning logs a step after its checkpoint is saved, and a run that goes on logs
from the checkpoint on: what was lost by the kill would stay lost. Knows no method.
"""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger


class WholeCurves(Callback):
    """Logs a step before the checkpoint of its end is written, instead of after it, and has it written to disk."""

    def __init__(self) -> None:
        self._logged = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        connector, loop = trainer._logger_connector, trainer.fit_loop.epoch_loop
        log = connector.update_train_step_metrics
        self._logged = -1

        def once() -> None:
            if self._logged != loop.total_batch_idx:
                self._logged = loop.total_batch_idx
                log()

        connector.update_train_step_metrics = once  # type: ignore[method-assign]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.training and trainer._logger_connector._first_loop_iter is not None:
            trainer._logger_connector.update_train_step_metrics()
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.flush()
