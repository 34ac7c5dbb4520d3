"""A small, consistent, made-up world: entities, facts, definitions and what follows from them.

It is made-up data for demonstration: nothing in it is true. Knows no wiki and no model.
"""

import random

from kedit.editing.sources import DataError
from kedit.world import kinds, text
from kedit.world.creation import Creation
from kedit.world.entities import Entity, Fact, Inference

SMALLEST = 200


class World:
    """A made-up world for demonstration; the same arguments give the same world, in every process.

    Args:
        entities: how many entities, at least 200.
        seed: another seed is another world.
    """

    def __init__(self, entities: int = 320, seed: int = 0):
        if entities < SMALLEST:
            raise DataError(f"a world of {entities} entities: facts need at least {SMALLEST}; raise `entities`")
        made = Creation(entities, random.Random(seed))
        self.entities: list[Entity] = made.entities
        self.by_name: dict[str, list[int]] = made.by_name
        self.by_title = {entity.title: entity.id for entity in self.entities}
        self._facts, self._said = made.facts, made.said

    @property
    def facts(self) -> list[Fact]:
        return [fact for facts in self._facts for fact in facts]

    def facts_of(self, entity: int) -> list[Fact]:
        return self._facts[entity]

    def fact(self, entity: int, relation: str) -> Fact | None:
        """The entity's fact of that relation, the first where there are several."""
        return next((fact for fact in self._facts[entity] if fact.relation == relation), None)

    def value(self, entity: int, relation: str) -> str:
        """The object's surface form, empty where there is no such fact."""
        fact = self.fact(entity, relation)
        return fact.value if fact else ""

    def namesakes(self, entity: int) -> list[int]:
        """The other entities of the same surface form."""
        return [other for other in self.by_name[self.entities[entity].name] if other != entity]

    def clues(self, entity: int) -> list[Fact]:
        """The facts that tell an entity apart from its namesakes: none of these has the same object. No years."""
        said = self._said[self.entities[entity].name]
        return [fact for fact in self._facts[entity] if fact.relation not in kinds.YEARS and said[fact.value] == 1]

    def definition(self, entity: int) -> str:
        """One or two sentences saying what the entity is."""
        subject = self.entities[entity]
        facts = [fact for relation in kinds.DEFINING[subject.shape] if (fact := self.fact(entity, relation))]
        years = [year for relation in kinds.YEARS if (year := self.value(entity, relation))]
        return text.definition(
            f"{subject.name} ({'–'.join(years)})" if years else subject.name,
            "was" if subject.kind == "person" else "is",
            subject.category,
            [(fact.relation, fact.value) for fact in facts],
            subject.pronoun,
        )

    def inferences(self, entity: int) -> list[Inference]:
        """Two-hop questions: the first fact stands in the definition, the second one is the next entity's."""
        subject, found = self.entities[entity], []
        for (first, second), prompt in text.TWO_HOPS.items():
            step = self.fact(entity, first) if first in kinds.DEFINING[subject.shape] else None
            if step is None or step.object is None:
                continue
            end = self.fact(step.object, second)
            if end is not None and end.value != subject.name:
                found.append(Inference(prompt.format(s=subject.name), end.value, (step, end)))
        return found
