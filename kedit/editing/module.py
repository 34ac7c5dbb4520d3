"""What every method's LightningModule shares: the wiring of optimiser and schedule. Knows nothing of any method."""

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from kedit.editing.sources import DataError
from kedit.lm.backbones import Backbone, fetch
from kedit.lm.optim import Schedule, parameter_groups


class EditingModule(LightningModule):
    """A method that puts knowledge into a language model.

    Args:
        optimizer: the optimiser, as class_path and init_args; parameters are given by the module.
        schedule: learning rate over steps.
        weight_decay: decay of matrices; biases and norms have none.
    """

    def __init__(
        self,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        weight_decay: float = 0.01,
    ):
        super().__init__()
        self.optimizer = optimizer
        self.schedule = schedule or Schedule()
        self.weight_decay = weight_decay

    def prepare_data(self) -> None:
        """On one process of each node, before any other loads: have the files of all models in the cache."""
        for part in vars(self).values():
            if isinstance(part, Backbone):
                fetch(part)

    def configure_optimizers(self) -> Any:
        """One optimiser over all trainable parameters, its learning rate set at every step."""
        optimizer = self.optimizer(self.parameter_groups())
        for group in optimizer.param_groups:
            group["lr"] *= group.pop("share", 1.0)
        total = self.trainer.estimated_stepping_batches
        if math.isinf(total):
            raise DataError("the schedule needs an end: give trainer.max_steps or trainer.max_epochs")
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.learning_rate(step, int(total)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What is trained; a group's `share` is its part of the optimiser's learning rate."""
        return parameter_groups(self, self.weight_decay)

    def log_loss(self, loss: Tensor) -> None:
        """Log `train/loss`: the mean over all processes when the logger writes it down, in between this one's."""
        loss, trainer = loss.detach(), self.trainer
        if trainer.world_size > 1 and trainer._logger_connector.should_update_logs:
            loss = trainer.strategy.reduce(loss, reduce_op="mean")
        self.log("train/loss", loss, prog_bar=True, batch_size=1)

    def learning_rate(self, step: int, total: int) -> float:
        """Share of the optimiser's learning rate at `step` (from 0) of `total` steps."""
        return self.schedule.factor(step, total)
