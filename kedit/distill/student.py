"""The model that learns: all its weights, one adapter, or one adapter for each of many edits. Knows no Lightning.

Whichever it is, the initial model can be had back at any time: it is the teacher, and what results are compared with.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kedit.lm.adapters import Lora, adapter_off, adapter_state, add_lora, load_adapter_state, reset, save_adapter
from kedit.lm.backbones import output_head
from kedit.lm.divergences import Head
from kedit.lm.stacked import StackedAdapters, stack


class Student:
    """A model in one of three forms.

    Args:
        model: the initial model; it is changed in place.
        lora: the adapters; None trains all weights.
        side_by_side: how many edits are learned at once, each by an adapter of its own; None for one set of weights.
        seed: of the adapters' first values.
        freeze_embeddings: where all weights are trained, all but the token embeddings and the output head.

    Attributes:
        initial_head: the output head of the initial model, which decodes the teacher's states: a copy where all weights
            are trained.
    """

    def __init__(
        self, model: PreTrainedModel, lora: Lora | None, side_by_side: int | None = None, seed: int = 0,
        freeze_embeddings: bool = False,
    ) -> None:  # fmt: skip
        self.model, self.lora, self.seed = model, lora, seed
        self.stacked: StackedAdapters | None = None
        self.adapted: Any = None
        self._initial: dict[str, Tensor] = {}
        weight, bias = output_head(model)
        self.initial_head = Head(weight.detach(), None if bias is None else bias.detach())
        if lora is None:
            model.requires_grad_(True)
            for frozen in (model.get_input_embeddings(), model.get_output_embeddings()) if freeze_embeddings else ():
                frozen.requires_grad_(False)
            self._initial = {name: value.detach().to("cpu", copy=True) for name, value in model.named_parameters()}
            self.initial_head = Head(weight.detach().clone(), None if bias is None else bias.detach().clone())
        elif side_by_side is not None:
            self.stacked = stack(model, lora, side_by_side, seed)
            self._begin_alike()
        else:
            self.adapted = add_lora(model, lora, seed)

    @property
    def head(self) -> Head:
        """The output head as it stands."""
        return Head(*output_head(self.model))

    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def editing(self, edits: Sequence[int]) -> Any:
        """A context in which rows stand edit by edit, each for its own adapter (without any, for the initial model); of
        no effect in the other forms.
        """
        if self.stacked is None:
            return nullcontext()
        return self.stacked.active(edits) if len(edits) else self.stacked.off()

    @contextmanager
    def initial(self) -> Iterator[None]:
        """Inside, the model is the initial one, bit for bit."""
        if self.stacked is not None:
            with self.stacked.off():
                yield
        elif self.adapted is not None:
            with adapter_off(self.adapted):
                yield
        else:
            learned = {name: value.detach().clone() for name, value in self.model.named_parameters()}
            self._copy(self._initial)
            try:
                yield
            finally:
                self._copy(learned)

    @torch.no_grad()
    def _copy(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.copy_(values[name])

    def reset(self) -> None:
        """Forget everything learned: the initial model, bit for bit. An optimiser's moments are not here."""
        if self.stacked is not None:
            self._begin_alike()
        elif self.adapted is not None:
            reset(self.adapted, self.seed)
        else:
            self._copy(self._initial)

    @torch.no_grad()
    def _begin_alike(self) -> None:
        """Every edit begins as one that is made alone, whichever place it has in the stack."""
        assert self.stacked is not None
        self.stacked.reset()
        for layer in self.stacked.layers.values():
            layer.lora_A.copy_(layer.lora_A[0].clone())

    def state(self) -> dict[str, Tensor]:
        """What was learned, not copied: all weights under the model's names, or the adapters' alone."""
        if self.stacked is not None:
            return self.stacked.state_dict()
        return self.model.state_dict() if self.adapted is None else adapter_state(self.adapted)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave.

        Raises:
            ValueError, RuntimeError: it is of another model or form.
        """
        if self.stacked is not None:
            self.stacked.load_state_dict(state)
        elif self.adapted is not None:
            load_adapter_state(self.adapted, state)
        else:
            self.model.load_state_dict(dict(state))

    def save_adapters(self, folders: Sequence[str | Path], base_name: str, revision: str | None = None) -> None:
        """Write the adapter, or those of the edits side by side, each to a folder as PEFT reads it."""
        if self.stacked is not None:
            for edit, folder in enumerate(folders):
                self.stacked.save_adapter(edit, folder, base_name, revision)
        elif self.adapted is not None:
            save_adapter(self.adapted, folders[0], base_name, revision)
        else:
            raise ValueError("all weights were trained: there is no adapter to save")
