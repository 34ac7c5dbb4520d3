"""How likely a language model finds spans of sentences, and candidates for them. Knows no edits and no method.

A sentence is tokenised once, whole, as behind a space, whatever stands before it: a definition or the start of the
text. So its ids are the same with and without a definition, and for every model of one tokenizer. The span's tokens are
those that overlap its characters (a mark that the tokenizer joins with the span's last one is scored with it).

- decoder-only: BOS (where the tokenizer has one) + context + sentence up to the span's last token.
- encoder-decoder: context + sentence with the span's tokens replaced by <extra_id_0> + EOS is read, and <extra_id_0>
  + span written: T5's own way of filling gaps.

Results do not depend on what else is in a batch: in float32 token losses differ by rounding only, less than 1e-5 where
they are below 10 nats.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit.lm import packing
from kedit.lm.backbones import output_head
from kedit.lm.causal import BATCH_TOKENS, position_limit, row_states, start_ids
from kedit.lm.losses import linear_nll
from kedit.lm.text import encode, token_span

SENTINEL = "<extra_id_0>"
HEAD_TOKENS = 1024
"""Positions whose states are kept before the output head sees them."""
Progress = Callable[[int, int], None]
Scored = Iterator[tuple[int, Tensor]]
"""Numbers of rows, and the states [n, D] from which the n tokens of their spans are predicted."""


@dataclass(frozen=True, slots=True)
class Span:
    """A sentence, of which a span is scored.

    Args:
        left: the text before the span, its trailing space included.
        span: the words to score.
        right: the text behind the span. Decoder-only models do not read it, but it decides how the span is tokenised.
        where: what the span is called in a complaint.
    """

    left: str
    span: str
    right: str = ""
    where: str = ""


class _Row(NamedTuple):
    """A context with its BOS, and a sentence behind it whose tokens [first, end) are the span's."""

    head: np.ndarray
    sentence: np.ndarray
    first: int
    end: int

    @property
    def targets(self) -> np.ndarray:
        return self.sentence[self.first : self.end]


def span_nll(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    spans: Sequence[Span],
    contexts: Sequence[str | None] | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
    bos: bool | None = None,
) -> list[np.ndarray]:
    """Negative log-likelihoods of the spans' tokens, in nats, each given all that stands left of it.

    Args:
        model: decoder-only or encoder-decoder, as it stands (its caller sets `eval`).
        tokenizer: its fast tokenizer.
        spans: what to score.
        contexts: for each span the text before its sentence, as a definition; None where there is none. It is
            tokenised alone, and the sentence follows behind a space.
        batch_tokens: most tokens of a batch.
        progress: called with how many spans are scored, and how many there are.
        bos: what stands before all that a decoder-only model reads, as `start_ids` says.

    Returns:
        for each span float32 [its tokens].

    Raises:
        ValueError: a span cannot be scored, as it has no tokens, nothing stands before it or it is too long to read.
    """
    contexts = [None] * len(spans) if contexts is None else contexts
    # rows of one context share what it reads
    return _losses(model, tokenizer, spans, contexts, contexts, batch_tokens, progress, bos)


def candidate_log_probs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    spans: Sequence[Span],
    candidates: Sequence[Sequence[str]],
    contexts: Sequence[str | None] | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
) -> list[np.ndarray]:
    """Log-probabilities of candidates for a span, each filled in and read by itself: the sum over its tokens.

    Args:
        model: decoder-only or encoder-decoder, as it stands (its caller sets `eval`).
        tokenizer: its fast tokenizer.
        spans: the sentences; what stands in their span does not matter.
        candidates: for each sentence what may stand there.
        contexts: for each sentence the text before it, as in `span_nll`.
        batch_tokens: most tokens of a batch.
        progress: called with how many candidates are scored, and how many there are.

    Returns:
        for each sentence float64 [its candidates].

    Raises:
        ValueError: as for `span_nll`.
    """
    contexts = [None] * len(spans) if contexts is None else contexts
    filled = [
        replace(span, span=word, where=f"{span.where or repr(span.left)}, candidate {word!r}")
        for span, words in zip(spans, candidates, strict=True)
        for word in words
    ]
    sentence_of = [number for number, words in enumerate(candidates) for _ in words]
    given = [contexts[number] for number in sentence_of]
    losses = _losses(model, tokenizer, filled, given, sentence_of, batch_tokens, progress)
    log_probs = iter([-loss.sum(dtype=np.float64) for loss in losses])
    return [np.array([next(log_probs) for _ in words], dtype=np.float64) for words in candidates]


