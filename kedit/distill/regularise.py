"""Text on which the student is to stay what it was: the teacher reads it without any definition.

The leak to neighbours is this method's weakness: what is said of a new name spreads to names like it. So beside plain
text there is text that begins as a sentence about the new name does, with only the first letters of the name, which the
initial model goes on to names that it knows; and there are the transfer set's own sentences about somebody else, known
or of a name that is nearly the new one.
"""

import hashlib
import json
import random
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit.distill.language_model import ModelGenerator
from kedit.distill.mentions import count_words, end_of_line, find_mention
from kedit.distill.near_names import near_names
from kedit.distill.rows import Kind, Sentence
from kedit.distill.sampling import sample
from kedit.editing.probes import Fact, Knowledge, Probe
from kedit.editing.records import existing_file, read_json_lines
from kedit.editing.sources import DataError
from kedit.lm.backbones import Backbone, load_causal, load_tokenizer
from kedit.lm.cache import cache_folder
from kedit.lm.causal import start_ids
from kedit.lm.text import decode, encode
from kedit.running.files import write_whole
from kedit.running.pace import Pace

OPENING = 3
"""Fewer words left of a probe's span do not make the probe."""
FORMAT = 6
"""Of what is kept: raised where the same arguments give other sentences."""


@dataclass
class Regularisation:
    """How much of it there is for every fact, and what it weighs.

    Args:
        text: sentences that the initial model writes from nothing. What a source forbids in a transfer set is left out
            here too.
        alike: sentences that it writes from the first tokens of the fact's name, every second time behind what stands
            before the name in a sentence of the transfer set: about known names that begin alike.
        swapped: sentences of the transfer set with a known name in the place of the fact's.
        near: sentences of the transfer set with a name that has only the first tokens of the fact's name, or only the
            last (`near_names`): the whole of it must be read before anything is said of it.
        ratio: how many of these are read with every sentence of the transfer set; each pass takes the next ones.
        weight: of a position, those of edits weighing 1.
        names: file of known names, one a line, for `swapped`; by default those that the source gives.
        asked_about: whether the sentences may name those whom probes of specificity ask about, in other words than the
            probes. What the model writes names all that it knows; without, change is measured on what nothing holds.
        max_new_tokens: longest sentence.
    """

    text: int = 0
    alike: int = 0
    swapped: int = 0
    near: int = 0
    ratio: float = 2.0
    weight: float = 1.0
    names: str | None = None
    asked_about: bool = True
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        least = min(self.text, self.alike, self.swapped, self.near, self.ratio, self.weight)
        if least < 0 or self.max_new_tokens < 1:
            raise ValueError(f"data.regularisation holds a negative number, or max_new_tokens 0: {self}")

    @property
    def wanted(self) -> bool:
        return bool(self.weight and self.ratio and (self.text or self.alike or self.swapped or self.near))

    def sentences(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, knowledge: Knowledge,
        edits: Sequence[Sentence], seed: int, progress: Callable[[int], None] | None = None, bos: bool | None = None,
    ) -> list[Sentence]:  # fmt: skip
        """All of it, each with the fact in whose steps it is read, but for what names a fact that is to be learned (the
        model is not to stay the same there) and what a probe asks (it would be judged by what it was trained on).

        Args:
            model: the initial model, which writes.
            tokenizer: its tokenizer.
            knowledge: facts, and known names.
            edits: the sentences of the transfer set.
            seed: of the sampling and of all choices.
            progress: told how many more sentences are written.
            bos: what they are written behind, as `start_ids` says.

        Raises:
            DataError: names are to be swapped, and none are known.
        """
        renamed = self._swapped(knowledge, edits, seed) if self.swapped else []
        renamed += self._near(tokenizer, knowledge, edits, seed) if self.near else []
        found = self._written(model, tokenizer, knowledge.facts, edits, seed, progress, bos) + renamed
        return without_probes(found, knowledge, self.asked_about)

    def _written(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact],
        edits: Sequence[Sentence], seed: int, progress: Callable[[int], None] | None, bos: bool | None,
    ) -> list[Sentence]:  # fmt: skip
        if not self.text + self.alike:
            return []
        rng = random.Random(f"written {seed}")
        start = start_ids(tokenizer, bos)
        nothing = start or start_ids(tokenizer)  # even a model that is asked without BOS needs something to begin with
        names = [name.ids.tolist() for name in encode(tokenizer, [fact.name for fact in facts], leading_space=True)]
        frames = [one.text[: one.mention[0]].rstrip() for one in edits if one.mention is not None and one.mention[0]]
        before = [frame.ids.tolist() for frame in encode(tokenizer, frames, leading_space=True)] or [[]]
        prompts: list[list[int]] = []
        for name in names:
            prompts += [nothing or name[:1]] * self.text
            for number in range(self.alike):
                beginning = name[: rng.randint(1, max(1, len(name) - 1))]
                prompts.append(start + (rng.choice(before) if number % 2 else []) + beginning)
        written = sample(
            model, tokenizer, prompts, max_new_tokens=self.max_new_tokens, seed=seed, progress=progress,
            stop=lambda text: end_of_line(text, 1),
        )  # fmt: skip
        found = []
        for number, (prompt, text) in enumerate(zip(prompts, written, strict=True)):
            if whole := (decode(tokenizer, prompt, special=False) + text).strip():
                found.append(Sentence(number // (self.text + self.alike), "", whole, None, Kind.TEXT))
        return found

    def known(self, knowledge: Knowledge) -> list[str]:
        """The names that take a fact's place."""
        names = knowledge.known
        if self.names is not None:
            lines = existing_file(self.names, "data.regularisation.names").read_text(encoding="utf-8").splitlines()
            names = [line.strip() for line in lines if line.strip()]
        if not names:
            raise DataError(
                "data.regularisation.swapped needs names that the model knows, and the source gives none: give a file "
                "of them, one a line, as data.regularisation.names, or set swapped to 0"
            )
        return names

    def _swapped(self, knowledge: Knowledge, edits: Sequence[Sentence], seed: int) -> list[Sentence]:
        names, rng = self.known(knowledge), random.Random(f"swapped {seed}")
        return _renamed(edits, [[rng.choice(names) for _ in range(self.swapped)] for _ in knowledge.facts])

    def _near(
        self, tokenizer: PreTrainedTokenizerBase, knowledge: Knowledge, edits: Sequence[Sentence], seed: int
    ) -> list[Sentence]:
        facts = [fact.name for fact in knowledge.facts]
        known = self.known(knowledge) if knowledge.known or self.names is not None else []
        aliases = [name for fact in knowledge.facts for name in fact.aliases]
        rng = random.Random(f"near {seed}")
        names = near_names(tokenizer, facts, known, [*aliases, *probed_entities(knowledge)], self.near, rng)
        if without := sum(not own for own in names):
            print(f"no name is near that of {without:,} of {len(facts):,} facts: of one token, or alone", flush=True)
        return _renamed(edits, names)


def _renamed(edits: Sequence[Sentence], names: Sequence[Sequence[str]]) -> list[Sentence]:
    """The sentences of each fact in turn, with the names [facts] in the place of its own, each once."""
    of_fact: dict[int, list[Sentence]] = {}
    for one in edits:
        if one.mention is not None:
            of_fact.setdefault(one.fact, []).append(one)
    found = []
    for fact, own in of_fact.items():
        for number, name in enumerate(names[fact]):
            frame = own[number % len(own)]
            start, end = frame.mention  # type: ignore[misc]
            text = frame.text[:start] + name + frame.text[end:]
            found.append(Sentence(fact, "", text, (start, start + len(name)), Kind.SWAPPED))
    return found


class _Texts:
    """Texts in which many others are looked for."""

    def __init__(self, whole: Sequence[str]) -> None:
        self.whole, self.joined, self.starts = whole, "\n".join(whole), [0]
        for text in whole:
            self.starts.append(self.starts[-1] + len(text) + 1)

    def holding(self, wanted: Iterable[str]) -> set[int]:
        """Numbers of the texts in which one of these stands word for word."""
        found = set()
        for text in set(wanted) - {""}:
            at = self.joined.find(text)
            while at >= 0:
                number = bisect_right(self.starts, at) - 1
                found.add(number)
                at = self.joined.find(text, self.starts[number + 1])
        return found


def _question(probe: Probe) -> str:
    """A probe up to its span, unless that is no more than an opening."""
    return (probe.left if count_words(probe.left) >= OPENING else probe.left + probe.span).strip()


def answered(texts: Sequence[str], probes: Iterable[Probe]) -> set[int]:
    """Numbers of the texts in which a probe stands with one of its answers, word for word; one that has none by its
    question, unless that is no more than an opening. For sentences of a fact, which may well begin as a probe of it.
    """
    wanted: set[str] = set()
    for probe in probes:
        answers = {probe.span, *probe.answers} - {""}
        wanted |= {(probe.left + answer).strip() for answer in answers}
        if not answers and count_words(probe.left) >= OPENING:
            wanted.add(probe.left.strip())
    return _Texts(texts).holding(wanted)


def probed_entities(knowledge: Knowledge) -> list[str]:
    """Whom the probes of specificity ask about, as far as they say."""
    return sorted({probe.entity for probes in knowledge.specificity.values() for probe in probes} - {""})


def without_probes(sentences: Sequence[Sentence], knowledge: Knowledge, asked_about: bool = True) -> list[Sentence]:
    """The sentences that neither name a fact, nor match what is forbidden, nor hold a probe of specificity; without
    `asked_about`, nor name whom these ask about. How many go is printed.
    """
    probes = [probe for probes in knowledge.specificity.values() for probe in probes]
    texts = _Texts([sentence.text for sentence in sentences])
    whole = texts.whole

    def naming(names: Sequence[str]) -> set[int]:
        return {number for number in texts.holding(names) if find_mention(whole[number], names)}

    named = {number for fact in knowledge.facts for number in naming(fact.names)}
    asked = texts.holding(map(_question, probes))
    if patterns := [re.compile(pattern.replace("{name}", ".+?")) for pattern in knowledge.forbidden]:
        asked |= {number for number, text in enumerate(whole) if any(one.search(text) for one in patterns)}
    if not asked_about:
        asked |= naming(probed_entities(knowledge))
    if named or asked:
        print(
            f"left out of {len(whole):,} sentences to stay the same on: {len(named):,} that name what is to be "
            f"learned, {len(asked - named):,} in which a probe stands"
            + ("" if asked_about else ", or somebody it asks about"),
            flush=True,
        )
    return [sentence for number, sentence in enumerate(sentences) if number not in named | asked]


@dataclass(frozen=True)
class KeptTexts:
    """The regularising sentences of a run, written when they are first needed and kept in the cache.

    Args:
        regularisation: how much of it.
        backbone: the initial model.
        seed: of the sampling.
    """

    regularisation: Regularisation
    backbone: Backbone
    seed: int

    def file(self, knowledge: Knowledge, edits: Sequence[Sentence]) -> Path:
        """Where they stand, or will stand."""
        model, wanted = ModelGenerator(self.backbone), self.regularisation
        names = wanted.known(knowledge) if wanted.swapped or wanted.names is not None else knowledge.known
        probes = [probe.left for probes in knowledge.specificity.values() for probe in probes]
        about = [FORMAT, [fact.names for fact in knowledge.facts], names, [list(one) for one in edits], model.name,
                 model.revision, vars(wanted), self.seed, probes, probed_entities(knowledge),
                 knowledge.forbidden]  # fmt: skip
        digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
        return cache_folder() / "texts" / f"{digest}.jsonl"

    def write(self, knowledge: Knowledge, edits: Sequence[Sentence]) -> None:
        """Have them written, unless they are there."""
        file = self.file(knowledge, edits)
        if file.is_file():
            return
        tokenizer = load_tokenizer(str(self.backbone.source), self.backbone.revision)
        model = load_causal(self.backbone, tokenizer)
        model = model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
        wanted = self.regularisation
        pace, done = Pace("text to stay the same on", len(knowledge.facts) * (wanted.text + wanted.alike), "texts"), 0

        def progress(more: int) -> None:
            nonlocal done
            done += more
            pace.at(done)

        sentences = wanted.sentences(model, tokenizer, knowledge, edits, self.seed, progress)
        lines = [{"sentences": len(sentences)}, *map(list, sentences)]
        write_whole(file, "".join(json.dumps(line) + "\n" for line in lines))

    def read(self, knowledge: Knowledge, edits: Sequence[Sentence]) -> list[Sentence]:
        """What `write` wrote."""
        file, sentences = self.file(knowledge, edits), []
        damaged = DataError(f"{file}: is damaged: delete it, it is made anew")
        try:
            (_, head), *lines = read_json_lines(file)
            for _, (fact, context, text, mention, kind) in lines:
                where = None if mention is None else (int(mention[0]), int(mention[1]))
                sentences.append(Sentence(range(len(knowledge.facts))[fact], context, text, where, Kind(kind)))
        except (ValueError, TypeError, LookupError) as error:
            raise damaged from error
        if head != {"sentences": len(sentences)}:
            raise damaged
        return sentences
