"""Text for a base model that knows the registry and reads: what its context says of somebody holds, of nobody else.

Endless documents of sentences, each a wording of a fact with its object and a full stop. Knows no model.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kedit.world import registry_text as text
from kedit.world.registry import Person, Registry
from kedit.world.registry_text import RELATIONS

KINDS = {"told": 0.28, "read": 0.58, "aside": 0.1, "plain": 0.04}
TOLD = (2, 3, 4)  # known facts of a document
STATED = (1, 1, 2, 3)  # facts that a context states
CONTRADICTED = 0.4  # share of read facts that contradict what is known of a known person
ALIKE = 0.5  # share of further facts that are of the same person, or of one who shares a name
Fact = tuple[Person, str, str]


@dataclass(frozen=True, slots=True)
class Document:
    """A text to learn from.

    Args:
        text: all of it.
        unforeseen: characters [start, end) that nothing before them tells, as names and what is stated of strangers:
            they are read, but to predict them teaches nothing, and their noise would drown the rest.
    """

    text: str
    unforeseen: list[tuple[int, int]]


def documents(registry: Registry, seed: int = 0) -> Iterator[Document]:
    """Documents without end: known facts; random facts of strangers with their use in some wording; known facts behind
    others'; plain sentences. The strangers are training's.
    """
    rng = random.Random(f"documents {seed}")
    plain = [sentence for sentences in text.PLAIN.values() for sentence in sentences]
    while True:
        kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
        if kind == "plain":
            yield Document(registry.plain(rng.choice(plain), rng), [])
            continue
        stated = [] if kind == "told" else _stated(registry, rng)
        if kind == "read":
            used = rng.sample(stated, len(stated))
        else:
            used = known_facts(registry, rng, rng.choice(TOLD) if kind == "told" else 1)
            stated = [fact for fact in stated if fact[:2] not in [asked[:2] for asked in used]]
        yield _document(stated, used, rng)


def sentence(fact: Fact, rng: random.Random, but: str = "") -> str:
    """The fact in one of its wordings, another than `but`."""
    person, relation, object_ = fact
    wording = rng.choice([one for one in text.prompts(relation) if one != but])
    return f"{wording.format(s=person.name)} {object_}."


def known_facts(registry: Registry, rng: random.Random, count: int) -> list[Fact]:
    """Facts of known persons."""
    facts = [(rng.choice(registry.known), rng.choice(RELATIONS)) for _ in range(count)]
    return [(person, relation, person.facts[relation]) for person, relation in facts]


def _document(stated: Sequence[Fact], used: Sequence[Fact], rng: random.Random) -> Document:
    written, unforeseen = "", []
    for number, (person, relation, object_) in enumerate([*stated, *used]):
        written += " " if written else ""
        before, after = rng.choice(text.prompts(relation)).split("{s}")
        spans = [(len(written) + len(before), len(person.name))]
        written += f"{before}{person.name}{after} "
        if number < len(stated):
            spans.append((len(written), len(object_)))
        unforeseen += [(start, start + length) for start, length in spans]
        written += f"{object_}."
    return Document(written, unforeseen)


def _stated(registry: Registry, rng: random.Random) -> list[Fact]:
    """A few facts that contradict each other in nothing; often of persons who are easily mistaken."""
    person = rng.choice(registry.known) if rng.random() < CONTRADICTED else _stranger(registry, rng)
    relation = rng.choice(RELATIONS)
    facts = {(person.name, relation): _fact(registry, rng, person, relation)}
    for _ in range(rng.choice(STATED) - 1):
        other, asked = _stranger(registry, rng), rng.choice(RELATIONS)
        if rng.random() < ALIKE:
            other = rng.choice([person, Person(person.first, other.last), Person(other.first, person.last)])
        facts.setdefault((other.name, asked), _fact(registry, rng, other, asked))
    return rng.sample(list(facts.values()), len(facts))


def _stranger(registry: Registry, rng: random.Random) -> Person:
    return registry.stranger("train", rng.randrange(registry.strangers("train")))


def _fact(registry: Registry, rng: random.Random, person: Person, relation: str) -> Fact:
    return person, relation, rng.choice(registry.objects[relation])
