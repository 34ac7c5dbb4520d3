"""In a step that logs nothing, no callback of ours reads a number off the device: nobody waits for it."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from tiny_training import PER_EPOCH, Data, Model
from torch.utils._python_dispatch import TorchDispatchMode

from kedit.running.curves import WholeCurves
from kedit.running.estimate import RunEstimate
from kedit.running.guard import FiniteTraining
from kedit.running.last import LastCheckpoint
from kedit.running.position import TrainingPosition
from kedit.running.progress import PlainProgress
from kedit.running.signals import OrderlyStop
from kedit.running.stamp import Stamp
from kedit.running.throughput import GradientNorm, TrainingThroughput

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
OURS = (TrainingPosition, FiniteTraining, TrainingThroughput, GradientNorm, LastCheckpoint, WholeCurves, Stamp,
        OrderlyStop, RunEstimate, PlainProgress)  # fmt: skip
HOOKS = ("on_train_batch_start", "on_before_backward", "on_after_backward", "on_before_optimizer_step",
         "on_before_zero_grad", "on_train_batch_end")  # fmt: skip
READS = {"_local_scalar_dense", "equal", "nonzero", "is_nonzero"}


class Reads(TorchDispatchMode):
    """Counts by hook what would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.hook, self.found = "", []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in READS:
            self.found.append(self.hook)
        return func(*args, **(kwargs or {}))


def watched(callback: Callback, reads: Reads) -> Callback:
    """The callback, what its hooks read counted."""

    def counted(inner, name):
        def hook(*arguments, **more):
            reads.hook = name
            with reads:
                inner(*arguments, **more)

        return hook

    for name in HOOKS:
        if getattr(type(callback), name) is not getattr(Callback, name):
            setattr(callback, name, counted(getattr(callback, name), f"{type(callback).__name__}.{name}"))
    return callback


class Reader(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, *_) -> None:
        if float(outputs["loss"]) > 1e9:
            raise AssertionError


def run(tmp_path, monkeypatch, *more: type[Callback]) -> list[str]:
    def send(self, step, flags):
        # as on a GPU: a copy on the host that is there when its event says so, read with no wait in a later step
        step.flags = SimpleNamespace(tolist=lambda: flags.tolist())
        step.copied = SimpleNamespace(synchronize=lambda: None)
        self._waiting.append(step)

    monkeypatch.setattr(FiniteTraining, "_send", send)
    seed_everything(1, verbose=False)
    reads = Reads()
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, log_every_n_steps=1000, enable_checkpointing=False, logger=False,
        enable_model_summary=False, default_root_dir=tmp_path, num_sanity_val_steps=0,
        callbacks=[watched(kind(), reads) for kind in (*OURS, *more)],
    )  # fmt: skip
    trainer.fit(Model(), datamodule=Data())
    return reads.found


def test_no_callback_waits(tmp_path, monkeypatch):
    original = torch.Tensor.tolist
    listed = []
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: listed.append(tensor) or original(tensor))
    assert run(tmp_path, monkeypatch) == []
    assert len([one for one in listed if one.dtype == torch.int32 and one.numel() == 3]) == PER_EPOCH  # the verdicts


def test_one_that_does_is_found(tmp_path, monkeypatch):
    assert run(tmp_path, monkeypatch, Reader) == ["Reader.on_train_batch_end"] * PER_EPOCH
