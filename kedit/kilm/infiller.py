"""What a trained model is used for: describe a mention, tell entities apart, fill an appositive, answer a question.

No Lightning here. Results do not depend on what else is in the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit.editing.sources import Candidate, DataError, MentionQuestion
from kedit.kilm.infilling import markup
from kedit.lm.backbones import Backbone, load_seq2seq, load_tokenizer, output_head
from kedit.lm.decoding import greedy
from kedit.lm.losses import linear_nll
from kedit.lm.packing import PackedRows, decode, encode, lay_out, row_limit
from kedit.lm.text import decode as decode_text
from kedit.lm.text import encode as encode_text
from kedit.lm.text import token_span

Scoring = Literal["sum", "mean", "prior"]


class Description(NamedTuple):
    """What the model says a mention means."""

    title: str
    description: str


class Choice(NamedTuple):
    """The number of the likeliest candidate, -1 where there is none, and every candidate's score in nats."""

    chosen: int
    scores: list[float]


@dataclass
class MarkedMention:
    """A mention in tokenised context.

    Args:
        ids: token ids of the context, no special tokens.
        span: tokens [start, end) of the mention.
        question: the same as text, with what it may mean and what it does mean.
        slot: token index where the description goes; right behind the mention where it is not given.
    """

    ids: np.ndarray
    span: tuple[int, int]
    question: MentionQuestion
    slot: int | None = None


def find_mention(text: str, mention: str, where: str = "") -> tuple[int, int]:
    """The characters [start, end) of the first occurrence of `mention`.

    Raises:
        DataError: there is none.
    """
    start = text.find(mention)
    if start < 0 or not mention:
        raise DataError(f"{where}mention {mention!r} does not stand in the text {text[:60]!r}")
    return start, start + len(mention)


