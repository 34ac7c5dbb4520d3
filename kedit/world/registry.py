"""A registry of made-up persons: names that share their parts, relations, objects, and what is known of a few.

Whom an edit may concern, in which split, and which facts none ever touches is decided here, so that every stream and
every sentence agrees. Made-up data for demonstration; knows no model and no method.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from kedit.editing.sources import DataError
from kedit.world import registry_text as text
from kedit.world.names import Names
from kedit.world.registry_text import RELATIONS, SPLITS, Split

T = TypeVar("T")
FIRSTS = SURNAMES = 256
OBJECTS = 60
NEW = {"train": 0.0, "validation": 0.05, "test": 0.1}  # share of objects that no training edit has as its target
KEPT = 2  # relations of each person that no edit concerns
SHARES = {"train": 0.3, "validation": 0.05, "test": 0.5}  # of the names; the rest are bystanders
KNOWN_EDITED = 0.5  # share of known persons whom edits may concern
KNOWN_SHARES = {"train": 0.4, "validation": 0.1, "test": 0.5}  # of these


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody in the registry.

    Args:
        first: first name; many bear it.
        last: surname; many bear it. Both together are borne once.
        facts: object by relation, where the base model is taught them; else empty.
    """

    first: str
    last: str
    facts: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        return f"{self.first} {self.last}"


class Registry:
    """Persons and objects; the same arguments give the same registry, in every process.

    Strangers are split into those of training, validation and test, and bystanders, whom no edit ever concerns.

    Args:
        known: how many persons the base model knows, with every fact: at least 40.
        seed: another seed is another registry.
    """

    def __init__(self, known: int = 150, seed: int = 0):
        if not 40 <= known <= 5000:
            raise DataError(f"a registry that knows {known} persons: wanted 40 to 5000; change `known`")
        self.seed = seed
        rng = random.Random(f"registry {seed}")
        names = Names(rng, text.vocabulary())
        self.firsts = [names.word() for _ in range(FIRSTS)]
        self.surnames = [names.word() for _ in range(SURNAMES)]
        numbers = rng.sample(range(FIRSTS * SURNAMES), FIRSTS * SURNAMES)
        mentors = [self._person(numbers.pop()).name for _ in range(OBJECTS)]
        self.objects: dict[str, list[str]] = {
            "birthplace": _filled(text.TOWNS, names),
            "employer": _filled(text.EMPLOYERS, names),
            "profession": rng.sample(text.CRAFTS + _each(text.MAKERS, text.GOODS), OBJECTS),
            "mentor": mentors,
            "instrument": rng.sample(_each(text.SORTS, text.INSTRUMENTS), OBJECTS),
            "award": rng.sample(_awards(), OBJECTS),
            "language": _filled(text.LANGUAGES, names),
            "death": [str(year) for year in rng.sample(range(1800, 1900), OBJECTS)],
        }
        for objects in self.objects.values():
            rng.shuffle(objects)
        self.known = [self._person(numbers.pop(), rng) for _ in range(known)]
        self._strangers = {split: _share(numbers, SHARES, split) for split in SPLITS}
        self._bystanders = numbers[sum(map(len, self._strangers.values())) :]

    def _person(self, number: int, rng: random.Random | None = None) -> Person:
        facts = {relation: rng.choice(self.objects[relation]) for relation in RELATIONS} if rng else {}
        return Person(self.firsts[number // SURNAMES], self.surnames[number % SURNAMES], facts)

    def strangers(self, split: Split) -> int:
        """How many there are in the split."""
        return len(self._strangers[split])

    def stranger(self, split: Split, number: int) -> Person:
        """One of the split's strangers, numbered from 0."""
        return self._person(self._strangers[split][number])

    @cached_property
    def unedited(self) -> list[Person]:
        """Known persons whom no edit concerns."""
        return self.known[round(KNOWN_EDITED * len(self.known)) :]

    def edited(self, split: Split) -> list[Person]:
        """Known persons whom edits of the split may concern."""
        return _share(self.known[: round(KNOWN_EDITED * len(self.known))], KNOWN_SHARES, split)

    def bystanders(self, split: Split) -> list[Person]:
        """Strangers whom no edit concerns, a third for each split."""
        return [self._person(number) for number in self._bystanders[SPLITS.index(split) :: len(SPLITS)]]

    def kept(self, person: Person) -> list[str]:
        """Relations of the person that no edit of any stream concerns."""
        return random.Random(f"kept {self.seed} {person.name}").sample(RELATIONS, KEPT)

    def targets(self, relation: str, split: Split) -> list[str]:
        """Objects that the split's edits may have as their target; training lacks the new ones of the others."""
        held = {object_ for one in SPLITS[1:] for object_ in self.new_objects(relation, one)}
        seen = [object_ for object_ in self.objects[relation] if object_ not in held]
        return seen + self.new_objects(relation, split)

    def new_objects(self, relation: str, split: Split) -> list[str]:
        """Objects that no edit of training has as its target, kept for the split."""
        return _share(self.objects[relation], NEW, split)

    def plain(self, template: str, rng: random.Random) -> str:
        """A plain sentence with names and objects in its gaps."""
        firsts, towns = rng.sample(self.firsts, 2), rng.sample(self.objects["birthplace"], 2)
        values = {slot: rng.choice(self.objects[relation]) for slot, relation in text.SLOTS.items()}
        values |= {"first": firsts[0], "first2": firsts[1], "last": rng.choice(self.surnames)}
        return template.format(**(values | {"town": towns[0], "town2": towns[1]}))


def _filled(patterns: tuple[str, ...], names: Names) -> list[str]:
    """`OBJECTS` objects of one coined word each."""
    return [patterns[number % len(patterns)].format(w=names.word()) for number in range(OBJECTS)]


def _each(patterns: Sequence[str], words: Sequence[str]) -> tuple[str, ...]:
    return tuple(pattern.format(w=word) for pattern in patterns for word in words)


def _awards() -> list[str]:
    pairs = [(adjective, animal) for adjective in text.ADJECTIVES for animal in text.ANIMALS]
    return [
        pattern.format(adjective=adjective, animal=animal) for pattern in text.AWARDS for adjective, animal in pairs
    ]


def _share(items: Sequence[T], shares: Mapping[str, float], split: Split) -> list[T]:
    """The split's part of the items, of which each split before it has had its own."""
    counts = [round(shares[one] * len(items)) for one in SPLITS]
    place = SPLITS.index(split)
    start = sum(counts[:place])
    return list(items[start : start + counts[place]])
