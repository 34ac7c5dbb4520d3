"""The teacher: the initial model with the definition in context. It reads a transfer set once and never again.

Kept on disk are its final states at scored positions, from which the loss recomputes logits by the frozen head, or the
likeliest ids alone. Parts are written whole and checksummed, so that an interrupted reading goes on and a damaged file
is seen. Knows no student and no Lightning.

Shapes: N scored positions, D width, K ids kept.
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit.distill.parts import load_part, locked, raw, together, write_part, write_whole
from kedit.distill.rows import Row, TransferRows
from kedit.editing.sources import DataError
from kedit.lm.backbones import output_head
from kedit.lm.cache import cache_folder
from kedit.lm.causal import BATCH_TOKENS, row_states
from kedit.lm.divergences import Head, TopK, top_k
from kedit.lm.text import decode, fingerprint
from kedit.running.pace import track

PART_POSITIONS = 4096
"""Scored positions of a file: 16 MiB at D = 2048 in bfloat16."""
IN_MEMORY = 1 << 30
"""Bytes of a cache that is held in memory; a larger one is read through the page cache."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
UNSAID = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache")
"""Settings of a configuration that change no state."""


class CachedTeacher:
    """What the teacher says of every row of a transfer set, from disk; what is missing there is computed first.

    The folder is `<cache>/teacher/<key>`, its key a hash of everything that the states depend on: the weights, the
    tokenizer, all ids and scored positions (and so definitions and template), dtype and form. Processes of one run
    share the work and need a common file system.

    Args:
        model: the initial model, any adapter switched off. It reads in evaluation mode and is then as before.
        tokenizer: its tokenizer.
        rows: the transfer set.
        dtype: float32 or bfloat16, what states are kept in; by default the model's own (float16 is kept as float32).
        top_k: keep the likeliest ids instead of states.
        temperature: of their log-probabilities.
        cache: where caches lie; by default the folder KEDIT_CACHE, else ~/.cache/kedit.
        batch_tokens: most tokens that are read at a time.
        part_positions: scored positions of a file.

    Attributes:
        read: rows that were computed, by this process; the others were there.

    Raises:
        DataError: a state is not finite, the folder holds another teacher, or the disk is full.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: TransferRows,
        dtype: str | None = None,
        top_k: int | None = None,
        temperature: float = 1.0,
        cache: str | Path | None = None,
        batch_tokens: int = BATCH_TOKENS,
        part_positions: int = PART_POSITIONS,
    ) -> None:
        if any(getattr(module, "disable_adapters", True) is False for module in model.modules()):
            raise ValueError("the teacher is the initial model: switch its adapter off first")
        if dtype is not None and dtype not in DTYPES:
            raise DataError(f"the teacher's dtype is {dtype!r}, wanted {' or '.join(DTYPES)}")
        own = str(model.dtype).removeprefix("torch.")
        self.rows, self.tokenizer, self.top_k, self.temperature = rows, tokenizer, top_k, temperature
        self.dtype = dtype or (own if own in DTYPES else "float32")
        self.batch_tokens = batch_tokens
        device = model.device.type
        self.identity: dict[str, Any] = {
            "model": model_fingerprint(model),
            "tokenizer": fingerprint(tokenizer),
            "rows": rows_fingerprint(rows),
            "form": f"states in {self.dtype}" if top_k is None else f"{top_k} likeliest ids at {temperature}",
            "computed": str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else own,
            "part_positions": part_positions,
        }
        self.key = hashlib.sha256(json.dumps(self.identity).encode()).hexdigest()[:16]
        self.folder = Path(cache or cache_folder()) / "teacher" / self.key
        self.read = 0
        self._parts, self._place = _lay_out(rows, part_positions)
        self._tensors: dict[int, dict[str, Tensor]] = {}
        self._fill(model)

    def __call__(self, numbers: Sequence[int], device: torch.device | str = "cpu") -> Tensor | TopK:
        """What the teacher says at the scored positions of rows, one row after another: states [N, D] or top-k."""

        def gather(name: str) -> Tensor:
            pieces = [
                self._tensors[part][name][first:last] for part, first, last in map(self._place.__getitem__, numbers)
            ]
            return torch.cat(pieces).to(device)

        return gather("states") if self.top_k is None else TopK(gather("ids"), gather("log_probs"))

    @cached_property
    def captured_mass(self) -> float:
        """Mean probability that the kept ids hold; 1 where states are kept, which leave nothing out."""
        if self.top_k is None:
            return 1.0
        masses = [TopK(part["ids"], part["log_probs"]).mass_N for part in self._tensors.values()]
        return float(torch.cat(masses).double().mean())

    # on disk ----------------------------------------------------------------------------------------------------------

    def _fill(self, model: PreTrainedModel) -> None:
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder) if rank == 0 else nullcontext():
            together(self._enter if rank == 0 else None)
            together(lambda: self._complete(model, range(rank, len(self._parts), world), shown=rank == 0))
            together(self._describe if rank == 0 else None)
        for number in range(len(self._parts)):
            if number not in self._tensors:  # another process has seen to it
                self._tensors[number] = load_part(self._path(number), self._name(number), checked=True)
        size = sum(tensor.nbytes for part in self._tensors.values() for tensor in part.values())
        if size <= IN_MEMORY:
            self._tensors = {number: {name: tensor.clone() for name, tensor in part.items()}
                             for number, part in self._tensors.items()}  # fmt: skip

    def _enter(self) -> None:
        """Refuse a folder of another teacher, and clear away what a killed run was writing."""
        manifest = self.folder / "manifest.json"
        try:
            found = json.loads(manifest.read_text())
        except (OSError, ValueError):
            found = None  # none yet, or cut: it is written anew
        if isinstance(found, dict) and found.get("key") != self.key:
            other = [name for name, value in self.identity.items() if found.get(name) != value]
            raise DataError(
                f"{manifest}: holds a teacher of another {', '.join(other) or 'key'} ({found.get('key')}, wanted "
                f"{self.key}): delete this folder, it is made anew"
            )
        for partial in self.folder.glob(".*.partial"):
            partial.unlink()

    def _complete(self, model: PreTrainedModel, numbers: Sequence[int], shown: bool) -> None:
        missing = []
        for number in numbers:
            path = self._path(number)
            if path.exists():
                try:
                    self._tensors[number] = load_part(path, self._name(number))
                    continue
                except (SafetensorError, ValueError, OSError) as error:
                    print(f"{path}: {error}: computed anew", file=sys.stderr, flush=True)
            missing.append(number)
        with _evaluating(model):
            for number in track(missing, "the teacher reads", unit="parts") if shown else missing:
                tensors = self._compute(model, self._parts[number])
                write_part(self._path(number), tensors, self._name(number))
                self._tensors[number] = load_part(self._path(number), self._name(number), checked=True)
                self.read += len(self._parts[number])

    def _compute(self, model: PreTrainedModel, numbers: Sequence[int]) -> dict[str, Tensor]:
        rows = [self.rows.rows[number] for number in numbers]
        states_ND = live_states(model, self.rows.prefixes, rows, self.batch_tokens)
        finite_N = states_ND.isfinite().all(1).cpu()
        if not finite_N.all():
            of_N = np.repeat(np.arange(len(rows)), [len(row.scored) for row in rows])
            row = rows[of_N[int(finite_N.int().argmin())]]
            raise DataError(
                f"{self.rows.name(row.fact)}: the teacher's states are not finite (NaN or infinite) in "
                f"{decode(self.tokenizer, row.ids).strip()!r}: its weights are damaged, or too large for "
                f"{self.identity['computed']}, in which it computes (backbone.dtype float32 or bfloat16 may help)"
            )
        if self.top_k is None:
            return {"states": states_ND.to(DTYPES[self.dtype]).cpu()}
        ids_NK, log_probs_NK = top_k(states_ND, Head(*output_head(model)), self.top_k, self.temperature)
        return {"ids": ids_NK.cpu(), "log_probs": log_probs_NK.cpu()}

    def _describe(self) -> None:
        positions = sum(len(row.scored) for row in self.rows.rows)
        about = {"key": self.key, **self.identity, "parts": len(self._parts), "positions": positions}
        write_whole(self.folder / "manifest.json", lambda partial: partial.write_text(json.dumps(about, indent=1)))

    def _name(self, number: int) -> str:
        return f"{self.key} {number}"

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06}.safetensors"


def live_states(
    model: PreTrainedModel, prefixes: Sequence[np.ndarray], rows: Sequence[Row], batch_tokens: int = BATCH_TOKENS
) -> Tensor:
    """Final states [N, D] at the scored positions of rows that are not kept anywhere, as those the student has written.

    Args:
        model: the teacher as it stands: in evaluation mode, its adapter off.
        prefixes: what the rows' `prefix` counts in; a prefix is read once for the rows of a batch.
        rows: the rows.
        batch_tokens: most tokens that are read at a time.
    """
    scored: list[Tensor] = [torch.empty(0)] * len(rows)
    of = [row.prefix for row in rows]
    for number, states_SD in row_states(model, [row.ids for row in rows], prefixes, of, batch_tokens):
        scored[number] = states_SD[torch.from_numpy(rows[number].scored).to(states_SD.device)]
    return torch.cat(scored)


@torch.no_grad()
def model_fingerprint(model: PreTrainedModel) -> str:
    """A hash of weights and settings that is the same with and without LoRA adapters on the model."""
    config = {name: value for name, value in model.config.to_dict().items() if name not in UNSAID}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    tensors = {_plain(name): tensor for name, tensor in model.state_dict().items()
               if "lora_" not in name and "modules_to_save" not in name}  # fmt: skip
    seen: dict[tuple[int, tuple[int, ...]], str] = {}
    for name, tensor in sorted(tensors.items()):
        tied = seen.setdefault((tensor.data_ptr(), tuple(tensor.shape)), name)
        digest.update(f"{name} {tied} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if tied == name:
            digest.update(raw(tensor.cpu()))
    return digest.hexdigest()[:16]


def _plain(name: str) -> str:
    """A tensor's name in the model without PEFT around it."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".original_module.", ".")


