"""Distillation of definitions as a contestant: an adapter for all subjects, or one for each in a model of its own."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

from kedit.comparing.facts import FactSet, sentence
from kedit.comparing.results import Method
from kedit.comparing.way import Base, Opened, Way
from kedit.contestants.asked import asked
from kedit.contestants.lessons import undefined
from kedit.distill.editor import DistillEditor, EditReport, NothingUsable
from kedit.distill.edits import EditSettings
from kedit.editing.edits import Edit
from kedit.lm.adapters import Lora
from kedit.recipe.baselines import Rival
from kedit.recipe.prefix import PrefixedModel


@dataclass(kw_only=True)
class Distillation(Way):
    """Distillation of definitions: a LoRA adapter learns to say without a definition what the model says behind it.

    Args:
        settings: how an edit is made; its seed is the comparison's.
        lora: the adapter.
        sentences: to learn from: `written` by the model, which reads the definition; or the edits as they are `told`,
            for models that cannot write of a subject.
        independent: a model of its own for each subject, taught nothing else; otherwise all are taught at once.
        bases: names of the models that it is tried on; null for all that it applies to.
    """

    method: ClassVar[Method] = "distill"
    settings: EditSettings = field(default_factory=EditSettings)
    lora: Lora = field(default_factory=Lora)
    sentences: Literal["written", "told"] = "written"
    independent: bool = False

    @property
    def together(self) -> bool:  # type: ignore[override]
        return not self.independent

    def unfit(self, base: Base, facts: FactSet) -> str:
        if base.architecture != "causal":
            return "distillation wants a decoder-only model, and this is an encoder-decoder"
        return undefined(facts)

    def files(self) -> Sequence[Path]:
        names = self.settings.regularisation.names
        return () if names is None else (Path(names),)

    def open(self, base: Base, facts: FactSet, seed: int, folder: Path) -> Opened:
        model = asked(base)
        editor = DistillEditor(
            model.model, model.tokenizer, self.lora, replace(self.settings, seed=seed), progress=False,
            bos=base.bos,
        )  # fmt: skip
        distilled = Distilled(model, editor, facts, self.sentences == "told")
        if self.independent:
            return Opened(distilled, "exactly: its own adapter is taken off", True)
        return Opened(distilled, "only by learning all others again without it", False)


class Distilled(Rival):
    """A model that is taught the definitions of its edits' subjects, and asked as it stands.

    Args:
        model: how it is asked.
        editor: teaches the very model that is asked.
        facts: the definitions.
        told: sentences to learn from are the edits themselves.

    Attributes:
        unlearned: edits of which nothing was learned, as no sentence was usable.
    """

    def __init__(self, model: PrefixedModel, editor: DistillEditor, facts: FactSet, told: bool = False) -> None:
        super().__init__(model)
        self.editor, self.facts, self.told = editor, facts, told
        self.unlearned: set[str] = set()
        taught = {edit.prompt.strip() for edit in facts.edits}
        self.probes = [probe for edit in facts.edits for probe in edit.probes if probe.prompt.strip() not in taught]

    def edit(self, facts: Sequence[Edit]) -> EditReport | None:
        """Teach the definitions of these edits' subjects, in one adapter. What the probes of any edit ask is kept
        out of what is learned from, the edits' own prompts apart: these are what is taught. A part of all facts of
        which the model can write nothing usable is not learned; nothing is reported then.

        Raises:
            DataError: a subject was taught before, or none at all can be learned. The model is as it was.
        """
        self._check_new(facts)
        report = None
        defined = self.facts.definitions(facts)
        by_subject: dict[str, list[Edit]] = {}
        for edit in facts:
            by_subject.setdefault(edit.subject, []).append(edit)
        own = {fact.id: by_subject[fact.name] for fact in defined}
        told = {id: [*map(sentence, edits)] for id, edits in own.items()} if self.told else None
        try:
            report = self.editor.edit(defined, told, probes=self.probes)
        except NothingUsable:
            if len(facts) == len(self.facts.edits):
                raise
        without = own if report is None else report.without
        self.unlearned |= {edit.id for id in without for edit in own[id]}
        self.edits |= {edit.id: edit for edit in facts}
        return report

    def forget(self, ids: Sequence[str]) -> None:
        """Take edits out with their subjects' definitions; what else was told of these subjects is taught again."""
        gone = self._taught(ids)
        touched = {self.edits[id].subject for id in gone}
        rest = [edit for edit in self.edits.values() if edit.subject in touched and edit.id not in gone]
        if known := [fact.id for fact in self.editor.facts if fact.name in touched]:
            self.editor.forget(known)
        for id in gone:
            del self.edits[id]
        self.unlearned.difference_update(gone)
        if rest:
            self.edit([self.edits.pop(edit.id) for edit in rest])

    def reset(self) -> None:
        self.editor.reset()
        self.edits.clear()
        self.unlearned.clear()

    @property
    def stored_bytes(self) -> int:
        """The adapters' weights."""
        return sum(part.numel() * part.element_size() for edit in self.editor.edits for part in edit.tensors.values())
