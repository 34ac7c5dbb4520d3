"""Definitions as what a model is to say: each behind the name of its subject. Knows no model."""

from collections.abc import Sequence

from kedit.comparing.facts import FactSet
from kedit.distill.mentions import find_mention
from kedit.editing.edits import Edit
from kedit.editing.probes import Fact
from kedit.recipe.joint import Lessons


def definitions_of(facts: FactSet) -> Lessons:
    """What is learned for edits where definitions are: theirs."""

    def lessons(edits: Sequence[Edit]) -> list[Edit]:
        return [lesson(fact) for fact in facts.definitions(edits)]

    return lessons


def undefined(facts: FactSet) -> str:
    """Why there cannot be a definition for each edit; empty where there can."""
    if not facts.nameless:
        return ""
    return f"{facts.nameless:,} of {len(facts.edits):,} edits name no subject, which a definition must"


def lesson(fact: Fact) -> Edit:
    """A definition, cut behind the first mention of its subject, or where it has none behind its first word."""
    text = fact.definition.strip()
    found = find_mention(text, [name for name in fact.names if name])
    prompt, target = (text[: found[1]], text[found[1] :]) if found else ("", "")
    if not target.strip():
        prompt, _, target = text.partition(" ")
    return Edit(fact.id, prompt, target.strip(), fact.name, where=fact.where)
