"""A small encoder that has read the registry's text, as roberta-base has read the web, made when it is first needed.

Knows no method. It has seen every wording, as such an encoder has; which of them ask for the same is not told it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

from kedit.world import reading_text
from kedit.world.encoder import WorldEncoder
from kedit.world.registry import Registry


@dataclass(kw_only=True)
class ReadingEncoder(WorldEncoder):
    """A RoBERTa pre-trained by masked language modelling on the registry's text.

    Args:
        known: how many persons the text knows, as in RegistryEdits.
        registry: seed of the registry, as in RegistryEdits.
        width: of the model.
        layers: how many.
        heads: of attention.
        vocabulary: tokens of its tokenizer.
        steps: of the optimiser.
        batch: documents a step.
        learning_rate: highest.
        seed: of the text's choices and of the weights.
    """

    stem: ClassVar[str] = "registry-encoder"
    made_by: ClassVar[Sequence[str]] = (
        "lm.optim", "lm.text", "lm.tokenizers", "world.encoder", "world.masking", "world.names", "world.pretraining",
        "world.reading_encoder", "world.reading_text", "world.registry", "world.registry_text",
    )  # fmt: skip
    known: int = 150
    registry: int = 0

    def _texts(self, seed: int, count: int) -> list[str]:
        written = reading_text.documents(Registry(self.known, self.registry), seed)
        return [document.text for document in islice(written, count)]
