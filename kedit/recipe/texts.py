"""Texts as two tokenizers see them: the encoder's tokens, and the language model's own with their place among these.

Knows no network. N texts, L tokens of the encoder, M tokens of the language model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kedit.editing.edits import Edit
from kedit.lm.text import Encoded, encode


def key_text(edit: Edit, reads_target: bool) -> str:
    """What an edit's key is made of: prompt and target, or the prompt alone; in training and in use."""
    return edit.text if reads_target else edit.prompt.strip()


@dataclass
class TextBatch:
    """N texts, padded on the right.

    Args:
        ids_NL: the encoder's token ids.
        real_NL: true at tokens that are no padding.
        model_ids_NM: the language model's token ids of the same texts; no columns where they were not asked for.
        model_real_NM: true at those that are no padding.
        place_NM: for each of these the encoder's token in which it begins.
    """

    ids_NL: Tensor
    real_NL: Tensor
    model_ids_NM: Tensor
    model_real_NM: Tensor
    place_NM: Tensor

    def __len__(self) -> int:
        return len(self.ids_NL)

    def to(self, device: torch.device | str) -> "TextBatch":
        return TextBatch(*(part.to(device) for part in vars(self).values()))


class TextEncoder:
    """Makes batches of texts for an encoder and the language model that it serves.

    A text is read as behind a space, so that a name has the same tokens wherever it stands. Of one that is too long the
    end is kept, where a question stands.

    Args:
        encoder: the encoder's fast tokenizer.
        model: the language model's fast tokenizer.
        longest: most tokens that the encoder reads, its special tokens included.
    """

    def __init__(self, encoder: PreTrainedTokenizerBase, model: PreTrainedTokenizerBase, longest: int = 512) -> None:
        self.encoder, self.model, self.longest = encoder, model, longest
        self.before = _special(encoder, "cls_token_id", "bos_token_id")
        self.behind = _special(encoder, "sep_token_id", "eos_token_id")
        self._pad = encoder.pad_token_id if encoder.pad_token_id is not None else 0

    def batch(self, texts: Sequence[str], with_model: bool = False) -> TextBatch:
        """Encode texts; with the language model's tokens where prompt vectors are to be made of them."""
        own = [self._cut(one) for one in encode(self.encoder, texts, leading_space=True)]
        rows = [[*self.before, *one.ids.tolist(), *self.behind] for one in own]
        ids_NL, real_NL = _padded(rows, self._pad)
        if not with_model:
            none = torch.zeros(len(rows), 0, dtype=torch.int64)
            return TextBatch(ids_NL, real_NL, none, none.bool(), none)
        other = encode(self.model, texts, leading_space=True)
        model_ids, model_real = _padded([one.ids.tolist() for one in other], 0)
        places = [_places(mine, theirs) + len(self.before) for mine, theirs in zip(own, other, strict=True)]
        return TextBatch(ids_NL, real_NL, model_ids, model_real, _padded([one.tolist() for one in places], 0)[0])

    def _cut(self, encoded: Encoded) -> Encoded:
        most = self.longest - len(self.before) - len(self.behind)
        return Encoded(encoded.ids[-most:], encoded.offsets[-most:])


def _special(tokenizer: PreTrainedTokenizerBase, *names: str) -> list[int]:
    """The first of these special tokens that the tokenizer has."""
    found = [getattr(tokenizer, name) for name in names if getattr(tokenizer, name) is not None]
    return [int(found[0])] if found else []


def _padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows), default=0)
    ids = np.full((len(rows), width), pad, dtype=np.int64)
    real = np.zeros((len(rows), width), dtype=bool)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
        real[number, : len(row)] = True
    return torch.from_numpy(ids), torch.from_numpy(real)


def _places(own: Encoded, other: Encoded) -> np.ndarray:
    """For each token of `other` the token of `own` in which it begins: int64 [M]."""
    if not len(own.ids):
        return np.zeros(len(other.ids), dtype=np.int64)
    # by where tokens end: some tokenizers count the space before a word to its token, others to none
    found = np.searchsorted(own.offsets[:, 1], other.offsets[:, 0], side="right")
    return np.minimum(found, len(own.ids) - 1).astype(np.int64)
