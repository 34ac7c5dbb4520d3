"""Fine-tuning as a contestant: all of the model's weights, or one layer's; edits together, or one after another."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from kedit.comparing.facts import FactSet
from kedit.comparing.results import Method
from kedit.comparing.way import Base, Opened, Way
from kedit.contestants.asked import asked
from kedit.contestants.lessons import definitions_of, undefined
from kedit.editing.sources import DataError
from kedit.lm.backbones import decoder_layers
from kedit.recipe.finetune import FineTune
from kedit.recipe.joint import JointFineTune
from kedit.recipe.prefix import PrefixedModel
from kedit.recipe.tuning import Tuned, Tuning

TOGETHER = Tuning(steps=40, learning_rate=2e-4, batch=16)
ONE_BY_ONE = Tuning(steps=25, learning_rate=2e-4, batch=1)
WEIGHTS = "the weights that were changed hold all facts together"


@dataclass(kw_only=True)
class Finetune(Way):
    """Fine-tuning: the model's own weights learn what to say behind a prompt.

    Args:
        layer: train only this layer, from 0 or the last (an encoder-decoder's decoder); null for all weights.
        tuning: how it learns. Of edits that are learned together, `steps` is how many times at most it goes through
            them and `batch` how many are learned in a step; null for 40 times, 16 and a learning rate of 2e-4, or one
            by one for at most 25 steps an edit, at the same rate. The answer's end is a full stop by default.
        one_by_one: learn edits one after another, each with steps of its own, and go on from there with the next;
            otherwise all of them together, from the base model.
        learn: what is learned: edits' targets behind their prompts, or definitions behind the names of their subjects.
        bases: names of the models that it is tried on; null for all that it applies to.
    """

    method: ClassVar[Method] = "finetune"
    layer: Literal["last"] | int | None = None
    tuning: Tuning | None = None
    one_by_one: bool = False
    learn: Literal["edits", "definitions"] = "edits"

    def __post_init__(self) -> None:
        check_tuning(self.one_by_one, self.learn)

    @property
    def anew(self) -> bool:  # type: ignore[override]
        return not self.one_by_one

    @property
    def seeded(self) -> bool:  # type: ignore[override]
        return not self.one_by_one

    def unfit(self, base: Base, facts: FactSet) -> str:
        return undefined(facts) if self.learn == "definitions" else ""

    def open(self, base: Base, facts: FactSet, seed: int, folder: Path) -> Opened:
        model = asked(base)
        layer = last_layer(model) if self.layer == "last" else self.layer
        editor: Tuned
        tuning = with_full_stop(self.tuning or (ONE_BY_ONE if self.one_by_one else TOGETHER))
        if self.one_by_one:
            editor = FineTune(model, tuning, layer)
        else:
            lessons = definitions_of(facts) if self.learn == "definitions" else None
            editor = JointFineTune(model, tuning, order=seed, lessons=lessons, layer=layer)
        return Opened(editor, WEIGHTS, can_take_out=False)


def with_full_stop(tuning: Tuning) -> Tuning:
    """Answers end with a full stop where nothing else is said: they are judged up to the end of a sentence."""
    return replace(tuning, answer_end=".") if tuning.answer_end is None else tuning


def check_tuning(one_by_one: bool, learn: str) -> None:
    """Refuse what does not go together."""
    if one_by_one and learn == "definitions":
        raise DataError(
            "one_by_one is true and learn is definitions, but a definition tells several edits at once: set one_by_one "
            "to false, or learn to edits"
        )


def last_layer(model: PrefixedModel) -> int:
    """The number of the last block that writes."""
    return len(decoder_layers(model.model.get_decoder() if model.is_seq2seq else model.model)) - 1
