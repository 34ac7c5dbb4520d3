"""What the student reads and what its teacher reads: the teacher's ids end with the very ids of the student.

    student  start            + continuation
    teacher  start + definition + separator + continuation

A continuation is tokenised once, as it stands behind the separator, and its scored positions follow from character
offsets. Position p predicts token p + 1. Knows tokenizers; knows no model.

Shapes: S tokens of a continuation, P scored positions, C tokens of a prefix.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from kedit.editing.probes import Fact
from kedit.editing.sources import DataError
from kedit.lm.causal import start_ids
from kedit.lm.text import Encoded, encode

Positions = Literal["all", "after_mention"]

NO_TOKEN = "without any token that could be scored"
NO_MENTION = "without a mention of its entity"
NOTHING_AFTER = "with nothing after the mention"
TOO_LONG = "longer than the model reads"


class Kind(IntEnum):
    """What a row is for: to learn a fact, to keep what unrelated text says, or the same frame with another name.

    The numbers are the places in `loss.KINDS`.
    """

    EDIT = 0
    TEXT = 1
    SWAPPED = 2


@dataclass(frozen=True)
class Template:
    """How a definition stands before a continuation.

    Args:
        separator: what stands between them. A space at its end belongs to the first word of the continuation.
    """

    separator: str = " "

    @property
    def leading_space(self) -> bool:
        """Whether a continuation is tokenised as if a word stood before it, in the student too."""
        return self.separator.endswith(" ")

    def before(self, context: str) -> str:
        """What stands before a continuation's first token; nothing where there is no context."""
        return context + self.separator.removesuffix(" ") if context.strip() else ""


class Sentence(NamedTuple):
    """A continuation that the student is to read.

    Args:
        fact: index of the fact it belongs to; -1 where it belongs to none.
        context: what the teacher reads before it, a definition as a rule; empty where it reads nothing, as for texts
            that are to stay as they are.
        text: the continuation.
        mention: characters [start, end) of the entity's mention in it; None where it has none.
        kind: a `Kind`.
    """

    fact: int
    context: str
    text: str
    mention: tuple[int, int] | None = None
    kind: int = Kind.EDIT


@dataclass(slots=True, eq=False)
class Row:
    """A tokenised continuation.

    Args:
        ids: its token ids, int32 [S], without what stands before it.
        prefix: number of the prefix that the teacher reads before it.
        scored: ascending positions in `ids` whose predictions are compared, int32 [P].
        fact: index of its fact, -1 for none.
        kind: a `Kind`.
        sentence: number of the sentence, as it was given, that the row comes from.
    """

    ids: np.ndarray
    prefix: int
    scored: np.ndarray
    fact: int = -1
    kind: int = Kind.EDIT
    sentence: int = -1


@dataclass
class TransferRows:
    """A transfer set, tokenised.

    Args:
        start: what stands before every text, int32 [1] or [0]: BOS where the tokenizer has one.
        prefixes: token ids int32 [C] that the teacher reads before a continuation, `start` included.
        rows: the continuations.
        skipped: how many sentences were left out, by reason.
        facts: what the rows' `fact` counts in, for complaints.
    """

    start: np.ndarray
    prefixes: list[np.ndarray]
    rows: list[Row]
    skipped: Counter[str] = field(default_factory=Counter)
    facts: Sequence[Fact] = ()

    def student_ids(self, row: Row) -> np.ndarray:
        """All that the student reads, [len(start) + S]: position p of the row is its position len(start) + p."""
        return np.concatenate([self.start, row.ids])

    def teacher_ids(self, row: Row) -> np.ndarray:
        """All that the teacher reads, [C + S]."""
        return np.concatenate([self.prefixes[row.prefix], row.ids])

    def name(self, fact: int) -> str:
        """A fact with the place it comes from, for complaints."""
        if not 0 <= fact < len(self.facts):
            return "no fact" if fact < 0 else f"fact number {fact}"
        known = self.facts[fact]
        return f"{known.where}: {known.name!r}" if known.where else f"fact {known.id!r} ({known.name!r})"


