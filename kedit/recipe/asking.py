"""What a language model reads when it is asked: prompts and targets as token ids, and rows of them side by side.

A prompt has the very tokens that the tokenizer itself gives it (with BOS where it adds one), so that nothing differs
from the bare model's `generate(**tokenizer(prompt))`. A target is scored behind the same tokens: both are tokenised
together, a space between them, and the target's tokens are those that overlap its characters. An encoder-decoder reads
the prompt and writes the target. Knows no model and no prompt vectors.

Shapes: R rows, L tokens read, U tokens of a decoder, n target tokens of all rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kedit.editing.sources import DataError
from kedit.lm.packing import lay_out
from kedit.lm.text import token_span


class Asked(NamedTuple):
    """A prompt with its target, int64 token ids.

    Args:
        ids: what is read: prompt and target but for its last token, or an encoder-decoder's source.
        decoder: an encoder-decoder's decoder input, else empty.
        first: the state that predicts the target's first token: its place in `ids`, or in `decoder`.
        targets: the target's tokens.
    """

    ids: np.ndarray
    decoder: np.ndarray
    first: int
    targets: np.ndarray


@dataclass
class Rows:
    """Prompts with their targets, padded on the right.

    Args:
        ids_RL: token ids that are read; padding has id 0.
        length_R: how many of them are real.
        row_n: the row of each target token, in order.
        place_n: the state that predicts it, without prompt vectors: its place in `ids_RL` or in `decoder_RU`.
        target_n: its id.
        decoder_RU: an encoder-decoder's decoder input, padded with 0; no columns where there is none.
    """

    ids_RL: Tensor
    length_R: Tensor
    row_n: Tensor
    place_n: Tensor
    target_n: Tensor
    decoder_RU: Tensor

    def __len__(self) -> int:
        return len(self.ids_RL)

    def to(self, device: torch.device | str) -> "Rows":
        return Rows(*(part.to(device) for part in vars(self).values()))


class Asking:
    """Turns prompts and targets into token ids.

    Args:
        tokenizer: a fast one.
        decoder_start: for an encoder-decoder the id that its decoder begins with.
        bos: put the tokenizer's BOS before each text although it does not do so itself, as for models that were trained
            with it by kedit.
        chat: apply the tokenizer's chat template: the prompt is a user's message, the target the beginning of the
            answer.
        chat_options: what the template itself knows, as in {enable_thinking: false}.

    Raises:
        DataError: the tokenizer lacks what is asked for.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        decoder_start: int | None = None,
        bos: bool = False,
        chat: bool = False,
        chat_options: Mapping[str, Any] | None = None,
    ) -> None:
        name = tokenizer.name_or_path or type(tokenizer).__name__
        if not tokenizer.is_fast:
            raise DataError(f"tokenizer {name} is a slow one, without character offsets: use its fast form")
        if chat and not tokenizer.chat_template:
            raise DataError(f"tokenizer {name} has no chat template: use that of a chat model, or leave chat out")
        if bos and tokenizer.bos_token_id is None:
            raise DataError(f"tokenizer {name} has no BOS token: leave bos out")
        self.tokenizer, self.decoder_start = tokenizer, decoder_start
        self.bos = [int(tokenizer.bos_token_id)] if bos and decoder_start is None else []
        self.chat, self.chat_options = chat, dict(chat_options or {})

    def prompt_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """What the model reads before it writes, for each prompt.

        Raises:
            DataError: nothing is left of a prompt.
        """
        rows = [ids for ids, _ in self._encode(self._worded(prompts), special=not self.chat)]
        for number, ids in enumerate(rows):
            if not ids:
                raise DataError(f"prompt {number} is {prompts[number]!r}: it has no token, so nothing can follow it")
        return rows

    def read(self, prompts: Sequence[str], targets: Sequence[str]) -> list[Asked]:
        """Prompts with their targets.

        Raises:
            DataError: a target has no tokens, or nothing stands before it.
        """
        given = [target.strip() for target in targets]
        for number, target in enumerate(given):
            if not target:
                raise DataError(f"target {number} is {targets[number]!r}: nothing can be scored")
        if self.decoder_start is not None:
            return self._written(prompts, given)
        worded = [text if text[-1:].isspace() else f"{text} " for text in self._worded(prompts)]
        texts = [text + target for text, target in zip(worded, given, strict=True)]
        asked = []
        for number, (ids, offsets) in enumerate(self._encode(texts, special=not self.chat)):
            first, end = token_span(offsets, len(worded[number]), len(texts[number]))
            if first == 0:
                raise DataError(
                    f"prompt {number} is {prompts[number]!r}, with no token before its target: nothing predicts that"
                )
            row = np.array(ids, dtype=np.int64)
            asked.append(Asked(row[: end - 1], row[:0], first - 1, row[first:end]))
        return asked

    def _written(self, prompts: Sequence[str], targets: Sequence[str]) -> list[Asked]:
        """An encoder-decoder writes a target as its tokenizer encodes it, BART's behind <s>."""
        sources, asked = self.prompt_ids(prompts), []
        for source, target, (ids, offsets) in zip(sources, targets, self._encode(targets), strict=True):
            first, end = token_span(offsets, 0, len(target))
            row = np.array([self.decoder_start, *ids], dtype=np.int64)
            asked.append(Asked(np.array(source, dtype=np.int64), row[:end], first, row[first + 1 : end + 1]))
        return asked

    def rows(self, prompts: Sequence[str], targets: Sequence[str]) -> Rows:
        """Prompts with their targets, side by side.

        Raises:
            DataError: as for `read`.
        """
        return side_by_side(self.read(prompts, targets))

    def _worded(self, prompts: Sequence[str]) -> list[str]:
        if not self.chat:
            return list(prompts)
        for number, prompt in enumerate(prompts):
            if token := next((one for one in self.tokenizer.all_special_tokens if one in prompt), None):
                raise DataError(
                    f"prompt {number} holds {token}, which the chat template would take for its own: leave it out"
                )
        return [
            self.tokenizer.apply_chat_template(  # type: ignore[misc]
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, **self.chat_options
            )
            for prompt in prompts
        ]

    def _encode(self, texts: Sequence[str], special: bool = True) -> list[tuple[list[int], np.ndarray]]:
        """Ids and offsets [n, 2] of texts; special tokens that the tokenizer adds have empty ones at 0."""
        if not texts:
            return []
        batch = self.tokenizer(
            list(texts), add_special_tokens=special, return_offsets_mapping=True, return_attention_mask=False,
            verbose=False, split_special_tokens=not self.chat,
        )  # fmt: skip
        encoded = []
        for ids, offsets in zip(batch["input_ids"], batch["offset_mapping"], strict=True):
            before = self.bos if ids[:1] != self.bos else []
            encoded.append(([*before, *ids], np.array([(0, 0)] * len(before) + list(offsets), np.int32).reshape(-1, 2)))
        return encoded


def side_by_side(asked: Sequence[Asked]) -> Rows:
    """Rows of prompts with their targets."""
    counts = [len(one.targets) for one in asked]
    starts = np.cumsum([0, *counts])[:-1]
    first = np.array([one.first for one in asked], dtype=np.int64)
    targets = [one.targets for one in asked] or [np.zeros(0, dtype=np.int64)]
    decoder = lay_out([[one.decoder] for one in asked], pad=0)[0] if any(len(one.decoder) for one in asked) else None
    return Rows(
        ids_RL=lay_out([[one.ids] for one in asked], pad=0)[0],
        length_R=torch.tensor([len(one.ids) for one in asked], dtype=torch.int64),
        row_n=torch.from_numpy(np.repeat(np.arange(len(asked)), counts)),
        place_n=torch.from_numpy(np.arange(sum(counts)) - np.repeat(starts - first, counts)),
        target_n=torch.from_numpy(np.concatenate(targets)),
        decoder_RU=torch.zeros(len(asked), 0, dtype=torch.int64) if decoder is None else decoder,
    )
