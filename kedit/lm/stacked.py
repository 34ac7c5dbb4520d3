"""Many LoRA adapters on one model, each for rows of its own: E independent edits in one forward pass. Knows no method.

Every adapted layer computes W x + (alpha / rank) B_e A_e x for the rows of edit e. Rows stand edit by edit: those of
edit 0, then as many of edit 1, and so on. Each edit is what PEFT computes when it is trained alone.

Shapes: E edits, R rank, I and O numbers that a layer takes and gives, N tokens of one edit.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kedit.lm.adapter_files import write_adapter
from kedit.lm.adapters import Lora, draw_A, features, lora_config, target_layers


class StackedLora(nn.Module):
    """A frozen linear layer with the adapters of E edits, which are float32 whatever the layer is.

    Args:
        base_layer: a linear layer or GPT-2's Conv1D.
        edits: how many.
        rank: R.
        scale: alpha / rank.
        dropout: share of A's inputs that is dropped in training.
    """

    def __init__(self, base_layer: nn.Module, edits: int, rank: int, scale: float, dropout: float):
        super().__init__()
        width, out = features(base_layer)
        device: torch.device = base_layer.weight.device  # type: ignore[assignment]
        self.base_layer, self.scale = base_layer, scale
        self.lora_A = nn.Parameter(torch.zeros(edits, rank, width, device=device, dtype=torch.float32))
        self.lora_B = nn.Parameter(torch.zeros(edits, out, rank, device=device, dtype=torch.float32))
        self.dropout = nn.Dropout(dropout)
        self.chosen: slice | Tensor | None = slice(None)
        """Which edits are computed; None is the base alone."""

    @property
    def weight(self) -> Tensor:
        """The base layer's: T5 asks for its type."""
        return self.base_layer.weight  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [..., O] of inputs [..., I], whose first dimension is as many rows of each edit."""
        base = self.base_layer(x)
        if self.chosen is None:
            return base
        if isinstance(self.chosen, slice):
            a_ERI, b_EOR = self.lora_A[self.chosen], self.lora_B[self.chosen]
        else:
            a_ERI, b_EOR = self.lora_A.index_select(0, self.chosen), self.lora_B.index_select(0, self.chosen)
        edits = len(a_ERI)
        if len(x) % edits:
            raise ValueError(f"{len(x)} rows for {edits} edits: wanted as many of each edit, edit by edit")
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(a_ERI.dtype)
        low_ENR = torch.bmm(self.dropout(x).reshape(edits, -1, x.shape[-1]), a_ERI.mT)
        base_ENO = base.reshape(edits, -1, base.shape[-1]).to(low_ENR.dtype)
        return torch.baddbmm(base_ENO, low_ENR, b_EOR.mT, alpha=self.scale).to(base.dtype).view(base.shape)


class StackedAdapters:
    """The adapters of E edits on one model, which has them in place of its linear layers until `remove`.

    An optimiser moves all edits at every step, also one that had no rows in it, by its moments. Under gradient
    checkpointing the backward pass belongs inside `active`: it computes the layers again.
    """

    def __init__(self, model: PreTrainedModel, lora: Lora, edits: int, seed: int):
        if edits < 1:
            raise ValueError(f"{edits} edits: wanted at least 1")
        self.model, self.edits, self.seed, self.rank = model, edits, seed, lora.rank
        self.config = lora_config(model, lora)
        targets = target_layers(model, lora.targets)
        model.requires_grad_(False)
        self.layers = {
            name: StackedLora(layer, edits, lora.rank, lora.strength / lora.rank, lora.dropout)
            for name, layer in targets.items()
        }
        for name, layer in self.layers.items():
            layer.train(targets[name].training)
            model.set_submodule(name, layer)
        self.reset()

    def parameters(self) -> list[nn.Parameter]:
        """A [E, R, I] and B [E, O, R] of every layer."""
        return [parameter for layer in self.layers.values() for parameter in (layer.lora_A, layer.lora_B)]

    @torch.no_grad()
    def reset(self, edits: Iterable[int] | None = None) -> None:
        """Give edits, by default all, their first values again. An optimiser's moments are not here."""
        layers = list(self.layers.values())
        inputs = [layer.lora_A.shape[2] for layer in layers]
        for edit in self._checked(range(self.edits) if edits is None else edits):
            for layer, first in zip(layers, draw_A(inputs, self.rank, self.seed, edit), strict=True):
                layer.lora_A[edit] = first.to(layer.lora_A.device)
                layer.lora_B[edit] = 0

    def _checked(self, edits: Iterable[int]) -> list[int]:
        edits = list(edits)
        if wrong := [edit for edit in edits if not 0 <= edit < self.edits]:
            raise ValueError(f"there is no edit {wrong[0]}: wanted 0 to {self.edits - 1}")
        return edits

    @contextmanager
    def active(self, edits: Sequence[int]) -> Iterator[None]:
        """Inside, only these edits are computed, and rows stand in their order. One may come twice."""
        chosen = self._checked(edits)
        if not chosen:
            raise ValueError("no edits are chosen: use off() for the base model")
        if chosen == list(range(chosen[0], chosen[-1] + 1)):
            with self._choosing(slice(chosen[0], chosen[-1] + 1)):  # a view, no copy
                yield
        else:
            with self._choosing(torch.tensor(chosen, device=self.parameters()[0].device)):
                yield

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, the model computes bit for bit what its base does, for any number of rows."""
        with self._choosing(None):
            yield

    @contextmanager
    def _choosing(self, chosen: slice | Tensor | None) -> Iterator[None]:
        were = [layer.chosen for layer in self.layers.values()]
        for layer in self.layers.values():
            layer.chosen = chosen
        try:
            yield
        finally:
            for layer, was in zip(self.layers.values(), were, strict=True):
                layer.chosen = was

    @torch.no_grad()
    def clip_per_edit(self, max_norm: float) -> Tensor:
        """Scale the gradient of each edit down to `max_norm` where it is longer.

        Returns:
            The norms before [E], on the model's device: nothing waits for it. Zeros where there are no gradients, as of
            a step that is left out.
        """
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        if not gradients:
            return torch.zeros(self.edits, device=next(iter(self.parameters())).device)
        norms_E = torch.stack([torch.linalg.vector_norm(g, dim=(1, 2)) for g in gradients]).norm(dim=0)
        factor_E11 = (max_norm / (norms_E + 1e-6)).clamp(max=1)[:, None, None]
        for gradient in gradients:
            gradient.mul_(factor_E11)
        return norms_E

    def remove(self) -> PreTrainedModel:
        """Put the model's own layers back: the base bit for bit. Its weights stay frozen."""
        for name, layer in self.layers.items():
            self.model.set_submodule(name, layer.base_layer)
        return self.model

    # state and files --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """All edits, not copied: transformer.h.0.attn.c_attn.lora_A [E, R, I] and so on."""
        return {
            f"{name}.{part}": getattr(layer, part).detach()
            for name, layer in self.layers.items()
            for part in ("lora_A", "lora_B")
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ValueError: it is of another model, of other layers, or of another number of edits.
        """
        own = self.state_dict()
        wrong = sorted(own.keys() ^ state.keys()) or [n for n, t in own.items() if t.shape != state[n].shape]
        if wrong:
            got, wanted = (tuple(d[wrong[0]].shape) if wrong[0] in d else "none" for d in (state, own))
            raise ValueError(f"the stacked adapters do not fit: {wrong[0]} is {got}, wanted {wanted}")
        for name, tensor in own.items():
            tensor.copy_(state[name])

    def adapter(self, edit: int) -> dict[str, Tensor]:
        """Copies of one edit's tensors, named as `adapters.adapter_state` and PEFT's files name them."""
        self._checked([edit])
        return {
            f"base_model.model.{name}.{part}.weight": getattr(layer, part)[edit].detach().clone()
            for name, layer in self.layers.items()
            for part in ("lora_A", "lora_B")
        }

    def save_adapter(self, edit: int, folder: str | Path, base_name: str, revision: str | None = None) -> None:
        """Write one edit as PEFT reads it; as `adapters.save_adapter`."""
        write_adapter(folder, self.config, self.adapter(edit), base_name, revision)


def stack(model: PreTrainedModel, lora: Lora, edits: int, seed: int) -> StackedAdapters:
    """Put the adapters of `edits` edits on a model, in place; its own weights are frozen.

    Edit e begins as `adapters.add_lora(model, lora, seed, e)` does, and trained on the same rows it ends there, to
    1e-5 in float32 (sums are added in another order); with dropout in distribution only.
    """
    return StackedAdapters(model, lora, edits, seed)
