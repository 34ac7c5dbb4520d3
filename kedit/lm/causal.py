"""Final states of stock decoder-only models: of packed rows, and of rows that continue a shared prefix.

Packed rows are kept apart by a 4-D mask, with positions that start again at every document: each is as if alone. Many
rows that continue one prefix read its keys and values from a cache; prefixes are padded on the left and rows on the
right, so that two tokens are as far apart as in the text (GPT-Neo's local attention counts that).
Knows nothing of any method.

Shapes: B rows, L tokens, C tokens of a prefix, D width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kedit.lm.packing import additive, lay_out

BATCH_TOKENS = 8192
"""Tokens of a batch where gradients are not needed."""


@dataclass
class CausalRows:
    """Documents side by side. Padding has document -1.

    Args:
        ids_BL: token ids.
        document_BL: which document a token belongs to: it sees the earlier tokens of that document.
        position_BL: its index in that document.
    """

    ids_BL: Tensor
    document_BL: Tensor
    position_BL: Tensor


def pack(rows: Sequence[Sequence[np.ndarray]], width: int | None = None) -> CausalRows:
    """Put the documents of each row side by side; padding has id 0."""
    return CausalRows(*lay_out(rows, pad=0, width=width))


def start_ids(tokenizer: PreTrainedTokenizerBase, bos: bool | None = None) -> list[int]:
    """What stands before a text.

    Args:
        tokenizer: a fast one.
        bos: None: its BOS, or nothing where it has none. False: what the tokenizer itself puts there. True: that, with
            BOS before it unless it begins so.
    """
    begin = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    if bos is None:
        return begin
    read = tokenizer("a", return_special_tokens_mask=True)
    marked = zip(read["input_ids"], read["special_tokens_mask"], strict=True)
    own = [int(id) for id, _ in takewhile(lambda one: one[1], marked)]
    return own if not bos or own[: len(begin)] == begin else begin + own


def position_limit(config: PreTrainedConfig) -> int | None:
    """Most tokens that a text may have: the model's positions, or its sliding window, which our masks do not apply."""
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "sliding_window")]
    return min((limit for limit in limits if limit is not None), default=None)


def states(model: PreTrainedModel, rows: CausalRows) -> Tensor:
    """Final states [B, L, D]; `backbones.output_head` turns them into logits."""
    document, position = rows.document_BL, rows.position_BL
    seen = document[:, :, None] == document[:, None, :]
    seen &= torch.ones(document.shape[1], document.shape[1], dtype=torch.bool, device=document.device).tril()
    return model.base_model(
        input_ids=rows.ids_BL,
        attention_mask=additive(seen, _dtype(model)),
        position_ids=position,
        use_cache=False,
    ).last_hidden_state


def _dtype(model: PreTrainedModel) -> torch.dtype:
    return model.get_input_embeddings().weight.dtype  # type: ignore[return-value]


