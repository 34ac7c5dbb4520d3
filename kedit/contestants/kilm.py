"""KILM as a contestant: an encoder-decoder's own pre-training goes on, on wiki text that tells the facts."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from kedit.comparing.facts import FactSet, sentence
from kedit.comparing.results import Method
from kedit.comparing.way import Base, Opened, Way
from kedit.contestants.asked import asked
from kedit.contestants.finetune import WEIGHTS
from kedit.contestants.lessons import undefined
from kedit.editing.edits import Edit
from kedit.kilm.editor import KilmEditor, KilmReport, KilmSettings
from kedit.recipe.baselines import Rival
from kedit.recipe.prefix import PrefixedModel


@dataclass(kw_only=True)
class Kilm(Way):
    """KILM: text infilling goes on, on an article for each subject whose short description is to be filled in.

    Args:
        settings: how facts are taught; its seed is the comparison's.
        bases: names of the models that it is tried on; null for all that it applies to.
    """

    method: ClassVar[Method] = "kilm"
    settings: KilmSettings = field(default_factory=KilmSettings)

    def unfit(self, base: Base, facts: FactSet) -> str:
        if base.architecture != "encoder-decoder":
            return "KILM fills in text by an encoder-decoder, and this is a decoder-only model"
        return undefined(facts)

    def files(self) -> Sequence[Path]:
        return () if self.settings.text is None else (Path(self.settings.text),)

    def open(self, base: Base, facts: FactSet, seed: int, folder: Path) -> Opened:
        model = asked(base)
        settings = replace(self.settings, seed=seed)
        editor = KilmEditor(model.model, model.tokenizer, settings, folder, progress=False)
        return Opened(Infilled(model, editor, facts), WEIGHTS, can_take_out=False)


class Infilled(Rival):
    """A model that reads its edits as wiki text, and is asked as it stands.

    Args:
        model: how it is asked.
        editor: teaches the very model that is asked.
        facts: the definitions.
    """

    def __init__(self, model: PrefixedModel, editor: KilmEditor, facts: FactSet) -> None:
        super().__init__(model)
        self.editor, self.facts = editor, facts

    def edit(self, facts: Sequence[Edit]) -> KilmReport:
        """Teach the definitions of these edits' subjects, and the edits as sentences of their articles.

        Raises:
            DataError: a subject was taught before, or cannot be learned. The model is as it was.
        """
        self._check_new(facts)
        defined = self.facts.definitions(facts)
        told = {fact.id: [sentence(edit) for edit in facts if edit.subject == fact.name] for fact in defined}
        report = self.editor.edit(defined, told)
        self.edits |= {edit.id: edit for edit in facts}
        return report

    def forget(self, ids: Sequence[str]) -> None:
        self._taught(ids)
        self.editor.forget(ids)

    def reset(self) -> None:
        self.editor.reset()
        self.edits.clear()

    @property
    def stored_bytes(self) -> int:
        """All weights."""
        return self.editor.stored_bytes
