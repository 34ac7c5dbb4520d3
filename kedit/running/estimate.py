"""Memory and time of a training before it starts, printed, and beside them what then happens. Knows what trainer,
module, optimiser and batch say of themselves, and no method.
"""

import math
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks.throughput_monitor import _plugin_to_compute_dtype
from torch import Tensor, nn
from transformers import PreTrainedModel

from kedit.lm.activations import Kept, activation_bytes
from kedit.lm.losses import CHUNK_ELEMENTS
from kedit.running.memory import (
    GIB,
    Memory,
    Sharing,
    Sizes,
    gib,
    is_checkpointing,
    moments_of,
    present,
    remedy,
    sharing,
    sizes,
    standing_memory,
)
from kedit.running.pace import clock
from kedit.running.taken import Baseline

WARMING, TIMED = 2, 5
"""Optimiser steps before timing begins, and those that are timed."""
TYPICAL_SHARE = 0.35
"""Of a GPU's peak: published are 31 % (nanoT5, A100) and 34 to 46 % (torchtitan, nanochat, H100)."""


def _innermost(trainer: Trainer) -> Any:
    """The optimiser itself: DeepSpeed puts another around it."""
    optimizer = trainer.optimizers[0] if trainer.optimizers else None
    while (inner := getattr(optimizer, "optimizer", None)) is not None:
        optimizer = inner
    return optimizer


def training_flops(own: Sizes, used: int, positions: float) -> float:
    """Of forward and backward pass: 6 for each trained number and token, 4 for each frozen one (no gradient of it)."""
    return positions * (6.0 * own.trained + 4.0 * (own.frozen + used))


