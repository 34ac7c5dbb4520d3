"""Facts and the sentences of their transfer sets: what a record holds, files of them, and which are kept.

A transfer set is a file of JSON lines, one sentence a line, that can be read alone. Knows no model and no generator.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from kedit.distill.mentions import count_words, find_mention
from kedit.editing import records
from kedit.editing.facts import check_spelling, read_aliases
from kedit.editing.probes import Fact, check_facts
from kedit.editing.problems import BadInput, each, refuse_empty
from kedit.editing.sources import DataError


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a sentence comes from; None where it does not apply.

    Args:
        generator: class that wrote it.
        model: hub id, folder or name on a server.
        revision: commit, or digest of a folder's files, or what a server tells.
        prompt: the text that was given to the model.
        temperature: of sampling.
        top_p: of sampling.
        max_new_tokens: longest continuation.
        seed: of this sentence.
    """

    generator: str = "file"
    model: str | None = None
    revision: str | None = None
    prompt: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_new_tokens: int | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class TransferSentence:
    """A sentence that carries what a fact's definition says from teacher to student.

    Args:
        fact: the entity and its definition.
        text: the sentence.
        mention: [start, end) of the entity's first mention, characters of `text`; None where it mentions it not.
        context: what the teacher reads before the sentence; empty for the definition.
        provenance: where it comes from.
        where: file and line, for complaints.
    """

    fact: Fact
    text: str
    mention: tuple[int, int] | None = None
    context: str = ""
    provenance: Provenance = Provenance()
    where: str = field(default="", compare=False)


SENTENCES = "sentences.jsonl"
ORIGIN = tuple(item.name for item in fields(Provenance))
KEYS = ("fact", "name", "aliases", "definition", "text", "mention", "context", *ORIGIN)


def read_transfer_set(path: str | Path, facts: Iterable[Fact] = ()) -> list[TransferSentence]:
    """The sentences of a file, or of the folder that the command `transfer` wrote, in their order.

    A line needs `text` and its fact: by `fact` (its id) or `name` where that is one of `facts`, else by `name` and
    `definition`. A mention is looked for where the line does not give one (null says that there is none).

    Raises:
        DataError: with file and line: a key is missing or misspelt or holds another type, a fact is not known or is
            another one than in `facts` or an earlier line, offsets lie outside the text; or the file holds none.
    """
    if (path := Path(path)).is_dir():
        path /= SENTENCES
    if not path.is_file():
        remedy = "wanted a transfer set, as the command transfer writes it, or JSON lines"
        raise BadInput("", f"no file {path}", remedy)
    known = {fact.id: fact for fact in facts}
    by_name = {fact.name: fact for fact in known.values()}

    def read(line: Any, where: str) -> TransferSentence:
        (text,) = records.fields(line, where, text=str)
        check_spelling(line, KEYS, where)
        if not text.strip():
            raise BadInput(where, "the text is empty", "write the sentence, or leave the line out", "text")
        fact = _fact(line, where, known, by_name)
        if fact.id not in known:
            check_facts([fact])
            if other := by_name.get(fact.name):
                what = f"{fact.name[:60]!r} is fact {fact.id[:60]!r} here and {other.id[:60]!r} at {other.where}"
                raise BadInput(where, what, "give an entity one id", "fact")
            known[fact.id] = by_name[fact.name] = fact
        return from_record(line, fact, where)

    sentences = list(each(records.read_json_lines(path), read))
    if not sentences:
        refuse_empty(BadInput("", f"{path} holds no sentences", "wanted a JSON line for each, with text and fact"))
    return sentences


