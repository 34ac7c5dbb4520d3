"""The base model as it is, taught nothing: what all others are measured against."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from kedit.comparing.facts import FactSet
from kedit.comparing.results import Method
from kedit.comparing.way import Base, Opened, Way
from kedit.contestants.asked import asked
from kedit.recipe.baselines import NoEdit


@dataclass(kw_only=True)
class AsItIs(Way):
    """The base model as it is.

    Args:
        bases: names of the models that it is tried on; null for all that it applies to.
    """

    method: ClassVar[Method] = "base"
    anew: ClassVar[bool] = False
    seeded: ClassVar[bool] = False

    def open(self, base: Base, facts: FactSet, seed: int, folder: Path) -> Opened:
        return Opened(NoEdit(asked(base)), "nothing was put in", can_take_out=True)
