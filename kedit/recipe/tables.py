"""The tables of a repository of edits and the records read from them: the schema, how the database is opened, what may
be stored. Knows no keys.

An edit's row is written once; only the span of changes [since, until) in which it stands moves. A span that ended
before a roll-back brought the edit back is kept in `past`, so that every earlier state can be told.
"""

import re
import sqlite3
import unicodedata
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from kedit.editing.conflicts import normal
from kedit.editing.edits import Edit
from kedit.editing.plain_text import check_text
from kedit.editing.sources import DataError
from kedit.recipe.segments import RepositoryError

DATABASE = "edits.sqlite"
SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE change (number INTEGER PRIMARY KEY, time TEXT NOT NULL, kind TEXT NOT NULL, message TEXT NOT NULL,
    added INTEGER NOT NULL, ended INTEGER NOT NULL);
CREATE TABLE edit (number INTEGER PRIMARY KEY, id TEXT NOT NULL, prompt TEXT NOT NULL, target TEXT NOT NULL,
    subject TEXT NOT NULL, relation TEXT NOT NULL, created TEXT NOT NULL, source TEXT NOT NULL,
    crc INTEGER NOT NULL, prompt_hash BLOB NOT NULL, since INTEGER NOT NULL, until INTEGER);
CREATE UNIQUE INDEX edit_id ON edit (id);
CREATE INDEX edit_prompt ON edit (prompt_hash);
CREATE INDEX edit_since ON edit (since);
CREATE INDEX edit_until ON edit (until) WHERE until IS NOT NULL;
CREATE TABLE past (number INTEGER NOT NULL, since INTEGER NOT NULL, until INTEGER NOT NULL,
    PRIMARY KEY (number, since, until)) WITHOUT ROWID;
CREATE TABLE stretch (first INTEGER PRIMARY KEY, rows INTEGER NOT NULL, crc INTEGER NOT NULL);
"""

TEXTS = ("id", "prompt", "target", "subject", "relation", "created", "source")
COLUMNS = """number, id, prompt, target, subject, relation, created, source, crc, until IS NULL,
    CASE WHEN until IS NULL THEN '' ELSE coalesce(
        (SELECT id FROM edit AS newer WHERE newer.prompt_hash = edit.prompt_hash AND newer.until IS NULL), '') END"""
META: dict[str, Callable[[str], object]] = {"schema": int, "repository": bytes.fromhex, "encoder": str,
    "generation": int, "key_width": int, "dtype": str}  # fmt: skip
STANDS = "until IS NULL"
STOOD = """((since <= :at AND (until IS NULL OR until > :at))
    OR number IN (SELECT number FROM past WHERE since <= :at AND until > :at))"""

NETWORK = {"nfs", "nfs4", "lustre", "cifs", "smb3", "smbfs", "beegfs", "gpfs", "ceph", "afs", "panfs", "orangefs",
           "glusterfs", "fuse.glusterfs", "fuse.sshfs", "fuse.ceph", "fuse.juicefs"}  # fmt: skip
"""File systems on which processes of several hosts would share what only works on one."""


@dataclass(frozen=True, slots=True)
class StoredEdit:
    """An edit as the repository holds it.

    Args:
        id: the edit's own where that was free, else with its number behind it; unique in the repository.
        number: counts the edits ever written, from 1; its key is row number - 1.
        edit: prompt, target, subject and relation; probes are not kept.
        created: when it was written, ISO 8601 in UTC.
        source: where it came from.
        live: whether it stands, or stood at the point in time that was asked for.
        replaced_by: id of the edit with the same prompt that stands instead; empty where it stands or was forgotten.
    """

    id: str
    number: int
    edit: Edit
    created: str
    source: str
    live: bool = True
    replaced_by: str = ""


class Change(NamedTuple):
    """A line of the log.

    Args:
        number: of the change, from 1: what `roll_back` takes.
        time: ISO 8601 in UTC.
        kind: "add", "forget", "snapshot", "roll back", "encode".
        message: what a snapshot was named, or what was done.
        added: edits that stand since.
        ended: edits that no longer do.
    """

    number: int
    time: str
    kind: str
    message: str
    added: int
    ended: int


def prompt_hash(prompt: str) -> bytes:
    """The same for prompts that count as the same."""
    return blake2b(normal(prompt).encode(), digest_size=16).digest()


def same_target(one: str, other: str) -> bool:
    """Whether two targets are the same but for spaces; another case may be what an edit is for."""
    first, second = (unicodedata.normalize("NFC", text).split() for text in (one, other))
    return first == second


def checksum(fields: Sequence[str]) -> int:
    """Of an edit's texts: SQLite itself does not notice a changed letter."""
    return zlib.crc32("\x1f".join(fields).encode())


