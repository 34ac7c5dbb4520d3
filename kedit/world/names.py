"""Coined, pronounceable names. Knows nothing of what they name."""

import random
from collections.abc import Container

ONSETS = ("b", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "dr", "kr", "tr")
VOWELS = ("a", "e", "i", "o", "u")
ENDINGS = ("", "", "", "l", "n", "r", "s", "th", "m", "nd", "sk", "x")


class Names:
    """Coins words that are new each time.

    Args:
        rng: where the choices come from.
        avoid: lower-case words that no name may be, such as the words of the sentences around it.
    """

    def __init__(self, rng: random.Random, avoid: Container[str] = ()):
        self.rng = rng
        self.avoid = avoid
        self.coined: set[str] = set()

    def word(self) -> str:
        """A new capitalised word of two syllables, of three where chance or scarcity wants it."""
        choice = self.rng.choice
        for attempt in range(1000):
            syllables = 3 if self.rng.random() < 0.15 or attempt > 20 else 2
            word = "".join(choice(ONSETS) + choice(VOWELS) for _ in range(syllables)) + choice(ENDINGS)
            if len(word) >= 4 and word not in self.coined and word not in self.avoid:
                self.coined.add(word)
                return word.capitalize()
        raise ValueError(f"no new name left after {len(self.coined)}: make the world smaller (entities)")
