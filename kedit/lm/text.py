"""Text to token ids and back to characters. Knows tokenizers; knows nothing of any method."""

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

PROBE = "The Joker (character), born 1936; 3.5% – naïve 東京"


class Encoded(NamedTuple):
    """Token ids int32 [n] with their character offsets int32 [n, 2] (half-open)."""

    ids: np.ndarray
    offsets: np.ndarray


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, leading_space: bool = False) -> list[Encoded]:
    """Encode plain text: no special tokens are added, and none is recognised inside the text.

    Args:
        tokenizer: a fast tokenizer (offsets are needed).
        texts: the texts.
        leading_space: encode as if a word stood before, so that a title is tokenised as it is in running text.
            The offsets then refer to the text without that space.

    Raises:
        TypeError: the tokenizer is a slow one.
    """
    if not tokenizer.is_fast:
        raise TypeError(f"{type(tokenizer).__name__} gives no character offsets: use the fast form of this tokenizer")
    if not texts:
        return []
    shift = 1 if leading_space else 0
    given = [" " + text for text in texts] if leading_space else list(texts)
    batch = tokenizer(
        given,
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        split_special_tokens=True,
        verbose=False,
    )
    return [
        Encoded(
            np.asarray(ids, dtype=np.int32),
            np.maximum(np.asarray(offsets, dtype=np.int32).reshape(-1, 2) - shift, 0),
        )
        for ids, offsets in zip(batch["input_ids"], batch["offset_mapping"], strict=True)
    ]


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int] | np.ndarray, *, special: bool = True) -> str:
    """The text of one sequence of ids, spaces as they are; without special tokens where `special` is false."""
    text = tokenizer.decode(np.asarray(ids, dtype=np.int64), skip_special_tokens=not special)
    assert isinstance(text, str)
    return text


def token_span(offsets: np.ndarray, start: int, end: int) -> tuple[int, int]:
    """The tokens [i, j) that overlap the characters [start, end); i == j where none does."""
    touching = np.flatnonzero((offsets[:, 1] > start) & (offsets[:, 0] < end))
    return (int(touching[0]), int(touching[-1]) + 1) if len(touching) else (0, 0)


def fingerprint(tokenizer: PreTrainedTokenizerBase, ignore: Sequence[str] = ()) -> str:
    """A hash that is equal for two tokenizers exactly when they give the same ids (tokens in `ignore` apart)."""
    vocabulary = sorted((token, index) for token, index in tokenizer.get_vocab().items() if token not in ignore)
    probe = encode(tokenizer, [PROBE])[0].ids.tolist()
    return hashlib.sha256(json.dumps([vocabulary, probe]).encode()).hexdigest()[:16]
