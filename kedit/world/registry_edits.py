"""Edits of the made-up registry with the probes that judge them, and questions that no edit concerns.

Made-up data for demonstration. Knows no model and no method.
"""

import random
from collections.abc import Iterator, Sequence

from kedit.editing.edits import Edit, EditSource, probe
from kedit.editing.probes import Probe
from kedit.editing.sources import DataError, Question, QuestionSource
from kedit.world import registry_text as text
from kedit.world.registry import KEPT, Person, Registry
from kedit.world.registry_text import PROMPTS, RELATIONS, SPLITS, Split

PER_PERSON = len(RELATIONS) - KEPT
TOGETHER = 50  # persons whose edits are shuffled with one another
EVERY = 5  # of so many persons one is known, while there are any
BEGINNINGS = 2000  # of plain sentences, that the edits of a stream share: each is asked once


class RegistryEdits(EditSource):
    """Facts of persons in the registry, to be edited one after another; the splits share no person.

    A stream edits six of the eight relations of each person, each once, so that nothing in it conflicts. Its first
    edits are those of a shorter stream of the same seed. Every fifth of the first persons is one whom the base model
    knows; the target is then another object than the known one. An edit's own prompt is of `registry_text.PROMPTS`.
    Groups of probes:

    - "generality": another prompt of `PROMPTS`; "generality/new": a wording that is held out for the split, absent
      in "train".
    - "locality/near": a relation of the same person that no edit concerns, or the same relation of somebody of the
      same surname or first name whom no edit concerns. The span is empty where the base model was taught no answer.
    - "locality/far": a known fact of somebody whom no edit concerns; "locality/text": how a plain sentence begins.
    - "reliability/new_object": the edit's own prompt again, where its target is an object that no training edit has.

    Args:
        split: train, validation or test: other persons, objects and held-out wordings.
        count: how many edits.
        seed: of the choice of targets and wordings, and of the order of persons.
        known: how many persons the base model knows, as in ReadingLM.
        registry: seed of the registry, as in ReadingLM.
    """

    name = "registry"

    def __init__(self, split: Split = "test", count: int = 1000, seed: int = 0, known: int = 150, registry: int = 0):
        if count < 1:
            raise DataError(f"{count} edits of the registry are wanted: at least 1; change `count`")
        self.split, self.count, self.seed, self.known, self.registry = _checked(split), count, seed, known, registry

    def load(self) -> list[Edit]:
        world = Registry(self.known, self.registry)
        rng = random.Random(f"edits {self.split} {self.seed}")
        people = self._people(world, rng)
        if self.count > len(people) * PER_PERSON:
            raise DataError(
                f"{self.count} edits are wanted, but {self.split!r} has {len(people)} persons, hence"
                f" {len(people) * PER_PERSON} edits: lower `count`"
            )
        around = _Around(world, self.split, rng)
        edits: list[Edit] = []
        for start in range(0, len(people), TOGETHER):
            if len(edits) >= self.count:
                break
            together = [(person, world.kept(person)) for person in people[start : start + TOGETHER]]
            pairs = [(person, relation, kept) for person, kept in together for relation in RELATIONS
                     if relation not in kept]  # fmt: skip
            for person, relation, kept in rng.sample(pairs, len(pairs)):
                edits.append(around.edit(f"{self.split}-{len(edits)}", person, relation, kept, rng))
        return edits[: self.count]

    def _people(self, world: Registry, rng: random.Random) -> list[Person]:
        numbers = rng.sample(range(world.strangers(self.split)), world.strangers(self.split))
        people = [world.stranger(self.split, number) for number in numbers]
        for place, person in enumerate(world.edited(self.split)):
            people.insert(place * EVERY, person)
        return people


