"""A fact's text before the question as a contestant: found by the subject's name, or by the memory of a trained run."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import ClassVar, Literal, Protocol

import torch

from kedit.comparing.facts import FactSet, sentence
from kedit.comparing.results import Method
from kedit.comparing.way import Base, Opened, Way
from kedit.contestants.asked import asked
from kedit.contestants.recipe import check_rate
from kedit.contestants.trained_memory import MemoryOfRun, find_run, read_of, training_seconds
from kedit.distill.mentions import find_mention
from kedit.editing.edits import Edit
from kedit.editing.sources import DataError
from kedit.recipe.baselines import Retrieve, TextPrefix
from kedit.recipe.editor import open_memory
from kedit.recipe.memory import Memory
from kedit.recipe.prefix import PrefixedModel

Text = Literal["edit", "definition"]


@dataclass(kw_only=True)
class TextInPrompt(Way):
    """The text of a fact before the question that concerns it; nothing is trained.

    Args:
        text: the edit, or the whole definition of its subject.
        run: run of RECIPE whose memory tells which edit a question concerns, of this base model or another. Without
            one it is told by names: the longest name of a subject that stands in the question, and of its edits the
            one whose prompt has the most words in common with the question, so that there is always one.
        rate: of a run's memory, wanted share of questions that no edit concerns and that fire one all the same.
        template: what the model reads: {edit} is the text, {prompt} the question, which must stand last.
        bases: names of the models that it is tried on; null for all that it applies to.
    """

    method: ClassVar[Method] = "prompt"
    anew: ClassVar[bool] = False
    seeded: ClassVar[bool] = False
    text: Text = "edit"
    run: str | None = None
    rate: float = 0.01
    template: str = "{edit} {prompt}"

    def __post_init__(self) -> None:
        check_rate(self.rate)
        check_template(self.template)

    def unfit(self, base: Base, facts: FactSet) -> str:
        if self.run is not None:
            find_run(self.run)
        if facts.nameless and (self.run is None or self.text == "definition"):
            by = "texts are found by its name" if self.run is None else "the definition that stands there is its"
            return f"{facts.nameless:,} of {len(facts.edits):,} edits name no subject, and {by}"
        return ""

    def files(self) -> Sequence[Path]:
        return () if self.run is None else read_of(self.run)

    def open(self, base: Base, facts: FactSet, seed: int, folder: Path) -> Opened:
        texts: Texts
        seconds: float | None = 0.0
        if self.run is None:
            texts = ByName(facts, self.text)
        else:
            place = find_run(self.run)
            seconds = training_seconds(place)
            device = "cuda" if torch.cuda.is_available() else "cpu"
            texts = ByMemory(open_memory(self.run, folder / "edits", self.rate, device).memory, facts, self.text)
        editor = Retrieved(asked(base), texts, self.template)
        return Opened(editor, "exactly: its text is deleted", True, seconds)


class Texts(Protocol):
    """Texts of edits, and which of them a question concerns."""

    def edit(self, edits: Sequence[Edit], /) -> object: ...

    def forget(self, ids: Sequence[str], /) -> object: ...

    def reset(self) -> None: ...

    def find(self, prompts: Sequence[str], /) -> list[str | None]: ...

    @property
    def stored_bytes(self) -> int: ...


class Retrieved(TextPrefix):
    """What such texts find stands before the prompt."""

    def __init__(self, model: PrefixedModel, texts: Texts, template: str) -> None:
        found: Retrieve = texts.find
        super().__init__(model, found, texts, template)
        self.texts = texts

    @property
    def stored_bytes(self) -> int:
        """Of the texts, and of what they are found by."""
        return self.texts.stored_bytes


class ByName:
    """Texts that are found by the names of their subjects.

    Args:
        facts: the definitions, with further names of their subjects.
        text: what is found.
    """

    def __init__(self, facts: FactSet, text: Text) -> None:
        self.facts, self.text = facts, text
        self._edits: dict[str, Edit] = {}
        self._shelf: Shelf | None = None  # made by the first question after an edit

    def edit(self, edits: Sequence[Edit]) -> None:
        self._edits |= {edit.id: edit for edit in edits}
        self._shelf = None

    def forget(self, ids: Sequence[str]) -> None:
        for id in ids:
            del self._edits[id]
        self._shelf = None

    def reset(self) -> None:
        self._edits.clear()
        self._shelf = None

    @property
    def shelf(self) -> "Shelf":
        if self._shelf is None:
            self._shelf = Shelf(self.facts, list(self._edits.values()))
        return self._shelf

    def find(self, prompts: Sequence[str]) -> list[str | None]:
        """For each prompt the text that concerns it, None where no subject is named."""
        return [self._find(prompt) for prompt in prompts]

    def _find(self, prompt: str) -> str | None:
        folded, shelf = prompt.casefold(), self.shelf
        for key, name, subject in shelf.names:
            # the exact look-up, with word borders, is a hundred times slower
            if key in folded and find_mention(prompt, [name]):
                return shelf.definitions[subject] if self.text == "definition" else nearest(prompt, shelf.of[subject])
        return None

    @property
    def stored_bytes(self) -> int:
        """The texts in UTF-8."""
        if self.text == "definition":
            return sum(len(text.encode()) for text in self.shelf.definitions.values())
        return sum(len(sentence(edit).encode()) for edit in self._edits.values())


class Shelf:
    """Edits and definitions by their subjects' names, the longest name first."""

    def __init__(self, facts: FactSet, edits: Sequence[Edit]) -> None:
        defined = facts.definitions(edits)
        self.definitions = {fact.name: fact.definition for fact in defined}
        names = {name: fact.name for fact in defined for name in (*fact.aliases, fact.name)}
        self.names = [(name.casefold(), name, names[name]) for name in sorted(names, key=lambda one: (-len(one), one))]
        self.of: dict[str, list[Edit]] = {}
        for edit in edits:
            self.of.setdefault(edit.subject, []).append(edit)