def stored(row: Sequence[Any], then: bool = False) -> StoredEdit:
    """The record of a row of `COLUMNS`.

    Args:
        row: as selected.
        then: whether it was selected as it stood at an earlier change.

    Raises:
        RepositoryError: the texts are not those that were written.
    """
    number, *texts, crc, live, replaced_by = row
    if not all(isinstance(text, str) for text in texts) or checksum(texts) != crc:
        raise RepositoryError(f"edit number {number} ({texts[0]!r}) is damaged: restore {DATABASE} from a backup")
    id_, prompt, target, subject, relation, created, source = texts
    edit = Edit(id_, prompt, target, subject, relation)
    return StoredEdit(id_, number, edit, created, source, then or bool(live), "" if then else replaced_by)


def texts_of(one: StoredEdit) -> tuple[str, ...]:
    """The values of `TEXTS`."""
    edit = one.edit
    return (one.id, edit.prompt, edit.target, edit.subject, edit.relation, one.created, one.source)


def check_texts(edits: Sequence[Edit]) -> None:
    """Refuse what cannot be stored or would change how a model reads it.

    Raises:
        DataError: a text is empty, too long or holds control characters; row and field are named.
    """
    for row, edit in enumerate(edits, 1):
        where = f"edit {row} of {len(edits)} ({edit.where or repr(edit.id[:60])})" if len(edits) > 1 else edit.where
        for field in ("id", "prompt", "target", "subject", "relation", "where"):
            text = getattr(edit, field)
            if not isinstance(text, str):
                raise DataError(f"{where}: {field!r} is {type(text).__name__}, wanted a string")
            check_text(text, where or "the edit", field, may_be_empty=field not in ("prompt", "target"))


def file_system(folder: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """The kind of file system that holds a folder; empty where the system does not tell."""
    if not mounts.is_file():
        return ""
    path, best, kind = folder.resolve(), -1, ""
    for line in mounts.read_text(errors="replace").splitlines():
        before, _, behind = line.partition(" - ")
        point = Path(re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), before.split(" ")[4]))
        if path.is_relative_to(point) and len(point.parts) >= best:  # the last mount on a point is the one seen
            best, kind = len(point.parts), behind.split(" ")[0]
    return kind


def _reader(path: Path) -> sqlite3.Connection:
    place = f"{path.resolve().as_uri()}?mode=ro"
    database = sqlite3.connect(place, uri=True, isolation_level=None, timeout=30)
    try:
        database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        # where nothing can be written, not even the index of the log, a database without a log is read as it lies
        log = path.with_name(f"{path.name}-wal")
        if log.exists() and log.stat().st_size:
            raise
        database.close()
        database = sqlite3.connect(f"{place}&immutable=1", uri=True, isolation_level=None)
    return database


def connect(path: Path, read_only: bool, network: bool) -> sqlite3.Connection:
    """Open the database: a reader never writes, a writer's commits are on the disk when they return.

    Raises:
        RepositoryError: the file is no database, or a damaged one.
    """
    try:
        if read_only:
            database = _reader(path)
        else:
            database = sqlite3.connect(path, isolation_level=None, timeout=30)
            database.execute(f"PRAGMA journal_mode = {'DELETE' if network else 'WAL'}")
            database.execute(f"PRAGMA synchronous = {'EXTRA' if network else 'FULL'}")
            database.execute("PRAGMA wal_autocheckpoint = 4000")
        database.execute("PRAGMA cache_size = -65536")
        database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.DatabaseError as error:
        raise RepositoryError(f"{path} cannot be read ({error}): restore it from a backup or an export") from error
    return database
