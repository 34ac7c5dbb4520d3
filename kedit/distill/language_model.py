"""Sentences by a language model that reads the definition: the model to be edited itself, or any other."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit.distill.generators import (
    BASE,
    INSTRUCTIONS,
    Generator,
    check_sampling,
    digest,
    fill,
    own_seed,
    tidy,
    wordings,
)
from kedit.distill.mentions import end_of_line
from kedit.distill.sampling import plan_batches, prompt_ids, sample
from kedit.distill.transfer import Provenance, TransferSentence
from kedit.editing.probes import Fact, Knowledge
from kedit.editing.sources import DataError
from kedit.lm.backbones import CAUSAL, Backbone, load_causal, load_config, load_tokenizer
from kedit.lm.causal import position_limit
from kedit.lm.text import encode

WEIGHTS = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")


@dataclass
class ModelGenerator(Generator):
    """Sentences by a Hugging Face model that reads the definition: the model to be edited itself, or any other.

    Args:
        backbone: the model; in a training run by default the one that is to learn.
        chat: whether to give instructions, as the tokenizer's chat template has it; by default where there is one.
        prompts: kinds (continue, paraphrase, question, implication, contrast, dialogue) or templates of your own with
            {definition} and {name}, taken in turn; by default the definition alone, or with `chat` all kinds.
        start_with_name: let the model go on from the entity's name; by default without `chat`. `where_needed` does so
            in every second round, which is for facts alone whose name the model hardly finds by itself.
        temperature: of sampling.
        top_p: of sampling: the likeliest tokens that together have at least this probability.
        max_new_tokens: longest continuation.
        sentences: how many of a continuation are kept; by default one, or with `chat` all in its first line.
        batch_tokens: most tokens of a batch, padding included.
    """

    backbone: Backbone | None = None
    chat: bool | None = None
    prompts: list[str] | None = None
    start_with_name: bool | Literal["where_needed"] | None = None
    temperature: float = 0.9
    top_p: float = 0.95
    max_new_tokens: int = 48
    sentences: int | None = None
    batch_tokens: int = 8192

    again: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.backbone is not None and self.backbone.name is None and self.backbone.made is None:
            raise DataError("generator.backbone: random weights write nothing: give generator.backbone.name")
        check_sampling(self.temperature, self.top_p, self.max_new_tokens, self.sentences)
        if self.prompts is not None:
            wordings(self.prompts)
            if not self.prompts:
                raise DataError("generator.prompts is an empty list: give at least one, or leave it out")

    @property
    def _source(self) -> Backbone:
        if self.backbone is None:
            raise DataError(
                "generator.backbone: no model is named: give generator.backbone.name (a hub id or a folder)"
            )
        return self.backbone

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(str(self._source.source), self._source.revision)

    @cached_property
    def model(self) -> PreTrainedModel:
        model = load_causal(self._source, self.tokenizer)
        return model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]

    @cached_property
    def revision(self) -> str | None:
        """Commit of a hub model, digest of a folder's files."""
        source = Path(str(self._source.source)).expanduser()
        if source.is_dir():
            return digest(list({path for pattern in WEIGHTS for path in source.glob(pattern)}))
        return getattr(load_config(self._source, CAUSAL), "_commit_hash", None) or self._source.revision

    @property
    def name(self) -> str:
        """A made model's place hangs on the machine: its maker is named."""
        return self._source.name or type(self._source.made).__name__

    @property
    def is_chat(self) -> bool:
        return bool(self.tokenizer.chat_template) if self.chat is None else self.chat

    @property
    def starts_with_name(self) -> bool | Literal["where_needed"]:
        return not self.is_chat if self.start_with_name is None else self.start_with_name

    def for_rare(self, round: int) -> bool:
        return self.starts_with_name == "where_needed" and round % 2 == 1

    @property
    def templates(self) -> list[str]:
        return wordings(self.prompts or (list(INSTRUCTIONS) if self.is_chat else [BASE]))

    def describe(self, knowledge: Knowledge) -> dict[str, Any]:
        if self.is_chat and not self.tokenizer.chat_template:
            raise DataError(f"generator.chat: the tokenizer of {self.name} has no chat template: leave it out")
        return {
            "class": "ModelGenerator",
            "model": self.name,
            "revision": self.revision,
            "architecture": self._source.architecture,
            "dtype": self._source.dtype,
            "chat": self.is_chat,
            "prompts": self.templates,
            "start_with_name": self.starts_with_name,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_new_tokens": self.max_new_tokens,
            "sentences": self.sentences,
            "batch_tokens": self.batch_tokens,
        }

    def write(
        self, knowledge: Knowledge, wanted: Mapping[str, int], round: int, seed: int, skip: int
    ) -> Iterator[list[TransferSentence]]:
        templates = self.templates
        requests = [
            (fact, fill(templates[(round + number) % len(templates)], fact), own_seed(seed, round, fact, number))
            for fact in knowledge.facts
            for number in range(wanted.get(fact.id, 0))
        ]
        starts = self.starts_with_name is True or self.for_rare(round)
        rows = self._rows([prompt for _, prompt, _ in requests], [fact for fact, _, _ in requests], starts)
        batches = plan_batches(list(map(len, rows)), self.max_new_tokens, self.batch_tokens)
        kept = 1 if self.sentences is None and not self.is_chat else self.sentences
        for batch in batches[skip:]:
            texts = sample(
                self.model,
                self.tokenizer,
                [rows[row] for row in batch],
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                seed=[requests[row][2] for row in batch],
                stop=lambda text: end_of_line(text, kept),
                batch_tokens=self.batch_tokens,
            )
            yield [self._sentence(*requests[row], text, starts) for row, text in zip(batch, texts, strict=True)]

    def close(self) -> None:
        self.__dict__.pop("model", None)

    def _rows(self, prompts: Sequence[str], facts: Sequence[Fact], starts: bool) -> list[list[int]]:
        """Ids of the prompts, which end with the name where the sentence starts with it.

        Raises:
            DataError: a definition is too long for the model.
        """
        if self.is_chat:
            rows = [self._instruction(prompt) for prompt in prompts]
            if starts:
                names = encode(self.tokenizer, [fact.name for fact in facts])
                rows = [[*row, *name.ids.tolist()] for row, name in zip(rows, names, strict=True)]
        else:
            ends = [f" {fact.name}" if starts else "" for fact in facts]
            rows = prompt_ids(self.tokenizer, [f"{p.rstrip()}{end}" for p, end in zip(prompts, ends, strict=True)])
        limit = position_limit(load_config(self._source, CAUSAL))
        for row, fact in zip(rows, facts, strict=True):
            if limit is not None and len(row) + self.max_new_tokens > limit:
                raise DataError(
                    f"{fact.where or f'fact {fact.id!r}'}: the prompt with the definition of {fact.name!r} has "
                    f"{len(row)} tokens, and with {self.max_new_tokens} new ones that is more than the {limit} that "
                    f"{self.name} reads: shorten it, or split it by SplitDocument"
                )
        return rows

    def _instruction(self, message: str) -> list[int]:
        given: Any = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": message}],
            add_generation_prompt=True,
            return_dict=False,
            enable_thinking=False,
        )
        return list(map(int, given))

    def _sentence(self, fact: Fact, prompt: str, seed: int, text: str, starts: bool) -> TransferSentence:
        if starts:
            # a model that went straight on to another line has said nothing
            text = fact.name + text if text.strip() and not text.startswith("\n") else ""
        origin = Provenance(
            "ModelGenerator", self.name, self.revision, prompt, self.temperature, self.top_p, self.max_new_tokens, seed
        )
        return TransferSentence(fact, tidy(text), provenance=origin)
