"""A training step's texts: what is stored, what is asked, and what the language model is to say.

Several processes make one batch together, and each has its part of it. Knows no network. B edits of all processes, F
further ones as negatives; of one process M edits, Q queries, R rows of the language model.
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
from kedit.recipe.processes import dealt
from kedit.recipe.rewording import Rewording
from kedit.recipe.texts import TextBatch, TextEncoder, key_text


class Kind(IntEnum):
    """What a query, or a row of the language model, asks about."""

    RELIABILITY = 0
    GENERALITY = 1
    LOCALITY = 2
    UNRELATED = 3


Ask = tuple[Kind, int, Probe]
"""What is asked, and of which of a batch's edits."""


@dataclass
class RecipeBatch:
    """A process's part of a step's texts.

    Edits and negatives are dealt out as `processes.dealt` says, the queries and rows go with their edits. All processes
    call the same networks, or those that wait for one another would wait for ever: one that has no edit, or no query,
    reads another's, of which nothing counts.

    Args:
        numbers: which edits of the pool this process has, at most M.
        edits: texts, prompt and target, of M edits with the language model's tokens.
        keys: what their keys are made of.
        edit_count: B.
        negatives: what the keys of this process's part of the further edits are made of.
        negative_count: F.
        coin_B: of each edit of all processes a coin.
        queries: Q texts, or one where Q is 0.
        kind_Q: of each query, a `Kind`.
        own_Q: the key, of B, that it means, -1 where none.
        ignore_QK: keys, of B + F, that say the same as what it asks for.
        rows: the language model's rows.
        edit_R: of each row the edit, of M, whose prompt vectors stand before it.
        kind_R: of each row, a `Kind`; -1 where it counts for nothing.
        asked: of each row, prompt and target.
        weight: of this batch among those that are accumulated, nearly 1.
    """

    numbers: list[int]
    edits: TextBatch
    keys: TextBatch
    edit_count: int
    negatives: TextBatch
    negative_count: int
    coin_B: Tensor
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
        negatives: further edits of a batch of all processes, F.
        unrelated_queries: unrelated texts of a batch of all processes.
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

    def compose(self, numbers: Sequence[int], rng: np.random.Generator, rank: int = 0, world: int = 1) -> RecipeBatch:
        """The batch of these edits: of each its own prompt, one other wording and one probe of locality, where it has
        them.

        Args:
            numbers: of the edits of all processes, at least one.
            rng: where the choices come from; all processes draw alike, whatever they are to have of it.
            rank: number of the process.
            world: how many there are.
        """
        edits = [self.pool[number] for number in numbers]
        asked: list[Ask] = [(Kind.RELIABILITY, place, edit.own) for place, edit in enumerate(edits)]
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
        said = self._reworded(edits, sought, queries, rng)
        coins = rng.random(len(edits)) < 0.5

        places, others = dealt(len(edits), rank, world), dealt(len(further), rank, world)
        kinds = [kind for kind, _, _ in sought] + [Kind.UNRELATED] * count
        own = [place if kind <= Kind.GENERALITY else -1 for kind, place, _ in sought] + [-1] * count
        mine = [query for query, (_, place, _) in enumerate(sought) if place % world == rank]
        mine += range(len(sought) + rank, len(queries), world)
        key_texts = [key_text(edits[place], self.key_reads_target) for place in places]
        further_texts = [key_text(further[place], self.key_reads_target) for place in others]
        rows, row_kinds = self._rows(asked, rank, world)
        told = [(probe.prompt, probe.span + (self.answer_end if kind <= Kind.GENERALITY else ""))
                for kind, _, probe in rows]  # fmt: skip
        return RecipeBatch(
            numbers=list(numbers[rank::world]),
            edits=self.texts.batch([edits[place].text for place in places], with_model=True),
            keys=self.texts.batch(key_texts),
            edit_count=len(edits),
            negatives=self.texts.batch(further_texts),
            negative_count=len(further),
            coin_B=torch.from_numpy(coins),
            queries=self.texts.batch([said[query] for query in mine] or said[:1]),
            kind_Q=torch.tensor([kinds[query] for query in mine], dtype=torch.int64),
            own_Q=torch.tensor([own[query] for query in mine], dtype=torch.int64),
            ignore_QK=_same(edits, further, [queries[query] for query in mine], [own[query] for query in mine]),
            rows=self.asking.rows(*zip(*told, strict=True)),
            edit_R=torch.tensor([place // world for _, place, _ in rows]),
            kind_R=torch.tensor(row_kinds),
            asked=told,
        )

    def _rows(self, asked: Sequence[Ask], rank: int, world: int) -> tuple[list[Ask], list[int]]:
        """A process's rows of the language model, and their kinds; one of no kind where it has no edit."""
        own = [one for one in asked if one[1] % world == rank
               and (one[0] <= Kind.GENERALITY or (self.locality_rows and one[2].span))]  # fmt: skip
        return (own, [int(kind) for kind, _, _ in own]) if own else ([asked[0]], [-1])

    def _reworded(
        self, edits: Sequence[Edit], sought: Sequence[Ask], queries: Sequence[str],
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
