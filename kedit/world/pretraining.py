"""Pre-training of a small causal language model on texts: batches of like length, schedule, progress.

Knows no world and no method; the model may be any causal one of transformers.
"""

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit.lm.optim import Schedule, parameter_groups
from kedit.lm.text import encode

BUCKET = 32  # batches whose documents are sorted by length: little padding
EVERY = 5.0  # seconds between two lines of progress


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
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], limit: int = 256
    ) -> None:
        """Train the model in place, and leave it in `eval`, with progress printed.

        Args:
            model: to be trained, all of it.
            tokenizer: with BOS, EOS and padding.
            texts: one document each; what does not fill a last batch is read, too.
            limit: most tokens of a document; longer ones are cut.
        """
        started = told = time.perf_counter()
        optimizer = torch.optim.AdamW(
            parameter_groups(model, self.weight_decay), lr=self.learning_rate, betas=(0.9, 0.98)
        )
        steps, losses = -(-len(texts) // self.batch), []
        model.train()
        for step, ids_BL in enumerate(self.batches(tokenizer, texts, limit)):
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * self.schedule.factor(step, steps)
            loss = next_token_loss(model, ids_BL.to(model.device), tokenizer.pad_token_id)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), self.clip)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            now = time.perf_counter()
            if now - told >= EVERY or step + 1 == steps:
                print(f"base model: step {step + 1}/{steps}, loss {np.mean(losses):.3f}, {now - started:.0f} s",
                      flush=True)  # fmt: skip
                losses, told = [], now
        model.eval()

    def batches(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], limit: int) -> Iterator[Tensor]:
        """Ids [B, L] of documents of like length, between BOS and EOS, padded on the right."""
        rng = random.Random(f"batches {self.seed}")
        size = self.batch * BUCKET
        for start in range(0, len(texts), size):
            rows = sorted((encoded.ids for encoded in encode(tokenizer, texts[start : start + size])), key=len)
            batches = [rows[place : place + self.batch] for place in range(0, len(rows), self.batch)]
            for batch in rng.sample(batches, len(batches)):
                longest = min(limit, len(batch[-1]) + 2)
                ids = np.full((len(batch), longest), tokenizer.pad_token_id, dtype=np.int64)
                for row, text in zip(ids, batch, strict=True):
                    whole = [tokenizer.bos_token_id, *text, tokenizer.eos_token_id][:longest]
                    row[: len(whole)] = whole
                yield torch.from_numpy(ids)


def next_token_loss(model: PreTrainedModel, ids_BL: Tensor, pad: int) -> Tensor:
    """Mean cross-entropy of every token behind the first, in nats, padding left out."""
    hidden_BLD = model.base_model(input_ids=ids_BL[:, :-1], use_cache=False).last_hidden_state
    targets_BL = ids_BL[:, 1:]
    real_BL = targets_BL != pad  # only these see the head, which is most of a small model's work
    logits_NV = model.get_output_embeddings()(hidden_BLD[real_BL])
    return nn.functional.cross_entropy(logits_NV, targets_BL[real_BL])
