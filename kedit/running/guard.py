"""Stops a run, on all processes at once, whose loss, gradient or weights are no longer numbers, before a checkpoint is
written from it; or leaves a few such steps out. Knows of a batch where it stands and, at most, its samples' numbers.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from kedit.editing.sources import DataError

SAMPLES = {"numbers": "rows", "documents": "documents"}
"""What a batch may call the numbers of its samples, and what they are called in a message."""
SHOWN = 8
REMEDY = (
    "stopped; no checkpoint was written from it: go on from an earlier one by --ckpt_path last with a lower learning "
    "rate, more warm-up or --trainer.gradient_clip_val"
)


class NonFinite(DataError):
    """A loss, a gradient or a weight became infinite or not a number."""


@dataclass
class Guard:
    """What is done when a loss or a gradient is infinite or not a number.

    Args:
        skip: most such optimiser steps of a run that are left out, weights and optimiser state staying as they are;
            one more stops the run. With more than 0 every step waits for its verdict.
    """

    skip: int = 0

    def __post_init__(self) -> None:
        if self.skip < 0:
            raise DataError(f"guard.skip is {self.skip}, wanted 0 or more steps that may be left out")


@dataclass
class _Place:
    """Where a batch stands, and the numbers of its samples with what they are called."""

    epoch: int
    batch: int
    called: str = ""
    samples: Sequence[int] = ()

    def __str__(self) -> str:
        distinct = list(dict.fromkeys(self.samples))
        more = f", ... {len(distinct)} in all" if len(distinct) > SHOWN else ""
        shown = f" ({self.called} {', '.join(map(str, distinct[:SHOWN]))}{more})" if distinct else ""
        return f"epoch {self.epoch}, batch {self.batch}{shown}"


@dataclass
class _Step:
    """The micro-batches of an optimiser step, and what is known of them.

    `flags`: whether any process's loss is not finite, whether a gradient is not, and whether each own loss is not.
    """

    number: int = 0
    batches: list[_Place] = field(default_factory=list)
    bad: list[Tensor] = field(default_factory=list)
    flags: Tensor | None = None
    copied: Any = None


class FiniteTraining(Callback):
    """Raises `NonFinite` when a loss or a gradient of training, what is saved, or what a validation says is not finite.

    One verdict is agreed on by all processes before each step of the optimiser. On the CPU it is read at once. On a GPU
    it is copied to the host while the step runs and read before the next step of the optimiser, a validation or a
    checkpoint, so that no step waits for it.

    Args:
        guard: how many steps may be left out.
    """

    def __init__(self, guard: Guard | None = None) -> None:
        self.guard = guard or Guard()
        self.skipped = 0
        self._step, self._waiting = _Step(), list[_Step]()
        self._batch = _Place(0, 0)
        self._at_once = self.guard.skip > 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.guard.skip and isinstance(trainer.strategy, DeepSpeedStrategy):
            raise DataError(
                f"guard.skip is {self.guard.skip}, but DeepSpeed steps by itself: set it to 0, or use another "
                "trainer.strategy"
            )
        # Lightning does not ask us before it saves weights alone
        weights_alone = any(getattr(callback, "save_weights_only", False) for callback in trainer.checkpoint_callbacks)
        self._at_once = self.guard.skip > 0 or weights_alone

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = int(state_dict["skipped"])

    # training ---------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step, self._waiting = _Step(), []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        found = ((called, getattr(batch, name)) for name, called in SAMPLES.items() if hasattr(batch, name))
        self._batch = _Place(trainer.current_epoch, batch_idx, *next(found, ()))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._step.batches.append(self._batch)
        self._step.bad.append(~torch.isfinite(loss.detach()).all())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self._read(trainer, pl_module)
        step, self._step = self._step, _Step()
        if not step.bad:
            return
        step.number = trainer.global_step + 1
        own = torch.stack(step.bad)
        agreed = torch.stack([own.any(), _bad_gradient(trainer, optimizer, own.device)]).to(torch.int32)
        if trainer.world_size > 1:
            torch.distributed.all_reduce(agreed, torch.distributed.ReduceOp.MAX)
        self._send(step, torch.cat([agreed, own.to(torch.int32)]))
        if (self._at_once or step.copied is None) and self._read(trainer, pl_module):
            for parameter in _parameters(optimizer):
                parameter.grad = None  # an optimiser leaves what has no gradient as it is

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        # DeepSpeed keeps the gradients to itself, and knows their norm after the step, the same on all processes
        norm = getattr(trainer.model, "get_global_grad_norm", lambda: None)()
        if norm is None or trainer.precision.startswith("16"):  # in float16 it mends them by itself, or gives up
            return
        if isinstance(norm, Tensor):
            bad = (~torch.isfinite(norm.detach())).reshape(()).to(torch.int32)
        else:
            bad = torch.tensor(int(not abs(norm) < float("inf")), dtype=torch.int32)
        step = _Step(trainer.global_step, [self._batch])
        self._send(step, torch.stack([torch.zeros_like(bad), bad, torch.zeros_like(bad)]))
        if self._at_once or step.copied is None:
            self._read(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._read(trainer, pl_module)

    def _send(self, step: _Step, flags: Tensor) -> None:
        step.flags = flags.to("cpu", non_blocking=True)  # pinned memory, so that the host goes on
        if flags.is_cuda:
            step.copied = torch.cuda.Event()
            step.copied.record()
        self._waiting.append(step)

    def _read(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Whether the step just judged is to be left out. Processes are in step here: all stop, or none does."""
        steps, self._waiting = self._waiting, []
        for step in steps:
            if step.copied is not None:
                step.copied.synchronize()
            assert step.flags is not None
            bad_loss, bad_gradient, *own = step.flags.tolist()
            if not (bad_loss or bad_gradient):
                continue
            what = self._told(trainer, pl_module, step, own if bad_loss else [True] * len(own), bool(bad_loss))
            if self.skipped >= self.guard.skip:
                after = f"; {self.skipped} steps were left out before" if self.skipped else ""
                raise NonFinite(f"{what}\n{REMEDY}{after}")
            self.skipped += 1
            rank_zero_info(f"left out (number {self.skipped} of at most {self.guard.skip}): {what}")
            for logger in trainer.loggers:
                logger.log_metrics({"train/skipped_steps": float(self.skipped)}, step.number)
            return True
        return False

    def _told(self, trainer: Trainer, pl_module: LightningModule, step: _Step, own: list[Any], is_loss: bool) -> str:
        """What is wrong, in a line: the batches of all processes that are to blame, as far as that is known."""
        places = [str(batch) for batch, bad in zip(step.batches, own, strict=True) if bad]
        if trainer.world_size > 1:
            all_places: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(all_places, places)
            places = [f"{place} of process {rank}" for rank, some in enumerate(all_places) for place in some]
        where = "; ".join(places[:3]) + (f"; and {len(places) - 3} more" if len(places) > 3 else "")
        if is_loss:
            return f"the loss of step {step.number} is not finite: {where}"
        gradients = ((name, p.grad) for name, p in pl_module.named_parameters() if p.grad is not None)
        name = "" if step.copied is not None else _first_bad(gradients)
        named = f" at {name}" if name else ""
        return f"the gradient of step {step.number} is not finite{named}, though its loss is: {where}"

    # what is saved ----------------------------------------------------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._read(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises NonFinite where the loss, or what the best checkpoint is chosen by, is no number."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        chosen_by = {getattr(callback, "monitor", None) for callback in trainer.checkpoint_callbacks} | {"val/loss"}
        values = {name: float(value) for name, value in trainer.callback_metrics.items() if name in chosen_by}
        bad = [f"{name} is {value}" for name, value in values.items() if not abs(value) < float("inf")]
        if not trainer.strategy.reduce_boolean_decision(not bad, all=True):
            what = " and ".join(bad) or "what another process validated is not finite"
            raise NonFinite(
                f"{what} in the validation after step {trainer.global_step} (epoch {trainer.current_epoch})\n{REMEDY}"
            )

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Raises NonFinite where a weight or the optimiser's state is no number, on any process."""
        self._read(trainer, pl_module)
        bad = _first_bad(_kept(pl_module, trainer.optimizers))
        if not trainer.strategy.reduce_boolean_decision(not bad, all=True):
            raise NonFinite(
                f"{bad or 'a weight of another process'} is not finite after step {trainer.global_step}: "
                f"{self._batch}\n{REMEDY}"
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, NonFinite):
            for callback in trainer.checkpoint_callbacks:
                callback.save_on_exception = False  # type: ignore[attr-defined]


