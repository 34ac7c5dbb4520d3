"""LoRA adapters on a language model, by PEFT: add, switch off, save, load, merge, take off. Knows no method.

Adapters lie on the linear layers of the trunk, never on the output head or an embedding: final states that were
computed without the adapter are still decoded by the model's head.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from kedit.lm.adapter_files import file_name, of_adapter, read_adapter, target_names, write_adapter, write_config
from kedit.lm.weights import misfits


@dataclass
class Lora:
    """Low-rank adapters: W x becomes W x + (alpha / rank) B A x, and only A and B are trained.

    Args:
        rank: rows of A and columns of B.
        alpha: strength; by default twice the rank.
        dropout: share of A's inputs that is dropped in training.
        targets: last names of the linear layers that get one (q_proj, v_proj); by default all but the output head.
    """

    rank: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    targets: list[str] | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"lora.rank is {self.rank}: wanted at least 1")
        if self.alpha is not None and not self.alpha > 0:
            raise ValueError(f"lora.alpha is {self.alpha}: wanted more than 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout is {self.dropout}: wanted a share from 0 to below 1")
        if self.targets == []:
            raise ValueError("lora.targets is empty: name layers, or leave it out for all of them")

    @property
    def strength(self) -> float:
        """alpha, where it is left out twice the rank."""
        return 2 * self.rank if self.alpha is None else self.alpha


def target_layers(model: PreTrainedModel, targets: Sequence[str] | None = None) -> dict[str, nn.Module]:
    """The linear layers that get an adapter, by their names in the model, in its order.

    Raises:
        ValueError: a target names no linear layer of the trunk, or the model has adapters already.
    """
    head = model.get_output_embeddings()
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }
    known = sorted({_last(name) for name in layers})
    if "base_layer" in known:
        raise ValueError("the model has adapters already: take them off first")
    if unknown := sorted(set(targets or ()) - set(known)):
        raise ValueError(f"lora.targets: no linear layer is named {', '.join(unknown)}; there are {', '.join(known)}")
    return {name: layer for name, layer in layers.items() if targets is None or _last(name) in targets}


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def features(layer: nn.Module) -> tuple[int, int]:
    """Numbers that a linear layer takes and gives; GPT-2's Conv1D holds its weight as [in, out]."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return (weight.shape[0], weight.shape[1]) if isinstance(layer, Conv1D) else (weight.shape[1], weight.shape[0])


def lora_config(model: PreTrainedModel, lora: Lora) -> LoraConfig:
    """PEFT's description of the adapter."""
    layers = target_layers(model, lora.targets)
    return LoraConfig(
        task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
        r=lora.rank,
        lora_alpha=int(lora.strength) if lora.strength == int(lora.strength) else lora.strength,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=sorted({_last(name) for name in layers}),
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in layers.values()),
    )


def draw_A(inputs: Sequence[int], rank: int, seed: int, edit: int = 0) -> list[Tensor]:
    """First values float32 [rank, in] of every layer's A, as PEFT distributes them; B begins at 0.

    A function of its arguments alone: edit 3 is the same beside ten others as without them.

    Args:
        inputs: numbers that each layer takes.
        rank: rows of A.
        seed: the run's.
        edit: number of the edit among those of the run.
    """
    state = int(np.random.SeedSequence([seed, edit]).generate_state(1, np.uint64)[0])
    generator = torch.Generator("cpu").manual_seed(state)
    bounds = [1 / math.sqrt(width) for width in inputs]
    return [
        torch.empty(rank, width, device="cpu", dtype=torch.float32).uniform_(-bound, bound, generator=generator)
        for width, bound in zip(inputs, bounds, strict=True)
    ]


def add_lora(model: PreTrainedModel, lora: Lora, seed: int, edit: int = 0) -> PeftModel:
    """Put an adapter on a model, in place. The model's own weights are frozen; the adapter's are float32.

    The global random state is left as it was. Before training the adapter changes nothing.

    Args:
        model: the base model.
        lora: the adapter.
        seed: for its first values.
        edit: number of the edit that it will hold, which has its own first values.
    """
    adapted = _wrap(model, lora_config(model, lora))
    reset(adapted, seed, edit)
    return adapted


