"""A training step's texts: what is stored, what is asked, and what the language model is to say.

Knows no network. B edits of the step, F further ones as negatives, Q queries, R rows of the language model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from kedit.editing.edits import Edit
from kedit.editing.probes import Probe
from kedit.recipe.asking import Asking, Rows
from kedit.recipe.negatives import Negatives, fact_of, words_of
from kedit.recipe.rewording import Rewording
from kedit.recipe.texts import TextBatch, TextEncoder, key_text


class Kind(IntEnum):
    """What a query, or a row of the language model, asks about."""

    RELIABILITY = 0
    GENERALITY = 1
    LOCALITY = 2
    UNRELATED = 3


@dataclass
class RecipeBatch:
    """A step's texts.

    Args:
        numbers: which edits of the pool, [B].
        edits: their texts, prompt and target, with the language model's tokens.
        keys: what their keys are made of.
        negatives: what the keys of F further edits are made of.
        queries: Q texts.
        kind_Q: of each query, a `Kind`.
        own_Q: the key that it means, -1 where none.
        ignore_QK: keys, of B + F, that say the same as what it asks for.
        rows: the language model's rows.
        edit_R: of each row the edit whose prompt vectors stand before it.
        kind_R: of each row, a `Kind`.
        asked: of each row, prompt and target.
        weight: 0 where a process has no edit of its own and reads another's.
    """

    numbers: list[int]
    edits: TextBatch
    keys: TextBatch
    negatives: TextBatch
    queries: TextBatch
    kind_Q: Tensor
    own_Q: Tensor
    ignore_QK: Tensor
    rows: Rows
    edit_R: Tensor
    kind_R: Tensor
    asked: list[tuple[str, str]]
    weight: float = 1.0


@dataclass(frozen=True)
class Composer:
    """Makes batches of a pool of edits; a batch is a function of its numbers and its random generator.

    Args:
        pool: all edits to train on.
        texts: encodes texts.
        asking: makes the language model's rows.
        key_reads_target: whether keys are made of prompt and target.
        unrelated: texts that no edit concerns.
        negatives: further edits of a step, F.
        unrelated_queries: unrelated texts of a step.
        locality_rows: whether the language model reads locality probes, too.
        answer_end: what the language model is to write behind an edit's target, as a full stop.
        draw: draws the negatives.
        reword: says queries otherwise.
    """

    pool: Sequence[Edit]
    texts: TextEncoder
    asking: Asking
    key_reads_target: bool
    unrelated: Sequence[str]
    negatives: int
    unrelated_queries: int
    locality_rows: bool
    answer_end: str
    draw: Negatives
    reword: Rewording

    def compose(self, numbers: Sequence[int], rng: np.random.Generator) -> RecipeBatch:
        """The batch of these edits: of each its own prompt, one other wording and one probe of locality, where it has
        them.
        """
        edits = [self.pool[number] for number in numbers]
        asked: list[tuple[Kind, int, Probe]] = [(Kind.RELIABILITY, place, edit.own) for place, edit in enumerate(edits)]
        for kind, aspect in ((Kind.GENERALITY, "generality"), (Kind.LOCALITY, "locality")):
            for place, edit in enumerate(edits):
                if probes := edit.asked(aspect):
                    asked.append((kind, place, probes[int(rng.integers(len(probes)))]))
        # where keys are made of prompts alone, an edit's own prompt is its key
        sought = [one for one in asked if self.key_reads_target or one[0] != Kind.RELIABILITY]
        queries = [probe.prompt for _, _, probe in sought]
        count = min(self.unrelated_queries, len(self.unrelated))
        queries += [self.unrelated[int(k)] for k in rng.integers(len(self.unrelated), size=count)] if count else []
        facts = {fact_of(edit) for edit in edits}
        further = [self.pool[number] for number in self.draw.draw(queries, facts, self.negatives, rng)]
        kinds = [kind for kind, _, _ in sought] + [Kind.UNRELATED] * count
        own = [place if kind <= Kind.GENERALITY else -1 for kind, place, _ in sought] + [-1] * count
        spoken = [one for one in asked if one[0] <= Kind.GENERALITY or (self.locality_rows and one[2].span)]
        told = [(probe.prompt, probe.span + (self.answer_end if kind <= Kind.GENERALITY else ""))
                for kind, _, probe in spoken]  # fmt: skip
        return RecipeBatch(
            numbers=list(numbers),
            edits=self.texts.batch([edit.text for edit in edits], with_model=True),
            keys=self.texts.batch([key_text(edit, self.key_reads_target) for edit in edits]),
            negatives=self.texts.batch([key_text(edit, self.key_reads_target) for edit in further]),
            queries=self.texts.batch(self._reworded(edits, sought, queries, rng)),
            kind_Q=torch.tensor(kinds),
            own_Q=torch.tensor(own),
            ignore_QK=_same(edits, further, queries, own),
            rows=self.asking.rows(*zip(*told, strict=True)),
            edit_R=torch.tensor([place for _, place, _ in spoken]),
            kind_R=torch.tensor([int(kind) for kind, _, _ in spoken]),
            asked=told,
        )

    def _reworded(
        self, edits: Sequence[Edit], sought: Sequence[tuple[Kind, int, Probe]], queries: Sequence[str],
        rng: np.random.Generator,
    ) -> list[str]:  # fmt: skip
        own = [words_of(edit.prompt) for edit in edits]
        kept = [own[place] for _, place, _ in sought] + [set()] * (len(queries) - len(sought))
        plain = [kind == Kind.RELIABILITY for kind, _, _ in sought] + [False] * (len(queries) - len(sought))
        return [
            query if is_own else self.reword(query, words, rng)
            for query, words, is_own in zip(queries, kept, plain, strict=True)
        ]


def _same(edits: Sequence[Edit], further: Sequence[Edit], queries: Sequence[str], own: Sequence[int]) -> Tensor:
    """Whether a key says what a query asks for: bool [Q, B + F]."""
    stored = [*edits, *further]
    facts, prompts = [fact_of(edit) for edit in stored], [" ".join(edit.prompt.lower().split()) for edit in stored]
    with_fact = _places(facts)
    with_prompt = _places(prompts)
    same = torch.zeros(len(queries), len(stored), dtype=torch.bool)
    for number, (query, place) in enumerate(zip(queries, own, strict=True)):
        same[number, with_prompt.get(" ".join(query.lower().split()), [])] = True
        if place >= 0:
            same[number, with_fact[facts[place]]] = True
    return same


def _places(values: Sequence[object]) -> dict[object, list[int]]:
    places: dict[object, list[int]] = {}
    for number, value in enumerate(values):
        places.setdefault(value, []).append(number)
    return places
