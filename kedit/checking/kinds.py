"""What kinds of files there are, and by which reader each is read. No format is known here: the readers know them."""

import contextlib
import io
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kedit.benchmarks import (
    AidaTesta,
    CounterFact,
    Ecbd,
    EntityInferences,
    KnowEdit,
    Kore50,
    NaturalQuestions,
    RippleEdits,
    Rss500,
    Sentences,
    WebQuestions,
    Zsre,
)
from kedit.benchmarks.ecbd import popular
from kedit.benchmarks.edit_tables import EditTable
from kedit.benchmarks.tables import read_table
from kedit.checking.configuration import check_configuration
from kedit.checking.stored import check_checkpoint, check_repository
from kedit.checking.suspicions import suspicions, unseen
from kedit.distill.transfer import read_transfer_set
from kedit.editing.edit_file import read_edits
from kedit.editing.facts import read_facts
from kedit.editing.probes import KnowledgeSource
from kedit.editing.problems import BadInput, Problem
from kedit.editing.sources import MentionSource, QuestionSource
from kedit.kilm import structured, wikipedia
from kedit.kilm.corpus import Corpus
from kedit.kilm.data import read_mentions
from kedit.kilm.titles import check_descriptions


@dataclass
class Reading:
    """What a file holds that can be used.

    Args:
        records: how many, of whatever the kind counts.
        notes: what the readers take, and is worth a look.
    """

    records: int
    notes: Sequence[Problem] = field(default_factory=list)


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Args:
        summary: what it is, for the list of kinds.
        read: reads all of it, by the reader that the commands use.
        remedy: what to do where a complaint does not say.
        unit: what is counted.
    """

    summary: str
    read: Callable[[Path], Reading]
    remedy: str = "correct the file, or make it again"
    unit: str = "records"


def _table(source: type[EditTable]) -> Callable[[Path], Reading]:
    def read(path: Path) -> Reading:
        table = source(path)
        if not isinstance(table.table, Path):
            raise BadInput("", f"no file {path}", "check the name: data sets of the hub are not fetched here")
        with contextlib.redirect_stderr(io.StringIO()):  # what it says there is in `skipped`
            edits = table.load()
        return Reading(len(edits), [*_left_out(table.skipped), *suspicions(edits)])

    return read


def _asked(source: Callable[[Path], MentionSource | QuestionSource]) -> Callable[[Path], Reading]:
    def read(path: Path) -> Reading:
        return Reading(sum(1 for _ in source(path)))

    return read


def _knowledge(source: Callable[[Path], KnowledgeSource]) -> Callable[[Path], Reading]:
    return lambda path: Reading(len(source(path).load().probes))


def _edits(path: Path) -> Reading:
    edits = read_edits(path)
    return Reading(len(edits), suspicions(edits))


def _facts(path: Path) -> Reading:
    facts = read_facts(path)
    return Reading(
        len(facts), [note for one in facts for note in unseen(one.where, name=one.name, definition=one.definition)]
    )


def _transfer(path: Path) -> Reading:
    sentences = read_transfer_set(path)
    return Reading(len(sentences), [note for one in sentences for note in unseen(one.where, text=one.text)])


def _dump(path: Path) -> Reading:
    parts = wikipedia.split(path, path.stat().st_size)
    count = sum(1 for part in parts for _ in wikipedia.pages(part))
    if not count:
        raise BadInput("", f"{path} holds no pages", wikipedia.AGAIN)
    return Reading(count)


def _descriptions(path: Path) -> Reading:
    check_descriptions(path)
    return Reading(1)


def _corpus(path: Path) -> Reading:
    corpus = Corpus(path)
    corpus.verify()
    return Reading(len(corpus))


def _records(path: Path) -> Reading:
    count = sum(1 for _ in read_table(path))
    if not count:
        raise BadInput(str(path), "no record in it", "see that it is the right file, or name its kind by --kind")
    return Reading(count)


def _left_out(skipped: dict[str, int]) -> Iterable[Problem]:
    for reason, count in skipped.items():
        yield Problem("", f"{count:,} {reason} are left out", "fill in those that are meant to be read")


AGAIN = "get the file again"
KINDS = {
    "edits": Kind("edits as JSON lines of prompt and target, for `edit` and EditFile", _edits, unit="edits"),
    "facts": Kind("facts as JSON lines of id, name and definition", _facts, unit="facts"),
    "transfer": Kind("the sentences of facts, a file or what `transfer` wrote", _transfer, unit="sentences"),
    "mentions": Kind(
        "mentions as JSON lines of text and mention or span, for `predict`",
        lambda path: Reading(sum(1 for _ in read_mentions(path))),
    ),
    "counterfact": Kind("CounterFact, flat or nested", _table(CounterFact), AGAIN),
    "zsre": Kind("ZsRE, of MEND or of KnowEdit", _table(Zsre), AGAIN),
    "knowedit": Kind("KnowEdit's tables", _table(KnowEdit), AGAIN),
    "ripple_edits": Kind("RippleEdits, nested or flat", _table(RippleEdits), AGAIN),
    "ecbd": Kind("ECBD with transfer sentences", _knowledge(Ecbd), AGAIN),
    "entity_inferences": Kind("Entity Inferences with transfer sentences", _knowledge(EntityInferences), AGAIN),
    "popular": Kind(
        "probes of popular entities, as `specificity` names them",
        lambda path: Reading(sum(1 for _ in popular(path, {}, Counter()))),
        AGAIN,
        "probes",
    ),
    "nq_open": Kind("NQ-open", _asked(NaturalQuestions), AGAIN),
    "webquestions": Kind("WebQuestions", _asked(WebQuestions), AGAIN),
    "aida_testa": Kind("folder of AIDA testa with its candidates", _asked(AidaTesta), AGAIN),
    "kore50": Kind("folder of KORE50 with its candidates", _asked(Kore50), AGAIN),
    "rss500": Kind("folder of RSS-500 with its candidates", _asked(Rss500), AGAIN),
    "sentences": Kind("plain text whose sentences no edit concerns", _asked(Sentences), unit="sentences"),
    "dump": Kind("a Wikipedia dump, .xml or .xml.bz2", _dump, wikipedia.AGAIN, "pages"),
    "articles": Kind(
        "a parquet file of wikimedia/structured-wikipedia",
        lambda path: Reading(sum(1 for _ in structured.articles(path, "full"))),
        wikipedia.AGAIN,
    ),
    "descriptions": Kind("a table of titles and descriptions, for `corpus`", _descriptions, unit="table"),
    "corpus": Kind("folder that `corpus` wrote", _corpus, "build it again by `python -m kedit corpus`", "units"),
    "repository": Kind(
        "folder of stored edits, as `edit` makes it",
        lambda path: Reading(check_repository(path)),
        "restore it from a backup or an export",
        "edits",
    ),
    "checkpoint": Kind(
        "a checkpoint, a folder of them, or safetensors",
        lambda path: Reading(check_checkpoint(path)),
        "take another checkpoint of the run, or train again",
        "tensors",
    ),
    "config": Kind(
        "YAML for fit, or for another command",
        lambda path: Reading(*check_configuration(path)),
        "correct it: `python -m kedit COMMAND --help` lists the keys",
        "values",
    ),
    "records": Kind("any table of records: JSON, JSON lines, CSV or Parquet", _records),
}
