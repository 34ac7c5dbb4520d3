"""What a device holds in training: who has which weights, gradients and optimiser states, by formula. Knows strategies
and optimisers, and no method; what is taken and what is free is measured in `taken`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, ModelParallelStrategy
from torch import Tensor, nn

GIB = 2**30
MOMENTS = {"Adam": 2, "AdamW": 2, "NAdam": 2, "RAdam": 2, "SGD": 0, "Adafactor": 0, "Adagrad": 1, "RMSprop": 1}
"""Tensors of a weight's size that an optimiser keeps (Adafactor: rows and columns only); of others, 2 are assumed."""


@dataclass(frozen=True)
class Memory:
    """Bytes on a device.

    Args:
        weights: of the module and of models that it only uses.
        copies: of weights, in the precision that is computed in.
        gradients: with the buckets in which they are sent.
        states: the optimiser's, and float32 weights of its own where DeepSpeed keeps some.
        activations: kept for the backward pass.
        loss: logits held at a time, and the gradient of the output head.
    """

    weights: float = 0.0
    copies: float = 0.0
    gradients: float = 0.0
    states: float = 0.0
    activations: float = 0.0
    loss: float = 0.0

    @property
    def total(self) -> float:
        """All at once, as at the end of the second forward pass, when the gradients before are not yet cleared.

        DeepSpeed's are, unless batches are accumulated: there a run takes somewhat less.
        """
        return sum(vars(self).values())

    def __str__(self) -> str:
        named = ", ".join(f"{name} {gib(value)}" for name, value in vars(self).items() if value >= 5e-4 * GIB)
        return f"{gib(self.total)} GiB ({named})"


@dataclass(frozen=True)
class Sizes:
    """Weights of a module: numbers trained and frozen, and the bytes of each kind as they stand in memory."""

    trained: int
    frozen: int
    trained_bytes: int
    frozen_bytes: int


def sizes(parameters: Iterable[nn.Parameter]) -> Sizes:
    """Count whole weights, however they are sharded."""
    counts = {True: [0, 0], False: [0, 0]}
    for parameter in {id(one): one for one in parameters}.values():
        numbers = int(getattr(parameter, "ds_numel", parameter.numel()))
        counts[parameter.requires_grad][0] += numbers
        counts[parameter.requires_grad][1] += numbers * parameter.element_size()
    return Sizes(counts[True][0], counts[False][0], counts[True][1], counts[False][1])


@dataclass(frozen=True)
class Sharing:
    """Who holds what.

    Args:
        kind: of strategy: single, ddp, zero or fsdp2.
        processes: over which it is spread.
        stage: of ZeRO.
        bucket: numbers sent at a time.
        half: whether DeepSpeed holds weights in 16 bits, with float32 ones beside the optimiser's state.
        offloaded: whether the optimiser's state is in the host's memory.
        viewed: whether DDP's gradients are views of its buckets.
    """

    kind: str = "single"
    processes: int = 1
    stage: int = 0
    bucket: float = 0.0
    half: bool = False
    offloaded: bool = False
    viewed: bool = False


def sharing(trainer: Trainer) -> Sharing:
    """How a trainer's strategy shares the work."""
    strategy, processes = trainer.strategy, trainer.world_size
    if isinstance(strategy, DeepSpeedStrategy):
        zero = (strategy.config or {}).get("zero_optimization", {})
        half = not str(trainer.precision).startswith("32")
        bucket = zero.get("reduce_bucket_size", 5e8) * (1 + bool(zero.get("overlap_comm", True)))
        stage = int(zero.get("stage", 0))
        return Sharing("zero", processes, stage, bucket, half, offloaded=bool(zero.get("offload_optimizer")))
    if isinstance(strategy, ModelParallelStrategy):
        return Sharing("fsdp2", processes, 3)
    if isinstance(strategy, DDPStrategy):
        return Sharing("ddp", processes, viewed=bool(strategy._ddp_kwargs.get("gradient_as_bucket_view")))
    return Sharing()


def standing_memory(own: Sizes, used: int, moments: int, shared: Sharing, autocast: bool) -> Memory:
    """Weights, gradients and optimiser states of a device.

    ZeRO-1 shares the optimiser's state, ZeRO-2 the gradients too, ZeRO-3 and FSDP2 the weights as well (Rajbhandari et
    al. 2020).

    Args:
        own: the module's weights.
        used: bytes of models that it only uses.
        moments: tensors that the optimiser keeps of each trained weight.
        shared: who holds what.
        autocast: whether float32 weights are computed with in 16 bits, in copies kept until the backward pass.
    """
    n, numbers = shared.processes, own.trained + own.frozen
    trained, frozen = float(own.trained_bytes), float(own.frozen_bytes)
    copies = 2.0 * numbers * autocast * (trained + frozen > 2 * numbers)
    if shared.kind != "zero":
        parts = n if shared.kind == "fsdp2" else 1
        buckets = trained * (shared.kind == "ddp" and not shared.viewed)
        return Memory(
            (trained + frozen) / parts + used, copies / parts, trained / parts + buckets, moments * trained / parts
        )
    each = 2 if shared.half else 4
    weights = each * numbers / (n if shared.stage >= 3 else 1)
    gradients = each * own.trained / (n if shared.stage >= 2 else 1) + each * min(shared.bucket, own.trained)
    states = 4.0 * own.trained * (moments + shared.half) / (n if shared.stage >= 1 else 1)
    return Memory(weights + used, 0.0, gradients, 0.0 if shared.offloaded else states)


def moments_of(optimizer: Any) -> int:
    """Tensors of a weight's size that an optimiser keeps."""
    kind, options = type(optimizer).__name__, getattr(optimizer, "defaults", {})
    extra = int(bool(options.get("amsgrad"))) + int(bool(options.get("momentum"))) + int(bool(options.get("centered")))
    return MOMENTS.get(kind, 2) + extra


def remedy(memory: Memory, shared: Sharing, accumulated: int, checkpointing: bool) -> str:
    """The option to change where memory does not fit."""
    if memory.activations + memory.loss > memory.weights + memory.gradients + memory.states:
        more = "" if checkpointing else ", or set model.init_args.backbone.gradient_checkpointing true"
        return f"raise trainer.accumulate_grad_batches ({accumulated}){more}"
    if shared.kind in ("zero", "fsdp2") and shared.stage >= 3:
        return "use more devices, or offload_optimizer: true in trainer.strategy.init_args"
    if shared.kind == "zero":
        return f"raise trainer.strategy.init_args.stage ({shared.stage})"
    return "share it over more devices by ZeRO (configs/hardware/node8.yaml, zero3.yaml)"


def is_checkpointing(model: nn.Module) -> bool:
    return any(getattr(part, "gradient_checkpointing", False) for part in model.modules())


def present(parameters: Iterable[Tensor], optimizers: Iterable[Any]) -> float:
    """Bytes of the weights, and of optimiser states that a checkpoint brought."""

    def tensors() -> Iterator[Tensor]:
        yield from parameters
        for optimizer in optimizers:
            for state in getattr(optimizer, "state", {}).values():
                yield from (value for value in state.values() if isinstance(value, Tensor))

    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors()}
    return float(sum(storages.values()))


def gib(value: float) -> str:
    return f"{value / GIB:.3g}" if value < 1000 * GIB else f"{value / GIB:,.0f}"
