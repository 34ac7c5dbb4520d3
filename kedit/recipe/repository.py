"""Edits on disk: added, replaced, forgotten, found, rolled back, and their keys. Knows no network and no torch.

SQLite holds the truth, edits as text; keys are a checksummed cache beside it that `reencode` makes again, and prompt
vectors are not stored at all. Shapes: N edits of a call, R edits ever written, D key width.
"""

import sqlite3
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from filelock import FileLock, Timeout

from kedit.editing.edit_file import check_keys
from kedit.editing.edits import Edit
from kedit.editing.records import existing_file, fields, read_json_lines
from kedit.editing.sources import DataError
from kedit.recipe.reading import Page, StoredEdits, stamp_of
from kedit.recipe.segments import (
    DTYPES,
    KeyFile,
    RepositoryError,
    Stamp,
    Stretch,
    create_keys,
    key_path,
)
from kedit.recipe.tables import (
    COLUMNS,
    DATABASE,
    NETWORK,
    SCHEMA,
    SCHEMA_VERSION,
    STANDS,
    STOOD,
    TEXTS,
    Change,
    StoredEdit,
    check_texts,
    checksum,
    file_system,
    prompt_hash,
    same_target,
    stored,
    texts_of,
)
from kedit.running.errors import is_out_of_space, space_message
from kedit.running.files import sync

FULL = {"SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_FSYNC", "SQLITE_IOERR_TRUNCATE", "SQLITE_IOERR_SHMSIZE"}

Encode = Callable[[Sequence[Edit]], Any]
"""Edits to their keys [N, D]: an array, or a tensor on the CPU."""
Check = Callable[[Sequence[Edit]], object]
"""Refuses edits."""


class Counts(NamedTuple):
    """What became of edits that were to be added.

    Args:
        written: new ones.
        replaced: of these, how many took the place of one with the same prompt.
        known: those that stood word for word already; nothing was written for them.
    """

    written: int
    replaced: int
    known: int


class Added(list[StoredEdit]):
    """The stored edit of each that was given, in their order, and `counts` of what became of them."""

    counts: Counts