@torch.no_grad()
def _losses(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, spans: Sequence[Span],
    contexts: Sequence[str | None], groups: Sequence[Hashable], batch_tokens: int, progress: Progress | None,
    bos: bool | None = None,
) -> list[np.ndarray]:  # fmt: skip
    rows = _rows(tokenizer, spans, contexts, bool(model.config.is_encoder_decoder), bos)
    if model.config.is_encoder_decoder:
        scored = _written(model, tokenizer, spans, rows, batch_tokens)
    else:
        scored = _continued(model, spans, rows, groups, batch_tokens)
    weight, bias = output_head(model)
    losses: dict[int, np.ndarray] = {}
    waiting: list[tuple[int, Tensor]] = []

    def score() -> None:
        numbers = [number for number, _ in waiting]
        targets = torch.from_numpy(np.concatenate([rows[number].targets for number in numbers]).astype(np.int64))
        hidden = torch.cat([states for _, states in waiting])
        nll = linear_nll(hidden, weight, bias, targets.to(hidden.device)).cpu().numpy()
        ends = np.cumsum([len(rows[number].targets) for number in numbers])[:-1]
        losses.update(zip(numbers, np.split(nll, ends), strict=True))
        waiting.clear()
        if progress is not None:
            progress(len(losses), len(rows))

    for number, states_ND in scored:
        waiting.append((number, states_ND.clone()))  # a view would keep its whole batch
        if sum(len(states) for _, states in waiting) >= HEAD_TOKENS:
            score()
    if waiting:
        score()
    return [losses[number] for number in range(len(rows))]


def _rows(
    tokenizer: PreTrainedTokenizerBase,
    spans: Sequence[Span],
    contexts: Sequence[str | None],
    sequence_to_sequence: bool,
    bos: bool | None = None,
) -> list[_Row]:
    distinct = list(dict.fromkeys(context or "" for context in contexts))
    start = np.array([] if sequence_to_sequence else start_ids(tokenizer, bos), dtype=np.int32)
    heads = {
        context: np.concatenate([start, encoded.ids])
        for context, encoded in zip(distinct, encode(tokenizer, distinct), strict=True)
    }
    sentences = encode(tokenizer, [span.left + span.span + span.right for span in spans], leading_space=True)
    rows = []
    for span, context, (ids, offsets) in zip(spans, contexts, sentences, strict=True):
        first, end = token_span(offsets, len(span.left), len(span.left) + len(span.span))
        if first == end:
            raise ValueError(f"{_told(span)}: the span {span.span!r} has no tokens: nothing can be scored")
        rows.append(_Row(heads[context or ""], ids, first, end))
    return rows


def _told(span: Span) -> str:
    return span.where or repr((span.left + span.span + span.right)[:80])


def _check_length(model: PreTrainedModel, span: Span, tokens: int) -> None:
    limit = position_limit(model.config)
    if limit is not None and tokens > limit:
        raise ValueError(
            f"{_told(span)}: {tokens} tokens with what stands before it, and the model reads {limit}: shorten the"
            " definition, or leave the probe out"
        )


