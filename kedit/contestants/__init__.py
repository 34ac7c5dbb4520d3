"""The ways of getting facts into a model that a comparison puts side by side, for a configuration to name.

Names are looked up when they are first used: a way that is not compared loads nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kedit.contestants.as_it_is import AsItIs
    from kedit.contestants.distillation import Distillation
    from kedit.contestants.finetune import Finetune
    from kedit.contestants.kilm import Kilm
    from kedit.contestants.lora_tuning import LoraTuning
    from kedit.contestants.recipe import Recipe
    from kedit.contestants.text_in_prompt import TextInPrompt

HOMES = {
    "AsItIs": "as_it_is",
    "Distillation": "distillation",
    "Finetune": "finetune",
    "Kilm": "kilm",
    "LoraTuning": "lora_tuning",
    "Recipe": "recipe",
    "TextInPrompt": "text_in_prompt",
}

__all__ = ["AsItIs", "Distillation", "Finetune", "Kilm", "LoraTuning", "Recipe", "TextInPrompt"]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"kedit.contestants has no {name!r}")
    return getattr(import_module(f"kedit.contestants.{HOMES[name]}"), name)
