"""What is told of an entity, and what is then asked: facts with their definitions, probes, and where both come from.

Knows no model and no method. A configuration names a `KnowledgeSource` by `class_path`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field

from kedit.editing.problems import BadInput, refuse


@dataclass(frozen=True, slots=True)
class Fact:
    """An entity and the definition that a model is to learn.

    Args:
        id: unique within its source.
        name: the name by which sentences mention it.
        definition: one or a few sentences, or a whole document.
        aliases: other names that count as a mention.
        where: file and line, for complaints.
    """

    id: str
    name: str
    definition: str
    aliases: tuple[str, ...] = ()
    where: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Name and aliases, the longest first: a short form inside a longer name is not taken for the mention."""
        return tuple(sorted({self.name, *self.aliases}, key=lambda name: (-len(name), name)))


@dataclass(frozen=True, slots=True)
class Probe:
    """A sentence with a span whose likelihood is asked for, or for which one of several candidates is to be chosen.

    Args:
        id: unique within its source.
        fact: id of the fact that it asks about; empty where it asks about none (specificity).
        left: the text before the span, its trailing space included.
        span: the right words.
        right: the text behind the span; read by encoder-decoders only.
        candidates: what to choose from, `span` among them; empty where nothing is chosen.
        group: what results are reported by, as in a set's name.
        where: file and line, for complaints.
        entity: whom it asks about where that is no fact; probes of one entity are no independent draws.
        answers: further answers that count as right where the model writes freely.
    """

    id: str
    fact: str
    left: str
    span: str
    right: str = ""
    candidates: tuple[str, ...] = ()
    group: str = ""
    where: str = ""
    entity: str = ""
    answers: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """What a user would type: the text before the span, without its trailing space."""
        return self.left.rstrip()

    @property
    def cluster(self) -> str:
        """What probes have in common that are drawn together in a bootstrap."""
        return self.fact or self.entity or self.id


@dataclass(frozen=True, slots=True)
class Continuation:
    """A sentence of a transfer set that comes with a source: it says something of a fact's entity."""

    fact: str
    text: str
    where: str = ""


@dataclass
class Knowledge:
    """Everything a source holds.

    Args:
        facts: to be learned.
        probes: about these facts, by their id.
        specificity: probes that no fact should change, by the name of their set ("unrelated", "neighbours", ...).
        continuations: sentences of a transfer set that come along; may be empty.
        validation_facts: further facts, never judged, on which methods are tuned.
        validation_probes: about the validation facts.
        known: names of entities that a model knows, for sentences with swapped names; none of `specificity` asks about
            them.
        forbidden: regular expressions that no sentence of a transfer set may match: the wordings of probes, without
            which their answers must be found.
    """

    facts: list[Fact]
    probes: list[Probe]
    specificity: dict[str, list[Probe]] = field(default_factory=dict)
    continuations: list[Continuation] = field(default_factory=list)
    validation_facts: list[Fact] = field(default_factory=list)
    validation_probes: list[Probe] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    forbidden: list[str] = field(default_factory=list)


class KnowledgeSource(ABC):
    """Facts to be learned and the probes that judge it: a benchmark's files, or a made-up world."""

    name: str

    @abstractmethod
    def load(self) -> Knowledge:
        """Read or make it; the same arguments give the same knowledge, in the same order."""


def check_facts(facts: Iterable[Fact]) -> None:
    """Refuse what cannot be told apart or says nothing.

    Raises:
        DataError: an id or a name comes twice, a name or a definition is empty; both places are named.
    """
    ids: dict[str, Fact] = {}
    names: dict[str, Fact] = {}
    for fact in facts:
        where = fact.where or f"fact {fact.id!r}"
        if not fact.name.strip():
            refuse(BadInput(where, "the name is empty", "write the entity's name", "name"))
        if not fact.definition.strip():
            empty = f"the definition of {fact.name[:60]!r} is empty"
            refuse(BadInput(where, empty, "nothing can be learned from it: write one, or leave it out", "definition"))
        for known, key, what in ((ids, fact.id, "id"), (names, fact.name, "name")):
            if key in known and key.strip():
                first = known[key].where or f"fact {known[key].id!r}"
                came = f"the {what} {key[:60]!r} came before at {first}"
                refuse(BadInput(where, came, "give each entity its own", what))
            known.setdefault(key, fact)