def _continued(
    model: PreTrainedModel, spans: Sequence[Span], rows: Sequence[_Row], groups: Sequence[Hashable], batch_tokens: int
) -> Scored:
    """Decoder-only: what rows of a group have in common before their spans is read once."""
    read, needed = [], []
    for span, row in zip(spans, rows, strict=True):
        read.append(np.concatenate([row.head, row.sentence[: row.end - 1]]))
        needed.append(len(row.head) + row.first - 1)  # the first state that predicts a token of the span
        if needed[-1] < 0:
            raise ValueError(
                f"{_told(span)}: the span's first token is the first of all, and the tokenizer has no BOS: nothing"
                " predicts it; give the probe a left context or the tokenizer a bos_token"
            )
        _check_length(model, span, len(read[-1]))
    members: dict[Hashable, list[int]] = {}
    for number, group in enumerate(groups):
        members.setdefault(group, []).append(number)
    prefixes, prefix_of = [np.zeros(0, dtype=np.int32)], [0] * len(rows)
    for group, numbers in members.items():
        if group is None or len(numbers) == 1:
            continue
        shared = read[numbers[0]]
        for number in numbers:
            shared = _common(shared, read[number][: needed[number]])
        for number in numbers:
            prefix_of[number] = len(prefixes)
        prefixes.append(shared)
    cuts = [len(prefixes[prefix]) for prefix in prefix_of]
    tails = [ids[cut:] for ids, cut in zip(read, cuts, strict=True)]
    for number, states_LD in row_states(model, tails, prefixes, prefix_of, batch_tokens):
        yield number, states_LD[needed[number] - cuts[number] :]


def _common(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    length = min(len(left), len(right))
    differs = np.flatnonzero(left[:length] != right[:length])
    return left[: differs[0] if len(differs) else length]


def _written(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, spans: Sequence[Span], rows: Sequence[_Row],
    batch_tokens: int,
) -> Scored:  # fmt: skip
    """Encoder-decoder: a source is read once, and the spans that fill it are packed side by side."""
    sentinel = tokenizer.get_vocab().get(SENTINEL)
    if sentinel is None:
        raise ValueError(f"the tokenizer has no {SENTINEL}, by which an encoder-decoder fills a gap: use T5's or mT5's")
    opening = np.array([model.config.decoder_start_token_id, sentinel])
    closing = np.array([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id], dtype=np.int64)
    answers: dict[bytes, list[int]] = {}
    for number, (span, row) in enumerate(zip(spans, rows, strict=True)):
        source = np.concatenate(
            [row.head, row.sentence[: row.first], [sentinel], row.sentence[row.end :], closing]
        ).astype(np.int64)
        _check_length(model, span, len(source))
        answers.setdefault(source.tobytes(), []).append(number)

    def width(source: bytes) -> int:
        return len(source) // 8 + sum(len(rows[number].targets) + 1 for number in answers[source])

    batch: list[bytes] = []
    for given in sorted(answers, key=width):
        if batch and width(given) * (len(batch) + 1) > batch_tokens:
            yield from _filled(model, batch, [answers[read] for read in batch], rows, opening)
            batch = []
        batch.append(given)
    if batch:
        yield from _filled(model, batch, [answers[read] for read in batch], rows, opening)


def _filled(
    model: PreTrainedModel, sources: Sequence[bytes], answers: Sequence[Sequence[int]], rows: Sequence[_Row],
    opening: np.ndarray,
) -> Scored:  # fmt: skip
    written = [[np.concatenate([opening, rows[number].targets[:-1]]) for number in numbers] for numbers in answers]
    source, source_document, source_position = packing.lay_out(
        [[np.frombuffer(given, dtype=np.int64)] for given in sources], pad=0
    )
    decoder, document, position = packing.lay_out(written, pad=0)
    laid = (source, source_document, source_position, decoder, document, position, torch.zeros_like(document))
    packed = packing.PackedRows(*(part.to(model.device) for part in laid))
    states_BTD = packing.decode(model, packing.encode(model, packed), packed)
    for states_TD, numbers, texts in zip(states_BTD, answers, written, strict=True):
        start = 0
        for number, text in zip(numbers, texts, strict=True):
            yield number, states_TD[start + 1 : start + len(text)]
            start += len(text)
