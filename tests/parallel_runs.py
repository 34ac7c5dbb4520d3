"""Runs of the command line in forked processes, one after another, that tell each step's loss and the final weights."""

import os
import sys
from pathlib import Path
from typing import Any

import cpu_deepspeed
import deepspeed
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

sys.path.append(str(Path(__file__).parent / "running"))
from two_processes import in_processes

import kedit.distill
import kedit.kilm
import kedit.recipe.module
import kedit.running.application  # noqa: F401  or every child that is forked imports it all again
from kedit.cli import main

STRATEGIES = {"one": [], "ddp": ["--trainer.strategy", "ddp"]} | {
    f"zero-{stage}": ["--trainer.strategy", "cpu_deepspeed.CPUDeepSpeed", "--trainer.strategy.stage", str(stage)]
    for stage in (1, 2, 3)
}
CPUDeepSpeed = cpu_deepspeed.CPUDeepSpeed  # a fork that imports it anew would be seconds late


class Diary(Callback):
    """Writes, on the first process, what a run was like.

    Args:
        file: the losses by batch, and the final weights.
    """

    def __init__(self, file: str) -> None:
        self.file, self.losses = Path(file), {}

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.losses[trainer.fit_loop.epoch_loop.total_batch_idx] = float(trainer.callback_metrics["train/loss"])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with deepspeed.zero.GatheredParameters(list(pl_module.parameters())):
            weights = {name: one.detach().clone() for name, one in pl_module.named_parameters() if one.requires_grad}
        if trainer.is_global_zero:
            torch.save({"losses": self.losses, "weights": weights}, self.file)


class Stop(Callback):
    """Ends training after a step, as a run that is stopped there.

    Args:
        step: of the optimiser.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.global_step >= self.step


class Poison(Callback):
    """Makes a loss not a number, on the second process alone.

    Args:
        step: after which.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step >= self.step and trainer.global_rank == 1:
            batch.weights_N[:] = float("nan")


def runs(folder: Path, world: int, commands: dict[str, list[str]], code: int = 0) -> None:
    """Run commands one after another in processes that form a group, each with a diary `NAME.pt`.

    Args:
        folder: to run them in.
        world: how many processes.
        commands: what to tell `python -m kedit`, by name.
        code: how they are to exit.
    """

    def work(rank: int) -> None:
        os.chdir(folder)
        for name, arguments in commands.items():
            given = list(arguments)
            given += ["--trainer.devices", str(world)]
            if given[0] == "fit":
                given += ["--trainer.callbacks+", "parallel_runs.Diary",
                          "--trainer.callbacks.file", str(folder / f"{name}.pt")]  # fmt: skip
            found = main(given)
            assert found == code, f"{name}: {found}"

    assert in_processes(work, world) == [0] * world


def told(folder: Path, name: str) -> tuple[dict[int, float], dict[str, torch.Tensor]]:
    """Losses by batch and final weights of a run."""
    diary = torch.load(folder / f"{name}.pt", weights_only=True)
    return diary["losses"], diary["weights"]