def _parameters(optimizer: Any) -> Iterator[Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def _bad_gradient(trainer: Trainer, optimizer: Any, device: torch.device) -> Tensor:
    """Whether the norm of all gradients is not finite, a bool []; of shards, those of this process."""
    gradients = [parameter.grad for parameter in _parameters(optimizer) if parameter.grad is not None]
    if not gradients:
        return torch.zeros((), dtype=torch.bool, device=device)  # torch.tensor(False) would be copied, and waited for
    local = [getattr(gradient, "to_local", lambda gradient=gradient: gradient)() for gradient in gradients]
    bad = ~torch.isfinite(torch.nn.utils.get_total_norm(local))
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is not None and scaler._scale is not None:
        # in float16 gradients may overflow: the scaler leaves the step out and scales less, until it cannot
        bad = bad & (scaler._scale <= 1)
    return bad.to(device)


def _kept(module: LightningModule, optimizers: Iterable[Any]) -> Iterator[tuple[str, Tensor]]:
    """Trained weights and optimiser states of this process, whatever holds them, by name."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for outer in optimizers:
        optimizer = getattr(outer, "optimizer", outer)  # DeepSpeed's has one within, over its own share of the weights
        for parameter in {id(one): one for one in [*_parameters(optimizer), *optimizer.state]}.values():
            name = names.get(id(parameter), "a weight")
            yield name, parameter
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    yield f"the optimiser's {key} of {name}", value


def _first_bad(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """The name of the first tensor that is not finite; empty where all are."""
    named = [(name, getattr(tensor, "to_local", lambda tensor=tensor: tensor)()) for name, tensor in tensors]
    named = [(name, tensor) for name, tensor in named if tensor.is_floating_point() and tensor.numel()]
    # one number for all first: many kernels less, and one wait
    if not named or torch.nn.utils.get_total_norm([tensor for _, tensor in named]).isfinite():
        return ""
    return next((name for name, tensor in named if not tensor.isfinite().all()), "")
