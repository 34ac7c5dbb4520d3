"""What a repository of edits tells: pages of edits, what stood when, the log, the keys. Writes nothing.

Shapes: R edits ever written, D key width.
"""

import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from filelock import BaseFileLock

from kedit.editing.sources import DataError
from kedit.recipe.segments import KeyFile, RepositoryError, Stamp, Stretch, create_keys, key_path
from kedit.recipe.tables import (
    COLUMNS,
    DATABASE,
    META,
    STANDS,
    STOOD,
    TEXTS,
    Change,
    StoredEdit,
    connect,
    prompt_hash,
    stored,
    texts_of,
)

AT_ONCE = 500
"""Values in one question to the database."""

Page = list[StoredEdit]
Log = list[Change]
Stretches = list[Stretch]
Problems = list[str]


class Moved(NamedTuple):
    """How the edits that stand differ from those of an earlier change.

    Args:
        change: the latest change.
        dropped: numbers that may have stood and do not now.
        added: numbers that stand now and may not have, or not all the time.
    """

    change: int
    dropped: np.ndarray
    added: np.ndarray


def stamp_of(meta: dict[str, str]) -> Stamp:
    """What the file of the present keys must carry."""
    return Stamp(bytes.fromhex(meta["repository"]), int(meta["generation"]), int(meta["key_width"]), meta["dtype"])


