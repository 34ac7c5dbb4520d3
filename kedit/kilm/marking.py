"""A mention in tokenised context, and the model's input that asks for its description."""

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from kedit.editing.sources import DataError, MentionQuestion
from kedit.kilm.infilling import Markup
from kedit.lm.text import encode, token_span


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
    encoded = encode(tokenizer, [text])[0]
    span = token_span(encoded.offsets, start, end)
    if span[0] == span[1] or not 0 <= start < end <= len(text):
        raise DataError(f"{question.source} characters {start} to {end} hold no mention in {text[:60]!r}".lstrip())
    return MarkedMention(encoded.ids, span, question)


def cut_context(mention: MarkedMention, tokens: int) -> tuple[np.ndarray, int, int, int]:
    """At most `tokens` of the context, and where in it the mention starts, where it ends, and where the slot is."""
    (start, end), ids = mention.span, mention.ids
    slot = end if mention.slot is None else mention.slot
    low, high = min(start, slot), max(end, slot)
    spare = tokens - (high - low)
    if spare < 0:
        question = mention.question
        raise DataError(
            f"{question.source} the mention {question.mention[:40]!r}, with the place of its description, takes "
            f"{high - low} tokens; the model has room for {tokens}".lstrip()
        )
    left = max(0, min(low - spare // 2, len(ids) - tokens))
    right = max(high, left + tokens)
    return ids[left:right], start - left, end - left, slot - left


def source_and_prefix(mention: MarkedMention, marks: Markup, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Encoder ids with one mask for the knowledge; decoder ids up to where the knowledge begins."""
    ids, start, end, slot = cut_context(mention, tokens)
    knowledge = [marks.ent_desc, -1, marks.end_ent_desc]
    inserts = sorted([(start, 1, [marks.ent]), (end, 2, [marks.end_ent]), (slot, 0 if slot <= start else 3, knowledge)])
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
