"""Sentences of a transfer set, made into a batch for the student, with the places where its teacher is compared.

Shapes: B packed rows, L tokens, N scored positions; E edits side by side, b sentences of each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kedit.distill.rows import TransferRows
from kedit.lm.causal import CausalRows, pack
from kedit.lm.packing import best_fit


@dataclass
class DistillBatch:
    """What the student reads, and which of its predictions the teacher is asked for.

    Args:
        rows: the student's input: packed sentences; where edits are made side by side, one a row, edit by edit.
        where_N: scored positions in the flattened [B * L] rows.
        numbers: rows of the transfer set in the order of `where_N`: the order in which the teacher gives its states.
        weights_N: what each position weighs in the loss, normalised.
        kinds_N: what each is (`loss.KINDS`).
        facts: the facts of the stage that this batch belongs to; side by side, one adapter each.
        stage: number of that stage.
        lengths: tokens of each sentence, for the FLOP formulas.
        kind_counts: scored positions of each kind.
        target_tokens: scored positions.
        padding: padded positions.
        positions: all positions.
        flops: floating-point operations of forward and backward pass, set by the module.
    """

    rows: CausalRows
    where_N: Tensor
    numbers: list[int]
    weights_N: Tensor
    kinds_N: Tensor
    facts: tuple[int, ...]
    stage: int
    lengths: np.ndarray
    kind_counts: list[int]
    target_tokens: int
    padding: int
    positions: int
    flops: float = 0.0


def compose(
    rows: TransferRows,
    numbers: np.ndarray,
    row_tokens: int,
    weight_of_kind: Sequence[float],
    facts: tuple[int, ...],
    stage: int,
    step: np.ndarray | None = None,
    parts: int = 1,
) -> DistillBatch:
    """A batch of rows of a transfer set.

    A position weighs its kind's weight over the number of positions in the batch; side by side, in its own edit's part.
    Those of the whole step count, so that the mean gradient of its parts is that of the step.

    Args:
        rows: the transfer set.
        numbers: which of its rows: [n] to be packed, or [E, b] for edits side by side.
        row_tokens: most tokens of a packed row.
        weight_of_kind: weights by kind (`loss.KINDS`).
        facts: the facts of the stage.
        stage: its number.
        step: the rows of all processes and accumulated batches, in the form of `numbers`; by default these.
        parts: in how many these are dealt out.
    """
    chosen = [rows.rows[number] for number in numbers.reshape(-1)]
    texts = [rows.student_ids(row).astype(np.int64) for row in chosen]
    lengths = np.array([len(text) for text in texts])
    places = [[index] for index in range(len(texts))]
    if numbers.ndim == 1:
        places = [sorted(place.tolist()) for place in best_fit(lengths, row_tokens)]
    packed = pack([[texts[index] for index in place] for place in places])
    width = packed.ids_BL.shape[1]

    where, order, weights, kinds = [], [], [], []
    counts = np.array([len(row.scored) for row in chosen])
    whole = numbers if step is None else step
    in_edit = np.vectorize(lambda number: len(rows.rows[number].scored))(whole).reshape(-1, whole.shape[-1]).sum(-1)
    for number, place in enumerate(places):
        offset = number * width + len(rows.start)
        for index in place:
            row = chosen[index]
            where.append(row.scored + offset)
            order.append(int(numbers.reshape(-1)[index]))
            of_edit = in_edit[index // numbers.shape[-1] if numbers.ndim == 2 else 0]
            share = parts * weight_of_kind[row.kind] / max(1, of_edit)
            weights.append(np.full(len(row.scored), share, dtype=np.float32))
            kinds.append(np.full(len(row.scored), row.kind, dtype=np.int64))
            offset += lengths[index]
    return DistillBatch(
        rows=packed,
        where_N=torch.from_numpy(np.concatenate(where).astype(np.int64)),
        numbers=order,
        weights_N=torch.from_numpy(np.concatenate(weights)),
        kinds_N=torch.from_numpy(np.concatenate(kinds)),
        facts=facts,
        stage=stage,
        lengths=lengths,
        kind_counts=np.bincount(np.concatenate(kinds), minlength=len(weight_of_kind)).tolist(),
        target_tokens=int(counts.sum()),
        padding=packed.ids_BL.numel() - int(lengths.sum()),
        positions=packed.ids_BL.numel(),
    )
