"""Fine-tuning of a LoRA adapter as a contestant: edits together, or one after another."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from kedit.comparing.facts import FactSet
from kedit.comparing.results import Method
from kedit.comparing.way import Base, Opened, Way
from kedit.contestants.asked import asked
from kedit.contestants.finetune import check_tuning, with_full_stop
from kedit.contestants.lessons import definitions_of, undefined
from kedit.lm.adapters import Lora
from kedit.recipe.finetune import LoraTune
from kedit.recipe.joint import JointLora
from kedit.recipe.tuning import Tuned, Tuning

TOGETHER = Tuning(steps=40, learning_rate=1e-3, batch=16)
ONE_BY_ONE = Tuning(steps=25, learning_rate=1e-3, batch=1)
ADAPTER = "one adapter holds all facts together; taken off, all are gone"


@dataclass(kw_only=True)
class LoraTuning(Way):
    """Fine-tuning of one LoRA adapter; the model's own weights stay as they are.

    Args:
        lora: the adapter, without dropout.
        tuning: how it learns, as for Finetune; null for a learning rate of 1e-3 and else what Finetune has.
        one_by_one: learn edits one after another, each with steps of its own, and go on from there with the next;
            otherwise all of them together, from a fresh adapter.
        learn: what is learned: edits' targets behind their prompts, or definitions behind the names of their subjects.
        bases: names of the models that it is tried on; null for all that it applies to.
    """

    method: ClassVar[Method] = "lora"
    lora: Lora = field(default_factory=Lora)
    tuning: Tuning | None = None
    one_by_one: bool = False
    learn: Literal["edits", "definitions"] = "edits"

    def __post_init__(self) -> None:
        check_tuning(self.one_by_one, self.learn)

    @property
    def anew(self) -> bool:  # type: ignore[override]
        return not self.one_by_one

    def unfit(self, base: Base, facts: FactSet) -> str:
        return undefined(facts) if self.learn == "definitions" else ""

    def open(self, base: Base, facts: FactSet, seed: int, folder: Path) -> Opened:
        model = asked(base)
        editor: Tuned
        tuning = with_full_stop(self.tuning or (ONE_BY_ONE if self.one_by_one else TOGETHER))
        if self.one_by_one:
            editor = LoraTune(model, tuning, self.lora, seed)
        else:
            lessons = definitions_of(facts) if self.learn == "definitions" else None
            editor = JointLora(model, tuning, order=seed, lessons=lessons, lora=self.lora, seed=seed)
        return Opened(editor, ADAPTER, can_take_out=False)