@torch.no_grad()
def row_states(
    model: PreTrainedModel,
    rows: Sequence[np.ndarray],
    prefixes: Sequence[np.ndarray] = (),
    prefix_of: Sequence[int] | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> Iterator[tuple[int, Tensor]]:
    """Final states of many rows, each read after its prefix, which is read once for all rows of a batch and for
    further batches of the same prefixes.

    Args:
        model: a decoder-only model, as it stands (its caller sets `eval`).
        rows: token ids of each row, at least one each.
        prefixes: token ids of each prefix; they may be empty.
        prefix_of: the prefix of each row; without it no row has one.
        batch_tokens: most tokens of a batch, prefixes and padding included; a single row may be longer.

    Yields:
        a row's number and its states [its tokens, D], those of the prefix left out. Like lengths go together, so the
        order is not that of `rows`.

    Raises:
        ValueError: a row is, with its prefix, longer than the model reads.
    """
    empty = np.zeros(0, dtype=np.int64)
    given = [empty] * len(rows) if prefix_of is None else [prefixes[number] for number in prefix_of]
    of = [-1] * len(rows) if prefix_of is None else list(prefix_of)
    # rows of one prefix side by side, prefixes of like length too; those without one apart
    order = sorted(range(len(rows)), key=lambda row: (len(given[row]), of[row] if len(given[row]) else 0,
                                                      len(rows[row]), row))  # fmt: skip
    device: torch.device = model.get_input_embeddings().weight.device  # type: ignore[assignment]
    limit = position_limit(model.config)
    read: _Prefixes | None = None
    for batch in _batches(order, rows, given, batch_tokens, limit):
        ids, document, position = (part.to(device) for part in lay_out([[rows[row]] for row in batch], pad=0))
        if len(given[batch[0]]):
            wanted = {of[row]: given[row] for row in batch}
            if read is None or read.names != tuple(wanted):
                read = _read(model, wanted, device)
            hidden = _continued(model, ids, document >= 0, position, read, [of[row] for row in batch])
        else:
            hidden = states(model, CausalRows(ids, document, position))
        for row, states_LD in zip(batch, hidden, strict=True):
            yield row, states_LD[: len(rows[row])]


def _batches(
    order: Sequence[int], rows: Sequence[np.ndarray], given: Sequence[np.ndarray], batch_tokens: int, limit: int | None
) -> Iterator[list[int]]:
    """A batch is as wide as its longest prefix and its longest row together, and that too must fit into the model:
    GPT-Neo's masks and sliding caches count the padding.
    """
    batch: list[int] = []
    before = own = 0
    for row in order:
        prefix, tokens = len(given[row]), len(rows[row])
        if limit is not None and prefix + tokens > limit:
            raise ValueError(f"row {row} has {prefix + tokens} tokens with its prefix, and the model reads {limit}")
        wider = max(before, prefix) + max(own, tokens)
        apart = bool(batch) and bool(before) != bool(prefix)
        if batch and (apart or wider * (len(batch) + 1) > batch_tokens or (limit is not None and wider > limit)):
            yield batch
            batch, before, own = [], 0, 0
        batch.append(row)
        before, own = max(before, prefix), max(own, tokens)
    if batch:
        yield batch


@dataclass
class _Prefixes:
    """Prefixes that were read, padded on the left: their names, which tokens are real, lengths, keys and values."""

    names: tuple[int, ...]
    real_PC: Tensor
    length_P: Tensor
    cache: DynamicCache


def _read(model: PreTrainedModel, prefixes: dict[int, np.ndarray], device: torch.device) -> _Prefixes:
    most = max(map(len, prefixes.values()))
    length_P = torch.tensor([len(prefix) for prefix in prefixes.values()], device=device)
    flipped = lay_out([[prefix[::-1]] for prefix in prefixes.values()], pad=0, width=most)[0]
    real_PC = torch.arange(most, device=device) >= most - length_P[:, None]
    seen = real_PC[:, None, :] & torch.ones(most, most, dtype=torch.bool, device=device).tril()
    cache = DynamicCache(config=model.config)
    model.base_model(
        input_ids=flipped.flip(1).to(device),
        attention_mask=additive(seen, _dtype(model)),
        position_ids=(torch.arange(most, device=device) - (most - length_P[:, None])).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
    )
    return _Prefixes(tuple(prefixes), real_PC, length_P, cache)


def _continued(
    model: PreTrainedModel, ids_BL: Tensor, real_BL: Tensor, position_BL: Tensor, read: _Prefixes, names: Sequence[int]
) -> Tensor:
    """States [B, L, D] of rows behind the prefixes of these names."""
    device, width = ids_BL.device, ids_BL.shape[1]
    place = {name: number for number, name in enumerate(read.names)}
    reader_B = torch.tensor([place[name] for name in names], device=device)
    cache = DynamicCache(config=model.config)  # the forward pass adds to it, and `read` is to serve again
    layers: list[Any] = read.cache.layers
    for number, layer in enumerate(layers):
        cache.update(layer.keys[reader_B], layer.values[reader_B], number)
    own = real_BL[:, None, :] & torch.ones(width, width, dtype=torch.bool, device=device).tril()
    seen = torch.cat([read.real_PC[reader_B][:, None, :].expand(-1, width, -1), own], dim=2)
    return model.base_model(
        input_ids=ids_BL,
        attention_mask=additive(seen, _dtype(model)),
        position_ids=position_BL + read.length_P[reader_B][:, None],
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
