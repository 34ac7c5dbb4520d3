"""Edits that are easily taken for each other: of the same subject, or of the same relation, or alike in name.

Found by the words that two prompts share, the rarer the likelier; so no field but the prompt is needed. Knows no model.
"""

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from kedit.editing.edits import Edit

WORD = re.compile(r"\w+")
TRIES = 4
"""Draws for every negative that is wanted: some fall on what is no negative."""


class Negatives:
    """Draws negatives for edits.

    Args:
        edits: the pool.
    """

    def __init__(self, edits: Sequence[Edit]) -> None:
        with_word: dict[str, list[int]] = defaultdict(list)
        words = [sorted(set(WORD.findall(edit.prompt.lower()))) for edit in edits]
        for number, own in enumerate(words):
            for word in own:
                with_word[word].append(number)
        self._with = {word: np.array(numbers) for word, numbers in with_word.items() if len(numbers) > 1}
        self._words = [[word for word in own if word in self._with] for own in words]
        self._fact = [fact_of(edit) for edit in edits]

    def draw(self, edits: Sequence[int], count: int, rng: np.random.Generator) -> list[int]:
        """At most `count` numbers of edits that are none of the given ones and say nothing of their facts: half of
        them share a word with one of these, the rest are any.
        """
        taken = {self._fact[number] for number in edits}
        found: dict[int, None] = {}
        for attempt in range(TRIES * count):
            if len(found) == count:
                break
            words = self._words[edits[attempt % len(edits)]]
            if attempt % 2 or not words:
                other = int(rng.integers(len(self._fact)))
            else:
                rarity = 1 / np.log2([1 + len(self._with[word]) for word in words])
                word = words[int(rng.choice(len(words), p=rarity / rarity.sum()))]
                other = int(rng.choice(self._with[word]))
            if self._fact[other] not in taken:
                found.setdefault(other)
        return list(found)


def fact_of(edit: Edit) -> tuple[str, ...]:
    """What an edit is about, whatever its target and its wording where subject and relation are known."""
    if edit.subject and edit.relation:
        return (edit.subject, edit.relation)
    return (" ".join(WORD.findall(edit.prompt.lower())),)
