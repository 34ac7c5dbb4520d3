"""Fine-tuning, the rivals that change weights: all of a model's, one layer's, a LoRA adapter's. Knows no Lightning."""

from typing import Literal

import torch
from peft import PeftModel
from torch import Tensor, nn

from kedit.editing.sources import DataError
from kedit.lm.adapters import Lora, add_lora, remove, reset, target_layers
from kedit.lm.backbones import decoder_layers
from kedit.recipe.prefix import PrefixedModel
from kedit.recipe.tuning import Tuned, Tuning


class FineTune(Tuned):
    """The model's own weights are trained.

    Copies of what is trained lie beside it: as long as there are edits those of the initial model, and during a call
    those from before it.

    Args:
        model: in float32 or bfloat16; it is changed in place.
        tuning: how edits are learned.
        layer: train only this layer, from 0 (an encoder-decoder's decoder); null trains all weights.
        bound: how far any single weight may go; null for as far as it likes.
        bound_from: from where it is at the beginning of each edit, or from the initial model for all edits together.
        relearn: make `forget` begin anew and learn all other edits again.

    Raises:
        DataError: the model has no such layer, or is quantised or in float16; the bound is none.
    """

    def __init__(
        self,
        model: PrefixedModel,
        tuning: Tuning | None = None,
        layer: int | None = None,
        bound: float | None = None,
        bound_from: Literal["edit", "base"] = "edit",
        relearn: bool = False,
    ) -> None:
        super().__init__(model, tuning, relearn)
        if bound is not None and not bound > 0:
            raise DataError(f"bound is {bound}: give the largest change of a weight, more than 0, or null for none")
        if bound_from not in ("edit", "base"):
            raise DataError(f"bound_from is {bound_from!r}, wanted 'edit' or 'base'")
        self.layer, self.bound, self.bound_from = layer, bound, bound_from
        trained: nn.Module = model.model
        if layer is not None:
            layers = decoder_layers(model.model.get_decoder() if model.is_seq2seq else model.model)
            if not 0 <= layer < len(layers):
                raise DataError(f"layer is {layer}, and the model has {len(layers)}: give 0 to {len(layers) - 1}")
            trained = layers[layer]
        self._trained = list(trained.parameters())
        for name, weight in trained.named_parameters():
            if weight.dtype not in (torch.float32, torch.bfloat16, torch.float64) or weight.is_meta:
                found = "not in memory" if weight.is_meta else f"in {weight.dtype}"
                raise DataError(f"{name} is {found}: fine-tuning wants float32 or bfloat16, on a device; try LoRA")
        self._base: list[Tensor] = []

    def _weights(self) -> list[nn.Parameter]:
        if not self._base:
            self._base = [weight.detach().clone() for weight in self._trained]
        return self._trained

    @torch.no_grad()
    def _begin(self) -> None:
        for weight, base in zip(self._trained, self._base, strict=True):
            weight.copy_(base)

    def _limits(self) -> list[tuple[nn.Parameter, tuple[Tensor, Tensor]]]:
        if self.bound is None:
            return []
        around = self._base if self.bound_from == "base" else [weight.detach() for weight in self._trained]
        limits = [(weight - self.bound, weight + self.bound) for weight in around]
        return list(zip(self._trained, limits, strict=True))

    def reset(self) -> None:
        if self._base:
            self._begin()
            self._base = []
        super().reset()

    @property
    def stored_bytes(self) -> int:
        """The weights that differ in kind from the initial model's: all that are trained."""
        return sum(weight.numel() * weight.element_size() for weight in self._base)


class LoraTune(Tuned):
    """One LoRA adapter is trained further and further; the model's own weights stay as they are.

    Args:
        model: gets the adapter with the first edit, in place; without edits it has none.
        tuning: how edits are learned.
        lora: the adapter, without dropout.
        seed: of its first values.
        relearn: make `forget` begin anew and learn all other edits again.

    Raises:
        DataError: the adapter does not fit the model.
    """

    def __init__(
        self, model: PrefixedModel, tuning: Tuning | None = None, lora: Lora | None = None, seed: int = 0,
        relearn: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(model, tuning, relearn)
        self.lora, self.seed = lora or Lora(), seed
        if self.lora.dropout:
            raise DataError(f"lora.dropout is {self.lora.dropout}: edits are learned without dropout, make it 0")
        try:
            target_layers(model.model, self.lora.targets)
        except ValueError as error:
            raise DataError(str(error)) from error
        self._adapted: PeftModel | None = None

    def _weights(self) -> list[nn.Parameter]:
        if self._adapted is None:
            self._adapted = add_lora(self.model.model, self.lora, self.seed).eval()
        return [weight for name, weight in self._adapted.named_parameters() if ".lora_" in name]

    def _begin(self) -> None:
        assert self._adapted is not None
        reset(self._adapted, self.seed)

    def reset(self) -> None:
        if self._adapted is not None:
            remove(self._adapted)
            self._adapted = None
        super().reset()

    @property
    def stored_bytes(self) -> int:
        """The adapter's weights."""
        return sum(weight.numel() * weight.element_size() for weight in self._weights()) if self._adapted else 0