def rows_fingerprint(rows: TransferRows) -> str:
    """A hash of what is read and scored."""
    digest = hashlib.sha256()
    for prefix in rows.prefixes:
        digest.update(f"prefix {len(prefix)}".encode() + np.asarray(prefix, dtype=np.int32).tobytes())
    for row in rows.rows:
        digest.update(f"row {row.prefix} {len(row.ids)} {len(row.scored)}".encode())
        digest.update(np.asarray(row.ids, dtype=np.int32).tobytes() + np.asarray(row.scored, dtype=np.int32).tobytes())
    return digest.hexdigest()[:16]


def _lay_out(rows: TransferRows, part_positions: int) -> tuple[list[list[int]], dict[int, tuple[int, int, int]]]:
    """Rows of each part, those of one prefix together, and each row's part with its [first, last) there."""
    parts: list[list[int]] = []
    place: dict[int, tuple[int, int, int]] = {}
    filled = 0
    for number in sorted(range(len(rows.rows)), key=lambda number: rows.rows[number].prefix):
        positions = len(rows.rows[number].scored)
        if not parts or filled + positions > part_positions:
            parts.append([])
            filled = 0
        parts[-1].append(number)
        place[number] = (len(parts) - 1, filled, filled + positions)
        filled += positions
    return parts, place


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
