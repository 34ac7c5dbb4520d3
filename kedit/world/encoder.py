"""A small encoder that reads texts of a made-up world by masked language modelling, as roberta-base has read the web.

Knows no world and no method.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, RobertaConfig, RobertaForMaskedLM

from kedit.lm.tokenizers import train_tokenizer
from kedit.world.made import WorldModel
from kedit.world.masking import MaskedTokenLoss
from kedit.world.pretraining import Pretraining

POSITIONS = 256
TOKENIZER_TEXTS = 20_000
ASKED = 640  # documents that the quality is measured on
BATCH = 32


@dataclass(kw_only=True)
class WorldEncoder(WorldModel):
    """A RoBERTa pre-trained on texts of a world.

    Args:
        width: of the model.
        layers: how many.
        heads: of attention.
        vocabulary: tokens of its tokenizer.
        steps: of the optimiser.
        batch: documents a step.
        learning_rate: highest.
        seed: of the text's choices and of the weights.
    """

    width: int = 128
    layers: int = 2
    heads: int = 4
    vocabulary: int = 2560
    steps: int = 3000
    batch: int = 64
    learning_rate: float = 2e-3
    seed: int = 1

    def __post_init__(self) -> None:
        self._positive("known", "width", "layers", "heads", "vocabulary", "steps", "batch")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of {self.heads} heads: change `width` or `heads`")

    def train(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model after all steps, and its tokenizer, with progress printed."""
        texts = self._texts(self.seed, self.steps * self.batch)
        # a name at the beginning of a text is the very tokens that it is in a sentence
        tokenizer = train_tokenizer(texts[:TOKENIZER_TEXTS], self.vocabulary, prefix_space=True)
        special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        config = RobertaConfig(
            vocab_size=len(tokenizer), hidden_size=self.width, intermediate_size=3 * self.width,
            num_hidden_layers=self.layers, num_attention_heads=self.heads,
            max_position_embeddings=POSITIONS + tokenizer.pad_token_id + 1,
            type_vocab_size=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **special,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = RobertaForMaskedLM(config)
        plan = Pretraining(self.batch, self.learning_rate, weight_decay=0.01, seed=self.seed)
        plan.run(model, tokenizer, texts, limit=POSITIONS, loss=MaskedTokenLoss(tokenizer, seed=self.seed))
        return model, tokenizer

    @abstractmethod
    def _texts(self, seed: int, count: int) -> list[str]:
        """What is read."""

    def quality(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        """NLL of a hidden token, in nats, in documents that it has not read."""
        plan, loss = Pretraining(BATCH), MaskedTokenLoss(tokenizer)
        with torch.no_grad():
            losses = [float(loss(model, ids_BL, counted_BL)) for ids_BL, counted_BL in
                      plan.batches(tokenizer, self._texts(self.seed + 1, ASKED), None, POSITIONS)]  # fmt: skip
        return {"masked_nll": sum(losses) / len(losses)}

    def told(self, quality: dict[str, float]) -> str:
        return f"an encoder, NLL of a masked token {quality['masked_nll']:.2f}"
