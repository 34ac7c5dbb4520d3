"""Mentions of a corpus as questions with known answers, and questions in batches for evaluation.

"Unseen" is a context that was held out of training while its entity was mentioned in training; "seen" is a training
context (the paper's two validation sets).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from kedit.editing.sources import Candidate, MentionQuestion, Question
from kedit.kilm.corpus import Corpus
from kedit.kilm.marking import MarkedMention
from kedit.lm.text import decode


@dataclass
class MentionBatch:
    """Mentions to be described, or told apart where they have candidates; `task` names the result."""

    task: str
    mentions: list[MarkedMention]


@dataclass
class QuestionBatch:
    """Questions to be answered; `task` names the result."""

    task: str
    questions: list[Question]


def split(units: int, held_out: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Units for training, validation and test, sorted: `held_out` each for the latter two, at most a fifth of all."""
    held_out = min(held_out, units // 5)
    order = np.random.default_rng([seed, 1]).permutation(units)
    parts = order[2 * held_out :], order[:held_out], order[held_out : 2 * held_out]
    return np.sort(parts[0]), np.sort(parts[1]), np.sort(parts[2])


def mentioned(corpus: Corpus, units: np.ndarray) -> np.ndarray:
    """How often each entity is mentioned in `units`: int64 [entities]."""
    _, mentions = corpus.mentions_of(units)
    return np.bincount(corpus.mention_entities[mentions], minlength=len(corpus.knowledge_lengths))


def described(
    corpus: Corpus, units: Iterable[int], known: np.ndarray, most: int, seed: int, ambiguous: bool = False
) -> list[MarkedMention]:
    """One mention of each unit, drawn from those with a description whose entity `known` counts.

    Args:
        corpus: the documents.
        units: where to look.
        known: how often each entity is mentioned in training.
        most: most mentions to return.
        seed: of the draw.
        ambiguous: only mentions whose words also name another entity; these then carry all of them as candidates.
    """
    random = np.random.default_rng([seed, 2])
    found: list[MarkedMention] = []
    for unit in random.permutation(np.fromiter(units, dtype=np.int64)).tolist():
        if len(found) == most:
            break
        mentions = [
            mention
            for mention in np.asarray(corpus.mentions(unit)).tolist()
            if corpus.knowledge_lengths[mention[2]] and known[mention[2]]
        ]
        random.shuffle(mentions)
        for mention in mentions:
            marked = _mark(corpus, unit, mention, ambiguous)
            if not ambiguous or len(marked.question.candidates) > 1:
                found.append(marked)
                break
    return found


def _mark(corpus: Corpus, unit: int, mention: Sequence[int], candidates: bool) -> MarkedMention:
    start, end, entity = mention
    ids = np.asarray(corpus.tokens(unit))
    before, words, after = (decode(corpus.tokenizer(), part) for part in (ids[:start], ids[start:end], ids[end:]))
    left = len(before) + len(words) - len(words.lstrip())
    surface = words.strip()
    options = []
    if candidates:
        options = [
            Candidate(corpus.title(other), corpus.description(other), float(count))
            for other, count in sorted(corpus.candidates(surface))
        ]
    question = MentionQuestion(
        text=before + words + after,
        span=(left, left + len(surface)),
        candidates=options,
        gold=corpus.title(entity),
        description=corpus.description(entity),
        source=corpus.article(unit),
    )
    return MarkedMention(ids, (start, end), question)
