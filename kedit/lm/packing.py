"""Several documents side by side in one row of a stock encoder-decoder, exactly as if each stood alone.

Encoder and decoder are called separately with 4-D masks that keep documents apart. BART always adds the position in the
row; we hand it embeddings from which that is taken away and the position in the document put in its place. T5's bias
depends on distances only, which a row keeps. Knows nothing of any method.

Shapes: B rows, S source tokens, T target tokens, D width.
"""

from bisect import bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from kedit.lm.backbones import output_scale


@dataclass
class PackedRows:
    """Documents side by side. Padding has document -1.

    Args:
        source_BS: source token ids.
        source_document_BS: which document a source token belongs to.
        source_position_BS: its index in that document.
        decoder_BT: decoder input ids.
        document_BT: which document a decoder token belongs to: it sees the earlier tokens of that document.
        position_BT: its index in that document.
        reads_BT: which source document it attends to.
        branch_BT: 0 for tokens that all later ones of the document see; tokens of branch k > 0 are seen by branch k
            alone, so that many continuations share one prefix. BART only; None where there are no branches.
    """

    source_BS: Tensor
    source_document_BS: Tensor
    source_position_BS: Tensor
    decoder_BT: Tensor
    document_BT: Tensor
    position_BT: Tensor
    reads_BT: Tensor
    branch_BT: Tensor | None = None


def best_fit(sizes: np.ndarray, budget: int) -> list[np.ndarray]:
    """Which documents share a row of at most `budget` tokens: best-fit decreasing, each goes where it leaves the least
    room. Documents are numbered as in `sizes`; a larger one than the budget has a row of its own.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), sorted
    for index in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[index])
        place = bisect_right(room, (size, -1))
        if place == len(room):
            left, row = budget, len(rows)
            rows.append([])
        else:
            left, row = room.pop(place)
        rows[row].append(index)
        if left > size:
            insort(room, (left - size, row))
    return [np.array(row, dtype=np.int64) for row in rows]


def lay_out(rows: Sequence[Sequence[np.ndarray]], pad: int, width: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Put the documents of each row side by side.

    Args:
        rows: for each row, its documents' token ids.
        pad: id at padded positions.
        width: width of a row; the longest row's where it is not given.

    Returns:
        ids, document (-1 at padding) and position in the document, each int64 [B, width].
    """
    lengths = [sum(len(document) for document in row) for row in rows]
    width = max(width or 0, *lengths, 1)
    ids = np.full((len(rows), width), pad, dtype=np.int64)
    documents = np.full((len(rows), width), -1, dtype=np.int64)
    positions = np.zeros((len(rows), width), dtype=np.int64)
    for index, row in enumerate(rows):
        start = 0
        for number, document in enumerate(row):
            end = start + len(document)
            ids[index, start:end] = document
            documents[index, start:end] = number
            positions[index, start:end] = np.arange(len(document))
            start = end
    return torch.from_numpy(ids), torch.from_numpy(documents), torch.from_numpy(positions)


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where attention is allowed, the dtype's minimum elsewhere: [B, Q, K] -> [B, 1, Q, K]."""
    device = allowed.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)  # float32's minimum would become -inf
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min).unsqueeze(1)


def embed(model: PreTrainedModel, stack: torch.nn.Module, ids_BL: Tensor, positions_BL: Tensor, past: int) -> Tensor:
    """Embeddings [B, L, D] such that the stack, which adds position `past + index`, arrives at `positions_BL`."""
    embeddings = model.get_input_embeddings()(ids_BL)
    learned = getattr(stack, "embed_positions", None)
    if learned is None:
        return embeddings
    added = torch.arange(past, past + ids_BL.shape[1], device=ids_BL.device)[None]
    # the table is asked through its module, so that ZeRO-3 can gather it
    return embeddings + learned(None, position_ids=positions_BL)[0] - learned(None, position_ids=added)[0]


def encode(model: PreTrainedModel, rows: PackedRows) -> Tensor:
    """Encoder states [B, S, D]."""
    document = rows.source_document_BS
    embeddings = embed(model, model.get_encoder(), rows.source_BS, rows.source_position_BS, past=0)
    mask = additive(document[:, :, None] == document[:, None, :], embeddings.dtype)
    return model.get_encoder()(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state


def decode(model: PreTrainedModel, states_BSD: Tensor, rows: PackedRows) -> Tensor:
    """Decoder states [B, T, D], scaled so that `backbones.output_head` turns them into logits."""
    document = rows.document_BT
    embeddings = embed(model, model.get_decoder(), rows.decoder_BT, rows.position_BT, past=0)
    width = document.shape[1]
    seen = document[:, :, None] == document[:, None, :]
    seen &= torch.ones(width, width, dtype=torch.bool, device=document.device).tril()
    if rows.branch_BT is not None:
        branch = rows.branch_BT
        seen &= (branch[:, None, :] == 0) | (branch[:, :, None] == branch[:, None, :])
    reads = rows.reads_BT[:, :, None] == rows.source_document_BS[:, None, :]
    output = model.get_decoder()(
        inputs_embeds=embeddings,
        attention_mask=additive(seen, embeddings.dtype),
        encoder_hidden_states=states_BSD,
        encoder_attention_mask=additive(reads, embeddings.dtype),
        use_cache=False,
    )
    return output.last_hidden_state * output_scale(model)


def row_limit(model: PreTrainedModel) -> int | None:
    """Most tokens a row can hold: BART's position table, no limit for T5."""
    return getattr(model.config, "max_position_embeddings", None)
