"""Edits that are easily taken for what a text means: of the same subject, or of the same relation, or alike in name.

Found by the words that two texts share, the rarer the likelier; so no field but the prompt is needed. Knows no model.
"""

import math
import re
from collections import defaultdict
from collections.abc import Collection, Sequence

import numpy as np

from kedit.editing.edits import Edit

WORD = re.compile(r"\w+")
ROUND = 4
"""Candidates for a negative, of which the one that shares most is taken."""
TRIES = 4
"""Draws for every negative that is wanted: some fall on what is no negative."""
RANDOM = 0.25
"""Share of negatives that are any."""


class Negatives:
    """Draws negatives for texts.

    Args:
        edits: the pool.
    """

    def __init__(self, edits: Sequence[Edit]) -> None:
        self._words = [words_of(edit.prompt) for edit in edits]
        self._fact = [fact_of(edit) for edit in edits]
        with_word: dict[str, list[int]] = defaultdict(list)
        for number, own in enumerate(self._words):
            for word in own:
                with_word[word].append(number)
        self._with = {word: np.array(numbers) for word, numbers in with_word.items()}
        self._rarity = {word: math.log(1 + len(edits) / len(numbers)) for word, numbers in with_word.items()}

    def draw(
        self, texts: Sequence[str], but: Collection[tuple[str, ...]], count: int, rng: np.random.Generator
    ) -> list[int]:
        """At most `count` numbers of edits, most of them alike to one of the texts.

        Args:
            texts: taken in turn.
            but: facts of which no edit may say anything, as `fact_of` gives them.
            count: how many.
            rng: where the choices come from.
        """
        found: dict[int, None] = {}
        given = [[word for word in sorted(words_of(text)) if word in self._with] for text in texts]
        for attempt in range(TRIES * count):
            if len(found) == count:
                break
            own = given[attempt % len(given)] if given else []
            if not own or rng.random() < RANDOM:
                number = int(rng.integers(len(self._fact)))
            else:
                number = self._alike(own, but, rng)
            if self._fact[number] not in but:
                found.setdefault(number)
        return list(found)

    def _alike(self, words: Sequence[str], but: Collection[tuple[str, ...]], rng: np.random.Generator) -> int:
        rarity = np.array([self._rarity[word] for word in words])
        sharing = self._with[words[int(rng.choice(len(words), p=rarity / rarity.sum()))]]
        candidates = [int(number) for number in sharing[rng.integers(len(sharing), size=ROUND)]]
        wanted = set(words)
        return max(
            candidates,
            key=lambda number: (
                self._fact[number] not in but,
                # exact in any order: that of a set differs from process to process, and draws must not
                math.fsum(self._rarity[word] for word in self._words[number] & wanted),
            ),
        )


def words_of(text: str) -> set[str]:
    """The distinct words of a text, in lower case."""
    return set(WORD.findall(text.lower()))


def fact_of(edit: Edit) -> tuple[str, ...]:
    """What an edit is about, whatever its target and its wording where subject and relation are known."""
    if edit.subject and edit.relation:
        return (edit.subject, edit.relation)
    return (" ".join(WORD.findall(edit.prompt.lower())),)
