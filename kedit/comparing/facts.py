"""The facts of a comparison in each form that a method takes: edits with prompts, definitions of their subjects.

Knows no model and no method.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from kedit.editing.edits import Edit
from kedit.editing.probes import Fact


@runtime_checkable
class Defining(Protocol):
    """A source of edits that has definitions, too."""

    def define(self, edits: Sequence[Edit]) -> list[Fact]:
        """Definitions of subjects all of whose edits are among these; their names are the edits' subjects."""

    def undefined(self) -> list[str]:
        """Subjects of its edits that it can never define, where it defines others."""


@runtime_checkable
class Surrounded(Protocol):
    """A source of edits that has plain text, too."""

    def plain_texts(self, count: int) -> list[str]:
        """Texts of the same world that no edit concerns and no model was trained on."""


@dataclass
class FactSet:
    """Facts to be taught.

    Args:
        edits: in the order in which they are taught.
        source: has their definitions; without it they are written from the edits.
    """

    edits: Sequence[Edit]
    source: Defining | None = None
    _first: dict[str, str] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        for edit in self.edits:
            self._first.setdefault(edit.subject, edit.id)

    @property
    def nameless(self) -> int:
        """How many edits name no subject: nobody can say whom a definition of theirs would define."""
        return sum(not edit.subject for edit in self.edits)

    @property
    def subjects(self) -> int:
        """How many subjects the edits name."""
        return len(self._first.keys() - {""})

    @property
    def undefined(self) -> list[str]:
        """Subjects of these edits that the source never defines, where it defines others."""
        never = set(self.source.undefined()) if self.source is not None else set()
        return [name for name in self._first if name in never]

    def definitions(self, edits: Sequence[Edit]) -> list[Fact]:
        """What these edits tell, as a definition a subject, in the order of their first edits.

        A subject's definition is that of the source where it has one, and otherwise the edits' own sentences. Its id is
        that of the subject's first edit in the set, whichever of its edits are given.
        """
        given = {fact.name: fact for fact in self.source.define(edits)} if self.source is not None else {}
        told: dict[str, list[Edit]] = {}
        for edit in edits:
            told.setdefault(edit.subject, []).append(edit)
        return [
            Fact(
                self._first[subject],
                subject,
                given[subject].definition if subject in given else " ".join(map(sentence, own)),
                given[subject].aliases if subject in given else (),
                own[0].where,
            )
            for subject, own in told.items()
        ]


def sentence(edit: Edit) -> str:
    """An edit as a sentence: prompt and target, with a full stop unless the target ends in a mark of its own."""
    return edit.text if edit.text.endswith((".", "!", "?")) else f"{edit.text}."
