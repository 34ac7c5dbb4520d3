"""Entity Inferences: what a definition implies, chosen from a few words. Knows the file, not how a choice is made."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from kedit.benchmarks.ecbd import Clozes, numbered, sides, template, unmarked
from kedit.editing.probes import Fact, Probe
from kedit.editing.problems import BadInput
from kedit.editing.records import fields, strings

_QUALIFIER = re.compile(r"\s*\([^()]*\)$")


class EntityInferences(Clozes):
    """Entity Inferences, with transfer sentences: 170 probes of 85 entities, 6 to 12 candidates each.

    Each entity has two probes, whose transfer sentences were written separately: they are united. Only 387 of 850
    sentences hold the entity's name as the file gives it; what a name has in brackets ("Hurricane Nana (2020)") is left
    out in an alias. The definition holds the answer literally for 92 of the probes.

    The specificity set "other_entities" is the probes themselves: a probe is judged there after an edit of another
    fact, and whoever judges leaves out those of the facts that were edited (`Probe.fact`). Editing all entities jointly
    leaves none, so give `specificity` too.

    Args:
        file: for example entity_inferences_augmented.json (JSON lines).
        specificity: records about popular entities, of ECBD's form; they are spans without candidates.
        validation: share of the entities on which methods are tuned and which are not judged.
        seed: which entities these are: the same ones in every run and on every machine.
    """

    name = "entity_inferences"

    def _read(self, record: Any, where: str, seen: Counter[str]) -> tuple[Fact, Probe]:
        example, name, context, kind, gold = fields(
            record, where, ex_id=str, ent_str=str, context=str, category=str, label=str
        )
        sentence, labels = template(record, where, probe_sentence=str, labels=list)
        candidates = tuple(unmarked(label, where) for label in strings(labels, where, "labels"))
        if gold not in candidates:
            what = f"the label {gold[:60]!r} is none of the candidates {', '.join(map(repr, candidates))[:200]}"
            raise BadInput(where, what, "add it to 'labels', or choose one of these", "label")
        if len(set(candidates)) < len(candidates):
            what = f"a candidate comes twice among {', '.join(map(repr, candidates))[:200]}"
            raise BadInput(where, what, "take one of them out", "labels")
        short = _QUALIFIER.sub("", name)
        left, right = sides(sentence, where)
        fact = Fact(name, name, context, (short,) if short not in ("", name) else (), where)
        return fact, Probe(numbered(example, seen), name, left, gold, right, candidates, kind, where)

    def _specificity(
        self, probes: Sequence[Probe], facts: Mapping[str, Fact], seen: Counter[str]
    ) -> dict[str, list[Probe]]:
        return {"other_entities": list(probes), **super()._specificity(probes, facts, seen)}
