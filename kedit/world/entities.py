"""The records of the made-up world: entities, facts and inferences. Made-up data for demonstration."""

from dataclasses import dataclass


@dataclass(slots=True)
class Entity:
    """Something in the world.

    Args:
        id: its place in `World.entities`.
        kind: a key of `kinds.KINDS`.
        name: its surface form, which others may share.
        category: what it is in a noun ("painter"); differs between namesakes.
        title: unique, as an article's in Wikipedia: the name, with the category where others share the name.
        aliases: further titles that mean it; unique among all titles.
        description: a few words that its facts determine.
        pronoun: "He", "She" or "It".
    """

    id: int
    kind: str
    name: str
    category: str = ""
    title: str = ""
    aliases: tuple[str, ...] = ()
    description: str = ""
    pronoun: str = "It"

    @property
    def shape(self) -> str:
        """The kind, but towns and countries apart from other places: what decides which relations it has."""
        return self.category if self.category in ("town", "country") else self.kind


@dataclass(slots=True, frozen=True)
class Fact:
    """(subject, relation, object).

    Args:
        subject: id of the entity.
        relation: a key of `text.STATEMENTS`.
        value: the object's surface form.
        object: id of the object, None where it is a plain word or a year.
    """

    subject: int
    relation: str
    value: str
    object: int | None = None


@dataclass(slots=True, frozen=True)
class Inference:
    """What follows from a definition by one more fact: `answer` continues `prompt`; `support` are the two facts."""

    prompt: str
    answer: str
    support: tuple[Fact, Fact]