class StoredEdits:
    """The reading side of a `Repository`, which see."""

    def __init__(self, folder: Path, read_only: bool, network: bool):
        self.folder, self.read_only, self.network = folder, read_only, network
        self._database: sqlite3.Connection | None = None
        self._keys: KeyFile | None = None
        self._lock: BaseFileLock | None = None
        self._encoder: str | None = None
        self._doubtful = False

    def close(self) -> None:
        """Let go of the files; the next writer may open it."""
        if self._database is not None:
            self._database.close()
        if self._keys is not None:
            self._keys.close()
        if self._lock is not None:
            self._lock.release()
        self._database = self._keys = self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def meta(self) -> dict[str, str]:
        """schema, repository, encoder, generation, key_width, dtype."""
        meta = dict(self._rows("SELECT key, value FROM meta"))
        try:
            for key, kind in META.items():
                kind(meta[key])
        except (KeyError, ValueError, TypeError) as error:
            raise RepositoryError(f"{self.folder / DATABASE} is damaged (meta: {error}): restore it") from error
        return meta

    def __len__(self) -> int:
        return self.count()

    def count(self, at: int | None = None) -> int:
        """How many edits stand, or stood after a change."""
        if at is None:
            ended = self._rows("SELECT count(*) FROM edit WHERE until IS NOT NULL")[0][0]
            return self._written() - int(ended)
        return int(self._rows(f"SELECT count(*) FROM edit WHERE {STOOD}", {"at": at})[0][0])

    def list(self, offset: int = 0, limit: int = 100, at: int | None = None) -> Page:
        """A page of the edits that stand, or stood after the change `at`, the oldest first."""
        where = STANDS if at is None else STOOD
        query = f"SELECT {COLUMNS} FROM edit WHERE {where} ORDER BY number LIMIT :limit OFFSET :offset"
        rows = self._rows(query, {"at": at, "limit": limit, "offset": offset})
        return [stored(row, then=at is not None) for row in rows]

    def get(self, id: str) -> StoredEdit:
        """An edit by its id, whether it stands or not.

        Raises:
            DataError: there is none.
        """
        rows = self._rows(f"SELECT {COLUMNS} FROM edit WHERE id = ?", (id,))
        if not rows:
            raise DataError(f"no edit {id!r} in {self.folder}")
        return stored(rows[0])

    def numbered(self, numbers: Sequence[int]) -> Page:
        """Edits by their numbers, as a search gives them.

        Raises:
            DataError: there is none of a number.
        """
        query = f"SELECT {COLUMNS} FROM edit WHERE number IN (%s)"
        found = {row[0]: row for row in self._among(query, list({int(number) for number in numbers}))}
        if absent := [number for number in numbers if int(number) not in found]:
            raise DataError(f"no edit of number {absent[0]} in {self.folder}")
        return [stored(found[int(number)]) for number in numbers]

    def find(self, text: str, limit: int = 100) -> Page:
        """Standing edits with the text in prompt, target or subject; a to z in either case. Goes through all edits."""
        pattern = "%" + text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        like = " OR ".join(f"{field} LIKE :like ESCAPE '\\'" for field in ("prompt", "target", "subject"))
        query = f"SELECT {COLUMNS} FROM edit WHERE {STANDS} AND ({like}) ORDER BY number LIMIT :limit"
        return [stored(row) for row in self._rows(query, {"like": pattern, "limit": limit})]

    def history(self, prompt: str) -> Page:
        """Every edit there ever was with this prompt, the oldest first."""
        query = f"SELECT {COLUMNS} FROM edit WHERE prompt_hash = ? ORDER BY number"
        return [stored(row) for row in self._rows(query, (prompt_hash(prompt),))]

    def log(self, offset: int = 0, limit: int = 100) -> Log:
        """A page of the changes, the latest first."""
        rows = self._rows("SELECT * FROM change ORDER BY number DESC LIMIT ? OFFSET ?", (limit, offset))
        return [Change(*row) for row in rows]

    @property
    def latest(self) -> int:
        """Number of the latest change; 0 before the first."""
        return int(self._rows("SELECT coalesce(max(number), 0) FROM change")[0][0])

    def moved(self, since: int) -> Moved:
        """What to drop from and add to an index that was right after the change `since`; drop first."""
        with self._snapshot():
            dropped = self._numbers("until > ?", (since,))
            return Moved(self.latest, dropped, self._numbers(f"since > ? AND {STANDS}", (since,)))

    def keys(self) -> tuple[np.ndarray, np.ndarray]:
        """All keys [R, D], mapped from the disk and not checked, and the numbers of the edits that stand.

        The key of an edit is row number - 1.

        Raises:
            RepositoryError: the file of keys is lost or too short.
        """
        with self._snapshot():
            return self._key_file().mapped(self._written()), self._standing()

    def keys_of(self, numbers: np.ndarray) -> np.ndarray:
        """Keys [n, D] of edits by number, read from the disk and not checked.

        Raises:
            RepositoryError: as for `keys`.
        """
        with self._snapshot():
            return self._key_file().mapped(self._written())[np.asarray(numbers, dtype=np.int64) - 1]

    def key_blocks(self, size: int = 1 << 16) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (numbers, keys [about `size`, D]) of the edits that stand, each key checked: to fill an index.

        Raises:
            RepositoryError: a key is not the one that was written.
        """
        with self._snapshot():
            file, rows, standing = self._key_file(), self._written(), self._standing()
            stretches = self._stretches()
        try:
            for first, keys_ND in file.blocks(stretches, rows, size):
                low, high = np.searchsorted(standing, [first + 1, first + len(keys_ND) + 1])
                numbers = standing[low:high]
                yield numbers, keys_ND if len(numbers) == len(keys_ND) else keys_ND[numbers - first - 1]
        except RepositoryError as error:
            raise RepositoryError(f"{error}: {self._remedy}") from error

    def verify(self) -> Problems:
        """Go through everything that is stored and tell the damage; empty where there is none."""
        problems: list[str] = []
        try:
            with self._snapshot():
                check = self._rows("PRAGMA integrity_check(5)")
                problems += [f"{DATABASE}: {line}" for (line,) in check if line != "ok"]
                for *row, hashed in self._connection.execute(f"SELECT {COLUMNS}, prompt_hash FROM edit"):
                    try:
                        if prompt_hash(stored(row).edit.prompt) != hashed:
                            problems.append(f"{DATABASE}: edit number {row[0]} is not found by its prompt")
                    except RepositoryError as error:
                        problems.append(str(error))
                ((logged,),) = self._rows("SELECT coalesce(sum(added) - sum(ended), 0) FROM change")
                if logged != self.count():
                    problems.append(f"{DATABASE}: {self.count()} edits stand, by the log it should be {logged}")
                file = self._key_file(any_encoder=True)
                for _ in file.blocks(self._stretches(), self._written(), 1 << 16):
                    pass
        except RepositoryError as error:
            problems.append(str(error))
        return problems

    def export_jsonl(self, path: str | Path, at: int | None = None) -> int:
        """Write the edits that stand, or stood after the change `at`, one a line; returns how many.

        The file is there whole or not at all.
        """
        path = Path(path)
        if path.is_dir():
            raise DataError(f"{path} is a folder: name a file in it")
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        query = f"SELECT {COLUMNS} FROM edit WHERE {STANDS if at is None else STOOD} ORDER BY number"
        count = 0
        try:
            with partial.open("w", encoding="utf-8") as file, self._snapshot():
                for row in self._connection.execute(query, {"at": at}):
                    one = stored(row)
                    file.write(json.dumps(dict(zip(TEXTS, texts_of(one), strict=True)), ensure_ascii=False) + "\n")
                    count += 1
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        return count

    @property
    def _remedy(self) -> str:
        return (
            "the edits' texts are kept; to make the keys again, open the repository without encoder and call "
            "reencode(encoder, encode)"
        )

    @property
    def _connection(self) -> sqlite3.Connection:
        if self._database is None:
            self._database = connect(self.folder / DATABASE, self.read_only, self.network)
        return self._database

    def _rows(self, query: str, values: Any = ()) -> Any:
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise RepositoryError(
                f"{self.folder / DATABASE}: {error}: restore it from a backup or an export"
            ) from error

    def _damage(self, error: sqlite3.DatabaseError) -> RepositoryError:
        return RepositoryError(f"{self.folder / DATABASE}: {error}: restore it from a backup or an export")

    def _among(self, query: str, values: Sequence[Any]) -> Iterator[Any]:
        """Rows of a query with `IN (%s)`."""
        for start in range(0, len(values), AT_ONCE):
            part = values[start : start + AT_ONCE]
            yield from self._rows(query % ",".join("?" * len(part)), part)

    def _numbers(self, where: str, values: Any = ()) -> np.ndarray:
        cursor = self._connection.execute(f"SELECT number FROM edit WHERE {where} ORDER BY number", values)
        return np.fromiter((number for (number,) in cursor), np.int64)

    def _standing(self) -> np.ndarray:
        everything = np.arange(1, self._written() + 1)
        return np.delete(everything, self._numbers("until IS NOT NULL") - 1)

    def _stretches(self) -> Stretches:
        rows = self._rows("SELECT first, rows, crc FROM stretch ORDER BY first")
        if not all(isinstance(value, int) for row in rows for value in row):
            raise RepositoryError(f"{self.folder / DATABASE} is damaged (stretch): {self._remedy}")
        return [Stretch(*row) for row in rows]

    def _written(self) -> int:
        return int(self._rows("SELECT coalesce(max(number), 0) FROM edit")[0][0])

    def _key_file(self, any_encoder: bool = False) -> KeyFile:
        """The file of the present keys; another process may have encoded them again since it was opened."""
        for _ in range(3):
            meta = self.meta
            if self._encoder not in (None, meta["encoder"]) and not any_encoder:
                raise RepositoryError(
                    f"{self.folder} was encoded by {meta['encoder']}, not by {self._encoder}: {self._remedy}"
                )
            stamp = stamp_of(meta)
            if self._keys is not None and self._keys.stamp == stamp:
                return self._keys
            path, rows = key_path(self.folder, stamp.generation), self._written()
            if not self.read_only and not rows and not path.exists():
                create_keys(path, stamp)
            try:
                file = KeyFile(path, stamp, write=not self.read_only)
                file.mapped(rows)
            except RepositoryError as error:
                if self.meta == meta:
                    if self.read_only and not rows:
                        raise RepositoryError(f"{self.folder} holds no edits yet") from error
                    raise RepositoryError(f"{error}: {self._remedy}") from error
                continue
            if self._keys is not None:
                self._keys.close()
            self._keys = file
            return file
        raise RepositoryError(f"the keys in {self.folder} change faster than they can be read: try again")

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        """All that is read inside is of one state."""
        database = self._connection
        if database.in_transaction:
            yield
            return
        try:
            database.execute("BEGIN")
            try:
                yield
            finally:
                if database.in_transaction:
                    database.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            raise self._damage(error) from error
