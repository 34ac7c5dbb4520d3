"""A small encoder that has read the realm's text, as roberta-base has read the web, made when it is first needed.

Knows no method. It has seen every wording, as such an encoder has; which of them ask for the same is not told it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

from kedit.world.encoder import WorldEncoder
from kedit.world.realm import Realm
from kedit.world.realm_reading import passages


@dataclass(kw_only=True)
class RealmEncoder(WorldEncoder):
    """A RoBERTa pre-trained by masked language modelling on the realm's text of edits.

    Args:
        known: how many things the text knows, as in RealmEdits.
        realm: seed of the realm, as in RealmEdits.
        width: of the model.
        layers: how many.
        heads: of attention.
        vocabulary: tokens of its tokenizer.
        steps: of the optimiser.
        batch: documents a step.
        learning_rate: highest.
        seed: of the text's choices and of the weights.
    """

    stem: ClassVar[str] = "world-encoder"
    made_by: ClassVar[Sequence[str]] = (
        "lm.optim", "lm.text", "lm.tokenizers", "world.encoder", "world.masking", "world.names", "world.pretraining",
        "world.realm", "world.realm_encoder", "world.realm_reading", "world.realm_text",
    )  # fmt: skip
    known: int = 120
    realm: int = 0
    batch: int = 32

    def _texts(self, seed: int, count: int) -> list[str]:
        return [one.text for one in islice(passages(Realm(self.known, self.realm), seed), count)]
