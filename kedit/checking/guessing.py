"""Of which kind a file is: by its name where that tells, else by the keys of its first record."""

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from kedit.benchmarks import AidaTesta, Kore50, Rss500
from kedit.benchmarks.tables import FORMATS, read_table
from kedit.distill.transfer import SENTENCES
from kedit.editing.problems import BadInput, collected
from kedit.recipe.tables import DATABASE
from kedit.running.durable import MANIFEST

SUFFIXES = {
    ".yaml": "config", ".yml": "config", ".xml": "dump", ".bz2": "dump", ".ckpt": "checkpoint", ".pt": "checkpoint",
    ".safetensors": "checkpoint", ".sqlite": "repository", ".txt": "sentences", ".tokens": "sentences",
}  # fmt: skip
STARTS = {
    b"BZh": "dump",
    b"<": "dump",
    b"\xef\xbb\xbf<": "dump",
    b"SQLite format": "repository",
    b"PK\x03\x04": "checkpoint",
}
# a record is of the first kind all of whose keys it has
KEYS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("counterfact", ("requested_rewrite",)),
    ("counterfact", ("target_new", "locality_prompt")),
    ("zsre", ("src", "alt")),
    ("zsre", ("prompt", "target_new", "rephrase_prompt")),
    ("ripple_edits", ("edit", "example_type")),
    ("ripple_edits", ("target_new", "Relation_Specificity")),
    ("ripple_edits", ("target_new", "Logical_Generalization")),
    ("ripple_edits", ("target_new", "Compositionality_I")),
    ("ripple_edits", ("target_new", "Subject_Aliasing")),
    ("knowedit", ("prompt", "target_new")),
    ("knowedit", ("concept", "labels")),
    ("entity_inferences", ("probe_sentences", "label")),
    ("ecbd", ("probe_sentences", "augmented_probes")),
    ("ecbd", ("probe_sentences", "context")),
    ("popular", ("probe_sentences",)),
    ("ecbd", ("ex_id", "context")),
    ("webquestions", ("qText",)),
    ("nq_open", ("question", "answer")),
    ("transfer", ("text", "fact")),
    ("transfer", ("text", "definition")),
    ("mentions", ("text", "mention")),
    ("mentions", ("text", "span")),
    ("mentions", ("text", "candidates")),
    ("transfer", ("text", "name")),
    ("edits", ("prompt", "target")),
    ("facts", ("name", "definition")),
    ("articles", ("name", "sections")),
    ("descriptions", ("title", "description")),
    # what is left where one is missing or misspelt
    ("knowedit", ("target_new",)),
    ("edits", ("prompt",)),
    ("edits", ("target",)),
    ("facts", ("definition",)),
    ("facts", ("id", "name")),
    ("nq_open", ("question",)),
    ("ecbd", ("ex_id",)),
    ("mentions", ("mention",)),
    ("mentions", ("text",)),
)


def guess(path: Path) -> str:
    """The name of a file's kind.

    Raises:
        DataError: it is not there, or cannot be told.
        OSError: it may not be read.
    """
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise BadInput("", "no such file", "check the name") if not path.exists() else _unknown("no plain file")
    suffix = path.suffix.lower()
    with path.open("rb") as file:
        head = file.read(512)
    if suffix in SUFFIXES and not (SUFFIXES[suffix] == "sentences" and head.lstrip()[:1] == b"{"):
        return SUFFIXES[suffix]
    if suffix not in FORMATS:
        if ".xml" in path.name:
            return "dump"
        for start, kind in STARTS.items():
            if head.lstrip().startswith(start):
                return kind
        if head.lstrip()[:1] not in (b"{", b"["):
            raise _unknown(f"neither its name nor its beginning {head[:12]!r} tells what it is" if head else "is empty")
    found: list[Any] = []
    with collected(0):
        found += [record for _, record in islice(read_table(path), 1)]
    return _by_keys(found[0]) if found else "records"


def _by_keys(record: Any) -> str:
    if isinstance(record, Mapping):
        for kind, keys in KEYS:
            if all(key in record for key in keys):
                return kind
    shown = ", ".join(map(repr, list(record)[:8])) if isinstance(record, Mapping) else type(record).__name__
    raise _unknown(f"its first record ({shown[:120]}) is of no kind that is known")


def _folder(path: Path) -> str:
    for kind, names in (
        ("repository", (DATABASE,)),
        ("transfer", (SENTENCES,)),
        ("checkpoint", (MANIFEST, "checkpoint")),
        ("corpus", ("tokens.npy", "manifest.json", "build.json", "units")),
        ("aida_testa", AidaTesta.files),
        ("kore50", Kore50.files),
        ("rss500", Rss500.files),
    ):
        if any((path / name).exists() for name in names):
            return kind
    if any(path.glob("keys-*.bin")):
        return "repository"
    if any(path.glob("*.ckpt")) or any(path.glob("*.safetensors")):
        return "checkpoint"
    raise _unknown("is a folder, and holds nothing by which it could be told what of")


def _unknown(what: str) -> BadInput:
    return BadInput("", what, "name what it is by --kind, as in --kind edits; `--kind list` shows them all")
