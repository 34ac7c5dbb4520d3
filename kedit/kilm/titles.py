"""Which entity a title means, redirects followed: sorted 64-bit hashes, a few hundred MB for all of Wikipedia.

Also the table of descriptions that a user may give. Two of 20 million titles share a hash with probability 1e-5.
"""

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kedit.editing.sources import DataError
from kedit.kilm.wikitext import normalise_title

MISSING, DISAMBIGUATION, UNRESOLVED = -1, -2, -3
HOPS = 16  # MediaWiki follows one redirect; bots mend longer chains, a dump may catch them before


def hashes(titles: Sequence[str]) -> np.ndarray:
    """uint64 [n]"""
    digests = b"".join(blake2b(t.encode("utf-8", "surrogatepass"), digest_size=8).digest() for t in titles)
    return np.frombuffer(digests, dtype="<u8")


class Titles(NamedTuple):
    """Hashes sorted, uint64 [T], and what each title means, int32 [T]: an entity or one of the negative constants."""

    hashes: np.ndarray
    values: np.ndarray

    def look_up(self, wanted: np.ndarray) -> np.ndarray:
        """int32 [n] for uint64 [n]"""
        if not len(self.hashes):
            return np.full(len(wanted), MISSING, np.int32)
        at = np.minimum(np.searchsorted(self.hashes, wanted), len(self.hashes) - 1)
        return np.where(self.hashes[at] == wanted, self.values[at], MISSING).astype(np.int32)

    def save(self, folder: Path) -> None:
        np.save(folder / "hashes.npy", self.hashes)
        np.save(folder / "values.npy", self.values)

    @classmethod
    def load(cls, folder: Path) -> "Titles":
        return cls(np.load(folder / "hashes.npy", mmap_mode="r"), np.load(folder / "values.npy", mmap_mode="r"))


def resolve(parsed: Sequence[Path]) -> tuple[Titles, list[int], dict[str, int]]:
    """Number the articles and follow the redirects of all parts.

    An article's entity is its position among the articles, in the order of the parts; of several pages with one title
    the first counts.

    Returns:
        the titles, the number of entities in each part, and what became of the redirects.
    """
    own, target, kind, counts = [], [], [], []
    for path in parsed:
        table = pq.read_table(path, columns=["title", "kind", "redirect"])
        kinds = np.asarray(table["kind"].to_pylist(), dtype=object)
        own.append(hashes(table["title"].to_pylist()))
        target.append(hashes(table["redirect"].to_pylist()))
        kind.append((kinds == "article") * 1 + (kinds == "redirect") * 2)
        counts.append(len(kinds))
    if not sum(counts):
        return Titles(np.zeros(0, np.uint64), np.zeros(0, np.int32)), [0] * len(parsed), {}
    own_all, target_all, kind_all = np.concatenate(own), np.concatenate(target), np.concatenate(kind).astype(np.int8)
    order = np.argsort(own_all, kind="stable")
    unique = np.ones(len(order), bool)
    unique[1:] = own_all[order][1:] != own_all[order][:-1]
    kept = np.zeros(len(order), bool)
    kept[order[unique]] = True
    is_article = kept & (kind_all == 1)
    entity = np.cumsum(is_article) - 1
    values = np.where(is_article, entity, np.where(kind_all == 2, UNRESOLVED, DISAMBIGUATION)).astype(np.int32)
    order = order[unique]
    titles = Titles(own_all[order], values[order])
    redirect = np.flatnonzero(kind_all[order] == 2)
    _follow(titles, redirect, target_all[order])
    reached = titles.values[redirect]
    ends = np.cumsum([0, *counts])
    sizes = [int(is_article[a:b].sum()) for a, b in pairwise(ends.tolist())]
    found = {
        "to an article": int((reached >= 0).sum()),
        "to a page not in the dump": int((reached == MISSING).sum()),
        "to a disambiguation page": int((reached == DISAMBIGUATION).sum()),
        "in a loop": int((reached == UNRESOLVED).sum()),
        "duplicate title": int(((kind_all == 2) & ~kept).sum()),
    }
    return titles, sizes, found


