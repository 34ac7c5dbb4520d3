"""What a trained model is used for: describe a mention, tell entities apart, fill an appositive, answer a question.

No Lightning here. Results do not depend on what else is in the batch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit.editing.sources import Candidate, DataError, MentionQuestion
from kedit.kilm.infilling import STRUCTURE, markup
from kedit.kilm.marking import MarkedMention, find_mention, mark, source_and_prefix
from kedit.kilm.scoring import candidate_nll, knowledge_strings
from kedit.lm.backbones import Backbone, load_seq2seq, load_tokenizer
from kedit.lm.decoding import greedy
from kedit.lm.packing import PackedRows, encode, lay_out, row_limit
from kedit.lm.text import decode as decode_text
from kedit.lm.text import encode as encode_text

Scoring = Literal["sum", "mean", "prior"]


class Description(NamedTuple):
    """What the model says a mention means."""

    title: str
    description: str


class Choice(NamedTuple):
    """The number of the likeliest candidate, -1 where there is none, and every candidate's score in nats."""

    chosen: int
    scores: list[float]


class Infiller:
    """A KILM model in use.

    Args:
        model: BART or T5 trained by `kedit.kilm`.
        tokenizer: its tokenizer.
        batch_size: contexts at a time.
        context_tokens: longest context; a longer one is cut around its mention.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int = 32,
        context_tokens: int = 400,
    ):
        missing = [token for token in STRUCTURE if token not in tokenizer.get_vocab()]
        if missing:
            raise DataError(
                f"the tokenizer {tokenizer.name_or_path} lacks {' '.join(missing)}: no model trained by KILM; give "
                "a folder that `python -m kedit export` wrote"
            )
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.marks = markup(tokenizer)
        limit = row_limit(model)
        # room in BART's position table for the brackets and a description
        self.context_tokens = context_tokens if limit is None else min(context_tokens, limit - limit // 4)

    @classmethod
    def from_pretrained(cls, name: str | Path, device: str | None = None, batch_size: int = 32) -> Self:
        """Load what `python -m kedit export` wrote: a folder or a hub id."""
        tokenizer = load_tokenizer(name)
        model = load_seq2seq(Backbone(name=str(name)), tokenizer).eval()
        return cls(model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")), tokenizer, batch_size)

    # contexts ---------------------------------------------------------------------------------------------------------

    def mark(self, text: str, mention: str | tuple[int, int]) -> MarkedMention:
        """Tokenise a context with its mention: the words as they first stand in the text, or characters [start, end).

        Raises:
            DataError: the mention does not stand there.
        """
        span = find_mention(text, mention) if isinstance(mention, str) else mention
        return mark(self.tokenizer, MentionQuestion(text, span))

    def _batches(self, lengths: Sequence[int], most: int = 0) -> list[list[int]]:
        """Indices in batches of like length. One whose answer may meet the end of the position table goes alone."""
        limit = row_limit(self.model)
        batches: list[list[int]] = []
        for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
            alone = limit is not None and lengths[index] + most > limit
            if alone or not batches or len(batches[-1]) == self.batch_size:
                batches.append([])
            batches[-1].append(index)
        return batches

    def _encode(self, sources: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Encoder states [B, S, D] of one source a row, and where [B, S] they are real."""
        ids, document, position = (t.to(self.model.device) for t in lay_out([[s] for s in sources], self.marks.pad))
        return encode(self.model, PackedRows(ids, document, position, ids, document, position, document)), document >= 0

    def _text(self, ids: Sequence[int]) -> str:
        return decode_text(self.tokenizer, ids, special=False).strip()

    # describe ---------------------------------------------------------------------------------------------------------

    def describe(
        self, texts: Sequence[str], mentions: Sequence[str | tuple[int, int]], most: int = 48
    ) -> list[Description]:
        """Title and description of each mention, decoded greedily.

        Args:
            texts: contexts.
            mentions: one for each, as its words or its characters [start, end).
            most: longest answer in tokens.
        """
        return self.describe_marked([self.mark(t, m) for t, m in zip(texts, mentions, strict=True)], most)

    def _prompts(self, mentions: Sequence[MarkedMention]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Encoder ids and decoder prefix of each mention."""
        pairs = [source_and_prefix(mention, self.marks, self.context_tokens) for mention in mentions]
        return [source for source, _ in pairs], [prefix for _, prefix in pairs]

    @torch.inference_mode()
    def describe_marked(self, mentions: Sequence[MarkedMention], most: int = 48) -> list[Description]:
        """As `describe`, for contexts that are tokenised already."""
        stop = {self.marks.end_ent_desc, self.marks.eos, self.marks.ent_desc}
        if self.marks.family == "t5":
            stop |= set(self.marks.masks.tolist())
        answers = []
        for ids in self._write(*self._prompts(mentions), stop, most):
            cut = ids.index(self.marks.sep) if self.marks.sep in ids else len(ids)
            answers.append(Description(self._text(ids[:cut]), self._text(ids[cut + 1 :])))
        return answers

    def _write(
        self, sources: Sequence[np.ndarray], prefixes: Sequence[np.ndarray], stop: set[int], most: int
    ) -> list[list[int]]:
        """What the decoder says after each prefix, up to a stop token."""
        written: list[list[int]] = [[] for _ in sources]
        limit = row_limit(self.model)
        for batch in self._batches([max(len(s), len(p)) for s, p in zip(sources, prefixes, strict=True)], most):
            states, real = self._encode([sources[index] for index in batch])
            chosen = [prefixes[index] for index in batch]
            room = most if limit is None else max(1, min(most, limit - max(len(prefix) for prefix in chosen)))
            for index, ids in zip(batch, greedy(self.model, states, real, chosen, stop, room), strict=True):
                written[index] = ids
        return written

    def appositive(self, text: str, mention: str | tuple[int, int], slot: int) -> str:
        """An appositive for the mention, to stand at character `slot` of the text: the description without the title.

        Without a separator in the answer all of it is taken (ApposCorpus protocol of the paper).
        """
        marked = self.mark(text, mention)
        offsets = encode_text(self.tokenizer, [text])[0].offsets
        if not 0 <= slot <= len(text):
            raise DataError(f"slot {slot} lies outside a text of {len(text)} characters")
        marked.slot = int(np.searchsorted(offsets[:, 1], slot, side="right"))
        if marked.span[0] < marked.slot < marked.span[1]:
            raise DataError(f"slot {slot} lies inside the mention at {marked.question.span}")
        title, description = self.describe_marked([marked])[0]
        return description or title

    # disambiguate -----------------------------------------------------------------------------------------------------

    def disambiguate(
        self,
        texts: Sequence[str],
        mentions: Sequence[str | tuple[int, int]],
        candidates: Sequence[Sequence[Candidate]],
        scoring: Scoring = "sum",
        descriptions: bool = False,
    ) -> list[Choice]:
        """The candidate whose knowledge string is likeliest in each context.

        Args:
            texts: contexts.
            mentions: one for each, as its words or its characters [start, end).
            candidates: what each may mean.
            scoring: sum of log p, its mean over tokens, or the sum plus log prior.
            descriptions: score title and description instead of title and separator.
        """
        marked = [self.mark(text, mention) for text, mention in zip(texts, mentions, strict=True)]
        for one, options in zip(marked, candidates, strict=True):
            one.question.candidates = list(options)
        return self.disambiguate_marked(marked, scoring, descriptions)

    @torch.inference_mode()
    def disambiguate_marked(
        self, mentions: Sequence[MarkedMention], scoring: Scoring = "sum", descriptions: bool = False
    ) -> list[Choice]:
        """As `disambiguate`, for contexts that are tokenised already."""
        choices = [Choice(-1, [])] * len(mentions)
        asked = [index for index, mention in enumerate(mentions) if mention.question.candidates]
        for batch in self._batches([len(mentions[index].ids) for index in asked]):
            together = [mentions[asked[position]] for position in batch]
            for position, scores in zip(batch, self._scores(together, scoring, descriptions), strict=True):
                choices[asked[position]] = Choice(int(np.argmax(scores)), scores.tolist())
        return choices

    def _scores(self, mentions: Sequence[MarkedMention], scoring: Scoring, descriptions: bool) -> list[np.ndarray]:
        """Every candidate's score in each context."""
        candidates = [mention.question.candidates for mention in mentions]
        strings = [knowledge_strings(self.tokenizer, self.marks, options, descriptions) for options in candidates]
        sources, prefixes = self._prompts(mentions)
        states, _ = self._encode(sources)
        scores = [-nll for nll in candidate_nll(self.model, self.marks, sources, states, prefixes, strings)]
        if scoring == "mean":
            return [score / [len(s) for s in options] for score, options in zip(scores, strings, strict=True)]
        if scoring == "prior":
            priors = [np.array([option.prior for option in options]) + 1e-6 for options in candidates]
            return [score + np.log(prior / prior.sum()) for score, prior in zip(scores, priors, strict=True)]
        return scores

    # answer -----------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def answer(
        self,
        questions: Sequence[str],
        examples: Sequence[tuple[str, str]] = (),
        prompt: tuple[str, str] = ("Question: ", " Answer:"),
        most: int = 32,
    ) -> list[str]:
        """Short answers: the model fills the mask in "Question: q? Answer: <mask>" (paper section 4, closed-book QA).

        Args:
            questions: the questions.
            examples: (question, answer) pairs shown before each question (few-shot).
            prompt: what stands before and after a question.
            most: longest answer in tokens.
        """
        before, after = prompt
        shown = "".join(f"{before}{q}{after} {a} \n\n " for q, a in examples)
        texts = [f"{shown}{before}{question}{after}" for question in questions]
        marks, tokens = self.marks, [e.ids[-self.context_tokens :] for e in encode_text(self.tokenizer, texts)]
        sources, prefixes = [], []
        for ids in tokens:
            start = [] if marks.bos is None else [marks.bos]
            sources.append(np.concatenate([start, ids, [marks.masks[0], marks.eos]]).astype(np.int64))
            prefixes.append(
                np.concatenate([[marks.start, *start], ids])
                if marks.family == "bart"
                else np.array([marks.start, marks.masks[0]])
            )
        stop = {marks.eos} | (set(marks.masks.tolist()) if marks.family == "t5" else set())
        answers = []
        for written in self._write(sources, prefixes, stop, most):
            text = self._text(written).split("\n")[0]
            answers.append((text.split(before.strip())[0] if before.strip() else text).strip())
        return answers
