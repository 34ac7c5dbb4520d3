"""What a memory is compared with: the model as it is, and the text of the edit put before the prompt.

Each is an editor, asked in the same way as the method. Knows no training and no retriever of its own; rivals that learn
by gradients are in `tuning.py` and `finetune.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from string import Formatter
from typing import Any, Protocol

import numpy as np

from kedit.editing.edits import Edit
from kedit.editing.judging import Forced
from kedit.editing.sources import DataError
from kedit.recipe.prefix import PrefixedModel

Retrieve = Callable[[Sequence[str]], Sequence[str | None]]
"""For each prompt the text of the edit that concerns it, None where none does."""


class Store(Protocol):
    """What holds the edits that are retrieved, as a method's own editor does."""

    def edit(self, edits: Sequence[Edit], /) -> object: ...

    def forget(self, ids: Sequence[str], /) -> object: ...

    def reset(self) -> None: ...


class Rival(ABC):
    """An editor without prompt vectors: its model is asked as it stands.

    Args:
        model: the language model and how it is asked.

    Attributes:
        edits: what was taught and not forgotten, by id.
    """

    def __init__(self, model: PrefixedModel) -> None:
        self.model = model
        self.edits: dict[str, Edit] = {}

    @abstractmethod
    def edit(self, facts: Sequence[Edit]) -> object:
        """Teach the model; whatever fails leaves it as it was."""

    @abstractmethod
    def forget(self, ids: Sequence[str]) -> object:
        """Take out again what was taught under these ids."""

    @abstractmethod
    def reset(self) -> None:
        """Take everything out: the initial model, bit for bit."""

    @property
    @abstractmethod
    def stored_bytes(self) -> int:
        """What has to be kept beside the initial model, so that all edits can be used."""

    @property
    def bytes_per_edit(self) -> float:
        """`stored_bytes` shared among the edits; 0 without any."""
        return self.stored_bytes / len(self.edits) if self.edits else 0.0

    def _asked(self, prompts: Sequence[str]) -> Sequence[str]:
        """What the model reads in the place of prompts."""
        return prompts

    def generate(self, prompts: Sequence[str], max_new_tokens: int = 32, **options: Any) -> list[str]:
        """What the model writes behind each prompt; options as for `PrefixedModel.generate`."""
        return self.model.generate(self._asked(prompts), max_new_tokens=max_new_tokens, **options)

    def score(self, prompts: Sequence[str], targets: Sequence[str]) -> list[np.ndarray]:
        """Negative log-likelihoods of each target's tokens behind its prompt, in nats: float32 [its tokens]."""
        return self.model.score(self._asked(prompts), targets)

    def greedy_matches(self, prompts: Sequence[str], targets: Sequence[str]) -> list[np.ndarray]:
        """Whether each of a target's tokens is the likeliest, the target being given up to there: bool [its tokens]."""
        return self.model.greedy_matches(self._asked(prompts), targets)

    def greedy_tokens(self, prompts: Sequence[str], targets: Sequence[str]) -> list[Forced]:
        """The likeliest token in place of each of a target's tokens, the target being given up to there."""
        return self.model.greedy_tokens(self._asked(prompts), targets)

    def _check_new(self, edits: Sequence[Edit]) -> None:
        """Refuse edits that could not be told apart when they are to be forgotten, or that teach nothing."""
        seen = set(self.edits)
        for edit in edits:
            if edit.id in seen:
                raise DataError(
                    f"{place(edit)}: the id {edit.id!r} was taught before: forget it first, or give another id"
                )
            if not edit.prompt.strip() or not edit.target.strip():
                raise DataError(
                    f"{place(edit)}: prompt {edit.prompt!r}, target {edit.target!r}: wanted both, neither empty"
                )
            seen.add(edit.id)

    def _taught(self, ids: Sequence[str]) -> set[str]:
        """These ids, which must all have been taught."""
        gone = {ids} if isinstance(ids, str) else set(ids)
        if unknown := sorted(gone - self.edits.keys()):
            known = ", ".join(map(repr, list(self.edits)[:10])) or "nothing"
            raise DataError(f"the model was not taught {', '.join(map(repr, unknown[:10]))}; it was taught {known}")
        return gone


class NoEdit(Rival):
    """The initial model, whatever it is taught."""

    def edit(self, facts: Sequence[Edit]) -> None:
        self._check_new(facts)
        self.edits |= {edit.id: edit for edit in facts}

    def forget(self, ids: Sequence[str]) -> None:
        for id in self._taught(ids):
            del self.edits[id]

    def reset(self) -> None:
        self.edits.clear()

    @property
    def stored_bytes(self) -> int:
        return 0


class TextPrefix(Rival):
    """The text of the edit that a retriever finds stands before the prompt, as plain text.

    Args:
        model: the language model and how it is asked.
        retrieve: called once with the prompts of a request, as the user wrote them. Of a method's memory: see
            `fired_texts`.
        store: is taught and forgets in step, so that `retrieve` finds the edits.
        template: what the model reads where there is an edit: {edit} is its prompt and target, {prompt} what is asked,
            which must stand last.
    """

    def __init__(
        self, model: PrefixedModel, retrieve: Retrieve, store: Store, template: str = "{edit} {prompt}"
    ) -> None:
        super().__init__(model)
        self.retrieve, self.store, self.template = retrieve, store, template
        try:
            fields = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
        except ValueError as error:
            raise DataError(f"the template of text prefixes is {template!r}: {error}") from error
        if fields != ["edit", "prompt"] or not template.endswith("{prompt}"):
            raise DataError(
                f"the template of text prefixes is {template!r}: wanted {{edit}} once, and once at its end {{prompt}}"
            )

    def edit(self, facts: Sequence[Edit]) -> object:
        self._check_new(facts)
        told = self.store.edit(facts)
        self.edits |= {edit.id: edit for edit in facts}
        return told

    def forget(self, ids: Sequence[str]) -> object:
        gone = self._taught(ids)
        told = self.store.forget(sorted(gone))
        for id in gone:
            del self.edits[id]
        return told

    def reset(self) -> None:
        self.store.reset()
        self.edits.clear()

    @property
    def stored_bytes(self) -> int:
        """The edits' texts in UTF-8; what the retriever itself keeps comes on top."""
        return sum(len(edit.text.encode()) for edit in self.edits.values())

    def _asked(self, prompts: Sequence[str]) -> list[str]:
        texts = self.retrieve(prompts)
        if len(texts) != len(prompts):
            raise ValueError(f"retrieve gave {len(texts)} texts for {len(prompts)} prompts: wanted one each, or None")
        return [
            prompt if text is None else self.template.format(edit=text, prompt=prompt)
            for prompt, text in zip(prompts, texts, strict=True)
        ]


def fired_texts(decide: Callable[[Sequence[str]], Sequence[Any]]) -> Retrieve:
    """A retriever from a memory's `decide`: the text of the edit that fires, by the same search and gate."""
    return lambda prompts: [one.edit.edit.text if one.fired else None for one in decide(prompts)]


def place(edit: Edit) -> str:
    """What an edit is called in a complaint."""
    return edit.where or f"edit {edit.id!r}"