def _follow(titles: Titles, redirect: np.ndarray, target: np.ndarray) -> None:
    """Put into `titles.values`, in place, what each redirect leads to in the end."""
    at = np.minimum(np.searchsorted(titles.hashes, target), len(titles.hashes) - 1)
    following = np.where(titles.hashes[at] == target, at, -1)
    is_redirect = np.zeros(len(titles.hashes), bool)
    is_redirect[redirect] = True
    position = following[redirect]
    for _ in range(HOPS):
        onward = (position >= 0) & is_redirect[position]
        if not onward.any():
            break
        position = np.where(onward, following[position], position)
    lost = (position >= 0) & is_redirect[position]
    titles.values[redirect] = np.where(lost, UNRESOLVED, np.where(position < 0, MISSING, titles.values[position]))


class Descriptions:
    """Descriptions by title, memory-mapped: many processes share them.

    Args:
        folder: where `write_descriptions` put them.
    """

    def __init__(self, folder: Path) -> None:
        self._index = Titles.load(folder)
        self._texts = pa.ipc.open_file(pa.memory_map(str(folder / "texts.arrow"))).read_all()["text"]

    def get(self, keys: np.ndarray) -> list[str]:
        """The description of each, empty where there is none."""
        return [str(self._texts[at]) if at >= 0 else "" for at in self._index.look_up(keys).tolist()]


def write_descriptions(path: Path, titles: Titles, folder: Path) -> None:
    """Put the rows of the table `path` that are about one of `titles` into `folder`; of several the first counts."""
    schema = pa.schema({"text": pa.string()})
    found: list[np.ndarray] = []
    folder.mkdir()
    with pa.OSFile(str(folder / "texts.arrow"), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for names, descriptions in _table(path):
            keys = hashes([normalise_title(name) for name in names])
            wanted = titles.look_up(keys) != MISSING
            wanted &= np.asarray([bool(description) for description in descriptions], bool)
            found.append(keys[wanted])
            texts = [descriptions[at] for at in np.flatnonzero(wanted)]
            writer.write_table(pa.table([texts], schema=schema))
    unique, first = np.unique(np.concatenate(found), return_index=True)
    Titles(unique, first.astype(np.int32)).save(folder)


def check_descriptions(path: Path) -> None:
    """Read a table of descriptions through.

    Raises:
        DataError: it is not readable, or not a table of titles and descriptions.
    """
    for _ in _table(path):
        pass


def _table(path: Path) -> Iterator[tuple[list[str], list[str]]]:
    """(titles, descriptions) in batches, from a .parquet or tab-separated file with these two columns."""
    if path.suffix == ".parquet":
        try:
            file = pq.ParquetFile(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"--descriptions {path}: no readable parquet file ({error})") from None
        missing = {"title", "description"} - set(file.schema_arrow.names)
        if missing:
            raise DataError(f"--descriptions {path}: no column {' and '.join(sorted(missing))}")
        for batch in file.iter_batches(columns=["title", "description"]):
            yield [t or "" for t in batch["title"].to_pylist()], [d or "" for d in batch["description"].to_pylist()]
        return
    names: list[str] = []
    descriptions: list[str] = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                name, tab, description = line.rstrip("\r\n").partition("\t")
                if not tab:
                    raise DataError(
                        f"--descriptions {path}:{number}: wanted title<TAB>description, found {line[:60]!r}"
                    )
                if number == 1 and (name.lower(), description.lower()) == ("title", "description"):
                    continue
                names.append(name)
                descriptions.append(description.strip())
                if len(names) == 100_000:
                    yield names, descriptions
                    names, descriptions = [], []
    except UnicodeDecodeError as error:
        raise DataError(f"--descriptions {path}: not UTF-8 ({error})") from None
    yield names, descriptions
