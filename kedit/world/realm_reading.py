"""Text of the realm for base models that read what stands before: definitions, single statements, and both of others.

Endless passages: a context that states something of strangers, and sentences that it, or knowledge, foretells. They
also use short names, and ask for a name by what is told of it. Knows no model.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kedit.world import realm_text
from kedit.world.realm import Realm, Thing, definition, relations

KINDS = {"known": 0.15, "defined": 0.32, "stated": 0.25, "aside": 0.28}
"""Known things; strangers behind their definition, or behind statements; known things behind either of these."""
SAID = (2, 3, 4)  # sentences behind a context
STATED = (1, 1, 2, 3)  # relations of a thing that a context states, at most
SECOND = 0.25  # share of contexts that tell of another thing, too
SHORT = 0.15  # share of passages whose further sentences use the short name
TURNED = 0.15  # share of passages with a sentence that asks for the name


@dataclass(frozen=True, slots=True)
class Sentence:
    """Words up to an object, and the object that they foretell; a full stop ends it."""

    prompt: str
    object: str

    def __str__(self) -> str:
        return f"{self.prompt} {self.object}."


@dataclass(frozen=True, slots=True)
class Passage:
    """A text to learn from.

    Args:
        context: sentences that nothing foretells; may be empty.
        said: sentences whose objects the context or knowledge foretells.
        new: names and objects of the context that are news.
    """

    context: str
    said: tuple[Sentence, ...]
    new: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return " ".join([self.context, *map(str, self.said)]).strip()

    @property
    def unforeseen(self) -> list[tuple[int, int]]:
        """Characters [start, end) of the text that tell news: to predict them teaches nothing."""
        spans = []
        for words in self.new:
            start = self.context.find(words)
            while start >= 0:
                spans.append((start, start + len(words)))
                start = self.context.find(words, start + 1)
        return spans


def passages(realm: Realm, seed: int = 0) -> Iterator[Passage]:
    """Passages without end; nothing in them is said of a new thing."""
    rng = random.Random(f"passages {seed}")
    strangers = realm.strangers(rng)
    known, described = realm.all_known, realm.known
    alone = only(described)
    while True:
        kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
        if kind == "known":
            thing = rng.choice(known)
            yield Passage("", _said(thing, relations(thing), rng, thing.name in alone))
            continue
        stranger = next(strangers)
        told = realm_text.TOLD[stranger.kind]
        stated = told if kind == "defined" or (kind == "aside" and rng.random() < 0.5) else _some(told, rng)
        context = [_stated(stranger, stated, rng, defined=stated == told and kind != "stated")]
        new = [stranger.name, *(stranger.facts[relation] for relation in stated)]
        thing = rng.choice(known) if kind == "aside" else stranger
        if rng.random() < SECOND:
            other = next(strangers)
            of_other = _some(realm_text.TOLD[other.kind], rng)
            context.insert(rng.randrange(2), _stated(other, of_other, rng, defined=rng.random() < 0.5))
            new += [other.name, *(other.facts[relation] for relation in realm_text.TOLD[other.kind])]
        asked = relations(thing) if kind == "aside" else following(stated)
        turned = thing.name in alone if kind == "aside" else stated == told
        yield Passage(" ".join(context), _said(thing, asked, rng, turned), tuple(dict.fromkeys(new)))


def following(stated: Sequence[str]) -> list[str]:
    """These told relations and all that follow from them."""
    hops = [realm_text.ONE_HOP, realm_text.TWO_HOPS]
    return list(dict.fromkeys([*stated, *(one for told in stated for hop in hops for one in hop.get(told, ()))]))


def turned(thing: Thing, rng: random.Random) -> Sentence:
    """A sentence that asks for the thing's name by all that is told of it."""
    prompt = rng.choice(realm_text.TURNED[thing.kind]).removesuffix("{s}.")
    return Sentence(prompt.format(**thing.facts).strip(), thing.name)


def told_of(thing: Thing) -> tuple[str, ...]:
    """All that a definition tells, by which its name can be asked for."""
    return (thing.kind, *(thing.facts[relation] for relation in realm_text.TOLD.get(thing.kind, ())))


def only(things: Sequence[Thing]) -> set[str]:
    """Names of those of which nothing else has all that is told."""
    counts = Counter(map(told_of, things))
    return {thing.name for thing in things if counts[told_of(thing)] == 1}


def asking(thing: Thing, relation: str, wording: str, name: str = "") -> Sentence:
    """A wording of a relation, with another name where one is given."""
    return Sentence(wording.removesuffix("{o}.").format(s=name or thing.name).strip(), thing.facts[relation])


def _some(told: Sequence[str], rng: random.Random) -> tuple[str, ...]:
    return tuple(rng.sample(told, min(len(told), rng.choice(STATED))))


def _stated(thing: Thing, stated: Sequence[str], rng: random.Random, defined: bool) -> str:
    if defined:
        return definition(thing, rng)
    wordings = [rng.choice(realm_text.STATEMENTS[relation]) for relation in stated]
    return " ".join(str(asking(thing, relation, one)) for relation, one in zip(stated, wordings, strict=True))


def _said(thing: Thing, asked: Sequence[str], rng: random.Random, may_be_turned: bool) -> tuple[Sentence, ...]:
    chosen = rng.sample(asked, min(len(asked), rng.choice(SAID)))
    short = thing.kind in realm_text.TOLD and rng.random() < SHORT
    name = thing.short if short else thing.name
    said = [asking(thing, relation, rng.choice(realm_text.wordings(relation)), name) for relation in chosen]
    if may_be_turned and thing.kind in realm_text.TURNED and rng.random() < TURNED:
        said[rng.randrange(len(said))] = turned(thing, rng)
    return tuple(said)
