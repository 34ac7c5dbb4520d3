"""Asking a frozen language model, prompt vectors before what it reads: it writes, or says how likely a target is.

It writes by transformers' own `generate`, in all its ways. Rows without vectors are read as the bare model reads them,
and a batch that has none is given to it as it would be without all this. Knows no encoder of edits and no repository.

Shapes: R rows, L tokens, T prompt vectors, E width of the input embeddings, n target tokens, D width of final states.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import StoppingCriteriaList

from kedit.editing.judging import Forced
from kedit.editing.sources import DataError
from kedit.lm.causal import BATCH_TOKENS
from kedit.lm.losses import CHUNK_ELEMENTS
from kedit.lm.packing import lay_out
from kedit.recipe.asking import Asked, Asking, Rows, side_by_side
from kedit.recipe.frozen import FrozenModel, slots
from kedit.recipe.stopping import LOOK_EVERY, Stop, Stopping, ends_at

__all__ = ["Asking", "Foreseen", "PrefixedModel", "Rows", "Vectors", "ends_at"]

Vectors = Sequence[Tensor | None]
"""For each prompt its vectors [T, E], None where it is to be read as the bare model reads it."""


class Foreseen(NamedTuple):
    """How a target is foreseen behind its prompt, each of its n tokens given the right ones before.

    Args:
        nll: negative log-likelihoods in nats, float32 [n].
        tokens: the likeliest token at each place and the target's own.
    """

    nll: np.ndarray
    tokens: Forced


class PrefixedModel(FrozenModel):
    """A frozen language model that is asked, with prompt vectors before what it reads or without.

    Made of a model and its tokenizer, as `FrozenModel` is, which says what it takes. Without `vectors` it is the bare
    model's answerer.
    """

    @torch.no_grad()
    def forced(
        self,
        prompts: Sequence[str],
        targets: Sequence[str],
        vectors: Vectors | None = None,
        batch_tokens: int = BATCH_TOKENS,
    ) -> list[Foreseen]:
        """Teacher forcing: how likely each target's tokens are, and which are the likeliest, in one pass.

        Args:
            prompts: what is asked.
            targets: what is to be said.
            vectors: of each prompt; None where none has any.
            batch_tokens: most slots of a batch, padding included; a single row may be longer.

        Raises:
            DataError: a prompt or target has no tokens, or the two are longer than the model reads.
        """
        given, tokens = self._given(prompts, vectors)
        asked = self.asking.read(prompts, targets)
        lengths = [len(one.ids) + tokens * (own is not None) for one, own in zip(asked, given, strict=True)]
        for row, one in enumerate(asked):
            what = "prompt" if self.is_seq2seq else "prompt and target"
            self._check(f"{what} {row}", len(one.ids), given[row])
            self._check(f"target {row}", len(one.decoder), None)
        results: dict[int, Foreseen] = {}
        for batch in batches([n + len(one.decoder) for n, one in zip(lengths, asked, strict=True)], 0, batch_tokens):
            results.update(zip(batch, self._forced([asked[r] for r in batch], [given[r] for r in batch]), strict=True))
        return [results[row] for row in range(len(prompts))]

    def _forced(self, asked: Sequence[Asked], vectors: Vectors) -> Iterator[Foreseen]:
        rows = side_by_side(asked)
        prompts_RTE, edited_R = self._stacked(vectors)
        states_nD = self.target_states(rows, prompts_RTE, edited_R)
        losses, likeliest = [], []
        size = max(1, CHUNK_ELEMENTS // self.model.config.vocab_size)
        for states, target in zip(states_nD.split(size), rows.target_n.split(size), strict=True):
            logits = self.logits(states).float()
            target = target.to(logits.device)
            losses.append(nn.functional.cross_entropy(logits, target, reduction="none").cpu())
            likeliest.append(logits.argmax(-1).cpu())
        ends = np.cumsum([len(one.targets) for one in asked])[:-1]
        parts = (np.split(torch.cat(values).numpy(), ends) for values in (losses, likeliest))
        for nll, found, one in zip(*parts, asked, strict=True):
            yield Foreseen(nll, Forced(found, one.targets))

    def score(self, prompts: Sequence[str], targets: Sequence[str], vectors: Vectors | None = None) -> list[np.ndarray]:
        """Negative log-likelihoods of each target's tokens, in nats: float32 [its tokens]; see `forced`."""
        return [one.nll for one in self.forced(prompts, targets, vectors)]

    def greedy_matches(
        self, prompts: Sequence[str], targets: Sequence[str], vectors: Vectors | None = None
    ) -> list[np.ndarray]:
        """Whether each of a target's tokens is the likeliest: bool [its tokens]; see `forced`."""
        return [one.likeliest == one.target for one in self.greedy_tokens(prompts, targets, vectors)]

    def greedy_tokens(
        self, prompts: Sequence[str], targets: Sequence[str], vectors: Vectors | None = None
    ) -> list[Forced]:
        """The likeliest token in place of each of a target's tokens, the target being given up to there."""
        return [one.tokens for one in self.forced(prompts, targets, vectors)]

    # write ------------------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Sequence[str],
        vectors: Vectors | None = None,
        *,
        max_new_tokens: int = 32,
        stop: Stop | Sequence[str] | None = None,
        seed: int = 0,
        batch_tokens: int = BATCH_TOKENS,
        progress: Callable[[int], None] | None = None,
        **options: Any,
    ) -> list[str]:
        """What the model writes behind each prompt: its likeliest tokens unless `options` say otherwise.

        A batch none of whose rows has vectors is given to the model as `generate(**tokenizer(prompts))` is, and gives
        the same bit for bit.

        Args:
            prompts: what is asked.
            vectors: of each prompt; None where none has any.
            max_new_tokens: longest continuation; the model's EOS ends one earlier.
            stop: marks before which a text ends, or a rule for its end.
            seed: of sampling; what is drawn hangs on the batch, too. The global random state is not touched.
            batch_tokens: most slots of a batch, padding and what is written included; a single row may be longer.
            progress: told how many more rows are finished.
            options: of transformers' `generate`: do_sample, num_beams, temperature, top_p, use_cache, ...

        Raises:
            DataError: a prompt is empty, or with its vectors and its continuation longer than the model reads; vectors
                do not fit the model; an option is not possible.
        """
        given, tokens = self._given(prompts, vectors)
        options = {"do_sample": False, "num_beams": 1, **options}
        self._check_options(options, max_new_tokens, edited=tokens > 0)
        rows = self.asking.prompt_ids(prompts)
        for row, ids in enumerate(rows):
            self._check(f"prompt {row}", len(ids), given[row], 0 if self.is_seq2seq else max_new_tokens)
        rule = stop if callable(stop) or stop is None else ends_at(*([stop] if isinstance(stop, str) else stop))
        lengths = [len(ids) + tokens * (own is not None) for ids, own in zip(rows, given, strict=True)]
        texts = [""] * len(rows)
        self.settle()
        budget = batch_tokens // int(options["num_beams"])
        with torch.no_grad(), self._seeded(seed) if options["do_sample"] else nullcontext():
            for batch in batches(lengths, max_new_tokens, budget):
                written = self._write(
                    [rows[row] for row in batch], [given[row] for row in batch], rule, max_new_tokens, options
                )
                for row, text in zip(batch, written, strict=True):
                    texts[row] = text
                if progress is not None:
                    progress(len(batch))
        return texts

    def _write(
        self, rows: list[list[int]], vectors: Vectors, stop: Stop | None, new_tokens: int, options: dict[str, Any]
    ) -> list[str]:
        inputs = self.generation_inputs(rows, vectors)
        start = 1 if self.is_seq2seq else inputs["input_ids"].shape[1]
        ends = set(_several(options.get("eos_token_id", self.model.generation_config.eos_token_id)))
        # behind its prompt: SentencePiece drops the space of a text's first word
        heads = [[] if self.is_seq2seq else row for row in rows]
        before = [len(self._decode(head)) for head in heads]

        def text(row: int, ids: list[int]) -> str:
            end = next((place for place, token in enumerate(ids) if token in ends), len(ids))
            return self._decode([*heads[row], *ids[:end]])[before[row] :]

        criteria = StoppingCriteriaList()
        if stop is not None:
            # a beam's score hangs on where it ends
            every = LOOK_EVERY if options["num_beams"] == 1 else 1
            criteria.append(Stopping(lambda row, ids: stop(text(row, ids)) is not None, len(rows), start, every))
        if self.model.generation_config.pad_token_id is None:
            options = {"pad_token_id": self._pad, **options}
        ids_RW = self.model.generate(**inputs, max_new_tokens=new_tokens, stopping_criteria=criteria, **options)
        texts = [text(row, ids) for row, ids in enumerate(ids_RW[:, start:].tolist())]
        return texts if stop is None else [one[: stop(one)] for one in texts]

    def generation_inputs(self, rows: Sequence[Sequence[int]], vectors: Vectors) -> dict[str, Tensor]:
        """What the model's own `generate` is given for prompts as ids: decoder-only ones padded on the left."""
        laid_RL = lay_out([[np.array(ids, dtype=np.int64)] for ids in rows], pad=self._pad)[0].to(self.device)
        length_R = torch.tensor([len(ids) for ids in rows], device=self.device)
        prompts_RTE, edited_R = self._stacked(vectors)
        on_left = not self.is_seq2seq
        if prompts_RTE is None:
            source_RL, real_RL, _ = slots(length_R, torch.zeros_like(length_R), laid_RL.shape[1], on_left)
            ids_RL = laid_RL.gather(1, source_RL.clamp(0, laid_RL.shape[1] - 1)).masked_fill(~real_RL, self._pad)
            return {"input_ids": ids_RL, "attention_mask": real_RL.long()}
        tokens = prompts_RTE.shape[1]
        width = max(len(ids) + tokens * (own is not None) for ids, own in zip(rows, vectors, strict=True))
        joined_RWE, real_RW, position_RW, source_RW = self.join(
            laid_RL, length_R, prompts_RTE, edited_R.to(self.device), width, on_left
        )
        inputs = {"inputs_embeds": joined_RWE, "attention_mask": real_RW.long()}
        if self.is_seq2seq:
            return inputs
        # the ids are for logits processors alone (repetition penalty); where a vector stands, the row's first token is
        # said again, which it has already
        spoken_RW = torch.cat([laid_RL[:, :1].expand(-1, tokens), laid_RL], 1).gather(1, source_RW)
        inputs["input_ids"] = torch.where(real_RW, spoken_RW, laid_RL[:, :1])
        inputs["position_ids"] = position_RW
        return inputs

    # rows -------------------------------------------------------------------------------------------------------------

    def _given(self, prompts: Sequence[str], vectors: Vectors | None) -> tuple[list[Tensor | None], int]:
        """The vectors of each prompt, checked, and T (0 where none has any)."""
        given: list[Tensor | None] = [None] * len(prompts) if vectors is None else list(vectors)
        if len(given) != len(prompts):
            raise DataError(f"{len(given)} prompt vectors for {len(prompts)} prompts: give each its own, or None")
        tokens = next((len(one) for one in given if one is not None), 0)
        for row, one in enumerate(given):
            if one is not None and (one.shape != (tokens, self.width) or not tokens):
                raise DataError(
                    f"the prompt vectors of prompt {row} have shape {list(one.shape)}, wanted [{tokens or 'T'}, "
                    f"{self.width}]: as many for each prompt, as wide as the model's input embeddings"
                )
        return given, tokens

    def _stacked(self, vectors: Vectors) -> tuple[Tensor | None, Tensor]:
        """Vectors of all rows [R, T, E], zeros where a row has none, and which rows have some."""
        edited_R = torch.tensor([one is not None for one in vectors], dtype=torch.bool)
        some = next((one for one in vectors if one is not None), None)
        if some is None:
            return None, edited_R
        empty = torch.zeros_like(some)
        return torch.stack([empty if one is None else one.to(some.device) for one in vectors]), edited_R

    def _check(self, what: str, length: int, vectors: Tensor | None, new_tokens: int = 0) -> None:
        before = 0 if vectors is None else len(vectors)
        if self.limit is not None and length + before + new_tokens > self.limit:
            more = f", {before} prompt vectors before them" if before else ""
            more += f" and max_new_tokens {new_tokens} behind" if new_tokens else ""
            raise DataError(
                f"{what}: {length} tokens{more} are more than the {self.limit} that the model reads: make it shorter"
                + (", or max_new_tokens" if new_tokens else "")
            )

    def _check_options(self, options: dict[str, Any], new_tokens: int, edited: bool) -> None:
        if new_tokens < 1 or int(options["num_beams"]) < 1:
            raise DataError(f"max_new_tokens {new_tokens} and num_beams {options['num_beams']}: wanted at least 1 each")
        if options.get("num_return_sequences", 1) != 1 or options.get("return_dict_in_generate"):
            raise DataError("each prompt has one answer, a text: leave num_return_sequences and return_dict out")
        if edited and not self.is_seq2seq and options.get("use_cache") is False:
            raise DataError("behind prompt vectors transformers always writes with its cache: leave use_cache out")
        if self.is_seq2seq and self.limit is not None and new_tokens >= self.limit:
            raise DataError(f"max_new_tokens is {new_tokens}, and the model writes {self.limit - 1}")

    # the model --------------------------------------------------------------------------------------------------------

    @property
    def _pad(self) -> int:
        """Any id will do: padding is hidden."""
        for one in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if one is not None:
                return int(one)
        return 0

    def _decode(self, ids: list[int]) -> str:
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    @contextmanager
    def _seeded(self, seed: int) -> Iterator[None]:
        devices = {parameter.device for parameter in self.model.parameters() if parameter.device.type == "cuda"}
        with torch.random.fork_rng(devices=sorted(device.index for device in devices)):
            torch.manual_seed(seed)
            yield


def batches(lengths: Sequence[int], new_tokens: int, batch_tokens: int) -> list[list[int]]:
    """Rows of like length together, at most `batch_tokens` with padding and what is written; in each in their order."""
    found: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        if found and (lengths[found[-1][0]] + new_tokens) * (len(found[-1]) + 1) <= batch_tokens:
            found[-1].append(row)
        else:
            found.append([row])
    return [sorted(batch) for batch in found]


def _several(value: int | Sequence[int] | None) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)
