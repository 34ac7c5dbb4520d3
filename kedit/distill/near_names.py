"""Names that are nearly a fact's: they share its first tokens or its last ones, and nothing else bears them.

Knows names and a tokenizer; no sentences, no model.
"""

import random
from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from kedit.distill.mentions import find_mention
from kedit.lm.text import decode, encode

TRIES = 20
"""Draws for every name that is wanted; the first is one that nothing bears, as a rule."""


def near_names(
    tokenizer: PreTrainedTokenizerBase, names: Sequence[str], others: Sequence[str], avoid: Iterable[str], count: int,
    rng: random.Random,
) -> list[list[str]]:  # fmt: skip
    """Names crossed with others at a token: `Maro Tellin` and `Orin Sal` give `Maro Sal`, `Orin Tellin`, `Maro Tal`.

    Args:
        tokenizer: the model's; a name of one token cannot be crossed.
        names: the names that are to be missed narrowly.
        others: what else they are crossed with, every second time; the other times it is another of `names`.
        avoid: names that no crossed one may be or contain, besides `names`.
        count: how many of each; less where no more are found.
        rng: of the choices.

    Returns:
        For each of `names`, crossed ones in turn with its first tokens and with its last; none, where it has one token
        only or there is nothing to cross it with.
    """
    whole = [*names, *others]
    tokens = [one.ids.tolist() for one in encode(tokenizer, whole, leading_space=True)]
    several = [number for number, ids in enumerate(tokens) if len(ids) > 1]
    groups = [
        group for group in ([n for n in several if n < len(names)], [n for n in several if n >= len(names)]) if group
    ]
    borne = {*names, *avoid}
    found: list[list[str]] = []
    for own in tokens[: len(names)]:
        crossed: list[str] = []
        for _ in range(TRIES * count if len(own) > 1 and groups else 0):
            if len(crossed) == count:
                break
            other = tokens[rng.choice(rng.choice(groups))]
            cut = rng.randint(1, min(len(own), len(other)) - 1)
            ids = other[:cut] + own[cut:] if len(crossed) % 2 else own[:cut] + other[cut:]
            one = decode(tokenizer, ids, special=False).strip()
            if one and find_mention(one, borne) is None:
                crossed.append(one)
        found.append(crossed)
    return found
