"""Text for a base model that knows the registry and reads: what its context says of somebody holds, of nobody else.

Endless documents of sentences, each a wording of a fact with its object and a full stop. Knows no model.
"""

import random
from collections.abc import Iterator

from kedit.world import registry_text as text
from kedit.world.registry import Person, Registry
from kedit.world.registry_text import RELATIONS

KINDS = {"told": 0.38, "read": 0.48, "aside": 0.1, "plain": 0.04}
TOLD = (2, 3, 4)  # known facts of a document
CONTRADICTED = 0.3  # share of read facts that contradict what is known of a known person
STATED = (1, 1, 2, 3)  # facts that a context states
ALIKE = 0.5  # share of further facts that are of the same person, or of one who shares a name
Fact = tuple[Person, str, str]


def documents(registry: Registry, seed: int = 0) -> Iterator[str]:
    """Documents without end: known facts; random facts of strangers with their use in another wording; known facts
    behind others'; plain sentences. The strangers are training's.
    """
    rng = random.Random(f"documents {seed}")
    plain = [sentence for sentences in text.PLAIN.values() for sentence in sentences]
    while True:
        kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
        if kind == "told":
            yield " ".join(sentence(fact, rng) for fact in known_facts(registry, rng, rng.choice(TOLD)))
        elif kind == "read":
            yield _read(registry, rng)
        elif kind == "aside":
            stated = _stated(registry, rng)
            asked = known_facts(registry, rng, 1)[0]
            others = [fact for fact in stated if fact[:2] != asked[:2]]
            yield " ".join(sentence(fact, rng) for fact in [*others, asked])
        else:
            yield registry.plain(rng.choice(plain), rng)


def sentence(fact: Fact, rng: random.Random, but: str = "") -> str:
    """The fact in one of its wordings, another than `but`."""
    person, relation, object_ = fact
    wording = rng.choice([one for one in text.prompts(relation) if one != but])
    return f"{wording.format(s=person.name)} {object_}."


def known_facts(registry: Registry, rng: random.Random, count: int) -> list[Fact]:
    """Facts of known persons."""
    facts = [(rng.choice(registry.known), rng.choice(RELATIONS)) for _ in range(count)]
    return [(person, relation, person.facts[relation]) for person, relation in facts]


def _read(registry: Registry, rng: random.Random) -> str:
    stated, used = [], []
    for person, relation, object_ in _stated(registry, rng):
        one, other = rng.sample(text.prompts(relation), 2)
        stated.append(f"{one.format(s=person.name)} {object_}.")
        used.append(f"{other.format(s=person.name)} {object_}.")
    return " ".join(stated + rng.sample(used, len(used)))


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