class Repository(StoredEdits):
    """A folder of edits. One process writes, any number read beside it; used by one thread at a time.

    Made by `Repository.open`.
    """

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        encoder: str | None = None,
        key_width: int | None = None,
        dtype: str | None = None,
        create: bool = True,
        read_only: bool = False,
        network: bool = False,
    ) -> Self:
        """Open a repository, or make one.

        Args:
            folder: where it is.
            encoder: hash of the networks that make the keys; without it edits can be read, forgotten and encoded
                again, and keys are not looked at.
            key_width: D; needed for a new one.
            dtype: of the keys on disk, "float32" or "float16"; a new one takes float32.
            create: whether to make one where there is none.
            read_only: whether to leave the writing to another process.
            network: whether the folder may lie on a network file system: slower, and for one host at a time.

        Raises:
            RepositoryError: another process writes; the keys are of another encoder, or damaged; no repository is
                there, or a newer one; the folder lies on a network file system.
        """
        folder = Path(folder)
        if not read_only and not network and (kind := file_system(folder)) in NETWORK:
            raise RepositoryError(
                f"{folder} lies on a network file system ({kind}), where several hosts cannot share a database: "
                "use a local folder, or network=True for a slower log and one host at a time"
            )
        self = cls(folder, read_only, network)
        try:
            self._open(encoder, key_width, dtype, create and not read_only)
        except BaseException:
            self.close()
            raise
        return self

    def _open(self, encoder: str | None, key_width: int | None, dtype: str | None, create: bool) -> None:
        if dtype not in (None, *DTYPES):
            raise DataError(f"dtype {dtype!r}: keys are stored as one of {', '.join(DTYPES)}")
        path = self.folder / DATABASE
        if not path.is_file():
            if any(self.folder.glob("keys-*.bin")):
                raise RepositoryError(f"{path} is missing beside its keys: restore it, or take another folder")
            if not create:
                raise RepositoryError(f"no repository in {self.folder}: check the folder, or open it with create=True")
            self.folder.mkdir(parents=True, exist_ok=True)
        if not self.read_only:
            self._lock = FileLock(str(self.folder / "writer.lock"), timeout=0)
            try:
                self._lock.acquire()
            except Timeout as error:
                raise RepositoryError(
                    f"another process writes to {self.folder}: wait until it has ended, or open with read_only=True"
                ) from error
        if not self._rows("SELECT name FROM sqlite_master WHERE name = 'meta'"):  # new, or its making was cut short
            if any(self.folder.glob("keys-*.bin")):  # which are made later
                raise RepositoryError(f"{path} is empty beside its keys: restore it from a backup or an export")
            if not create:
                raise RepositoryError(f"no repository in {self.folder}: {path} is empty")
            self._make(encoder, key_width, dtype)
        meta = self.meta
        if int(meta["schema"]) > SCHEMA_VERSION:
            raise RepositoryError(
                f"{path} has schema {meta['schema']}, this kedit knows {SCHEMA_VERSION}: install a newer kedit"
            )
        self._encoder = encoder
        if encoder is not None:
            for name, wanted in (("key width", key_width), ("dtype", dtype)):
                if wanted is not None and str(wanted) != meta[name.replace(" ", "_")]:
                    stands = meta[name.replace(" ", "_")]
                    raise RepositoryError(f"the {name} in {self.folder} is {stands}, not {wanted}: {self._remedy}")
            self._key_file()
            if not self.read_only:
                self._tidy()

    def _make(self, encoder: str | None, key_width: int | None, dtype: str | None) -> None:
        if encoder is None or not key_width or key_width < 1:
            raise DataError(f"no repository in {self.folder} yet: a new one needs encoder and key_width")
        meta = {"schema": SCHEMA_VERSION, "repository": uuid.uuid4().hex, "encoder": encoder, "generation": 1,
                "key_width": key_width, "dtype": dtype or DTYPES[0]}  # fmt: skip
        with self._writing() as database:
            for statement in filter(str.strip, SCHEMA.split(";")):
                database.execute(statement)
            database.executemany("INSERT INTO meta VALUES (?, ?)", [(key, str(value)) for key, value in meta.items()])
        sync(self.folder)

    def add(
        self, edits: Sequence[Edit], keys_ND: Any, source: str | None = None, created: Sequence[str] | None = None
    ) -> Added:
        """Store edits with their keys; when this returns they survive a crash, and before that none of them is seen.

        Of the same prompt the newest stands, the older becomes history. What stands word for word already is left as
        it is, and told in the counts.

        Args:
            edits: whose ids are kept where they are free.
            keys_ND: floats, finite and not all zero.
            source: where they come from; by default what each says (`where`).
            created: when each was made; by default now.

        Raises:
            DataError: a text or a key is bad; row and field are named, nothing is written.
            RepositoryError: the disk is full, the repository was opened to read or without an encoder.
        """
        edits = list(edits)
        times = [_now()] * len(edits) if created is None else list(created)
        check_texts(edits)
        check_texts([Edit("", "-", "-", where=source or "")])
        rows_ND = self._checked_keys(keys_ND, len(edits))
        sources = [edit.where if source is None else source for edit in edits]
        with self._writing() as database:
            change, first = self.latest + 1, self._written()
            asked = [prompt_hash(edit.prompt) for edit in edits]
            query = f"SELECT prompt_hash, {COLUMNS} FROM edit WHERE prompt_hash IN (%s) AND {STANDS}"
            standing = {row[0]: stored(row[1:]) for row in self._among(query, list(set(asked)))}
            ids = {row[0] for row in self._among("SELECT id FROM edit WHERE id IN (%s)", [e.id for e in edits])}
            new: list[StoredEdit] = []
            places: list[int] = []  # of the new ones among those given
            ended: list[int] = []
            added = Added()
            known = 0
            for place, (edit, key) in enumerate(zip(edits, asked, strict=True)):
                old = standing.get(key)
                if old is not None and same_target(old.edit.target, edit.target):
                    known += 1
                    added.append(old)
                    continue
                number = first + len(new) + 1
                id_ = self._free_id(edit.id, number, ids)
                kept = Edit(id_, edit.prompt, edit.target, edit.subject, edit.relation)
                one = StoredEdit(id_, number, kept, times[place], sources[place])
                if old is not None:
                    ended.append(old.number)
                standing[key] = one
                new.append(one)
                places.append(place)
                added.append(one)
            added.counts = Counts(len(new), len(ended), known)
            if new:
                stretches = self._key_file().write(first, rows_ND[places])
                database.executemany("INSERT INTO stretch VALUES (?, ?, ?)", stretches)
                replaced = set(ended)
                values = ((one.number, *texts_of(one), checksum(texts_of(one)), asked[place], change,
                           change if one.number in replaced else None)
                          for place, one in zip(places, new, strict=True))  # fmt: skip
                database.executemany("INSERT INTO edit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
                older = [(change, number) for number in ended if number <= first]
                database.executemany("UPDATE edit SET until = ? WHERE number = ?", older)
                self._log("add", "", len(new) - len(ended) + len(older), len(older))
        for place, one in enumerate(added):
            latest = standing[asked[place]]
            if latest is not one:  # replaced by a later one of the same call
                added[place] = replace(one, live=False, replaced_by=latest.id)
        return added

    def forget(self, ids: str | Iterable[str]) -> Page:
        """Take edits out; what an edit replaced does not come back. Returns what was forgotten.

        Raises:
            DataError: an id does not stand; nothing is forgotten then.
        """
        names = [ids] if isinstance(ids, str) else list(dict.fromkeys(ids))
        with self._writing() as database:
            found = {row[1]: row for row in self._among(f"SELECT {COLUMNS} FROM edit WHERE id IN (%s)", names)}
            edits = [stored(found[name]) for name in names if name in found]
            wrong = [f"{name!r} is not here" for name in names if name not in found]
            wrong += [f"{one.id!r} was replaced by {one.replaced_by!r}" if one.replaced_by
                      else f"{one.id!r} was forgotten before" for one in edits if not one.live]  # fmt: skip
            if wrong:
                more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
                raise DataError(f"nothing forgotten in {self.folder}: {', '.join(wrong[:5])}{more}")
            if edits:
                change = self.latest + 1
                values = [(change, one.number) for one in edits]
                database.executemany("UPDATE edit SET until = ? WHERE number = ?", values)
                self._log("forget", "", 0, len(edits))
        return [replace(one, live=False) for one in edits]

    def snapshot(self, message: str) -> int:
        """Name the present state; returns the number to roll back to."""
        with self._writing():
            return self._log("snapshot", message, 0, 0)

    def roll_back(self, number: int) -> Change:
        """Make exactly those edits stand that stood after the change `number` (0: none); itself a change, which can be
        rolled back too.

        Raises:
            DataError: there was no such change.
        """
        with self._writing() as database:
            latest = self.latest
            if not 0 <= number <= latest:
                raise DataError(f"no change {number} in {self.folder}: the log has 1 to {latest}, and 0 is before")
            values = {"at": number, "now": latest + 1}
            ended = database.execute(
                f"UPDATE edit SET until = :now WHERE since > :at AND {STANDS} AND NOT {STOOD}", values
            ).rowcount
            back = f"until < :now AND {STOOD}"
            database.execute(f"INSERT INTO past SELECT number, since, until FROM edit WHERE {back}", values)
            added = database.execute(f"UPDATE edit SET since = :now, until = NULL WHERE {back}", values).rowcount
            self._log("roll back", f"to {number}", added, ended)
            return self.log(limit=1)[0]

    def import_jsonl(self, path: str | Path, encode: Encode, batch: int = 1000, check: Check | None = None) -> Counts:
        """Add the edits of an exported file, with their ids, times and sources; all lines are checked first.

        A call that was broken off can be repeated: what stands already is passed over.

        Args:
            path: lines with prompt and target, and where they have them id, subject, relation, created and source.
            encode: makes their keys.
            batch: edits that are encoded and written at once.
            check: refuses further edits, by an exception; it sees all before the first is added.

        Raises:
            DataError: a line is bad; file, line and field are named.
        """
        path = existing_file(path, "path")
        for edit, _, _ in _lines(path):
            if check is not None:
                check([edit])
        lines = _lines(path)
        counts = Counts(0, 0, 0)
        while part := list(islice(lines, batch)):
            edits = [replace(edit, where=source) for edit, _, source in part]
            more = self.add(edits, encode(edits), created=[created for _, created, _ in part]).counts
            counts = Counts(*(a + b for a, b in zip(counts, more, strict=True)))
        return counts

    def reencode(
        self, encoder: str, encode: Encode, *, key_width: int | None = None, dtype: str | None = None, batch: int = 1024
    ) -> int:
        """Make all keys again, of what stands and of history, by other networks or because they were lost.

        The old ones are valid until the new ones are durable.

        Args:
            encoder: hash of the networks behind `encode`.
            encode: makes the keys.
            key_width: D; as before, unless given.
            dtype: as before, unless given.
            batch: edits that are encoded at once.

        Returns:
            How many keys were made.
        """
        meta, rows = self.meta, self._written()
        width, kind = key_width or int(meta["key_width"]), dtype or meta["dtype"]
        if kind not in DTYPES:
            raise DataError(f"dtype {kind!r}: keys are stored as one of {', '.join(DTYPES)}")
        stamp = stamp_of(meta)._replace(width=width, dtype=kind, generation=int(meta["generation"]) + 1)
        path = key_path(self.folder, stamp.generation)
        with self._writing() as database:
            create_keys(path, stamp)
            file = KeyFile(path, stamp, write=True)
            try:
                stretches: list[Stretch] = []
                for first in range(0, rows, batch):
                    numbers = range(first + 1, min(first + batch, rows) + 1)
                    edits = [one.edit for one in self.numbered(numbers)]
                    stretches += file.write(first, _checked(encode(edits), len(edits), stamp))
            except BaseException:
                file.close()
                path.unlink()
                raise
            database.execute("DELETE FROM stretch")
            database.executemany("INSERT INTO stretch VALUES (?, ?, ?)", stretches)
            values = {"encoder": encoder, "generation": stamp.generation, "key_width": width, "dtype": kind}
            database.executemany("UPDATE meta SET value = ? WHERE key = ?", [(str(v), k) for k, v in values.items()])
            self._log("encode", f"by {encoder}", 0, 0)
        if self._keys is not None:
            self._keys.close()
        self._keys, self._encoder = file, encoder
        self._tidy()
        return rows

    def _free_id(self, id_: str, number: int, taken: set[str]) -> str:
        name = id_ or f"e{number}"
        while name in taken or (name != id_ and self._rows("SELECT 1 FROM edit WHERE id = ?", (name,))):
            name = f"{name}~{number}"
        taken.add(name)
        return name

    def _log(self, kind: str, message: str, added: int, ended: int) -> int:
        values = (self.latest + 1, _now(), kind, message, added, ended)
        self._connection.execute("INSERT INTO change VALUES (?, ?, ?, ?, ?, ?)", values)
        return values[0]

    def _checked_keys(self, keys_ND: Any, count: int) -> np.ndarray:
        if self._encoder is None:
            raise RepositoryError("the repository was opened without an encoder: keys cannot be added; give its hash")
        return _checked(keys_ND, count, self._key_file().stamp)

    def _tidy(self) -> None:
        """Cut off and remove what a crash left behind."""
        file = self._key_file()
        file.truncate(self._written())
        for path in [*self.folder.glob("keys-*.bin"), *self.folder.glob(".keys-*.partial")]:
            if path != file.path:
                path.unlink(missing_ok=True)

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """All that is written inside is durable behind it, or nothing is."""
        if self.read_only:
            raise RepositoryError(f"{self.folder} was opened to read: open it with read_only=False to change it")
        database = self._connection
        try:
            if self._doubtful:
                # a commit that failed may lie whole in the log and would count after a crash: write over it
                database.execute("UPDATE meta SET value = value WHERE key = 'schema'")
                self._doubtful = False
            database.execute("BEGIN IMMEDIATE")
            yield database
            database.execute("COMMIT")
        except BaseException as error:
            self._doubtful = self._doubtful or isinstance(error, sqlite3.Error)
            if database.in_transaction:
                database.execute("ROLLBACK")
            if is_out_of_space(error) or getattr(error, "sqlite_errorname", "") in FULL:
                raise RepositoryError(
                    space_message(self.folder, f" ({error}); nothing was acknowledged: make room and call again")
                ) from error
            raise


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _checked(keys_ND: Any, count: int, stamp: Stamp) -> np.ndarray:
    """Keys as they will be stored."""
    keys = np.asarray(keys_ND)
    if keys.dtype.kind != "f":
        raise DataError(f"keys of dtype {keys.dtype}: wanted floats")
    if keys.ndim != 2 or keys.shape[1] != stamp.width:
        raise DataError(f"keys of shape {list(keys.shape)}: wanted [{count}, {stamp.width}], one of the key width each")
    if len(keys) != count:
        raise DataError(f"{len(keys)} keys for {count} edits: wanted one each")
    with np.errstate(over="ignore"):
        rows = keys.astype(stamp.dtype, copy=False)
    for wrong, what in ((~np.isfinite(rows).all(1), "holds NaN or Inf"), (~rows.any(1), "is all zero")):
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            cast = f" as {stamp.dtype}" if keys.dtype != rows.dtype else ""
            raise DataError(f"key {row + 1} of {count}{cast} {what}: {int(wrong.sum())} such; check the encoder")
    return rows


def _lines(path: Path) -> Iterator[tuple[Edit, str, str]]:
    """(edit, created, source) of each line."""
    for where, record in read_json_lines(path):
        fields(record, where, prompt=str, target=str)
        check_keys(record, where, (*TEXTS, "probes"))  # which a repository does not keep
        given = {"created": _now(), "source": where, **{k: v for k, v in record.items() if k in TEXTS}}
        fields(given, where, **dict.fromkeys(given, str))
        edit = Edit(given.get("id", ""), given["prompt"], given["target"], given.get("subject", ""),
                    given.get("relation", ""), where=where)  # fmt: skip
        check_texts([edit])
        yield edit, given["created"], given["source"]
