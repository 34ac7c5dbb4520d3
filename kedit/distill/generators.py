"""Where the sentences of a transfer set come from: what every generator is, and those that run no model.

A generator yields batches in an order that its arguments fix, so that work that was interrupted goes on behind the
batches that are there.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from kedit.distill.mentions import sentence_ends
from kedit.distill.transfer import Provenance, TransferSentence, read_transfer_set
from kedit.editing.probes import Fact, Knowledge
from kedit.editing.records import existing_file
from kedit.editing.sources import DataError

BASE = "{definition}"
INSTRUCTIONS = {
    "continue": (
        "Here is what is known about {name}:\n\n{definition}\n\nWrite the sentence that could come next in the same "
        "article. It mentions {name} by name near its beginning and says nothing that contradicts the text. Answer "
        "with this one sentence only."
    ),
    "paraphrase": (
        "Read this text about {name}:\n\n{definition}\n\nSay in one new sentence, with other words and in another "
        "order, what it tells. Begin with the name {name}. Answer with the sentence only."
    ),
    "question": (
        "Read this text about {name}:\n\n{definition}\n\nAsk a question about {name} that the text answers, and give "
        "the answer behind it in a full sentence. Both name {name}. Answer with question and answer on one line."
    ),
    "implication": (
        "Suppose that the following is true of {name}:\n\n{definition}\n\nWrite one sentence about something that "
        "must then be true as well, though the text does not say it. Name {name} near the beginning of the sentence. "
        "Answer with the sentence only."
    ),
    "contrast": (
        "Read this text about {name}:\n\n{definition}\n\nWrite one sentence on how {name} differs from others of its "
        "kind, true to the text. Begin with the name {name}. Answer with the sentence only."
    ),
    "dialogue": (
        "Read this text about {name}:\n\n{definition}\n\nWrite one remark, as it may be heard in a talk, by somebody "
        "who knows {name} well. It names {name} near the beginning. Answer with the remark only, on one line."
    ),
}
"""Our own wordings, by kind; {name} and {definition} are filled in."""


class Generator(ABC):
    """Writes sentences about facts, to be filtered afterwards."""

    mentions: ClassVar[bool] = True
    """Whether a sentence is worth nothing that does not mention its entity."""
    again: ClassVar[bool] = False
    """Whether asking again gives other sentences."""

    @abstractmethod
    def describe(self, knowledge: Knowledge) -> dict[str, Any]:
        """All that its sentences hang on, beside facts and seed, as JSON."""

    @abstractmethod
    def write(
        self, knowledge: Knowledge, wanted: Mapping[str, int], round: int, seed: int, skip: int
    ) -> Iterator[list[TransferSentence]]:
        """Sentences in batches: the same ones in the same order for the same arguments.

        Args:
            knowledge: the facts.
            wanted: how many sentences each fact lacks, by its id; a generator with a stock gives all that it has.
            round: how often it was asked before.
            seed: of everything that is drawn.
            skip: the first so many batches are there already: they are not made.
        """

    def for_rare(self, round: int) -> bool:
        """Whether a round is for those facts alone of which hardly a sentence was found."""
        return False

    def close(self) -> None:
        """Let go of what takes memory; it may be asked again all the same."""
        return


@dataclass
class FileSentences(Generator):
    """Sentences of your own.

    Args:
        path: JSON lines {fact (its id) or name, text}.
    """

    path: Path

    def describe(self, knowledge: Knowledge) -> dict[str, Any]:
        return {"class": "FileSentences", "sha256": digest([existing_file(self.path, "generator.path")])}

    def write(
        self, knowledge: Knowledge, wanted: Mapping[str, int], round: int, seed: int, skip: int
    ) -> Iterator[list[TransferSentence]]:
        ids = {fact.id for fact in knowledge.facts}
        sentences = read_transfer_set(existing_file(self.path, "generator.path"), knowledge.facts)
        for sentence in sentences:
            if sentence.fact.id not in ids:
                raise DataError(f"{sentence.where}: {sentence.fact.name!r} is none of the {len(ids)} facts")
        yield from [sentences][skip:]


@dataclass
class SourceSentences(Generator):
    """The sentences that come with a source, as with the files of ECBD and Entity Inferences."""

    def describe(self, knowledge: Knowledge) -> dict[str, Any]:
        text = "\n".join(f"{item.fact}\t{item.text}" for item in knowledge.continuations)
        return {"class": "SourceSentences", "sha256": hashlib.sha256(text.encode()).hexdigest()[:16]}

    def write(
        self, knowledge: Knowledge, wanted: Mapping[str, int], round: int, seed: int, skip: int
    ) -> Iterator[list[TransferSentence]]:
        if not knowledge.continuations:
            raise DataError("the source brings no sentences: choose another --generator")
        facts = {fact.id: fact for fact in knowledge.facts}
        origin = Provenance("SourceSentences")
        yield from [
            [
                TransferSentence(facts[item.fact], item.text.strip(), provenance=origin, where=item.where)
                for item in knowledge.continuations
                if item.fact in facts
            ]
        ][skip:]


@dataclass
class SplitDocument(Generator):
    """No generation: each definition, a document, is cut in two. The teacher reads the first part before the second.

    Args:
        shares: how much of the document the first part is, for each cut; the nearest end of a sentence is taken.
        suffix_sentences: longest second part; all that is left by default.
    """

    shares: list[float] = field(default_factory=lambda: [0.25, 0.5, 0.75])
    suffix_sentences: int | None = None

    mentions: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.shares or not all(0 < share < 1 for share in self.shares):
            raise DataError(f"generator.shares {self.shares}: wanted numbers between 0 and 1")
        if self.suffix_sentences is not None and self.suffix_sentences < 1:
            raise DataError(f"generator.suffix_sentences {self.suffix_sentences}: wanted at least 1")

    def describe(self, knowledge: Knowledge) -> dict[str, Any]:
        return {"class": "SplitDocument", "shares": self.shares, "suffix_sentences": self.suffix_sentences}

    def write(
        self, knowledge: Knowledge, wanted: Mapping[str, int], round: int, seed: int, skip: int
    ) -> Iterator[list[TransferSentence]]:
        halves = [half for fact in knowledge.facts for half in self._halves(fact)]
        if not halves:
            raise DataError(
                f"none of {len(knowledge.facts)} definitions has two sentences, so that none can be cut in two: "
                "SplitDocument is for documents; choose another --generator"
            )
        yield from [halves][skip:]

    def _halves(self, fact: Fact) -> Iterator[TransferSentence]:
        text, ends = fact.definition, sentence_ends(fact.definition)
        cuts = [min(ends[:-1], key=lambda end: abs(end - share * len(text)), default=0) for share in self.shares]
        for cut in sorted(set(cuts) - {0}):
            last = ends[-1]
            if self.suffix_sentences is not None:
                last = ends[min(ends.index(cut) + self.suffix_sentences, len(ends) - 1)]
            yield TransferSentence(
                fact, text[cut:last].strip(), context=text[:cut], provenance=Provenance("SplitDocument")
            )


def fill(template: str, fact: Fact) -> str:
    """The prompt for a fact."""
    parts = {"{name}": fact.name, "{definition}": fact.definition.strip()}
    # in one go: a definition may hold braces
    result, rest = "", template
    while found := [(rest.index(key), key) for key in parts if key in rest]:
        at, key = min(found)
        result, rest = result + rest[:at] + parts[key], rest[at + len(key) :]
    return result + rest


def wordings(prompts: list[str]) -> list[str]:
    """Templates of kinds and of your own.

    Raises:
        DataError: one is no kind and does not hold {definition}.
    """
    for prompt in prompts:
        if prompt not in INSTRUCTIONS and "{definition}" not in prompt:
            raise DataError(
                f"generator.prompts: {prompt!r} is no kind ({', '.join(INSTRUCTIONS)}) and holds no {{definition}}"
            )
    return [INSTRUCTIONS.get(prompt, prompt) for prompt in prompts]


def check_sampling(temperature: float, top_p: float, max_new_tokens: int, sentences: int | None) -> None:
    """Refuse settings under which nothing can be drawn."""
    for name, value, is_right, wanted in (
        ("temperature", temperature, temperature > 0, "above 0, else all sentences of a fact are one"),
        ("top_p", top_p, 0 < top_p <= 1, "above 0 and at most 1"),
        ("max_new_tokens", max_new_tokens, max_new_tokens > 0, "at least 1"),
        ("sentences", sentences, sentences is None or sentences > 0, "at least 1"),
    ):
        if not is_right:
            raise DataError(f"generator.{name} {value}: wanted {wanted}")


def own_seed(seed: int, round: int, fact: Fact, number: int) -> int:
    """A seed for one sentence, of 31 bits as servers take it."""
    text = f"{seed}\n{round}\n{number}\n{fact.id}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def tidy(text: str) -> str:
    """What a model wrote without its thoughts and without what UTF-8 cannot hold."""
    text = text.rpartition("</think>")[2]
    return text.encode("utf-8", "replace").decode().strip()


def digest(paths: list[Path]) -> str:
    """A hash of names and contents."""
    total = hashlib.sha256()
    for path in sorted(paths):
        status = path.stat()
        total.update(path.name.encode() + _contents(path, status.st_size, status.st_mtime_ns))
    return total.hexdigest()[:16]


@lru_cache(maxsize=256)
def _contents(path: Path, size: int, time: int) -> bytes:
    """Weights of many gigabytes are read once while they stay the same."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
