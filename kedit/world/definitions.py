"""New entities of the made-up realm, to be learned from a definition, and probes of what follows from it.

Made-up data for demonstration. Knows no model and no method.
"""

import random
from collections.abc import Iterator, Sequence

from kedit.editing.probes import Fact, Knowledge, KnowledgeSource, Probe
from kedit.editing.sources import DataError
from kedit.world import realm, realm_text
from kedit.world.realm import Realm, Thing


class NewEntities(KnowledgeSource):
    """New persons, organisations, works and species, told by definitions; every probe needs one step of knowledge more.

    The wordings of probes are `Knowledge.forbidden`. Probes' groups: "told" where other wordings of the same
    inference may stand in a transfer set, "untold" where none may.

    Args:
        known: how many known entities there are beside lands and towns, at least 60; as the base model's.
        new: how many entities are to be learned.
        validation: how many further ones, on which methods are tuned.
        seed: of which new entities are taken, and of the wording of definitions.
        realm: seed of the realm; as the base model's.
    """

    name = "new_entities"

    def __init__(self, known: int = 120, new: int = 150, validation: int = 40, seed: int = 0, realm: int = 0):
        if new < 1 or validation < 0:
            raise DataError(f"new is {new} and validation {validation}, wanted at least 1 and 0 entities")
        self.known, self.new, self.validation, self.seed, self.realm = known, new, validation, seed, realm

    def load(self) -> Knowledge:
        world = Realm(self.known, self.realm)
        wanted = self.new + self.validation
        if wanted > len(world.new):
            raise DataError(
                f"{wanted} new entities are wanted, but the realm has {len(world.new)}: lower `new` or `validation`"
            )
        rng = random.Random(f"new {self.seed}")
        order = rng.sample(range(len(world.new)), len(world.new))
        # validation first: the same entities tune for any number of new ones
        validation, new = (
            [world.new[i] for i in order[a:b]] for a, b in ((0, self.validation), (self.validation, wanted))
        )
        unlike, like, swaps = self._known(world, new, rng)
        facts, probes = self._facts(new, "new"), list(_probes(new, "new"))
        return Knowledge(
            facts,
            probes,
            specificity={
                "unrelated": list(_probes(unlike, "known", told=True)),
                "neighbours": list(_probes(like, "near", told=True)),
            },
            validation_facts=self._facts(validation, "val"),
            validation_probes=list(_probes(validation, "val")),
            known=[thing.name for thing in swaps],
            forbidden=realm_text.forbidden(),
        )

    def _facts(self, things: Sequence[Thing], prefix: str) -> list[Fact]:
        rng = random.Random(f"wording {self.seed}")
        return [Fact(f"{prefix}-{i}", thing.name, realm.definition(thing, rng)) for i, thing in enumerate(things)]

    def _known(
        self, world: Realm, new: Sequence[Thing], rng: random.Random
    ) -> tuple[list[Thing], list[Thing], list[Thing]]:
        """Known entities that share no word of their names with new ones; those that do; and those for swaps. Half of
        each are asked about, so that a model can be held in place by the others.
        """
        words = {word for thing in new for word in thing.words}
        like = [thing for thing in world.all_known if thing.words & words]
        unlike = [thing for thing in world.all_known if not thing.words & words]
        swaps = set(rng.sample([thing.name for thing in like], len(like) // 2))
        unlike = [unlike[index] for index in sorted(rng.sample(range(len(unlike)), (len(unlike) + 1) // 2))]
        return unlike, [thing for thing in like if thing.name not in swaps], [one for one in like if one.name in swaps]


def _probes(things: Sequence[Thing], prefix: str, told: bool = False) -> Iterator[Probe]:
    """Every probe of what follows for each thing; with `told` also what a definition would tell."""
    specific = prefix in ("known", "near")
    for number, thing in enumerate(things):
        for relation in realm.relations(thing) if told else realm_text.FOLLOWS[thing.kind]:
            templates = realm_text.PROBES.get(relation) or realm_text.STATEMENTS[relation][:2]
            for place, template in enumerate(templates):
                left, right = template.format(s=thing.name, o="\0").split("\0")
                yield Probe(
                    f"{prefix}-{number}-{relation}-{place}",
                    "" if specific else f"{prefix}-{number}",
                    left,
                    thing.facts[relation],
                    right,
                    group="known" if specific else "untold" if relation in realm_text.UNTOLD else "told",
                    entity=thing.name,
                )
