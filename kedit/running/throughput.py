"""What a training step costs, to the logger: tokens per second, padding, memory, share of the device's peak, gradient
norm and learning rate. Knows the four numbers a batch may carry, and nothing else of a batch.
"""

import resource
import sys
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ThroughputMonitor
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from kedit.running.data import ResumableData

COUNTED = ("target_tokens", "padding", "positions", "flops")


class TrainingThroughput(ThroughputMonitor):
    """Lightning's ThroughputMonitor for batches that know their own size, with nothing waited for between two logs.

    A batch may have `target_tokens`, `padding` and `positions` (numbers of this process's batch) and `flops` (forward
    and backward pass, useful ones only); what it lacks is not logged. Time spent in validation does not count.
    `train/loader_wait_share` is the part of the time that was spent waiting for batches.
    """

    def __init__(self) -> None:
        super().__init__(batch_size_fn=lambda batch: 0)
        self._counts = dict.fromkeys(COUNTED, 0.0)
        self._since = self._paused = self._waited = 0.0

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        self._restart(trainer)

    @rank_zero_only
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        for name in COUNTED:
            self._counts[name] += getattr(batch, name, 0)
        connector = trainer._logger_connector
        if trainer.fit_loop._should_accumulate() or not connector.should_update_logs:
            return
        device = trainer.strategy.root_device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        connector.log_metrics(self._metrics(trainer, time.perf_counter() - self._since))
        self._restart(trainer)

    def _metrics(self, trainer: Trainer, seconds: float) -> dict[str, Any]:
        counts = self._counts
        metrics: dict[str, Any] = {"train/peak_memory_gib": _peak_memory(trainer.strategy.root_device)}
        if counts["target_tokens"]:
            # the processes' batches differ little: this one's stands for all
            metrics["train/target_tokens_per_second"] = counts["target_tokens"] * trainer.world_size / seconds
        if counts["positions"]:
            metrics["train/padding_share"] = counts["padding"] / counts["positions"]
        if counts["flops"] and self.available_flops:
            metrics["train/mfu"] = counts["flops"] / seconds / self.available_flops
        if (waited := _waited(trainer)) is not None:
            metrics["train/loader_wait_share"] = (waited - self._waited) / seconds
        return metrics

    def _restart(self, trainer: Trainer) -> None:
        self._counts = dict.fromkeys(COUNTED, 0.0)
        self._since, self._waited = time.perf_counter(), _waited(trainer) or 0.0

    @rank_zero_only
    def on_validation_start(self, trainer: Trainer, *_: Any) -> None:
        self._paused = time.perf_counter()

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        self._since += time.perf_counter() - self._paused

    # of training only
    def on_validation_batch_end(self, *_: Any, **__: Any) -> None: ...
    def on_test_start(self, *_: Any) -> None: ...
    def on_test_batch_end(self, *_: Any, **__: Any) -> None: ...
    def on_predict_start(self, *_: Any) -> None: ...
    def on_predict_batch_end(self, *_: Any, **__: Any) -> None: ...


def _waited(trainer: Trainer) -> float | None:
    data = getattr(trainer, "datamodule", None)
    return data.waited if isinstance(data, ResumableData) else None


def _peak_memory(device: torch.device) -> float:
    """GiB: what tensors took at most on a GPU, else the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class GradientNorm(Callback):
    """Logs the norm of all gradients before clipping, and the learning rate of the step, when the trainer logs."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if not trainer._logger_connector.should_update_logs:
            return
        groups = optimizer.param_groups
        for group in groups if len({group["lr"] for group in groups}) > 1 else groups[:1]:
            name = (
                f"train/learning_rate/{group['name']}" if len(groups) > 1 and "name" in group else "train/learning_rate"
            )
            pl_module.log(name, group["lr"])
        gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        if gradients:
            pl_module.log("train/gradient_norm", torch.nn.utils.get_total_norm(gradients, foreach=None))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        # DeepSpeed keeps the gradients to itself
        norm = getattr(trainer.model, "get_global_grad_norm", lambda: None)()
        if norm is not None and trainer._logger_connector.should_update_logs:
            pl_module.log("train/gradient_norm", norm)
