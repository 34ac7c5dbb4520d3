"""A small base model that knows the realm and uses a definition in context, made when it is first needed.

Knows no method: whatever edits a language model can start from the folder that it writes.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase

from kedit.editing.probes import Probe
from kedit.lm.optim import Schedule
from kedit.lm.scoring import Span, span_nll
from kedit.lm.text import encode, token_span
from kedit.lm.tokenizers import train_tokenizer
from kedit.world.definitions import NewEntities
from kedit.world.made import WorldModel
from kedit.world.pretraining import Pretraining
from kedit.world.realm import Realm, documents
from kedit.world.realm_reader import reading, told_of
from kedit.world.realm_reading import passages

POSITIONS = 256
TOKENIZER_TEXTS = 20_000
ASKED = 400  # probes of each sort that the quality is measured on


@dataclass
class WorldLM(WorldModel):
    """A GPT-2 pre-trained on the realm's text: on facts, and on definitions of strangers with what follows from them.

    Args:
        known: how many known entities, as in NewEntities.
        realm: seed of the realm, as in NewEntities.
        width: of the model.
        layers: how many.
        heads: of attention.
        vocabulary: tokens of its tokenizer.
        steps: of the optimiser.
        batch: documents a step.
        learning_rate: highest.
        seed: of the text's choices and of the weights.
        text: that of definitions, for distillation from them; or that of edits, too: definitions, single statements,
            both of others, short names, and names by what is told, so that every way of teaching can be compared.
    """

    stem: ClassVar[str] = "world"
    made_by: ClassVar[Sequence[str]] = (
        "lm.optim", "lm.text", "lm.tokenizers", "world.base_lm", "world.names", "world.pretraining", "world.realm",
        "world.realm_reading", "world.realm_text",
    )  # fmt: skip
    known: int = 120
    realm: int = 0
    width: int = 128
    layers: int = 4
    heads: int = 4
    vocabulary: int = 1536
    steps: int = 2000
    batch: int = 32
    learning_rate: float = 3e-3
    seed: int = 0
    text: Literal["definitions", "edits"] = "definitions"

    def __post_init__(self) -> None:
        self._positive("known", "width", "layers", "heads", "vocabulary", "steps", "batch")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of {self.heads} heads: change `width` or `heads`")

    def train(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model after all steps, and its tokenizer, with progress printed."""
        texts, unforeseen = self._texts()
        # a name at the beginning of a definition is the very tokens that it is in a sentence
        tokenizer = train_tokenizer(texts[:TOKENIZER_TEXTS], self.vocabulary, prefix_space=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = GPT2LMHeadModel(self._config(tokenizer))
        schedule = Schedule("cosine", warmup=100 / max(200, self.steps))
        plan = Pretraining(self.batch, self.learning_rate, schedule, seed=self.seed)
        plan.run(model, tokenizer, texts, unforeseen, POSITIONS, every_token_loss)
        return model, tokenizer

    def _texts(self) -> tuple[list[str], list[list[tuple[int, int]]] | None]:
        """All that is read, and what of it need not be predicted."""
        world, count = Realm(self.known, self.realm), self.steps * self.batch
        if self.text == "definitions":
            return list(islice(documents(world, self.seed), count)), None
        read = list(islice(passages(world, self.seed), count))
        return [one.text for one in read], [one.unforeseen for one in read]

    def _config(self, tokenizer: PreTrainedTokenizerBase) -> GPT2Config:
        special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        return GPT2Config(
            vocab_size=len(tokenizer), n_positions=POSITIONS, n_embd=self.width, n_layer=self.layers,
            n_head=self.heads, activation_function="gelu_pytorch_tanh", resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0, **special,
        )  # fmt: skip

    def quality(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        """How many known facts greedy decoding finds, and NLLs on entities that no text named: alone, behind their
        definition, and behind another's. A teacher that cannot read teaches nothing.
        """
        knowledge = NewEntities(self.known, realm=self.realm).load()
        rng = random.Random(0)
        known = rng.sample([probe for probes in knowledge.specificity.values() for probe in probes], ASKED)
        new = rng.sample(knowledge.probes, ASKED)
        own = {fact.id: fact.definition for fact in knowledge.facts}
        ids = list(own)
        other = {one: own[two] for one, two in zip(ids, ids[1:] + ids[:1], strict=True)}

        def nll(probes: Sequence[Probe], contexts: dict[str, str] | None = None) -> float:
            spans = [Span(probe.left, probe.span, probe.right) for probe in probes]
            given = [contexts[probe.fact] for probe in probes] if contexts else None
            return float(np.mean([losses.mean() for losses in span_nll(model, tokenizer, spans, given)]))

        found = {"known_accuracy": _accuracy(model, tokenizer, known), "known_nll": nll(known)}
        found |= {"new_nll": nll(new), "defined_nll": nll(new, own), "wrongly_defined_nll": nll(new, other)}
        found["gain"] = found["new_nll"] - found["defined_nll"]
        if self.text == "edits":
            found |= reading(model, tokenizer, self.known, self.realm, ASKED)
        return found

    def told(self, quality: dict[str, float]) -> str:
        if self.text == "edits":
            return told_of({name: share for name, share in quality.items() if name.endswith("_accuracy")})
        return (
            f"{100 * quality['known_accuracy']:.0f} % of known facts; on entities never seen, NLL "
            f"{quality['new_nll']:.2f} alone, {quality['defined_nll']:.2f} behind the definition (gain "
            f"{quality['gain']:.2f}), {quality['wrongly_defined_nll']:.2f} behind another's"
        )


@torch.no_grad()
def _accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, probes: Sequence[Probe]) -> float:
    """Share of probes whose whole span is what the model finds likeliest, token by token."""
    right = 0
    for probe in probes:
        sentence = encode(tokenizer, [probe.left + probe.span + probe.right], leading_space=True)[0]
        first, end = token_span(sentence.offsets, len(probe.left), len(probe.left) + len(probe.span))
        ids_1L = torch.tensor([[tokenizer.bos_token_id, *sentence.ids[:end].tolist()]])
        likeliest_L = model(input_ids=ids_1L).logits[0].argmax(-1)
        right += bool((likeliest_L[first:end] == ids_1L[0, first + 1 :]).all())
    return right / len(probes)


def every_token_loss(model: PreTrainedModel, ids_BL: Tensor, counted_BL: Tensor) -> Tensor:
    """Mean cross-entropy of the counted tokens, in nats; the head sees all."""
    logits = model(input_ids=ids_BL).logits[:, :-1]
    wanted_BL = ids_BL.masked_fill(~counted_BL, -100)[:, 1:]
    return nn.functional.cross_entropy(logits.flatten(0, 1), wanted_BL.flatten())
