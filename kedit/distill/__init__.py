"""Context distillation: an entity's definition, read by the teacher, spreads through the student's weights.

Names are imported when they are used: an edit in a notebook needs no Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kedit.distill.baselines import Baselines
    from kedit.distill.data import DistillData, Evaluation
    from kedit.distill.editor import DistillEditor
    from kedit.distill.edits import EditSettings
    from kedit.distill.generate import transfer
    from kedit.distill.generators import FileSentences, SourceSentences, SplitDocument
    from kedit.distill.language_model import ModelGenerator
    from kedit.distill.made import MadeTransfer
    from kedit.distill.module import DistillModule
    from kedit.distill.server import ServerGenerator
    from kedit.distill.transfer import Filters

HOMES = {
    "Baselines": "baselines",
    "DistillData": "data",
    "DistillEditor": "editor",
    "DistillModule": "module",
    "EditSettings": "edits",
    "Evaluation": "data",
    "FileSentences": "generators",
    "Filters": "transfer",
    "MadeTransfer": "made",
    "ModelGenerator": "language_model",
    "ServerGenerator": "server",
    "SourceSentences": "generators",
    "SplitDocument": "generators",
    "transfer": "generate",
}

__all__ = [
    "Baselines",
    "DistillData",
    "DistillEditor",
    "DistillModule",
    "EditSettings",
    "Evaluation",
    "FileSentences",
    "Filters",
    "MadeTransfer",
    "ModelGenerator",
    "ServerGenerator",
    "SourceSentences",
    "SplitDocument",
    "transfer",
]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"kedit.distill has no {name!r}")
    return getattr(import_module(f"kedit.distill.{HOMES[name]}"), name)
