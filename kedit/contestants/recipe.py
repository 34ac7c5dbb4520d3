"""RECIPE as a contestant: a trained run's memory beside the base model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from kedit.comparing.facts import FactSet
from kedit.comparing.results import Method
from kedit.comparing.way import Base, Opened, Way
from kedit.contestants.asked import asked
from kedit.contestants.trained_memory import MemoryOfRun, find_run, of_another_model, read_of, training_seconds
from kedit.editing.edits import Edit
from kedit.editing.sources import DataError
from kedit.recipe.editor import RecipeEditor
from kedit.recipe.memory import EditReport, Memory
from kedit.recipe.prefix import PrefixedModel


@dataclass(kw_only=True)
class Recipe(Way):
    """RECIPE: edits in a memory, a few prompt vectors before the questions that it takes to mean one.

    Args:
        run: name of a run of RECIPE in `checkpoints/`, its folder there, one of its checkpoints, or an exported
            folder. It must have been trained for the base model; of several that one is taken which was.
        rate: wanted share of questions that no edit concerns and that fire one all the same.
        bases: names of the models that it is tried on; null for all that it applies to.
    """

    method: ClassVar[Method] = "recipe"
    anew: ClassVar[bool] = False
    seeded: ClassVar[bool] = False
    run: str | list[str]
    rate: float = 0.01

    def __post_init__(self) -> None:
        check_rate(self.rate)
        if not self.run:
            raise DataError(f"run is {self.run!r}: name a run of RECIPE, or several")

    @property
    def runs(self) -> list[str]:
        """Names of the runs, at least one."""
        return [self.run] if isinstance(self.run, str) else self.run

    def unfit(self, base: Base, facts: FactSet) -> str:
        reasons = [of_another_model(run, base) for run in self.runs]
        return "; ".join(reasons) if all(reasons) else ""

    def files(self) -> Sequence[Path]:
        return [file for run in self.runs for file in read_of(run)]

    def open(self, base: Base, facts: FactSet, seed: int, folder: Path) -> Opened:
        model = asked(base)
        own = next(run for run in self.runs if not of_another_model(run, base))
        editor = Remembering.from_run(
            own, folder / "edits", self.rate, model=model.model, base=str(base.backbone.source)
        )  # fmt: skip
        return Opened(editor, "exactly: the edit is deleted from the memory", True, training_seconds(find_run(own)))


class Remembering(RecipeEditor):
    """The editor, whose edits can be forgotten by their own ids, and which knows what they take on the disk."""

    def __init__(self, memory: Memory, model: PrefixedModel) -> None:
        super().__init__(memory, model)
        self._kept = MemoryOfRun(memory)

    def edit(self, edits: Sequence[Edit], source: str | None = None) -> EditReport:
        return self._kept.edit(edits)

    def forget(self, ids: Sequence[str]) -> None:  # type: ignore[override]
        self._kept.forget([ids] if isinstance(ids, str) else list(ids))

    def reset(self) -> None:
        self._kept.reset()

    @property
    def stored_bytes(self) -> int:
        """Texts and keys of the edits."""
        return self._kept.stored_bytes


def check_rate(rate: float) -> None:
    """Refuse what is no share."""
    if not 0 < rate < 1:
        raise DataError(f"rate is {rate}: give a share above 0 and below 1, as in 0.01")