def write_transfer_set(path: Path, sentences: Iterable[TransferSentence]) -> None:
    """Write the file whole or not at all."""
    beside = path.with_name(f".{path.name}.partial")
    with beside.open("w", encoding="utf-8") as file:
        for sentence in sentences:
            fact = sentence.fact
            about = {"fact": fact.id, "name": fact.name, "aliases": list(fact.aliases), "definition": fact.definition}
            file.write(json.dumps(about | to_record(sentence), ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def to_record(sentence: TransferSentence) -> dict[str, Any]:
    """All that is stored of a sentence, its fact by id only."""
    mention = None if sentence.mention is None else list(sentence.mention)
    record: dict[str, Any] = {"fact": sentence.fact.id, "text": sentence.text, "mention": mention}
    if sentence.context:
        record["context"] = sentence.context
    return record | asdict(sentence.provenance)


def from_record(record: Mapping[str, Any], fact: Fact, where: str = "") -> TransferSentence:
    """A sentence again; its mention is looked for where the record does not say.

    Raises:
        DataError: the mention or the context cannot be one.
    """
    text, context = record["text"], record.get("context") or ""
    mention = record["mention"] if "mention" in record else find_mention(text, fact.names)
    if mention is not None:
        if len(pair := list(mention) if isinstance(mention, list | tuple) else []) != 2 or not all(
            type(offset) is int for offset in pair
        ):
            what = f"'mention' is {records.kind_of(mention)}, wanted [start, end] or null"
            raise BadInput(where, what, "count characters from 0, or leave it out: it is looked for", "mention")
        if not 0 <= pair[0] < pair[1] <= len(text):
            what = f"the mention {pair} lies outside the text of {len(text)} characters"
            raise BadInput(where, what, "correct it, or leave it out: it is looked for", "mention")
        mention = pair[0], pair[1]
    if not isinstance(context, str):
        what = f"'context' is {records.kind_of(context)}, wanted str"
        raise BadInput(where, what, "quote it, or leave it out", "context")
    origin = Provenance(**{key: record[key] for key in ORIGIN if key in record})
    return TransferSentence(fact, text, mention, context, origin, where)


def _fact(line: dict[str, Any], where: str, known: Mapping[str, Fact], by_name: Mapping[str, Fact]) -> Fact:
    for key in ("fact", "name", "definition"):
        if key in line:
            records.fields(line, where, **{key: str})
    id, name, definition = line.get("fact"), line.get("name"), line.get("definition")
    if id is None and name is None:
        raise BadInput(where, "says of no fact", "give 'fact' (its id) or 'name'", "fact")
    fact = known.get(id) if id is not None else by_name.get(name or "")
    if fact is None:
        if name is None or definition is None:
            what = f"no fact {(name if id is None else id)!r} among the {len(known)} facts"
            raise BadInput(where, what, "give the line 'name' and 'definition', or the facts", "fact")
        return Fact(id or name, name, definition, read_aliases(line, where), where)
    for key, mine, other in (("name", name, fact.name), ("definition", definition, fact.definition)):
        if mine is not None and mine != other:
            what = f"the {key} of {fact.id[:60]!r} is {mine[:80]!r}, at {fact.where} {other[:80]!r}"
            raise BadInput(where, what, "make them agree, or leave it out here", key)
    return fact


@dataclass(frozen=True)
class Filters:
    """Which sentences are kept. Every one that is not is counted with its reason.

    Args:
        require_mention: keep only sentences that mention the entity. By default as the generator is meant: all but
            split documents need a mention.
        min_words_after: fewest words behind the mention, where there is one: before it nothing is said of the entity.
        min_words: fewest words of a sentence.
        max_words: most words of a sentence.
        whole_sentences: keep only what ends as a sentence does.
        forbidden: regular expressions that no sentence may match, such as the wording of probes kept for a test;
            {name} in one stands for the entity's name or alias.
    """

    require_mention: bool | None = None
    min_words_after: int = 2
    min_words: int = 3
    max_words: int = 120
    whole_sentences: bool = False
    forbidden: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not 0 <= self.min_words <= self.max_words:
            raise DataError(f"filters: min_words {self.min_words} and max_words {self.max_words} leave nothing")
        for pattern in self.forbidden:
            try:
                re.compile(pattern.replace("{name}", ""))
            except re.error as error:
                raise DataError(f"filters.forbidden: {pattern!r} is no regular expression: {error}") from None

    def judge(self, sentence: TransferSentence, seen: set[str]) -> TransferSentence | str:
        """The sentence with its mention, or the reason why it goes.

        Args:
            sentence: as it was written; a mention that it has already is kept.
            seen: what was kept of the same fact, whitespace and case apart; what is kept is added.
        """
        text, names = sentence.text, sentence.fact.names
        if not text.strip():
            return "empty"
        mention = sentence.mention or find_mention(text, names)
        if mention is None and self.require_mention is not False:
            return "no mention"
        if mention is not None and count_words(text[mention[1] :]) < self.min_words_after:
            return "too little after the mention"
        words = count_words(text)
        if words < self.min_words:
            return "too short"
        if words > self.max_words:
            return "too long"
        if self.whole_sentences and not re.search(r"[.!?…。！？][\"'”’»)\]」』）]*$", text.rstrip()):
            return "unfinished"
        if find_forbidden(text, names, self.forbidden) is not None:
            return "forbidden"
        key = f"{sentence.context}\n{' '.join(text.split()).casefold()}"
        if key in seen:
            return "duplicate"
        seen.add(key)
        return replace(sentence, mention=mention)


def find_forbidden(text: str, names: tuple[str, ...], patterns: Sequence[str]) -> int | None:
    """Where the first match of forbidden wordings begins; {name} in them stands for one of the names."""
    found = (_compiled(pattern, names).search(text) for pattern in patterns)
    return min((one.start() for one in found if one is not None), default=None)


@lru_cache(maxsize=4096)
def _compiled(pattern: str, names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(pattern.replace("{name}", f"(?:{'|'.join(map(re.escape, names))})"))


def count(facts: Sequence[Fact], kept: Iterable[TransferSentence], dropped: Mapping[str, int]) -> dict[str, Any]:
    """How many sentences there are, what was dropped and why, and which facts have none."""
    sentences = Counter(sentence.fact.id for sentence in kept)
    return {
        "facts": len(facts),
        "sentences": sentences.total(),
        "drafts": sentences.total() + sum(dropped.values()),
        "dropped": dict(sorted(dropped.items())),
        "sentences_per_fact": {str(n): c for n, c in sorted(Counter(sentences[fact.id] for fact in facts).items())},
        "facts_without_sentence": [fact.id for fact in facts if not sentences[fact.id]],
    }


def summary(counts: Mapping[str, Any]) -> str:
    """The counts in a line or two."""
    dropped = ", ".join(f"{number:,} {reason}" for reason, number in counts["dropped"].items()) or "none"
    line = f"{counts['sentences']:,} sentences for {counts['facts']:,} facts; dropped: {dropped}"
    without = counts["facts_without_sentence"]
    if without:
        more = f" and {len(without) - 10:,} more" if len(without) > 10 else ""
        line += f"\nno sentence for {len(without):,} facts: {', '.join(without[:10])}{more}"
    return line