def nearest(prompt: str, edits: Sequence[Edit]) -> str:
    """The edit whose prompt has the most words in common with the question, as a sentence; of equals the shortest
    prompt's, then the newest.
    """
    asked = words(prompt)

    def shared(place: int) -> tuple[int, int, int]:
        own = words(edits[place].prompt)
        return len(own & asked), -len(own), place

    return sentence(edits[max(range(len(edits)), key=shared)])


def check_template(template: str) -> None:
    """Refuse one that lacks a field, or has another.

    Raises:
        DataError: it does.
    """
    wanted = "give a text with {edit} once, and once at its end {prompt}"
    try:
        fields = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise DataError(f"template is {template!r}: {error}: {wanted}") from error
    if fields != ["edit", "prompt"] or not template.endswith("{prompt}"):
        raise DataError(f"template is {template!r}: {wanted}")


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


class ByMemory:
    """Texts that a run's memory finds.

    Args:
        memory: the memory, empty.
        facts: the definitions.
        text: what stands before the question where an edit fires.
    """

    def __init__(self, memory: Memory, facts: FactSet, text: Text) -> None:
        self.memory, self.facts, self.text = memory, facts, text
        self._kept = MemoryOfRun(memory)
        self._edits: dict[str, Edit] = {}
        self._definitions: dict[str, str] | None = None

    def edit(self, edits: Sequence[Edit]) -> object:
        report = self._kept.edit(edits)
        self._edits |= {edit.id: edit for edit in edits}
        self._definitions = None
        return report

    def forget(self, ids: Sequence[str]) -> None:
        self._kept.forget(ids)
        for id in ids:
            del self._edits[id]
        self._definitions = None

    def reset(self) -> None:
        self._kept.reset()
        self._edits.clear()
        self._definitions = None

    @property
    def definitions(self) -> dict[str, str]:
        """By subject; none where they are not asked for."""
        if self._definitions is None:
            edits = list(self._edits.values()) if self.text == "definition" else []
            self._definitions = {fact.name: fact.definition for fact in self.facts.definitions(edits)}
        return self._definitions

    def find(self, prompts: Sequence[str]) -> list[str | None]:
        """For each prompt the text of the edit that fires, None where none does."""
        stored = [one.edit.edit if one.fired and one.edit is not None else None for one in self.memory.decide(prompts)]
        told: Callable[[Edit], str] = sentence if self.text == "edit" else lambda edit: self.definitions[edit.subject]
        return [None if edit is None else told(edit) for edit in stored]

    @property
    def stored_bytes(self) -> int:
        """Texts and keys of the edits, and their definitions."""
        return self._kept.stored_bytes + sum(len(text.encode()) for text in self.definitions.values())
