"""Texts through the networks: keys of edits, queries, and those of a run's texts for calibration, which are kept.

Knows no repository and no language model. Shapes: N edits, Q queries, C texts for calibration, D width of keys.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kedit.editing.edits import Edit
from kedit.editing.records import fields, read_json_lines
from kedit.recipe.networks import MemoryNetworks
from kedit.recipe.texts import TextBatch, TextEncoder, key_text
from kedit.recipe.trained import CALIBRATION

VECTORS = "calibration.safetensors"
BATCH_TEXTS = 256
BATCH_CHARACTERS = 1 << 16
"""Of a batch, padding included: some sixteen thousand tokens."""


def device_of(networks: MemoryNetworks) -> torch.device:
    return next(networks.parameters()).device


def like_length(
    texts: TextEncoder, given: Sequence[str], device: torch.device, with_model: bool = False
) -> Iterator[tuple[list[int], TextBatch]]:
    """Texts of like length together: which they are, and their batch on the device."""
    batch: list[int] = []
    for number in sorted(range(len(given)), key=lambda number: len(given[number])):
        # the encoder reads a few characters a token, and no more tokens than it can
        width = min(len(given[number]), 8 * texts.longest)
        if batch and (len(batch) == BATCH_TEXTS or (len(batch) + 1) * width > BATCH_CHARACTERS):
            yield batch, texts.batch([given[one] for one in batch], with_model).to(device)
            batch = []
        batch.append(number)
    if batch:
        yield batch, texts.batch([given[one] for one in batch], with_model).to(device)


@torch.no_grad()
def encode_keys(networks: MemoryNetworks, texts: TextEncoder, edits: Sequence[Edit]) -> Tensor:
    """Keys [N, D] of edits, float32."""
    device = device_of(networks)
    keys_ND = torch.zeros(len(edits), networks.key_width, device=device)
    read = [key_text(edit, networks.key_reads_target) for edit in edits]
    for numbers, batch in like_length(texts, read, device):
        keys_ND[numbers] = networks.keys(batch).float()
    return keys_ND


@torch.no_grad()
def encode_queries(networks: MemoryNetworks, texts: TextEncoder, queries: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Queries [Q, D] and the sentinel's similarities [Q], float32."""
    device = device_of(networks)
    queries_QD = torch.zeros(len(queries), networks.key_width, device=device)
    thresholds_Q = torch.zeros(len(queries), device=device)
    for numbers, batch in like_length(texts, queries, device):
        made_BD = networks.queries(batch)
        queries_QD[numbers], thresholds_Q[numbers] = made_BD.float(), networks.threshold(made_BD).float()
    return queries_QD, thresholds_Q


def calibration_vectors(
    memory: Path, networks: MemoryNetworks, texts: TextEncoder, encoder: str
) -> tuple[Tensor, Tensor]:
    """Queries [C, D] and the sentinel's similarities [C] of a run's texts for calibration; none where it has none.

    They are encoded once and kept beside the texts.

    Args:
        memory: the run's `memory/`.
        networks: the run's.
        texts: encodes texts for them.
        encoder: the networks' hash.

    Raises:
        DataError: the file of texts is damaged.
    """
    file, device = memory / CALIBRATION, device_of(networks)
    if not file.is_file():
        return torch.zeros(0, networks.key_width, device=device), torch.zeros(0, device=device)
    stamp = {"encoder": encoder, "texts": hashlib.sha256(file.read_bytes()).hexdigest()}
    if (kept := _kept(memory / VECTORS, stamp)) is not None:
        return kept["queries"].to(device), kept["thresholds"].to(device)
    given = [fields(record, where, text=str)[0] for where, record in read_json_lines(file)]
    queries_CD, thresholds_C = encode_queries(networks, texts, given)
    partial = memory / f".{VECTORS}.{os.getpid()}.partial"
    try:
        save_file({"queries": queries_CD.cpu(), "thresholds": thresholds_C.cpu()}, partial, metadata=stamp)
        os.replace(partial, memory / VECTORS)
    except (OSError, SafetensorError):  # a run that may only be read, or a full disk: they are made again next time
        partial.unlink(missing_ok=True)
    return queries_CD, thresholds_C


def _kept(file: Path, stamp: Mapping[str, str]) -> dict[str, Tensor] | None:
    """The vectors in a file that bears this stamp."""
    try:
        with safe_open(file, "pt") as kept:
            if kept.metadata() != stamp:
                return None
            return {name: kept.get_tensor(name) for name in ("queries", "thresholds")}
    except (OSError, SafetensorError):
        return None
