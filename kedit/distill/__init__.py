"""Context distillation: an entity's definition, read by the teacher, spreads through the student's weights."""

from kedit.distill.baselines import Baselines
from kedit.distill.data import DistillData, Evaluation
from kedit.distill.generate import transfer
from kedit.distill.generators import FileSentences, SourceSentences, SplitDocument
from kedit.distill.language_model import ModelGenerator
from kedit.distill.made import MadeTransfer
from kedit.distill.module import DistillModule
from kedit.distill.server import ServerGenerator
from kedit.distill.transfer import Filters

__all__ = [
    "Baselines",
    "DistillData",
    "DistillModule",
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
