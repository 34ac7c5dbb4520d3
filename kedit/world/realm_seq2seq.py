"""A small encoder-decoder that knows the realm and answers by what it reads, made when it is first needed.

Knows no method: whatever edits a language model can start from the folder that it writes.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import torch
from tokenizers.processors import TemplateProcessing
from transformers import MBartConfig, MBartForConditionalGeneration, PreTrainedModel, PreTrainedTokenizerBase

from kedit.lm.tokenizers import train_tokenizer
from kedit.world.answering import AnsweringLoss
from kedit.world.made import WorldModel
from kedit.world.pretraining import Pretraining
from kedit.world.realm import Realm
from kedit.world.realm_reader import reading, told_of
from kedit.world.realm_reading import passages

POSITIONS = 256
INIT = 0.04
TOKENIZER_TEXTS = 20_000
ASKED = 400  # of each sort, that the quality is measured on


@dataclass
class WorldSeq2Seq(WorldModel):
    """A BART of mBART's form, whose layers normalise what they read, pre-trained on the realm's text of edits: it reads
    a sentence's beginning, perhaps behind a definition or statements, and writes the object and a full stop; it goes on
    with texts, and fills their gaps, as all BARTs do.

    Args:
        known: how many known things, as in RealmEdits.
        realm: seed of the realm, as in RealmEdits.
        width: of the model.
        layers: how many, of the encoder and of the decoder.
        heads: of attention.
        vocabulary: tokens of its tokenizer.
        steps: of the optimiser.
        batch: texts a step.
        learning_rate: highest.
        infilling: share of texts whose gaps are to be filled.
        rest: share of texts that are to be gone on with, sentence by sentence; of the others one object is asked. That
            alone teaches a model to read, but slowly.
        seed: of the text's choices and of the weights.
    """

    stem: ClassVar[str] = "world-seq2seq"
    made_by: ClassVar[Sequence[str]] = (
        "lm.optim", "lm.text", "lm.tokenizers", "world.answering", "world.names", "world.pretraining", "world.realm",
        "world.realm_reading", "world.realm_seq2seq", "world.realm_text",
    )  # fmt: skip
    known: int = 120
    realm: int = 0
    width: int = 128
    layers: int = 2
    heads: int = 4
    vocabulary: int = 1536
    steps: int = 4500
    batch: int = 32
    learning_rate: float = 3e-3
    infilling: float = 0.25
    rest: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        self._positive("known", "width", "layers", "heads", "vocabulary", "steps", "batch")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of {self.heads} heads: change `width` or `heads`")
        if min(self.infilling, self.rest) < 0 or self.infilling + self.rest > 1:
            raise ValueError(
                f"infilling is {self.infilling} and rest {self.rest}: wanted shares that are at most 1 together"
            )

    def train(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model after all steps, and its tokenizer, with progress printed."""
        texts, read = self._texts()
        # a name at the beginning of a text, and an answer, are the very tokens that they are in a sentence
        tokenizer = train_tokenizer(texts[:TOKENIZER_TEXTS], self.vocabulary, prefix_space=True)
        special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(  # as BART's own does
            single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=special
        )
        config = MBartConfig(
            vocab_size=len(tokenizer), d_model=self.width, encoder_layers=self.layers, decoder_layers=self.layers,
            encoder_attention_heads=self.heads, decoder_attention_heads=self.heads, encoder_ffn_dim=4 * self.width,
            decoder_ffn_dim=4 * self.width, max_position_embeddings=POSITIONS, dropout=0.0, init_std=INIT,
            pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, decoder_start_token_id=tokenizer.eos_token_id,
            forced_eos_token_id=None,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = MBartForConditionalGeneration(config)
        plan = Pretraining(self.batch, self.learning_rate, seed=self.seed)
        plan.run(model, tokenizer, texts, read, POSITIONS, AnsweringLoss(tokenizer, seed=self.seed))
        return model, tokenizer

    def _texts(self) -> tuple[list[str], list[list[tuple[int, int]]]]:
        """Texts, and what of them is read, to write the rest."""
        rng = random.Random(f"asked {self.seed}")
        texts: list[str] = []
        read: list[list[tuple[int, int]]] = []
        for passage in islice(passages(Realm(self.known, self.realm), self.seed), self.steps * self.batch):
            drawn = rng.random()
            if drawn < self.infilling:
                texts.append(passage.text)
                read.append([])
                continue
            # half of the time behind the sentences before it, as a model meets its own answers
            number = rng.randrange(len(passage.said))
            first = 0 if rng.random() < 0.5 else number
            before = [*filter(None, [passage.context]), *map(str, passage.said[first:number])]
            if drawn < self.infilling + self.rest and before:
                prompt = " ".join(before)
                texts.append(" ".join([prompt, *map(str, passage.said[number:])]))
            else:
                asked = passage.said[number]
                prompt = " ".join([*before, asked.prompt])
                texts.append(f"{prompt} {asked.object}.")
            read.append([(0, len(prompt))])
        return texts, read

    def quality(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        """Shares of answers that greedy decoding finds whole, as `reading` says."""
        return reading(model, tokenizer, self.known, self.realm, ASKED)

    def told(self, quality: dict[str, float]) -> str:
        return told_of(quality)
