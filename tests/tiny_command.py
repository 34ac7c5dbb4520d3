"""The smallest module and data that the command line runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from kedit.editing.module import EditingModule
from kedit.editing.sources import DataError
from kedit.running.data import ResumableData


@dataclass
class TinyBatch:
    x: Tensor
    target_tokens: int = 4
    padding: int = 1
    positions: int = 5
    flops: float = 1e6


@dataclass
class TinyBackbone:
    """Named or not.

    Args:
        name: any.
    """

    name: str | None = None


class TinyModule(EditingModule):
    """A line through points.

    Args:
        width: how many inputs.
        activation: what follows the line.
        diverge_at: step from which the loss is not a number.
        backbone: its name stands for a published model.
    """

    metric_meanings: ClassVar = {"test/error": "mean squared error"}

    def __init__(
        self,
        width: int = 4,
        activation: Literal["relu", "tanh"] = "relu",
        learning_rate: float = 0.1,
        diverge_at: int | None = None,
        backbone: TinyBackbone | None = None,
    ):
        super().__init__()
        if width < 1:
            raise ValueError(f"model.width must be at least 1, not {width}")
        self.save_hyperparameters()
        self.model = nn.Linear(width, 1)
        self.learning_rate = learning_rate
        self.diverge_at = diverge_at

    def training_step(self, batch: TinyBatch, batch_idx: int) -> Tensor:
        loss = (self.model(batch.x) - 1).square().mean()
        if self.diverge_at is not None and self.global_step + 1 >= self.diverge_at:
            loss = loss * float("nan")
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/error", (self.model(batch) - 1).square().mean())

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("test/error", (self.model(batch) - 1).square().mean())
        self.log("test/weight", self.model.weight.sum())

    def predict_step(self, batch: Tensor, batch_idx: int) -> list[dict[str, float]]:
        return [{"row": int(row[0] * 10), "y": float(y)} for row, y in zip(batch, self.model(batch), strict=True)]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)


class TinyData(ResumableData):
    """Points.

    Args:
        path: a file that must exist.
        batches: steps in an epoch.
    """

    def __init__(self, path: str | None = None, batches: int = 6, width: int = 4):
        super().__init__()
        self.path, self.batches, self.width = path, batches, width
        self.empty = False

    def setup(self, stage: str) -> None:
        if self.path is not None:
            text = Path(self.path).read_text()
            if text == "nothing to predict" and stage == "predict":
                self.empty = True
            if not text:
                raise DataError(f"{self.path} is empty, wanted one point per line")

    @property
    def step_samples(self) -> int:
        return 2

    @property
    def steps_per_epoch(self) -> int:
        return self.batches

    def make_batch(self, epoch: int, batch: int) -> TinyBatch:
        return TinyBatch(torch.full((2, self.width), (epoch * self.batches + batch + 1) / 20))

    def val_dataloader(self):
        return DataLoader(torch.arange(4 * self.width).reshape(4, self.width) / 10, batch_size=2)

    test_dataloader = val_dataloader

    def predict_dataloader(self):
        return [] if self.empty else self.val_dataloader()


class NotForUs:
    """Of no use as a model."""
