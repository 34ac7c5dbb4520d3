"""What a small encoder-decoder learns to write: the answer behind a prompt that it reads, and texts with gaps filled.

Knows no world and no method. Shapes: B rows, L tokens of a text, S of a source, U of a target.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

GAP = 3.0  # mean tokens of a gap


@dataclass
class AnsweringLoss:
    """Mean cross-entropy of what is to be written, in nats, as BART writes: `<s> ... </s>`; each text counts the same,
    for an answer is short and what matters most.

    Of a text whose beginning does not count, that is read and the rest is written: an answer. A text that counts whole
    is read with gaps, one mask for each, and is written whole.

    Args:
        tokenizer: with BOS, EOS, padding and a mask.
        share: of a text's tokens that gaps hide.
        copied: weight of a token that is read, too, beside those that have to be found.
        seed: of the gaps.
    """

    tokenizer: PreTrainedTokenizerBase
    share: float = 0.3
    copied: float = 0.1
    seed: int = 0
    _rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def __call__(self, model: PreTrainedModel, ids_BL: Tensor, counted_BL: Tensor) -> Tensor:
        answers, texts = [], []
        for ids, counted in zip(ids_BL.numpy(), counted_BL.numpy(), strict=True):
            length = int((ids != self.tokenizer.pad_token_id).sum())
            if counted[1:length].all():
                texts.append(self.gapped(ids[:length]))
            else:
                answers.append(self.answered(ids[:length], int(counted.argmax())))
        total = torch.zeros(())
        for rows in (answers, texts):  # apart, for their targets' lengths are very different
            if rows:
                loss_BU, weight_BU = self._losses(model, rows)
                total = total + ((loss_BU * weight_BU).sum(1) / weight_BU.sum(1)).sum()
        return total / len(ids_BL)

    def answered(self, ids: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What is read, what is written, and the weights of that; `first` is the answer's first token."""
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        written = np.array([bos, *ids[first:]])
        return np.array([*ids[:first], eos]), written, np.where(written == bos, self.copied, 1.0)

    def gapped(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same for a text, of which at least one token is hidden."""
        inner = len(ids) - 2
        hidden = np.zeros(len(ids), dtype=bool)
        wanted = max(1, round(self.share * inner))
        while inner > 0 and (left := wanted - int(hidden.sum())) > 0:
            length = min(left, 1 + int(self._rng.poisson(GAP - 1)))
            start = 1 + int(self._rng.integers(inner))
            hidden[start : min(start + length, len(ids) - 1)] = True
        first_of_gap = hidden & ~np.roll(hidden, 1)
        read = np.where(hidden, self.tokenizer.mask_token_id, ids)[~hidden | first_of_gap]
        return read, ids, np.where(hidden, 1.0, self.copied)

    def _losses(self, model: PreTrainedModel, rows: Sequence[tuple[np.ndarray, ...]]) -> tuple[Tensor, Tensor]:
        pad = self.tokenizer.pad_token_id
        sources, targets, weights = zip(*rows, strict=True)
        source_BS, target_BU, weight_BU = _padded(sources, pad), _padded(targets, pad), _padded(weights, 0.0)
        start = torch.full((len(rows), 1), int(model.config.decoder_start_token_id))
        logits = model(
            input_ids=source_BS, attention_mask=(source_BS != pad).long(),
            decoder_input_ids=torch.cat([start, target_BU[:, :-1]], 1), use_cache=False,
        ).logits  # fmt: skip
        return nn.functional.cross_entropy(logits.transpose(1, 2), target_BU, reduction="none"), weight_BU


def _padded(rows: Sequence[np.ndarray], value: float) -> Tensor:
    laid = np.full((len(rows), max(map(len, rows))), value, dtype=np.float32 if isinstance(value, float) else np.int64)
    for row, given in zip(laid, rows, strict=True):
        row[: len(given)] = given
    return torch.from_numpy(laid)