class _Around:
    """What edits and their probes are made of, looked up once."""

    def __init__(self, world: Registry, split: Split, rng: random.Random):
        self.split = split
        self.targets = {relation: world.targets(relation, split) for relation in RELATIONS}
        self.new = {relation: set(world.new_objects(relation, split)) for relation in RELATIONS}
        self.unedited = _unedited(world, split)
        self.relatives: dict[str, list[Person]] = {}  # by a part of the name
        for person in [*self.unedited, *world.bystanders(split)]:
            for part in (person.first, person.last):
                self.relatives.setdefault(part, []).append(person)
        sentences = [world.plain(rng.choice(text.PLAIN[split]), rng).split() for _ in range(BEGINNINGS)]
        self.beginnings = [" ".join(words[: rng.randint(2, len(words) - 1)]) for words in sentences]

    def edit(self, id: str, person: Person, relation: str, kept: Sequence[str], rng: random.Random) -> Edit:
        while (target := rng.choice(self.targets[relation])) == person.facts.get(relation):
            pass
        own, other = rng.sample(PROMPTS[relation], 2)
        prompt = own.format(s=person.name)
        probes = [probe(id, "generality", other.format(s=person.name), target)]
        if held_out := text.HELD_OUT[self.split].get(relation):
            probes.append(probe(id, "generality/new", held_out.format(s=person.name), target))
        if target in self.new[relation]:
            probes.append(probe(id, "reliability/new_object", prompt, target))
        probes += self._locality(id, person, relation, kept, rng)
        return Edit(id, prompt, target, person.name, relation, tuple(probes))

    def _locality(
        self, id: str, person: Person, relation: str, kept: Sequence[str], rng: random.Random
    ) -> Iterator[Probe]:
        yield self._asked(id, "locality/near", 0, person, rng.choice(kept), rng)
        parts = (person.last, person.first) if rng.random() < 0.5 else (person.first, person.last)
        # nobody else may bear a part: rare
        alike = self.relatives.get(parts[0]) or self.relatives.get(parts[1]) or self.unedited
        yield self._asked(id, "locality/near", 1, rng.choice(alike), relation, rng)
        yield self._asked(id, "locality/far", 0, rng.choice(self.unedited), rng.choice(RELATIONS), rng)
        yield probe(id, "locality/text", rng.choice(self.beginnings), "")

    def _asked(self, id: str, group: str, number: int, person: Person, relation: str, rng: random.Random) -> Probe:
        wording = rng.choice(text.prompts(relation, self.split))
        return probe(id, group, wording.format(s=person.name), person.facts.get(relation, ""), number)


class RegistryQuestions(QuestionSource):
    """Prompts, questions and sentences that no edit of any stream concerns: to train a gate, to set it, to judge it.

    Half are plain sentences and questions, of wordings that the splits do not share, with names and objects in them.
    The others ask about strangers whom no edit concerns, in wordings that edits use and those held out for the split,
    and about facts that the base model knows. `Question.source` tells which: plain, stranger or known.

    Args:
        split: train, validation (to set a gate) or test.
        count: how many.
        seed: of the choice.
        known: how many persons the base model knows, as in ReadingLM.
        registry: seed of the registry, as in ReadingLM.
    """

    name = "registry_questions"

    def __init__(self, split: Split = "test", count: int = 1000, seed: int = 0, known: int = 150, registry: int = 0):
        if count < 1:
            raise DataError(f"{count} questions of the registry are wanted: at least 1; change `count`")
        self.split, self.count, self.seed, self.known, self.registry = _checked(split), count, seed, known, registry

    def __iter__(self) -> Iterator[Question]:
        world = Registry(self.known, self.registry)
        rng = random.Random(f"questions {self.split} {self.seed}")
        bystanders, known = world.bystanders(self.split), _unedited(world, self.split)
        for _ in range(self.count):
            kind = rng.choices(("plain", "stranger", "known"), (0.5, 0.35, 0.15))[0]
            if kind == "plain":
                yield Question(world.plain(rng.choice(text.PLAIN[self.split]), rng), [], kind)
                continue
            person, relation = rng.choice(bystanders if kind == "stranger" else known), rng.choice(RELATIONS)
            asked = rng.choice(text.prompts(relation, self.split)).format(s=person.name)
            yield Question(asked, [person.facts[relation]] if kind == "known" else [], kind)


def _unedited(world: Registry, split: Split) -> list[Person]:
    """A third of the known persons whom no edit concerns: what training holds in place is no proof of locality."""
    return world.unedited[SPLITS.index(split) :: len(SPLITS)]


def _checked(split: Split) -> Split:
    if split not in SPLITS:
        raise DataError(f"the registry has no split {split!r}: wanted one of {', '.join(SPLITS)}")
    return split
