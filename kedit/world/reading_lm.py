"""A small base model that knows the registry and reads its context, made when it is first needed.

Knows no method: whatever edits a language model can start from the folder that it writes.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from kedit.lm.scoring import Span, span_nll
from kedit.lm.text import encode
from kedit.lm.tokenizers import train_tokenizer
from kedit.world import reading_text
from kedit.world import registry_text as text
from kedit.world.made import WorldModel
from kedit.world.pretraining import Pretraining
from kedit.world.registry import Registry
from kedit.world.registry_text import RELATIONS

POSITIONS = 256
TOKENIZER_TEXTS = 20_000
ASKED = 400  # of each sort, that the quality is measured on


@dataclass
class ReadingLM(WorldModel):
    """A Llama pre-trained on the registry's text: on known facts, and on facts of strangers that a context states.

    Args:
        known: how many persons it knows, as in RegistryEdits.
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

    stem: ClassVar[str] = "registry"
    made_by: ClassVar[Sequence[str]] = (
        "lm.optim", "lm.text", "lm.tokenizers", "world.names", "world.pretraining", "world.reading_lm",
        "world.reading_text", "world.registry", "world.registry_text",
    )  # fmt: skip
    known: int = 150
    registry: int = 0
    width: int = 128
    layers: int = 2
    heads: int = 4
    vocabulary: int = 2560
    steps: int = 4000
    batch: int = 32
    learning_rate: float = 4e-3
    seed: int = 0

    def __post_init__(self) -> None:
        self._positive("known", "width", "layers", "heads", "vocabulary", "steps", "batch")
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width {self.width} is no multiple of twice its {self.heads} heads: change `width` or `heads`"
            )

    def train(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model after all steps, and its tokenizer, with progress printed."""
        endless = reading_text.documents(Registry(self.known, self.registry), self.seed)
        documents = list(islice(endless, self.steps * self.batch))
        texts = [document.text for document in documents]
        # a name at the beginning of a text is the very tokens that it is in a sentence
        tokenizer = train_tokenizer(texts[:TOKENIZER_TEXTS], self.vocabulary, prefix_space=True)
        special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=self.width, intermediate_size=3 * self.width,
            num_hidden_layers=self.layers, num_attention_heads=self.heads, max_position_embeddings=POSITIONS,
            tie_word_embeddings=True, **special,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = LlamaForCausalLM(config)
        plan = Pretraining(self.batch, self.learning_rate, weight_decay=0.01, seed=self.seed)
        plan.run(model, tokenizer, texts, [document.unforeseen for document in documents], POSITIONS)
        return model, tokenizer

    def quality(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        """What it knows, and how well it reads on strangers that no text named: shares of answers that greedy decoding
        finds whole, and NLLs a token.

        `known`: facts of known persons. `read`: a fact behind its statement in another wording. `contradicted`: the
        same of known persons of whom something else is known. `aside`: a known fact behind a stranger's. `alone`: a
        stranger's fact that nothing states.
        """
        registry, rng = Registry(self.known, self.registry), random.Random(0)
        known = reading_text.known_facts(registry, rng, ASKED)
        strangers = [registry.stranger("test", rng.randrange(registry.strangers("test"))) for _ in range(ASKED)]
        asked = [(one, rng.choice(RELATIONS)) for one in strangers]
        new = [(one, relation, rng.choice(registry.objects[relation])) for one, relation in asked]
        other = [(one, relation, rng.choice(registry.objects[relation])) for one, relation, _ in known]
        found: dict[str, float] = {}
        sets = {"known": (known, None), "read": (new, new), "contradicted": (other, other), "aside": (known, new),
                "alone": (new, None)}  # fmt: skip
        for name, (facts, stated) in sets.items():
            wordings = [rng.sample(text.prompts(relation), 2) for _, relation, _ in facts]
            prompts = [pair[0].format(s=fact[0].name) for pair, fact in zip(wordings, facts, strict=True)]
            if stated is not None:
                contexts = [reading_text.sentence(fact, rng, pair[0])
                            for pair, fact in zip(wordings, stated, strict=True)]  # fmt: skip
                prompts = [f"{context} {prompt}" for context, prompt in zip(contexts, prompts, strict=True)]
            answers = [object_ for _, _, object_ in facts]
            found[f"{name}_accuracy"] = accuracy(model, tokenizer, prompts, answers)
            spans = [Span(f"{prompt} ", answer, ".") for prompt, answer in zip(prompts, answers, strict=True)]
            found[f"{name}_nll"] = float(np.mean([losses.mean() for losses in span_nll(model, tokenizer, spans)]))
        return found

    def told(self, quality: dict[str, float]) -> str:
        percent = {name.removesuffix("_accuracy"): f"{100 * share:.1f} %" for name, share in quality.items()}
        return (
            f"{percent['known']} of known facts, {percent['aside']} behind a stranger's; reads {percent['read']} of "
            f"what is stated of strangers, and {percent['contradicted']} of what contradicts it"
        )


@torch.no_grad()
def accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], answers: Sequence[str]
) -> float:
    """Share of prompts behind which greedy decoding writes the answer and a full stop."""
    right = 0
    texts = [f"{prompt} {answer}." for prompt, answer in zip(prompts, answers, strict=True)]
    for prompt, whole in zip(encode(tokenizer, prompts), encode(tokenizer, texts), strict=True):
        ids_1L = torch.tensor([[tokenizer.bos_token_id, *whole.ids.tolist()]])
        likeliest_L = model(input_ids=ids_1L).logits[0].argmax(-1)
        # with nothing but the likeliest tokens before it, a token that is likeliest is the one that is written
        first = len(prompt.ids)
        right += bool((likeliest_L[first:-1] == ids_1L[0, first + 1 :]).all())
    return right / len(texts)