class RunEstimate(Callback):
    """Prints what a training will take, before its first step, and after a few steps and at the end what it took.

    Logs `run/memory_estimated_gib` and `run/memory_measured_gib` of the first process. What a forward pass keeps is
    estimated by a formula where the batch says its `positions`, then measured in the first one.
    """

    def __init__(self) -> None:
        self.memory = Memory()
        self.measured = 0.0
        self._own = self._used = Sizes(0, 0, 0, 0)
        self._begun = self._validated = False
        self._saved: _Saved | None = None
        self._first_step = self._positions = 0
        self._start: tuple[int, float] | None = None
        self._timed, self._seconds = 0, 0.0
        self._told = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.__init__()  # type: ignore[misc]
        self._first_step = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._begun or not trainer.is_global_zero:
            return
        self._begun = True
        beside = [parameter for model in getattr(pl_module, "beside", ()) for parameter in model.parameters()]
        self._own, self._used = sizes(pl_module.parameters()), sizes(beside)
        self._positions = int(getattr(batch, "positions", 0))
        shared, device = sharing(trainer), trainer.strategy.root_device
        used = self._used.trained_bytes + self._used.frozen_bytes
        autocast = "mixed" in str(trainer.precision) and shared.kind != "zero"
        self.memory = standing_memory(self._own, used, moments_of(_innermost(trainer)), shared, autocast)
        self.memory = self._with_activations(trainer, pl_module, shared, autocast)
        self._baseline = Baseline(device, present([*pl_module.parameters(), *beside], trainer.optimizers))
        self._say(trainer, shared)
        if shared.stage < 3:  # elsewhere weights come and go
            self._saved = _Saved([*pl_module.parameters(), *beside])
            self._saved.hooks.__enter__()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if self._saved is not None:
            self._saved.hooks.__exit__(None, None, None)
            # the logits of a chunk are forgotten, the gradient of the head is kept
            kept, chunk = self._saved.bytes - self.memory.copies, min(self.memory.loss, CHUNK_ELEMENTS * 4)
            self.memory, self._saved = replace(self.memory, activations=max(kept, 0.0), loss=chunk), None
            if (room := self._baseline.room) < self.memory.total - self._baseline.present:
                self._warn(trainer, room)

    def _with_activations(self, trainer: Trainer, module: LightningModule, shared: Sharing, autocast: bool) -> Memory:
        models = [part for part in module.modules() if isinstance(part, PreTrainedModel)]
        if not self._positions or not models:
            return self.memory
        config, device = models[0].config, trainer.strategy.root_device
        dropout = getattr(config, "attention_dropout", 0) or getattr(config, "attn_pdrop", 0)
        scores = config._attn_implementation == "eager" or (device.type == "cpu" and bool(dropout))
        wide = 2 if shared.half or models[0].dtype.itemsize == 2 else 4
        kept = Kept(wide, 2 if autocast else wide, scores, is_checkpointing(models[0]))
        rows = int(getattr(trainer.datamodule, "row_tokens", 0) or 0)  # type: ignore[attr-defined]
        head = models[0].get_output_embeddings()
        vocabulary = config.vocab_size
        loss = min(CHUNK_ELEMENTS, self._positions * vocabulary) * 4.0
        if head is not None and head.weight.requires_grad:
            loss += 4.0 * vocabulary * config.hidden_size
        return replace(self.memory, activations=activation_bytes(config, self._positions, rows, kept), loss=loss)

    # what is said -----------------------------------------------------------------------------------------------------

    def _say(self, trainer: Trainer, shared: Sharing) -> None:
        positions = f" for {self._positions:,} positions" if self._positions else ", what the batch keeps to come"
        how = {"zero": f"ZeRO-{shared.stage}", "ddp": "DDP", "fsdp2": "FSDP2"}.get(shared.kind, "one process")
        over = f" over {shared.processes} processes" if shared.processes > 1 else ""
        room = self._baseline.room + self._baseline.present
        optimizer = type(_innermost(trainer)).__name__
        _print(f"memory of a device, {how}{over}, {optimizer}: {self.memory}{positions}; {gib(room)} GiB are there")
        steps = trainer.estimated_stepping_batches
        batches = trainer.accumulate_grad_batches * trainer.world_size
        left = steps - trainer.global_step
        line = f"{left:,.0f} steps" if math.isfinite(left) else "as many steps as there is time for"
        if self._positions:
            line += f" of about {self._positions * batches:,} positions"
        dtype = torch.bfloat16 if shared.half else _plugin_to_compute_dtype(trainer.precision_plugin)
        peak = get_available_flops(trainer.strategy.root_device, dtype)
        if peak and self._positions:
            flops = training_flops(self._own, self._used.trained + self._used.frozen, self._positions)
            seconds = flops * trainer.accumulate_grad_batches / (peak * TYPICAL_SHARE)
            time_taken = f"{clock(seconds * left)} in all" if math.isfinite(left) else f"{seconds:,.3g} s each"
            line += f", {time_taken} at {TYPICAL_SHARE:.0%} of the device's {peak / 1e12:,.0f} TFLOP/s"
        elif left > WARMING + TIMED:
            line += f"; how long they take is told after {WARMING + TIMED}"
        _print(line)
        if self._baseline.room < self.memory.total - self._baseline.present:
            self._warn(trainer, self._baseline.room)

    def _warn(self, trainer: Trainer, room: float) -> None:
        if self._told:
            return
        self._told = True
        models = [part for part in trainer.lightning_module.modules() if isinstance(part, PreTrainedModel)]
        checkpointing = any(is_checkpointing(model) for model in models)
        what = remedy(self.memory, sharing(trainer), int(trainer.accumulate_grad_batches), checkpointing)
        more = self.memory.total - self._baseline.present
        _print(f"this may not fit: {gib(more)} GiB more are wanted, {gib(room)} are free; {what}")

    # what happens -----------------------------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = trainer.global_step - self._first_step
        if self._timed == TIMED or done < WARMING or not self._begun or trainer.fit_loop._should_accumulate():
            return
        if self._start is None:
            self._start = trainer.global_step, _now(trainer)
        elif self._timed + trainer.global_step - self._start[0] == TIMED:
            self._pause(trainer)
            self._measure()
            seconds = self._seconds / TIMED
            batches = trainer.accumulate_grad_batches * trainer.world_size
            rates = [f"{seconds:,.3g} s a step"]
            for name in ("positions", "target_tokens"):
                if count := getattr(batch, name, 0):
                    rates.append(f"about {count * batches / seconds:,.0f} {name.replace('_', ' ')}/s")
            left = trainer.estimated_stepping_batches - trainer.global_step
            if math.isfinite(left):
                rates.append(f"{clock(seconds * left)} left without validation")
            _print(f"measured over {TIMED} steps: {', '.join(rates)}")
            _print(self._compared())

    def _pause(self, trainer: Trainer) -> None:
        """Stop the clock, if it runs."""
        if self._start is not None:
            first, since = self._start
            self._timed += trainer.global_step - first
            self._seconds += _now(trainer) - since
            self._start = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._begun and not self._validated:
            self._measure()
            self._validated = True
        self._pause(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._begun and self._timed < TIMED and trainer.global_step - self._first_step >= WARMING:
            self._start = trainer.global_step, _now(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._begun:
            return
        self._measure()
        _print(self._compared())
        values = {"run/memory_estimated_gib": self.memory.total / GIB, "run/memory_measured_gib": self.measured / GIB}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._saved is not None:
            self._saved.hooks.__exit__(None, None, None)
            self._saved = None

    def _measure(self) -> None:
        """Training's peak: what a validation takes, which comes later, is not estimated."""
        if not self._validated:
            self.measured = self._baseline.peak

    def _compared(self) -> str:
        off = (self.memory.total - self.measured) / max(self.measured, 1)
        return f"memory of training {gib(self.measured)} GiB, estimated {gib(self.memory.total)} ({off:+.0%})"


class _Saved:
    """Counts what autograd keeps while `hooks` is entered.

    Args:
        parameters: are there anyway.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._seen = {parameter.untyped_storage().data_ptr() for parameter in parameters}
        self.bytes = 0
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._count, lambda tensor: tensor)

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        # a node that kept its own output as it is would keep itself alive
        return tensor if tensor.is_leaf else tensor.detach()


def _now(trainer: Trainer) -> float:
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.synchronize(trainer.strategy.root_device)
    return time.perf_counter()


def _print(line: str) -> None:
    print(line, flush=True)
