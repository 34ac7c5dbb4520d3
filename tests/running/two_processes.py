"""A small training in two forked processes whose strategy writes folders."""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from tiny_training import Data, Model

from kedit.running.directories import make_durable
from kedit.running.position import TrainingPosition
from kedit.running.signals import OrderlyStop


class Sharded(Model):
    """The tiny model, its weights split over the processes by FSDP2."""

    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        mesh = self.device_mesh["data_parallel"]
        for part in (self.net[0], self.net[2], self.net):
            fully_shard(part, mesh=mesh)


def sharded() -> tuple[Model, Any]:
    return Sharded(), ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo")


def zero(stage: int) -> tuple[Model, Any]:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from cpu_deepspeed import CPUDeepSpeed

    return Model(), CPUDeepSpeed(stage)


def fit(
    folder: Path, made: tuple[Model, Any], *callbacks: Callback, resume: Path | None = None, **saving: Any
) -> Model:
    """Train as one of the processes; what ended it is `model.ended`."""
    seed_everything(3, verbose=False)
    model, strategy = made
    options = {"every_n_train_steps": 4, "save_last": True} | saving
    trainer = Trainer(
        accelerator="cpu",
        devices=int(os.environ.get("WORLD_SIZE", "1")),
        strategy=strategy,
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[TrainingPosition(), *callbacks, OrderlyStop(), ModelCheckpoint(folder, "{step}", **options)],
    )
    make_durable(trainer.strategy)
    model.ended = None
    try:
        trainer.fit(model, datamodule=Data(), ckpt_path=resume, weights_only=True)
    except BaseException as exception:
        model.ended = exception
    return model


def in_processes(work: Callable[[int], None], world: int = 2) -> list[int]:
    """Do something in forked processes that form a group; their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def one(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "GROUP_RANK": "0",
                       "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                       "TORCHELASTIC_RUN_ID": "x"}  # fmt: skip
        torch.set_num_threads(1)
        try:
            work(rank)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=one, args=(rank,)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(150)
        if process.exitcode is None:
            process.kill()
    return [process.exitcode if process.exitcode is not None else -1 for process in processes]
