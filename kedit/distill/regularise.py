"""Text on which the student is to stay what it was: the teacher reads it without any definition.

The leak to neighbours is this method's weakness: what is said of a new name spreads to names like it. So beside plain
text there is text that begins as a name does, which the model goes on to others of these letters, and there are the
transfer set's own sentences about somebody else.
"""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from kedit.distill.language_model import ModelGenerator
from kedit.distill.rows import Kind, Sentence
from kedit.distill.sampling import sample
from kedit.editing.probes import Knowledge
from kedit.editing.records import existing_file, fields, read_json_lines
from kedit.editing.sources import DataError
from kedit.lm.backbones import Backbone, load_causal, load_tokenizer
from kedit.lm.cache import cache_folder
from kedit.lm.causal import start_ids
from kedit.lm.text import decode, encode
from kedit.running.progress import Pace
from kedit.running.records import write_whole


@dataclass
class Regularisation:
    """How much of it, for every fact, and what it weighs.

    Args:
        text: texts that the initial model writes from nothing.
        alike: texts that it writes from the first token of the fact's name: of known names that begin alike.
        swapped: sentences of the transfer set with a known name in the place of the fact's.
        names: file of known names, one a line, for `swapped`; by default those that the source gives.
        weight: of a position, those of edits weighing 1.
        max_new_tokens: longest text.
    """

    text: int = 0
    alike: int = 0
    swapped: int = 0
    names: str | None = None
    weight: float = 1.0
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        if min(self.text, self.alike, self.swapped) < 0 or self.weight < 0 or self.max_new_tokens < 1:
            raise ValueError(f"data.regularisation holds a negative number, or max_new_tokens 0: {self}")

    @property
    def wanted(self) -> bool:
        return bool(self.weight and (self.text or self.alike or self.swapped))

    def file(self, knowledge: Knowledge, backbone: Backbone, seed: int) -> Path:
        """Where the texts stand that the model writes, or will stand."""
        names = [[fact.id, fact.name] for fact in knowledge.facts]
        model = ModelGenerator(backbone)
        about = [names, model.name, model.revision, self.text, self.alike, self.max_new_tokens, seed]
        digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
        return cache_folder() / "texts" / f"{digest}.jsonl"

    def write(self, knowledge: Knowledge, backbone: Backbone, seed: int) -> None:
        """Let the initial model write its texts, unless they are there."""
        file = self.file(knowledge, backbone, seed)
        if not (self.text or self.alike) or file.is_file():
            return
        tokenizer = load_tokenizer(str(backbone.source), backbone.revision)
        start = start_ids(tokenizer)
        prompts: list[list[int]] = []
        facts: list[int] = []
        for number, fact in enumerate(knowledge.facts):
            first = encode(tokenizer, [fact.name], leading_space=True)[0].ids[:1].tolist()
            prompts += [start or first] * self.text + [start + first] * self.alike
            facts += [number] * (self.text + self.alike)
        model = load_causal(backbone, tokenizer).to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
        pace, done = Pace("texts to stay the same on", len(prompts), "texts"), 0

        def progress(more: int) -> None:
            nonlocal done
            done += more
            pace.at(done)

        written = sample(model, tokenizer, prompts, max_new_tokens=self.max_new_tokens, seed=seed, progress=progress)
        texts = [
            (decode(tokenizer, prompt, special=False) + text).strip()
            for prompt, text in zip(prompts, written, strict=True)
        ]
        lines = [json.dumps({"fact": fact, "text": text}) for fact, text in zip(facts, texts, strict=True) if text]
        write_whole(file, "\n".join(lines) + "\n")

    def sentences(
        self, knowledge: Knowledge, edits: Sequence[Sentence], backbone: Backbone, seed: int
    ) -> list[Sentence]:
        """All texts, each with the fact in whose steps it is read.

        Args:
            knowledge: facts and known names.
            edits: the sentences of the transfer set, whose names are swapped.
            backbone: the model that wrote its texts by `write`.
            seed: of the names.

        Raises:
            DataError: names are to be swapped, and none are known.
        """
        found = []
        if self.text or self.alike:
            for where, record in read_json_lines(self.file(knowledge, backbone, seed)):
                fact, text = fields(record, where, fact=int, text=str)
                found.append(Sentence(fact, "", text, None, Kind.TEXT))
        return found + (self._swapped(knowledge, edits, seed) if self.swapped else [])

    def _swapped(self, knowledge: Knowledge, edits: Sequence[Sentence], seed: int) -> list[Sentence]:
        names = knowledge.known
        if self.names is not None:
            lines = existing_file(self.names, "data.regularisation.names").read_text(encoding="utf-8").splitlines()
            names = [line.strip() for line in lines if line.strip()]
        if not names:
            raise DataError(
                "data.regularisation.swapped needs names that the model knows, and the source gives none: give a file "
                "of them, one a line, as data.regularisation.names, or set swapped to 0"
            )
        found: list[Sentence] = []
        of_fact: dict[int, list[Sentence]] = {}
        for sentence in edits:
            if sentence.mention is not None:
                of_fact.setdefault(sentence.fact, []).append(sentence)
        for fact, own in of_fact.items():
            rng = random.Random(f"swapped {seed} {knowledge.facts[fact].id}")
            for number in range(self.swapped):
                frame, name = own[number % len(own)], rng.choice(names)
                assert frame.mention is not None
                start, end = frame.mention
                text = frame.text[:start] + name + frame.text[end:]
                found.append(Sentence(fact, "", text, (start, start + len(name)), Kind.SWAPPED))
        return found
