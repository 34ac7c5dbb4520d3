"""RECIPE: edits in a memory beside a frozen language model, each a few prompt vectors before the question it answers.

Names are looked up when they are first used: an edit in a notebook loads no Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kedit.recipe.data import Evaluation, RecipeData
    from kedit.recipe.editor import RecipeEditor
    from kedit.recipe.module import RecipeModule
    from kedit.recipe.objective import Weights

HOMES = {
    "Evaluation": "data",
    "RecipeData": "data",
    "RecipeEditor": "editor",
    "RecipeModule": "module",
    "Weights": "objective",
}

__all__ = ["Evaluation", "RecipeData", "RecipeEditor", "RecipeModule", "Weights"]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"kedit.recipe has no {name!r}")
    return getattr(import_module(f"kedit.recipe.{HOMES[name]}"), name)
