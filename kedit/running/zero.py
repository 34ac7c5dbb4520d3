"""DeepSpeed under Lightning computing what all other strategies compute. Knows no method."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor

from kedit.editing.sources import DataError


class SameGradients(DeepSpeedStrategy):
    """In front of a DeepSpeed strategy: its gradients are those of one process."""

    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Lightning has divided the loss by the number of accumulated batches, and DeepSpeed would once more: Adam
        hides that, clipping and logged norms do not.
        """
        return super().backward(closure_loss, optimizer, *args, **{"scale_wrt_gas": False} | kwargs)


def mend_universal(engine: Any, checkpoint: Path) -> None:
    """Put right what DeepSpeed reads from a checkpoint for any number of processes in ZeRO stage 3.

    It gives all parameter groups the settings of the first, weight decay and learning rate; and all parts of the
    optimiser one count of steps, which each of them then adds to.

    Args:
        engine: DeepSpeed's, which has just loaded it.
        checkpoint: the folder.
    """
    if engine.zero_optimization_stage() < 3:
        return
    optimizer = engine.optimizer.optimizer
    saved = torch.load(checkpoint / "checkpoint" / "zero" / "optimizer_state.pt", weights_only=True)
    for group, then in zip(optimizer.param_groups, saved["optimizer_state_dict"]["param_groups"], strict=True):
        group.update({name: value for name, value in then.items() if name != "params"})
    for state in optimizer.state.values():
        state["step"] = torch.as_tensor(state["step"]).clone()


@torch.no_grad()
def load_weights(module: LightningModule, checkpoint: Path) -> None:
    """Give a module whose weights are dealt out, and that is not trained, those of a ZeRO checkpoint; DeepSpeed's own
    way asks for an optimiser. What the checkpoint does not hold, as an adapter's base, stays.

    Raises:
        DataError: it lacks trained weights, or holds some of another shape.
    """
    import deepspeed
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    weights = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint))
    for name, parameter in module.named_parameters():
        if name not in weights and not parameter.requires_grad:
            continue
        value, shape = weights.get(name), list(getattr(parameter, "ds_shape", parameter.shape))
        if value is None or list(value.shape) != shape:
            found = "is missing" if value is None else f"has the shape {list(value.shape)}, wanted {shape}"
            raise DataError(f"checkpoint {checkpoint} is of another model or adapter: {name} {found}")
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.copy_(value)
    for name, buffer in module.named_buffers():
        buffer.copy_(weights.get(name, buffer))
