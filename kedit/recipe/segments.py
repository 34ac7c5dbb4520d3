"""Keys on disk: a file of raw rows behind a small header, appended to and mapped into memory.

Knows no edit and no database. The file is a cache that can be made again: how many rows it must hold, and the checksum
of every stretch of them, is told from outside; what does not agree is damage, and is said to be.
"""

import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from kedit.editing.sources import DataError
from kedit.running.files import sync

MAGIC, VERSION = b"kedit-keys\n", 1
HEADER = struct.Struct("<12sI16sII8sI")
OFFSET = 64
"""Bytes before the first row; the rest behind the header is zero."""
LONGEST_STRETCH = 4096
"""Rows under one checksum at most: damage is named, and found, in pieces of this size."""

DTYPES = ("float32", "float16")


class RepositoryError(DataError):
    """A repository cannot be used as asked: locked, full, damaged, of another encoder; the message says the way out."""


class Stamp(NamedTuple):
    """What a file of keys belongs to.

    Args:
        repository: 16 bytes, unique to a repository.
        generation: counts the encodings of a repository.
        width: D.
        dtype: one of `DTYPES`.
    """

    repository: bytes
    generation: int
    width: int
    dtype: str

    @property
    def row_bytes(self) -> int:
        return self.width * np.dtype(self.dtype).itemsize

    @property
    def header(self) -> bytes:
        fields = (MAGIC, VERSION, self.repository, self.generation, self.width, self.dtype.encode())
        try:
            return HEADER.pack(*fields, zlib.crc32(HEADER.pack(*fields, 0))).ljust(OFFSET, b"\0")
        except struct.error as error:
            what = f"keys of generation {self.generation} and width {self.width} there cannot be"
            raise RepositoryError(f"{what}: the database that says so is damaged: restore it from a backup") from error


class Stretch(NamedTuple):
    """Rows [first, first + rows) and their checksum."""

    first: int
    rows: int
    crc: int


def key_path(folder: Path, generation: int) -> Path:
    return folder / f"keys-{generation}.bin"


def create_keys(path: Path, stamp: Stamp) -> None:
    """Write a file without rows; durable when this returns."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(stamp.header)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    sync(path.parent)


class KeyFile:
    """An open file of keys.

    Args:
        path: an existing file.
        stamp: what it must belong to.
        write: whether rows will be appended.

    Raises:
        RepositoryError: no file there, or one that does not carry the stamp.
    """

    def __init__(self, path: Path, stamp: Stamp, write: bool = False):
        self.path, self.stamp = path, stamp
        try:
            self._file: IO[bytes] = path.open("r+b" if write else "rb", buffering=0)
        except FileNotFoundError as error:
            raise RepositoryError(f"{path} is missing") from error
        header = self._file.read(OFFSET)
        if header != stamp.header:
            self._file.close()
            raise RepositoryError(f"{path} is damaged, or of another repository: its header is not the one written")

    @property
    def rows(self) -> int:
        """Whole rows that the file holds, whether they count or not."""
        return max(0, os.fstat(self._file.fileno()).st_size - OFFSET) // self.stamp.row_bytes

    def write(self, first: int, keys_ND: np.ndarray) -> list[Stretch]:
        """Put rows at row `first`, the end of those that count; durable when this returns.

        Where it raises, the file ends at `first` again as far as the disk allows.
        """
        rows = np.ascontiguousarray(keys_ND, dtype=self.stamp.dtype)
        left = rows.reshape(-1).view(np.uint8).data
        try:
            self._file.seek(OFFSET + first * self.stamp.row_bytes)
            while left:  # an unbuffered file may take a part
                left = left[self._file.write(left) :]
            getattr(os, "fdatasync", os.fsync)(self._file.fileno())
        except OSError:
            self.truncate(first)
            raise
        cuts = range(0, len(rows), LONGEST_STRETCH)
        parts = [(cut, rows[cut : cut + LONGEST_STRETCH]) for cut in cuts]
        return [Stretch(first + cut, len(part), zlib.crc32(part.data)) for cut, part in parts]

    def truncate(self, rows: int) -> None:
        """Cut off what stands behind the rows that count: the end of a write that never was acknowledged."""
        if os.fstat(self._file.fileno()).st_size > OFFSET + rows * self.stamp.row_bytes:
            self._file.truncate(OFFSET + rows * self.stamp.row_bytes)

    def mapped(self, rows: int) -> np.ndarray:
        """The first rows, [rows, D], read only when looked at.

        Raises:
            RepositoryError: the file is shorter.
        """
        if self.rows < rows:
            raise RepositoryError(f"{self.path} holds {self.rows} keys of {rows}: its end is lost")
        shape = (rows, self.stamp.width)
        if not rows:
            return np.empty(shape, self.stamp.dtype)
        return np.memmap(self._file, self.stamp.dtype, "r", OFFSET, shape)

    def blocks(self, stretches: Iterable[Stretch], rows: int, size: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first row, keys [about `size`, D]) up to the row `rows`, each checked against its checksums.

        Raises:
            RepositoryError: keys are not those that were written, or have no checksum.
        """
        keys_ND = self.mapped(rows)
        first = 0
        end = 0
        for stretch in stretches:
            block = keys_ND[stretch.first : stretch.first + stretch.rows]
            if stretch.first != end or zlib.crc32(block.data) != stretch.crc:
                raise RepositoryError(
                    f"{self.path} is damaged: the keys of edits {min(end, stretch.first) + 1} to "
                    f"{stretch.first + stretch.rows} are not those that were written"
                )
            end = stretch.first + stretch.rows
            if end - first >= size:
                yield first, keys_ND[first:end]
                first = end
        if end != rows:
            raise RepositoryError(f"{self.path}: the keys of edits {end + 1} to {rows} have no checksum")
        if first < end:
            yield first, keys_ND[first:end]

    def close(self) -> None:
        self._file.close()
