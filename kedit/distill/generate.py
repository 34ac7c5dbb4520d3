"""The command that writes a transfer set, by any generator.

What a generator wrote is kept batch by batch, so that a run that was killed goes on where it stopped and ends with the
same bytes.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kedit.distill.generators import Generator
from kedit.distill.language_model import ModelGenerator
from kedit.distill.parts import locked
from kedit.distill.sampling import sample
from kedit.distill.transfer import (
    SENTENCES,
    Filters,
    TransferSentence,
    count,
    from_record,
    summary,
    to_record,
    write_transfer_set,
)
from kedit.editing.facts import read_facts
from kedit.editing.probes import Knowledge, KnowledgeSource, check_facts
from kedit.editing.sources import DataError
from kedit.running.files import write_whole
from kedit.running.pace import Pace

__all__ = ["ModelGenerator", "sample", "transfer", "write_sentences"]
FORMAT = 1
RARE = 6
"""A fact has hardly any sentence where it has not this part of what is wanted."""


def transfer(
    generator: Generator,
    output: Path,
    facts: Path | None = None,
    source: KnowledgeSource | None = None,
    filters: Filters | None = None,
    per_fact: int | None = 5,
    rounds: int = 4,
    seed: int = 0,
    validation: bool = False,
) -> Path:
    """Write a transfer set: sentences about entities, from their definitions. Interrupted, the same command goes on.

    Args:
        generator: writes the sentences: ModelGenerator, ServerGenerator, FileSentences, SourceSentences or
            SplitDocument (no generation: a document is cut in two).
        output: folder of the set. sentences.jsonl holds a sentence a line, counts.json what was dropped, and why.
        facts: JSON lines of {id, name, definition, aliases (may be left out)}.
        source: facts of a benchmark or a made-up world instead.
        filters: which sentences are kept. What a source forbids is forbidden too.
        per_fact: sentences of each fact; null keeps all that a file, a source or a document gives.
        rounds: how often a model is asked at most: each time for what facts still lack.
        seed: of everything that is drawn: the same command writes the same bytes.
        validation: for the facts that a source keeps for tuning, instead of those of its test.

    Returns:
        the file of sentences.

    Raises:
        DataError: no facts, or bad ones; another transfer set in the folder; no sentence for any fact.
    """
    if (facts is None) == (source is None):
        raise DataError("wanted facts from one place: give either --facts FILE or --source CLASS")
    knowledge = source.load() if source is not None else Knowledge(read_facts(str(facts)), [])
    if validation:
        if not knowledge.validation_facts:
            raise DataError("--validation: there are no facts for tuning here: leave it out")
        knowledge = replace(knowledge, facts=knowledge.validation_facts)
    return write_sentences(knowledge, generator, Path(output), filters, per_fact, rounds, seed)


def write_sentences(
    knowledge: Knowledge,
    generator: Generator,
    output: Path,
    filters: Filters | None = None,
    per_fact: int | None = 5,
    rounds: int = 4,
    seed: int = 0,
    wait: bool = False,
) -> Path:
    """`transfer` of facts that are at hand; where another run writes the same set, `wait` for it."""
    if not knowledge.facts:
        raise DataError("there are no facts: a transfer set needs at least one")
    check_facts(knowledge.facts)
    if rounds < 1 or (per_fact is not None and per_fact < 1):
        raise DataError(f"--per_fact {per_fact}, --rounds {rounds}: wanted at least 1")
    if per_fact is None and generator.again:
        raise DataError("--per_fact null: a model writes as much as one likes: say how many sentences of each fact")
    filters = filters or Filters()
    if filters.require_mention is None:
        filters = replace(filters, require_mention=generator.mentions)
    filters = replace(filters, forbidden=[*filters.forbidden, *knowledge.forbidden])
    if output.exists() and not output.is_dir():
        raise DataError(f"--output {output} is a file: choose a folder")
    output.mkdir(parents=True, exist_ok=True)
    try:
        with locked(output) if wait else FileLock(output / "lock", timeout=0):
            settings = {
                "format": FORMAT,
                "facts": _hash([(fact.id, fact.name, fact.aliases, fact.definition) for fact in knowledge.facts]),
                "generator": generator.describe(knowledge),
                "filters": asdict(filters),
                "per_fact": per_fact,
                "rounds": rounds if generator.again else 1,
                "seed": seed,
            }
            return _Set(output, settings).write(knowledge, generator, filters)
    except Timeout:
        raise DataError(f"another run is writing in {output}: wait for it, or choose another --output") from None
    finally:
        generator.close()


@dataclass
class _Set:
    """The folder of a transfer set, finished or not.

    Args:
        folder: where it stands.
        settings: all that its sentences hang on.
        drafts: batches of each round that are there already.
    """

    folder: Path
    settings: dict[str, Any]
    drafts: dict[int, list[list[dict[str, Any]]]] = field(default_factory=dict)

    def write(self, knowledge: Knowledge, generator: Generator, filters: Filters) -> Path:
        self._claim()
        counts, sentences = self.folder / "counts.json", self.folder / SENTENCES
        if counts.exists() and sentences.exists():
            told = _json(counts)
            with sentences.open("rb") as file:
                lines = sum(1 for _ in file)
            if told.get("sentences") != lines:
                raise DataError(
                    f"{sentences} has {lines:,} lines, written were {told.get('sentences')}: remove it, and it is "
                    "written anew"
                )
            print(f"{sentences} is complete already: {summary(told)}")
            return sentences
        self._read_drafts()
        facts = {fact.id: fact for fact in knowledge.facts}
        kept: dict[str, list[TransferSentence]] = {id: [] for id in facts}
        seen: dict[str, set[str]] = {id: set() for id in facts}
        dropped: Counter[str] = Counter()
        for round in range(self.settings["rounds"]):
            most = self.settings["per_fact"]
            lacking = {id: (most or 0) - len(of) for id, of in kept.items() if most is None or len(of) < most}
            if not lacking:
                break
            if generator.for_rare(round):
                lacking = {id: number for id, number in lacking.items() if len(kept[id]) * RARE < (most or 0)}
                if not lacking:
                    continue
            for draft in self._round(knowledge, generator, lacking, round):
                id = draft.fact.id
                if most is not None and len(kept[id]) == most:
                    dropped["more than per_fact"] += 1
                    continue
                result = filters.judge(draft, seen[id])
                if isinstance(result, str):
                    dropped[result] += 1
                else:
                    kept[id].append(result)
        found = [sentence for of in kept.values() for sentence in of]
        counted = count(knowledge.facts, found, dropped)
        if not found:
            raise DataError(f"{self.folder}: no sentence was kept for any fact: {summary(counted).splitlines()[0]}")
        write_transfer_set(sentences, found)
        # last of all: by it a set is known to be complete
        write_whole(counts, json.dumps(counted, indent=2, ensure_ascii=False) + "\n")
        self._draft_file.unlink(missing_ok=True)
        print(f"{sentences}: {summary(counted)}")
        return sentences

    @property
    def _draft_file(self) -> Path:
        return self.folder / "drafts.jsonl"

    def _claim(self) -> None:
        """Take the folder, or go on in it.

        Raises:
            DataError: it holds something else, or a set of other settings.
        """
        place = self.folder / "settings.json"
        if place.exists():
            old, new = (
                _flat(_json(place)),
                _flat(json.loads(json.dumps(self.settings))),
            )
            for key in dict.fromkeys([*old, *new]):
                if old.get(key) != new.get(key):
                    raise DataError(
                        f"--output {self.folder} holds a transfer set with {key} {_short(old.get(key))}, asked for is "
                        f"{_short(new.get(key))}: choose another folder or remove this one"
                    )
            return
        if left := [path.name for path in self.folder.iterdir() if path.name != "lock" and path.name[0] != "."]:
            raise DataError(f"--output {self.folder} holds {left[0]} and no transfer set: choose another folder")
        write_whole(place, json.dumps(self.settings, indent=2, ensure_ascii=False) + "\n")

    def _read_drafts(self) -> None:
        if not self._draft_file.exists():
            return
        whole = self._draft_file.read_bytes()
        whole, torn = whole[: whole.rfind(b"\n") + 1], whole[whole.rfind(b"\n") + 1 :]
        if torn:
            os.truncate(self._draft_file, len(whole))
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                batch = json.loads(line)
                self.drafts.setdefault(batch["round"], []).append(batch["drafts"])
            except (ValueError, KeyError, TypeError):
                raise DataError(f"{self._draft_file}:{number}: damaged: remove this line and those behind it") from None

    def _round(
        self, knowledge: Knowledge, generator: Generator, lacking: Mapping[str, int], round: int
    ) -> Iterator[TransferSentence]:
        """The drafts of a round: those that are there, then new ones, each batch kept before it is used."""
        facts = {fact.id: fact for fact in knowledge.facts}
        there = self.drafts.get(round, [])
        done = sum(map(len, there))
        pace = Pace(f"writing sentences, round {round + 1}", sum(lacking.values()), "sentences", done)
        if done:
            print(f"{self._draft_file}: {done:,} sentences of round {round + 1} are there, going on behind them")
        old = ([from_record(record, facts[record["fact"]]) for record in batch] for batch in there)
        new = generator.write(knowledge, lacking, round, self.settings["seed"], len(there))
        with self._draft_file.open("a", encoding="utf-8") as file:
            for number, batch in enumerate(chain(old, new)):
                if number >= len(there):
                    line = {"round": round, "drafts": [to_record(sentence) for sentence in batch]}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                    done += len(batch)
                    pace.at(done)
                yield from batch
        pace.at(done, last=True)


def _json(path: Path) -> dict[str, Any]:
    """What stands in a file of a set.

    Raises:
        DataError: it is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise DataError(f"{path}: is damaged: remove this folder, the set is written anew")
    return content


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _flat(settings: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Nested keys as `generator.model`."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return flat


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:97]}..."