def _wrap(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        return get_peft_model(model, config)


def _layers(model: PeftModel) -> list[LoraLayer]:
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


@torch.no_grad()
def reset(model: PeftModel, seed: int, edit: int = 0) -> None:
    """Give the adapter its first values again: it changes nothing any more. An optimiser's moments are not here."""
    own = _parameters(model)
    matrices = [parameter for name, parameter in own.items() if ".lora_A." in name]
    inputs, rank = [matrix.shape[1] for matrix in matrices], len(matrices[0])
    for matrix, first in zip(matrices, draw_A(inputs, rank, seed, edit), strict=True):
        matrix.copy_(first)
    for name, parameter in own.items():
        if ".lora_B." in name:
            parameter.zero_()


@contextmanager
def adapter_off(model: PeftModel) -> Iterator[None]:
    """Inside, the model computes bit for bit what its base does: the teacher, with no second copy of the weights."""
    layers = _layers(model)
    were = [layer._disable_adapters for layer in layers]
    # PEFT's own disable_adapter takes 8 times as long, and when it ends it trains what was frozen
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, was in zip(layers, were, strict=True):
            layer._disable_adapters = was


def remove(model: PeftModel) -> PreTrainedModel:
    """Take the adapter off: the base model, bit for bit. Its weights stay frozen."""
    return model.unload()


def merge(model: PeftModel) -> PreTrainedModel:
    """Add the adapter to the weights, in their type: a plain model, its weights frozen.

    Raises:
        ValueError: the sum is not finite.
    """
    return model.merge_and_unload(safe_merge=True)


# state ----------------------------------------------------------------------------------------------------------------


def _parameters(model: PeftModel) -> dict[str, nn.Parameter]:
    return {file_name(name): parameter for name, parameter in model.named_parameters() if of_adapter(name)}


def adapter_state(model: PeftModel) -> dict[str, Tensor]:
    """The adapter's tensors, not copied: base_model.model.transformer.h.0.attn.c_attn.lora_A.weight and so on."""
    return {name: parameter.detach() for name, parameter in _parameters(model).items()}


@torch.no_grad()
def load_adapter_state(model: PeftModel, state: Mapping[str, Tensor]) -> None:
    """Take over what `adapter_state` gave.

    Raises:
        ValueError: the tensors are those of another model or adapter; nothing is changed.
    """
    own = _parameters(model)
    if wrong := misfits(own, state):
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"the adapter does not fit the model: {'; '.join(wrong[:3])}{more}")
    for name, parameter in own.items():
        parameter.copy_(state[name])


# files ----------------------------------------------------------------------------------------------------------------


def save_adapter(model: PeftModel, folder: str | Path, base_name: str, revision: str | None = None) -> None:
    """Write the adapter as PEFT reads it; an adapter that is there already is replaced, once the new one is whole.

    Args:
        model: has the adapter.
        folder: what to write.
        base_name: hub id or folder of the base model.
        revision: of a hub model.

    Raises:
        OSError: the folder holds something else.
    """
    write_adapter(folder, model.peft_config["default"], adapter_state(model), base_name, revision)  # type: ignore[arg-type]


def save_config(model: PeftModel, folder: str | Path, base_name: str | None, revision: str | None = None) -> None:
    """Write adapter_config.json alone, for a run whose checkpoints hold the tensors."""
    write_config(Path(folder), model.peft_config["default"], base_name, revision)  # type: ignore[arg-type]


def load_adapter(model: PreTrainedModel, folder: str | Path) -> PeftModel:
    """Put a saved adapter on its base model, in place. It can be trained on.

    Raises:
        OSError: the adapter is incomplete or damaged.
        ValueError: it is one of another model.
    """
    return apply_adapter(model, *read_adapter(folder))


def apply_adapter(model: PreTrainedModel, config: LoraConfig, tensors: Mapping[str, Tensor]) -> PeftModel:
    """As `load_adapter`, of what `read_adapter` gives."""
    if not isinstance(config.target_modules, str):  # a pattern, in adapters by others
        target_layers(model, target_names(config))
    own = copy(config)
    own.inference_mode, own.base_model_name_or_path = False, None  # it can be trained; PEFT names the base itself
    adapted = _wrap(model, own)
    try:
        load_adapter_state(adapted, tensors)
    except ValueError:
        remove(adapted)
        raise
    return adapted
