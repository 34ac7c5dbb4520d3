"""The objective (Xu et al. 2023, section 3): text infilling, with descriptions of marked mentions to be filled in.

A document `a m b` whose mention m means the entity E with description D becomes, for BART,

    target  <s> a <ent>m</ent><ent_desc>E<sep>D</ent_desc> b </s>
    source  the same, the knowledge `E<sep>D` and every masked span of text replaced by one <mask> each

and for T5 the same source with sentinels for masks, the target being the sentinels with what they hide. Everything is
done on token ids with recorded spans; nothing is tokenised again. Knows nothing of files or of training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from kedit.editing.sources import DataError
from kedit.lm.backbones import add_tokens

ENT, END_ENT, ENT_DESC, END_ENT_DESC, SEP = "<ent>", "</ent>", "<ent_desc>", "</ent_desc>", "<sep>"
STRUCTURE = (ENT, END_ENT, ENT_DESC, END_ENT_DESC, SEP)

COPIED, INFILLED, KNOWLEDGE = 0, 1, 2
CLASSES = ("copied", "infilled", "knowledge")
"""What a target token is: given in the source (T5's sentinels are), masked text, or part of the knowledge."""


@dataclass
class Infilling:
    """What is hidden.

    Args:
        masked_share: share of the text tokens that are masked, exactly, in every document.
        span_length: Poisson mean of the masked spans' lengths; zero lengths are not used.
        mentions: most mentions of a document whose description is to be filled in.
        described_share: share of the documents whose mentions are described at all; the others keep the model used to
            plain text, which is what it meets elsewhere.
        knowledge: false for plain text infilling.
        reference: the choices of the paper's code: one mention in every document that has one, spans that may overlap
            (so that fewer tokens are masked).
    """

    masked_share: float = 0.3
    span_length: float = 3.0
    mentions: int = 4
    described_share: float = 0.9
    knowledge: bool = True
    reference: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.masked_share < 1:
            raise ValueError(f"infilling.masked_share is {self.masked_share}, wanted a share in [0, 1)")
        if not 0 < self.described_share <= 1:
            raise ValueError(f"infilling.described_share is {self.described_share}, wanted a share in (0, 1]")
        if self.span_length <= 0:
            raise ValueError(f"infilling.span_length is {self.span_length}, wanted a positive mean")
        if self.reference:
            self.mentions, self.described_share = 1, 1.0
        if not self.knowledge:
            self.mentions = 0


class Markup(NamedTuple):
    """The ids that give a document its structure.

    Args:
        family: bart copies the document into the target, t5 writes only what is hidden.
        start: first decoder input.
        bos: begins source and target, None for T5.
        eos: ends them.
        pad: fills rows.
        masks: what a hidden span is replaced by: BART's one mask, T5's sentinels in order.
        ent: opens a mention, and so on.
    """

    family: Literal["bart", "t5"]
    start: int
    bos: int | None
    eos: int
    pad: int
    masks: np.ndarray
    ent: int
    end_ent: int
    ent_desc: int
    end_ent_desc: int
    sep: int


def markup(tokenizer: PreTrainedTokenizerBase) -> Markup:
    """Add the structure tokens to `tokenizer` and read off every id.

    Raises:
        DataError: the tokenizer has neither T5's sentinels nor a mask token, or lacks an end or padding token.
    """
    vocabulary = tokenizer.get_vocab()
    name = tokenizer.name_or_path or type(tokenizer).__name__
    if tokenizer.eos_token_id is None or tokenizer.pad_token_id is None:
        raise DataError(f"tokenizer {name} has no end or padding token: KILM needs a BART or T5 tokenizer")
    # mT5 keeps its sentinels as pieces with a leading space
    sentinels = [
        next(vocabulary[form] for form in (f"<extra_id_{k}>", f"▁<extra_id_{k}>") if form in vocabulary)
        for k in range(100)
        if f"<extra_id_{k}>" in vocabulary or f"▁<extra_id_{k}>" in vocabulary
    ]
    ids = add_tokens(tokenizer, STRUCTURE)
    structure = (ids[ENT], ids[END_ENT], ids[ENT_DESC], ids[END_ENT_DESC], ids[SEP])
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    if len(sentinels) > 1:
        return Markup("t5", pad, None, eos, pad, np.array(sentinels, dtype=np.int64), *structure)
    if tokenizer.mask_token_id is None or tokenizer.bos_token_id is None:
        raise DataError(
            f"tokenizer {name} has neither <extra_id_0>, <extra_id_1>, ... (T5) nor <mask> and <s> (BART): "
            "choose the tokenizer of the model to be trained"
        )
    masks = np.array([tokenizer.mask_token_id], dtype=np.int64)
    return Markup("bart", eos, tokenizer.bos_token_id, eos, pad, masks, *structure)


class Mention(NamedTuple):
    """A mention chosen to be described: tokens [start, end) of the document; token ids of title and description."""

    start: int
    end: int
    title: np.ndarray
    description: np.ndarray


class Example(NamedTuple):
    """One document. All int64.

    Args:
        source: encoder ids.
        target: what the decoder is to write; its input is the start token followed by all but the last.
        classes: what each target token is (`CLASSES`).
    """

    source: np.ndarray
    target: np.ndarray
    classes: np.ndarray


def generator(seed: int, epoch: int, document: int) -> np.random.Generator:
    """The random numbers of one document in one epoch: the same whoever asks, whenever."""
    return np.random.Generator(np.random.Philox(key=[seed, 0x6B65646974], counter=[0, 0, epoch, document]))


def build(
    text: np.ndarray, mentions: Sequence[Mention], marks: Markup, settings: Infilling, rng: np.random.Generator
) -> Example:
    """Hide spans of `text` and the knowledge of `mentions` (sorted, not overlapping)."""
    tokens, hideable, knowledge, inserted = _lay(text, mentions, marks)
    choose = spans_with_overlaps if settings.reference else spans
    hidden = np.zeros(len(tokens), dtype=bool)
    places = np.flatnonzero(hideable)
    hidden[places] = choose(len(places), settings.masked_share, settings.span_length, rng)
    if marks.family == "t5":
        _spare(hidden, knowledge, len(marks.masks) - 1)
    gone = hidden | knowledge
    classes = np.where(hidden, INFILLED, np.where(inserted, KNOWLEDGE, COPIED))
    if marks.family == "bart":
        return Example(_collapse(tokens, gone, marks), tokens, classes)
    return _sentinels(tokens, gone, knowledge, marks)


def _lay(text: np.ndarray, mentions: Sequence[Mention], marks: Markup) -> tuple[np.ndarray, ...]:
    """The marked document, and where it is maskable text, knowledge, and knowledge with its brackets."""
    # pieces: ids and kind: 0 fixed, 1 text, 2 bracket of the knowledge, 3 knowledge
    pieces: list[tuple[Sequence[int] | np.ndarray, int]] = [] if marks.bos is None else [((marks.bos,), 0)]
    at = 0
    for mention in mentions:
        pieces += [
            (text[at : mention.start], 1),
            ((marks.ent,), 0),
            (text[mention.start : mention.end], 1),
            ((marks.end_ent,), 0),
            ((marks.ent_desc,), 2),
            (mention.title, 3),
            ((marks.sep,), 3),
            (mention.description, 3),
            ((marks.end_ent_desc,), 2),
        ]
        at = mention.end
    pieces += [(text[at:], 1), ((marks.eos,), 0)]
    tokens = np.concatenate([np.asarray(ids, dtype=np.int64) for ids, _ in pieces])
    kinds = np.repeat([kind for _, kind in pieces], [len(ids) for ids, _ in pieces])
    return tokens, kinds == 1, kinds == 3, kinds >= 2


def _spare(hidden: np.ndarray, knowledge: np.ndarray, sentinels: int) -> None:
    """Show the last hidden spans of text again where there are more runs than sentinels."""
    surplus = int(_run_starts(hidden | knowledge).sum()) - sentinels
    if surplus > 0:
        starts = np.flatnonzero(_run_starts(hidden))
        hidden[starts[max(0, len(starts) - surplus)] if len(starts) else 0 :] = False


def _run_starts(gone: np.ndarray) -> np.ndarray:
    starts = gone.copy()
    starts[1:] &= ~gone[:-1]
    return starts


def _collapse(tokens: np.ndarray, gone: np.ndarray, marks: Markup) -> np.ndarray:
    """Every run of hidden tokens becomes one mask; T5's masks are numbered."""
    starts = _run_starts(gone)
    source = tokens.copy()
    source[starts] = marks.masks[0] if marks.family == "bart" else marks.masks[: starts.sum()]
    return source[starts | ~gone]


def _sentinels(tokens: np.ndarray, gone: np.ndarray, knowledge: np.ndarray, marks: Markup) -> Example:
    """T5: the target is each sentinel with what it hides, then one more sentinel and the end."""
    starts = _run_starts(gone)
    runs = int(starts.sum())
    # a sentinel stands before the first token of its run
    at = np.flatnonzero(gone)
    first = np.flatnonzero(starts[at])
    target = np.insert(tokens[at], first, marks.masks[:runs])
    # sentinels and the end are given in the source
    classes = np.insert(np.where(knowledge[at], KNOWLEDGE, INFILLED), first, COPIED)
    target = np.concatenate([target, [marks.masks[runs], marks.eos]])
    classes = np.concatenate([classes, [COPIED, COPIED]])
    return Example(_collapse(tokens, gone, marks), target, classes)


def _lengths(total: int, mean: float, rng: np.random.Generator) -> np.ndarray:
    """Zero-truncated Poisson lengths, the last one cut so that they sum to `total`."""
    lengths = rng.poisson(mean, size=int(2 * total / mean) + 8)
    lengths = lengths[lengths > 0]
    while lengths.sum() < total:
        lengths = np.concatenate([lengths, np.maximum(rng.poisson(mean, size=8), 1)])
    ends = np.cumsum(lengths)
    count = int(np.searchsorted(ends, total)) + 1
    lengths = lengths[:count].copy()
    lengths[-1] -= ends[count - 1] - total
    return lengths


def spans(tokens: int, share: float, mean: float, rng: np.random.Generator) -> np.ndarray:
    """Which of `tokens` to hide: exactly round(share * tokens) of them, in spans with at least one token between.

    Args:
        tokens: how many there are.
        share: share to hide.
        mean: Poisson mean of the spans' lengths, zeros left out.
        rng: random numbers.
    """
    hidden = np.zeros(tokens, dtype=bool)
    total = round(share * tokens)
    if total == 0:
        return hidden
    lengths = _lengths(total, mean, rng)
    rng.shuffle(lengths)
    # one visible token between two spans, the others spread evenly over all ways to place them
    free = tokens - int(lengths.sum()) - (len(lengths) - 1)
    if free < 0:
        lengths, free = np.array([total]), tokens - total
    places = np.sort(rng.choice(free + len(lengths), size=len(lengths), replace=False))
    # the k-th place is k spans further on; tokens of a span follow each other
    hidden[np.repeat(places, lengths) + np.arange(lengths.sum())] = True
    return hidden


def spans_with_overlaps(tokens: int, share: float, mean: float, rng: np.random.Generator) -> np.ndarray:
    """The paper's code: span starts drawn without replacement, spans may run into each other, so fewer are hidden."""
    hidden = np.zeros(tokens, dtype=bool)
    total = int(np.ceil(share * tokens))
    if total == 0:
        return hidden
    lengths = _lengths(total, mean, rng)
    starts = rng.choice(tokens, size=len(lengths), replace=False)
    for start, length in zip(starts, lengths, strict=True):
        hidden[start : start + length] = True
    return hidden
