"""Queries said otherwise: with words put in, and some exchanged, so that no training wording is learned by heart.

What a query shares with the edit's own prompt (a name, above all) stays as it is and together. Knows no network.
"""

import re
from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from kedit.editing.edits import Edit
from kedit.recipe.negatives import words_of

PLAIN = re.compile(r"[^\W\d_]{2,}")
COMMON = 0.01
"""Words of fewer prompts may be names: these are not put in anywhere."""
MOST = 3
"""Words that are put in, at most."""
EXCHANGED = 0.1
"""Share of words that are exchanged, of those that may be."""


class Rewording:
    """Says queries otherwise.

    Args:
        words: what may be put in.
        share: of queries that are said otherwise.
    """

    def __init__(self, words: Sequence[str], share: float) -> None:
        self.words, self.share = words, share if words else 0.0

    def __call__(self, text: str, kept: Collection[str], rng: np.random.Generator) -> str:
        """The text, or another wording of it.

        Args:
            text: a query.
            kept: words, in lower case, that stay; between two of them nothing is put.
            rng: where the choices come from.
        """
        if rng.random() >= self.share:
            return text
        said = text.split()
        stays = [bool(words_of(word) & set(kept)) for word in said]
        said = [
            word if stay or rng.random() >= EXCHANGED else self._any(rng)
            for word, stay in zip(said, stays, strict=True)
        ]
        gaps = [place for place in range(len(said) + 1)
                if place in (0, len(said)) or not (stays[place - 1] and stays[place])]  # fmt: skip
        for place in sorted((gaps[int(k)] for k in rng.integers(len(gaps), size=rng.integers(MOST + 1))), reverse=True):
            said.insert(place, self._any(rng))
        return " ".join(said)

    def _any(self, rng: np.random.Generator) -> str:
        return self.words[int(rng.integers(len(self.words)))]


def words_to_put_in(tokenizer: PreTrainedTokenizerBase, pool: Sequence[Edit]) -> list[str]:
    """Whole words of the tokenizer's vocabulary, but for those that may be names in the pool."""
    counts = Counter(word for edit in pool for word in words_of(edit.prompt))
    rare = {word for word, count in counts.items() if count < COMMON * len(pool)}
    texts = tokenizer.batch_decode([[number] for number in range(len(tokenizer))])
    found = {text.strip() for text in texts if text.startswith(" ") and PLAIN.fullmatch(text.strip())}
    if not found:  # SentencePiece drops the space of a first word
        found = {text for text in texts if PLAIN.fullmatch(text)}
    return sorted(word for word in found if word.lower() not in rare)