def mark(tokenizer: PreTrainedTokenizerBase, question: MentionQuestion) -> MarkedMention:
    """Tokenise a question.

    Raises:
        DataError: its span holds no mention.
    """
    (start, end), text = question.span, question.text
    encoded = encode_text(tokenizer, [text])[0]
    span = token_span(encoded.offsets, start, end)
    if span[0] == span[1] or not 0 <= start < end <= len(text):
        raise DataError(f"{question.source} characters {start} to {end} hold no mention in {text[:60]!r}".lstrip())
    return MarkedMention(encoded.ids, span, question)


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

    def _cut(self, mention: MarkedMention) -> tuple[np.ndarray, int, int, int]:
        """The context with the mention's span and the slot, at most `context_tokens` long."""
        (start, end), ids = mention.span, mention.ids
        slot = end if mention.slot is None else mention.slot
        low, high = min(start, slot), max(end, slot)
        spare = max(0, self.context_tokens - (high - low))
        left = max(0, min(low - spare // 2, len(ids) - self.context_tokens))
        right = max(high, left + self.context_tokens)
        return ids[left:right], start - left, end - left, slot - left

    def _source_and_prefix(self, mention: MarkedMention) -> tuple[np.ndarray, np.ndarray]:
        """Encoder ids with one mask for the knowledge; decoder ids up to where the knowledge begins."""
        ids, start, end, slot = self._cut(mention)
        marks = self.marks
        inserts = sorted(
            [(start, 0, [marks.ent]), (end, 1, [marks.end_ent]), (slot, 2, [marks.ent_desc, -1, marks.end_ent_desc])]
        )
        pieces: list[np.ndarray | list[int]] = [] if marks.bos is None else [[marks.bos]]
        at = 0
        for place, _, inserted in inserts:
            pieces += [ids[at:place], inserted]
            at = place
        source = np.concatenate([*pieces, ids[at:], [marks.eos]]).astype(np.int64)
        hole = int(np.flatnonzero(source == -1)[0])
        source[hole] = marks.masks[0]
        if marks.family == "bart":
            return source, np.concatenate([[marks.start], source[:hole]])
        return source, np.array([marks.start, marks.masks[0]])

    def _batches(self, mentions: Sequence[MarkedMention]) -> list[list[int]]:
        """Indices in batches of like length."""
        order = sorted(range(len(mentions)), key=lambda index: len(mentions[index].ids))
        return [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]

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

    @torch.inference_mode()
    def describe_marked(self, mentions: Sequence[MarkedMention], most: int = 48) -> list[Description]:
        """As `describe`, for contexts that are tokenised already."""
        stop = {self.marks.end_ent_desc, self.marks.eos, self.marks.ent_desc}
        if self.marks.family == "t5":
            stop |= set(self.marks.masks.tolist())
        answers: list[Description] = [Description("", "")] * len(mentions)
        for batch in self._batches(mentions):
            sources, prefixes = zip(*(self._source_and_prefix(mentions[index]) for index in batch), strict=True)
            states, real = self._encode(sources)
            for index, ids in zip(
                batch, greedy(self.model, states, real, prefixes, stop, self._room(prefixes, most)), strict=True
            ):
                cut = ids.index(self.marks.sep) if self.marks.sep in ids else len(ids)
                answers[index] = Description(self._text(ids[:cut]), self._text(ids[cut + 1 :]))
        return answers

    def _room(self, prefixes: Sequence[np.ndarray], most: int) -> int:
        limit = row_limit(self.model)
        return most if limit is None else max(1, min(most, limit - max(len(prefix) for prefix in prefixes)))

    def appositive(self, text: str, mention: str | tuple[int, int], slot: int) -> str:
        """An appositive for the mention, to stand at character `slot` of the text: the description without the title.

        Without a separator in the answer all of it is taken (ApposCorpus protocol of the paper).
        """
        marked = self.mark(text, mention)
        offsets = encode_text(self.tokenizer, [text])[0].offsets
        marked.slot = int(np.searchsorted(offsets[:, 0], slot))
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
        for batch in self._batches([mentions[index] for index in asked]):
            indices = [asked[position] for position in batch]
            for index, scores in zip(indices, self._score([mentions[i] for i in indices], scoring, descriptions),
                                     strict=True):  # fmt: skip
                choices[index] = Choice(int(np.argmax(scores)), scores)
        return choices

    def _knowledge(self, candidates: Sequence[Candidate], descriptions: bool) -> list[np.ndarray]:
        """Token ids of `title <sep>` or `title <sep> description </ent_desc>` of each candidate."""
        titles = encode_text(self.tokenizer, [c.title for c in candidates], leading_space=True)
        texts = encode_text(self.tokenizer, [c.description for c in candidates], leading_space=True)
        strings = []
        for candidate, title, text in zip(candidates, titles, texts, strict=True):
            # an empty description is no token, not the leading space alone
            described = [text.ids[: len(text.ids) if candidate.description else 0], [self.marks.end_ent_desc]]
            strings.append(np.concatenate([title.ids, [self.marks.sep], *(described if descriptions else [])]))
        return strings

    def _score(self, mentions: Sequence[MarkedMention], scoring: Scoring, descriptions: bool) -> list[list[float]]:
        """Every candidate's score. Contexts are encoded once; a row holds as many candidates as positions allow."""
        sources, prefixes = zip(*(self._source_and_prefix(mention) for mention in mentions), strict=True)
        states, _ = self._encode(sources)
        strings = [self._knowledge(mention.question.candidates, descriptions) for mention in mentions]
        rows = [
            (index, group)
            for index, options in enumerate(strings)
            for group in self._groups(len(prefixes[index]), [len(option) for option in options])
        ]
        layout = [
            self._candidate_row(prefixes[index], [(k, strings[index][k]) for k in group]) for index, group in rows
        ]
        nll, row, candidate = self._candidate_nll(sources, states, [index for index, _ in rows], layout)
        mention_of = np.array([index for index, _ in rows])[row]
        scores = []
        for index, mention in enumerate(mentions):
            here = mention_of == index
            total = -np.bincount(candidate[here], nll[here], minlength=len(mention.question.candidates))
            if scoring == "mean":
                total = total / np.array([len(string) for string in strings[index]])
            elif scoring == "prior":
                prior = np.array([option.prior for option in mention.question.candidates]) + 1e-6
                total = total + np.log(prior / prior.sum())
            scores.append(total.tolist())
        return scores

    def _groups(self, prefix: int, sizes: Sequence[int]) -> list[list[int]]:
        """Candidates that share a row: all of them, or as many as BART's position table holds."""
        limit = row_limit(self.model) or sum(sizes) + prefix
        groups: list[list[int]] = []
        used = limit
        for number, size in enumerate(sizes):
            if used + size > limit or not groups:
                groups.append([])
                used = prefix
            groups[-1].append(number)
            used += size
        return groups

    def _candidate_row(
        self, prefix: np.ndarray, options: Sequence[tuple[int, np.ndarray]]
    ) -> list[tuple[np.ndarray, ...]]:
        """One decoder row as documents, each (input, position, branch, target, candidate or -1) by token.

        BART: one document, the candidates being branches of the prefix; the prefix's last token predicts every
        candidate's first, so it heads each branch. T5, whose distances must not change: a document a candidate.
        """
        head, last = prefix[:-1], prefix[-1:]
        at = np.arange(len(head))
        none = np.full(len(head), -1)
        branches = [
            (
                np.concatenate([last, string[:-1]]),
                len(head) + np.arange(len(string)),
                np.full(len(string), place + 1),
                string,
                np.full(len(string), number),
            )
            for place, (number, string) in enumerate(options)
        ]
        trunk = (head, at, np.zeros_like(at), np.zeros_like(at), none)
        if self.marks.family == "bart":
            return [tuple(np.concatenate(parts) for parts in zip(trunk, *branches, strict=True))]
        return [tuple(np.concatenate(parts) for parts in zip(trunk, branch, strict=True)) for branch in branches]

    def _candidate_nll(
        self,
        sources: Sequence[np.ndarray],
        states_BSD: Tensor,
        reads: Sequence[int],
        layout: Sequence[Sequence[tuple[np.ndarray, ...]]],
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Losses of all candidate tokens, with the row and the candidate of each; row r reads source reads[r]."""
        device = self.model.device
        source, source_document, source_position = lay_out([[sources[index]] for index in reads], self.marks.pad)
        decoder, document, _ = lay_out([[part[0] for part in row] for row in layout], self.marks.pad)
        position, branch, target = (lay_out([[part[k] for part in row] for row in layout], 0)[0] for k in (1, 2, 3))
        candidate = lay_out([[part[4] for part in row] for row in layout], -1)[0]
        packed = PackedRows(
            source.to(device),
            source_document.to(device),
            source_position.to(device),
            decoder.to(device),
            document.to(device),
            position.to(device),
            torch.where(document >= 0, 0, -1).to(device),
            branch.to(device) if self.marks.family == "bart" else None,
        )
        hidden = decode(self.model, states_BSD[torch.tensor(list(reads), device=device)], packed)
        scored = candidate >= 0
        nll = linear_nll(hidden[scored.to(device)], *output_head(self.model), target[scored].to(device))
        return nll.double().cpu().numpy(), scored.nonzero()[:, 0].numpy(), candidate[scored].numpy()

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
        answers = [""] * len(texts)
        order = sorted(range(len(texts)), key=lambda index: len(sources[index]))
        for begin in range(0, len(order), self.batch_size):
            batch = order[begin : begin + self.batch_size]
            states, real = self._encode([sources[index] for index in batch])
            chosen = [prefixes[index] for index in batch]
            written = greedy(self.model, states, real, chosen, stop, self._room(chosen, most))
            for index, answer in zip(batch, written, strict=True):
                answers[index] = self._text(answer).split("\n")[0].split(before.strip())[0].strip()
        return answers