def make_rows(
    tokenizer: PreTrainedTokenizerBase,
    sentences: Iterable[Sentence | tuple[int, str, str, tuple[int, int] | None, int]],
    template: Template | None = None,
    positions: Positions = "after_mention",
    limit: int | None = None,
    facts: Sequence[Fact] = (),
    reference: bool = False,
    bos: bool | None = None,
) -> TransferRows:
    """Tokenise sentences for student and teacher.

    Args:
        tokenizer: a fast one. Special tokens are not recognised inside texts.
        sentences: what the student is to read.
        template: how a definition stands before a continuation.
        positions: `all` scores every prediction but that of the first token. `after_mention` scores those of tokens
            that begin at the mention's end or behind it: one that straddles the end belongs to the mention. Rows of
            kind TEXT have no mention and are always scored whole.
        limit: most tokens that the model reads, the prefix included.
        facts: what the sentences' `fact` counts in, for complaints.
        reference: as the paper's code, score also the prediction after the last token where all are scored.
        bos: what stands before every text, as `start_ids` says.

    Raises:
        DataError: a definition alone fills all that the model reads.
        ValueError: a mention lies outside of its text.
    """
    template = template or Template()
    given = [Sentence(*sentence) for sentence in sentences]
    start = np.asarray(start_ids(tokenizer, bos), dtype=np.int32)
    made = TransferRows(start, [], [], facts=facts)

    contexts: dict[str, int] = {}  # what stands before, to its number
    first: list[Sentence] = []
    for sentence in given:
        before = template.before(sentence.context)
        if before not in contexts:
            contexts[before] = len(contexts)
            first.append(sentence)
    for sentence, encoded in zip(first, encode(tokenizer, list(contexts)), strict=True):
        made.prefixes.append(np.concatenate([start, encoded.ids]))
        if limit is not None and len(made.prefixes[-1]) >= limit:
            raise DataError(
                f"{made.name(sentence.fact)}: the definition has {len(made.prefixes[-1])} tokens and the model reads "
                f"{limit}, its continuation included: shorten the definition or take a model that reads more"
            )

    tokens = encode(tokenizer, [sentence.text for sentence in given], leading_space=template.leading_space)
    for number, (sentence, encoded) in enumerate(zip(given, tokens, strict=True)):
        prefix = made.prefixes[contexts[template.before(sentence.context)]]
        scored, reason = _scored(sentence, encoded, positions, reference)
        if reason is None and limit is not None and len(prefix) + len(encoded.ids) > limit:
            reason = TOO_LONG
        if reason is not None:
            made.skipped[reason] += 1
            continue
        row = Row(
            encoded.ids, contexts[template.before(sentence.context)], scored, sentence.fact, sentence.kind, number
        )
        shared = len(row.ids)
        assert np.array_equal(made.teacher_ids(row)[-shared:], made.student_ids(row)[-shared:])
        assert 0 <= scored[0] <= scored[-1] < shared
        made.rows.append(row)
    return made


def _scored(
    sentence: Sentence, encoded: Encoded, positions: Positions, reference: bool
) -> tuple[np.ndarray, str | None]:
    """Scored positions, and where there are none the reason."""
    tokens = len(encoded.ids)
    if positions == "all" or sentence.kind == Kind.TEXT:
        scored = np.arange(tokens - (0 if reference else 1), dtype=np.int32)
        return scored, None if len(scored) else NO_TOKEN
    none = np.zeros(0, dtype=np.int32)
    if sentence.mention is None:
        return none, NO_MENTION
    start, end = sentence.mention
    if not 0 <= start < end <= len(sentence.text):
        raise ValueError(
            f"mention {sentence.mention} lies outside of {sentence.text!r} ({len(sentence.text)} characters)"
        )
    if not sentence.text[end:].strip():
        return none, NOTHING_AFTER
    inside = np.flatnonzero(encoded.offsets[:, 0] < end)
    first = int(inside[-1]) + 1 if len(inside) else 0
    scored = np.arange(max(first, 1) - 1, tokens - 1, dtype=np.int32)  # nothing predicts the very first token
    return scored, None if len(scored) else NOTHING_AFTER
