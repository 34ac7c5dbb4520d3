"""A small made-up realm for definitions: known things, new things that link to them, and texts about both.

Every name means one thing. What is told of a thing implies more of it, by way of what is known: a birthplace lies in
a land that has a currency. Made-up data for demonstration; knows no model and no method.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from kedit.editing.sources import DataError
from kedit.world import realm_text
from kedit.world.names import Names

LANDS, TOWNS = 8, 40
SHARES = {"person": 0.5, "organisation": 0.2, "work": 0.15, "species": 0.15}
SMALLEST = 60
NEW = 800  # new things that exist, told or not: no text ever names one of them
FAMILY = 0.3  # share of new names with a coined word that a known name has, too


@dataclass(slots=True)
class Thing:
    """Something in the realm.

    Args:
        kind: a key of `realm_text.FOLLOWS`.
        name: borne by nothing else.
        facts: relation to the object's surface form, told ones and what follows from them.
    """

    kind: str
    name: str
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def words(self) -> set[str]:
        """The words of its name that can be shared with another's."""
        return set(self.name.split()) - {"The"}

    @property
    def short(self) -> str:
        """The word of its name that was coined for it."""
        return self.name.split()[0 if self.kind == "organisation" else -1]


class Realm:
    """Known things and new ones; the same arguments give the same realm, in every process.

    Args:
        known: how many known persons, organisations, works and species, at least 60; lands and towns come on top.
        seed: another seed is another realm.
    """

    def __init__(self, known: int = 160, seed: int = 0):
        if known < SMALLEST:
            raise DataError(f"a realm of {known} known entities: at least {SMALLEST} are needed; raise `known`")
        rng = random.Random(f"realm {seed}")
        names = Names(rng, realm_text.vocabulary())
        self.lands = [Thing("land", names.word()) for _ in range(LANDS)]
        for rows, relation in ((realm_text.MONEY, "money"), (realm_text.WEATHER, "weather")):
            for land, word in zip(self.lands, rng.sample(rows, LANDS), strict=True):
                land.facts[relation] = word
        for land in self.lands:
            land.facts["language"] = names.word()
        self.towns = [Thing("town", names.word()) for _ in range(TOWNS)]
        for number, town in enumerate(self.towns):
            town.facts = self._of_land(self.lands[number % LANDS]) | {"goods": rng.choice(realm_text.GOODS)}
        self.known: list[Thing] = []
        self._coined: list[str] = []
        self._taken: set[str] = set()
        counts = {kind: round(share * known) for kind, share in SHARES.items()}
        for kind in ("organisation", "person", "work", "species"):  # persons work for organisations, and make works
            for _ in range(counts[kind]):
                self.known.append(self._make(kind, names, _firsts(kind, rng)))
        shared = {word for words in realm_text.SHARED_WORDS.values() for word in words}
        self._coined = sorted({word for thing in self.known if thing.words & shared for word in thing.words - shared})
        kinds = rng.choices(list(SHARES), list(SHARES.values()), k=NEW)
        self.new = [self._make(kind, names, realm_text.SHARED_WORDS[kind], FAMILY) for kind in kinds]
        self._words = realm_text.vocabulary() | {word.lower() for word in names.coined}

    @property
    def all_known(self) -> list[Thing]:
        return [*self.lands, *self.towns, *self.known]

    def _of_land(self, land: Thing) -> dict[str, str]:
        return {"land": land.name, "money": land.facts["money"], "language": land.facts["language"]}

    def _make(self, kind: str, names: Names, firsts: tuple[str, ...], family: float = 0.0, keep: bool = True) -> Thing:
        """A thing of a name that nothing bears, whose facts link to known ones."""
        rng = names.rng
        while True:
            word = rng.choice(self._coined) if rng.random() < family else names.word()
            name = realm_text.NAMES[kind].format(first=rng.choice(firsts), word=word)
            if name not in self._taken:
                break
        if keep:
            self._taken.add(name)
        thing = Thing(kind, name)
        facts = thing.facts
        told = realm_text.TOLD[kind][0]
        facts[told] = rng.choice(list(realm_text.BY_WORD[told]))
        facts |= zip(realm_text.FROM_WORD[told], realm_text.BY_WORD[told][facts[told]], strict=True)
        if kind in ("person", "organisation"):
            town = rng.choice(self.towns)
            facts["birthplace" if kind == "person" else "seat"] = town.name
            facts |= town.facts
        if kind == "person":
            employer = rng.choice([one for one in self.known if one.kind == "organisation"])
            facts |= {"employer": employer.name, "office_town": employer.facts["seat"]}
        if kind == "work":
            author = rng.choice([one for one in self.known if one.kind == "person"])
            facts |= {
                "author": author.name,
                "author_town": author.facts["birthplace"],
                "author_land": author.facts["land"],
                "author_job": author.facts["profession"],
            }
        if kind == "species":
            land = rng.choice(self.lands)
            facts |= {"habitat": land.name, **land.facts}
        return thing

    def strangers(self, rng: random.Random) -> Iterator[Thing]:
        """Things without end that are like the new ones, but none of them."""
        names = Names(rng, self._words)
        while True:
            kind = rng.choices(list(SHARES), list(SHARES.values()))[0]
            yield self._make(kind, names, _firsts(kind, rng), FAMILY, keep=False)
            names.coined.clear()  # the store of names would run dry


def _firsts(kind: str, rng: random.Random) -> tuple[str, ...]:
    return (realm_text.SHARED_WORDS if rng.random() < 0.5 else realm_text.OWN_WORDS)[kind]


def definition(thing: Thing, rng: random.Random) -> str:
    """One sentence with everything that is told of the thing."""
    return rng.choice(realm_text.DEFINITIONS[thing.kind]).format(s=thing.name, **thing.facts)


def statement(thing: Thing, relation: str, rng: random.Random) -> str:
    """A sentence, in any wording."""
    return rng.choice(realm_text.wordings(relation)).format(s=thing.name, o=thing.facts[relation])


def relations(thing: Thing) -> tuple[str, ...]:
    return realm_text.TOLD.get(thing.kind, ()) + realm_text.FOLLOWS[thing.kind]


def documents(realm: Realm, seed: int, read: float = 0.5, strange: float = 0.05) -> Iterator[str]:
    """Text without end: known things, and strangers behind their definition.

    Args:
        realm: whose text.
        seed: of the choices.
        read: share of documents that define a stranger first.
        strange: share of documents on a stranger that nothing defines.
    """
    rng = random.Random(f"text {seed}")
    known, strangers = realm.all_known, realm.strangers(rng)
    while True:
        draw = rng.random()
        thing = next(strangers) if draw < read + strange else rng.choice(known)
        told = relations(thing)
        said = rng.sample(told, min(len(told), rng.randint(3, 5)))
        sentences = [statement(thing, relation, rng) for relation in said]
        if thing.kind in realm_text.DEFINITIONS and (draw < read or (draw > read + strange and rng.random() < 0.2)):
            sentences.insert(0, definition(thing, rng))
        yield " ".join(sentences)
