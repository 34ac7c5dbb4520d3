"""A tiny run that would notice any difference: distinct shuffled rows, dropout, a schedule that asks for the number of
steps. As a script it trains until it is killed or done: python tiny_training.py FOLDER STEP_TO_DIE_AT WORKERS.
"""

import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from kedit.running.data import ResumableData
from kedit.running.order import epoch_order, step_count, step_items
from kedit.running.position import TrainingPosition

ROWS, BATCH, EPOCHS = 46, 4, 3
PER_EPOCH = step_count(ROWS, BATCH)


@dataclass
class Batch:
    rows: list[int]
    x: Tensor


class Data(ResumableData):
    def __init__(self, num_workers: int = 0) -> None:
        super().__init__()
        self.num_workers = num_workers

    @property
    def step_samples(self) -> int:
        return BATCH

    @property
    def steps_per_epoch(self) -> int:
        return PER_EPOCH

    def make_batch(self, epoch: int, batch: int) -> Batch:
        share = self.share(batch)
        rows = step_items(epoch_order(ROWS, self.seed, epoch), share.step, BATCH)
        rows = share.own(rows) if len(share.own(rows)) else rows[:1]
        return Batch(
            rows.tolist(), torch.from_numpy(np.stack([np.sin(np.arange(8) * (row + 1)) for row in rows])).float()
        )

    def val_dataloader(self):
        return torch.utils.data.DataLoader(torch.rand(6, 8), batch_size=3, shuffle=True)


class Model(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 1))
        self.seen: list[tuple[list[int], float]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = (self.net(batch.x).mean() - 1).square() + 0 * np.random.rand()
        self.seen.append((batch.rows, float(loss)))
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/loss", self.net(batch).mean() + 0 * torch.rand(1).mean())

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        total = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (total + 1))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.global_step >= self.step:
            trainer.should_stop = True


def train(
    folder: Path, *, workers: int = 0, resume: Path | None = None, callbacks=(), every: int | None = None, **arguments
) -> Model:
    """Train to the end, or until a callback stops it, with a checkpoint every `every` steps, or at every validation."""
    seed_everything(3, verbose=False)
    saved = ModelCheckpoint(folder, "{step}", every_n_train_steps=every, save_top_k=-1, save_on_train_epoch_end=False)
    trainer = Trainer(
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[TrainingPosition(), *callbacks, saved],
        **({"logger": False, "max_epochs": EPOCHS} | arguments),
    )
    model = Model()
    trainer.fit(model, datamodule=Data(workers), ckpt_path=resume, weights_only=True)
    return model


class Diary(Callback):
    """Each step's rows and loss as one line, written at once, and death at one step."""

    def __init__(self, path: Path, die_at: int) -> None:
        self.path, self.die_at = path, die_at

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps([trainer.global_step, *pl_module.seen[-1]]) + "\n")
        if trainer.global_step == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, die_at, workers = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    newest = max(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns, default=None)
    model = train(folder, workers=workers, resume=newest, every=2, callbacks=[Diary(folder / "diary", die_at)])
    torch.save(model.state_dict(), folder / "final.pt")
