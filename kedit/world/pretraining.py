"""Pre-training of a small language model on texts: batches of like length, schedule, progress.

Knows no world and no method; the model may be any of transformers that the loss can be had of.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit.lm.optim import Schedule, parameter_groups
from kedit.lm.text import encode, token_span

BUCKET = 32  # batches whose documents are sorted by length: little padding
EVERY = 5.0  # seconds between two lines of progress
Spans = Sequence[tuple[int, int]]
Loss = Callable[[PreTrainedModel, Tensor, Tensor], Tensor]
"""Of a model, ids [B, L] and which of them count [B, L]."""


@dataclass
class Pretraining:
    """How a model is trained on texts, each read once.

    Args:
        batch: documents a step.
        learning_rate: highest.
        schedule: of the learning rate.
        weight_decay: of matrices.
        clip: largest norm of the gradient.
        seed: of the order of batches.
    """

    batch: int = 32
    learning_rate: float = 3e-3
    schedule: Schedule = field(default_factory=lambda: Schedule("cosine", warmup=100))
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0

    def run(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str],
        unforeseen: Sequence[Spans] | None = None, limit: int = 256, loss: Loss | None = None,
    ) -> None:  # fmt: skip
        """Train the model in place, and leave it in `eval`, with progress printed.

        Args:
            model: to be trained, all of it.
            tokenizer: with BOS, EOS and padding.
            texts: one document each; what does not fill a last batch is read, too.
            unforeseen: characters [start, end) of each that the model reads and need not predict.
            limit: most tokens of a document; longer ones are cut.
            loss: by default that of every next token.
        """
        loss = loss or next_token_loss
        started = told = time.perf_counter()
        optimizer = torch.optim.AdamW(
            parameter_groups(model, self.weight_decay), lr=self.learning_rate, betas=(0.9, 0.98)
        )
        steps, losses = -(-len(texts) // self.batch), []
        model.train()
        for step, (ids_BL, counted_BL) in enumerate(self.batches(tokenizer, texts, unforeseen, limit)):
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * self.schedule.factor(step, steps)
            found = loss(model, ids_BL.to(model.device), counted_BL.to(model.device))
            found.backward()
            nn.utils.clip_grad_norm_(model.parameters(), self.clip)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(found.item())
            now = time.perf_counter()
            if now - told >= EVERY or step + 1 == steps:
                print(f"base model: step {step + 1}/{steps}, loss {np.mean(losses):.3f}, {now - started:.0f} s",
                      flush=True)  # fmt: skip
                losses, told = [], now
        model.eval()

    def batches(
        self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], unforeseen: Sequence[Spans] | None, limit: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Ids [B, L] of documents of like length, between BOS and EOS, padded on the right; and which of these tokens
        are to be predicted.
        """
        rng = random.Random(f"batches {self.seed}")
        spans = unforeseen or [[] for _ in texts]
        size = self.batch * BUCKET
        for start in range(0, len(texts), size):
            encoded = encode(tokenizer, texts[start : start + size])
            rows = [(ids, _counted(offsets, given))
                    for (ids, offsets), given in zip(encoded, spans[start : start + size], strict=True)]  # fmt: skip
            rows.sort(key=lambda row: len(row[0]))
            batches = [rows[place : place + self.batch] for place in range(0, len(rows), self.batch)]
            for batch in rng.sample(batches, len(batches)):
                longest = min(limit, len(batch[-1][0]) + 2)
                ids_BL = np.full((len(batch), longest), tokenizer.pad_token_id, dtype=np.int64)
                counted_BL = np.zeros(ids_BL.shape, dtype=bool)
                for row, (ids, counted) in enumerate(batch):
                    whole = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id][:longest]
                    ids_BL[row, : len(whole)] = whole
                    counted_BL[row, : len(whole)] = [False, *counted, True][:longest]
                yield torch.from_numpy(ids_BL), torch.from_numpy(counted_BL)


def next_token_loss(model: PreTrainedModel, ids_BL: Tensor, counted_BL: Tensor) -> Tensor:
    """Mean cross-entropy of the counted tokens, in nats, each from those before it; the first of a row never counts."""
    hidden_BLD = model.base_model(input_ids=ids_BL[:, :-1], use_cache=False).last_hidden_state
    counted = counted_BL[:, 1:]  # only these see the head, which is much of a small model's work
    logits_NV = model.get_output_embeddings()(hidden_BLD[counted])
    return nn.functional.cross_entropy(logits_NV, ids_BL[:, 1:][counted])


def _counted(offsets: np.ndarray, unforeseen: Spans) -> np.ndarray:
    """Which tokens [n] overlap none of the spans."""
    counted = np.ones(len(offsets), dtype=bool)
    for start, end in unforeseen:
        first, last = token_span(offsets, start, end)
        counted[first:last] = False
    return counted
