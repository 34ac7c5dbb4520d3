"""A tokenised corpus on disk, memory-mapped: units of text with mentions of entities, and what the entities are.

Knows the folder that `build_corpus` writes; knows nothing of Wikipedia or of what the units are used for.
"""

import json
import zipfile
from bisect import bisect_left
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from kedit.editing.problems import BadInput, refuse, refuse_together
from kedit.editing.records import fields
from kedit.editing.sources import DataError
from kedit.lm.backbones import load_tokenizer
from kedit.lm.text import fingerprint

FORMAT = 1
# dtype None: the corpus' token type; U units, M mentions, E entities
ARRAYS = (
    "tokens",  # all units one behind the other
    "unit_offsets",  # int64 [U+1]
    "articles",  # int32 [U], the entity whose article the unit is from
    "mentions",  # int32 [M, 3]: start, end (tokens of the unit), entity
    "mention_offsets",  # int64 [U+1]
    "title_tokens",
    "title_offsets",  # int64 [E+1]
    "description_tokens",
    "description_offsets",  # int64 [E+1]
)
TABLES = {"entities": ("title", "description"), "anchors": ("surface", "entity", "count")}
"""Files of tables, and the columns that are read."""


class Corpus:
    """A corpus, opened without reading it: cheap to open, to pickle and to fork.

    Args:
        folder: what `python -m kedit corpus --output` wrote.

    Raises:
        DataError: the folder holds no corpus, or an unfinished or damaged one.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.manifest: dict[str, Any] = self._manifest()
        damages: list[BadInput] = []
        for name in ARRAYS:
            try:
                setattr(self, f"_{name}", self._array(name))
            except BadInput as error:
                damages.append(error)
        self._tables: dict[str, pa.Table] = {}
        for name in TABLES:
            try:
                self._tables[name] = self._table(name)
            except BadInput as error:
                damages.append(error)
        refuse_together(damages)
        units, entities = self.manifest["units"], self.manifest["entities"]
        for name, length in (
            ("unit_offsets", units + 1),
            ("articles", units),
            ("mention_offsets", units + 1),
            ("title_offsets", entities + 1),
            ("description_offsets", entities + 1),
        ):
            if len(getattr(self, f"_{name}")) != length:
                found = len(getattr(self, f"_{name}"))
                damages.append(self._damaged(f"{name}.npy holds {found:,} numbers, not {length:,}"))
        if len(self._tokens) != self.manifest["tokens"]:
            found = len(self._tokens)
            damages.append(self._damaged(f"tokens.npy holds {found:,} tokens, not {self.manifest['tokens']:,}"))
        refuse_together(damages)

    _tokens: np.ndarray
    _unit_offsets: np.ndarray
    _articles: np.ndarray
    _mentions: np.ndarray
    _mention_offsets: np.ndarray
    _title_tokens: np.ndarray
    _title_offsets: np.ndarray
    _description_tokens: np.ndarray
    _description_offsets: np.ndarray

    def _manifest(self) -> dict[str, Any]:
        path = self.folder / "manifest.json"
        if not path.is_file():
            unfinished = (self.folder / "build.json").is_file()
            what = f"{self.folder} holds {'an unfinished corpus' if unfinished else 'no corpus'}"
            again = "run the same command again to go on," if unfinished else "run"
            raise BadInput("", what, f"{again} `python -m kedit corpus --output {self.folder} ...`")
        try:
            manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise self._damaged(f"manifest.json is not readable ({error})") from None
        try:
            if (written := fields(manifest, "manifest.json", format=int)[0]) != FORMAT:
                raise self._damaged(f"manifest.json has format {written}, this version reads {FORMAT}")
            fields(manifest, "manifest.json", units=int, entities=int, tokens=int, tokenizer=dict)
            fields(manifest["tokenizer"], "manifest.json, tokenizer", size=int, fingerprint=str, name=str)
        except BadInput as error:
            raise error if error.where == "" else self._damaged(f"{error.where}: {error.what}") from None
        return manifest

    def _damaged(self, what: str) -> BadInput:
        remedy = f"remove the folder and run `python -m kedit corpus --output {self.folder} ...` again"
        return BadInput("", f"the corpus in {self.folder} is damaged: {what}", remedy)

    def _array(self, name: str) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        try:
            # an empty array cannot be mapped
            array: Any = np.load(path, mmap_mode="r" if path.stat().st_size > 128 else None)
        except FileNotFoundError:
            raise self._damaged(f"{name}.npy is missing") from None
        except (ValueError, OSError, EOFError, SyntaxError, zipfile.BadZipFile) as error:
            raise self._damaged(f"{name}.npy is cut short or damaged ({_first_line(error)})") from None
        if not isinstance(array, np.ndarray):
            raise self._damaged(f"{name}.npy holds no array")
        wanted = "[n, 3]" if name == "mentions" else "[n]"
        is_shaped = array.ndim == 2 and array.shape[1] == 3 if name == "mentions" else array.ndim == 1
        if array.dtype.kind not in "iu" or not is_shaped:
            found = f"{array.dtype} of shape {list(array.shape)}"
            raise self._damaged(f"{name}.npy holds {found}, wanted whole numbers of shape {wanted}")
        return array

    def _table(self, name: str) -> pa.Table:
        path = self.folder / f"{name}.arrow"
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except FileNotFoundError:
            raise self._damaged(f"{name}.arrow is missing") from None
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(f"{name}.arrow is cut short or damaged ({_first_line(error)})") from None
        if missing := [column for column in TABLES[name] if column not in table.column_names]:
            raise self._damaged(f"{name}.arrow has no column {' and '.join(missing)}")
        return table

    def verify(self) -> None:
        """Read everything, and refuse all that is not within what it belongs to.

        Raises:
            DataError: something is not; the file and the unit or entity are named.
        """
        counted = {
            "unit": self._tokens,
            "mention": self._mentions,
            "title": self._title_tokens,
            "description": self._description_tokens,
        }
        for name, values in counted.items():
            offsets = np.asarray(getattr(self, f"_{name}_offsets"))
            wrong = np.flatnonzero((np.diff(offsets) < 0) | (offsets[:-1] < 0) | (offsets[1:] > len(values)))
            if len(wrong):
                what = f"{len(wrong):,} entries, the first number {wrong[0]:,}, lie outside of what they count"
                refuse(self._damaged(f"{name}_offsets.npy: {what}"))
                continue
            for entry in range(len(offsets) - 1) if name in ("unit", "mention") else ():
                try:
                    self.tokens(entry) if name == "unit" else self.mentions(entry)
                except BadInput as error:
                    refuse(error)
        outside = np.flatnonzero((np.asarray(self._articles) < 0) | (np.asarray(self._articles) >= self.entities))
        if len(outside):
            refuse(self._damaged(f"articles.npy: unit {outside[0]:,} is of an article that is none"))
        for name in TABLES:
            rows = self._tables[name].num_rows
            if name == "entities" and rows != self.entities:
                refuse(self._damaged(f"entities.arrow holds {rows:,} rows, not {self.entities:,}"))
        try:
            self.tokenizer()
        except BadInput as error:
            refuse(error)

    def __reduce__(self) -> tuple[type["Corpus"], tuple[Path]]:
        return type(self), (self.folder,)

    # units

    def __len__(self) -> int:
        """Number of units U."""
        return len(self._unit_offsets) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each unit, int32 [U].

        Raises:
            DataError: a unit ends before it begins, or behind the last token; it is named.
        """
        lengths = np.diff(self._unit_offsets)
        wrong = np.flatnonzero((lengths < 0) | (self._unit_offsets[1:] > len(self._tokens)))
        if len(wrong):
            raise self._damaged(f"unit_offsets.npy: unit {wrong[0]:,} does not lie within tokens.npy")
        return lengths.astype(np.int32)

    def tokens(self, unit: int) -> np.ndarray:
        """int32 [n]

        Raises:
            DataError: one is none of the tokenizer's: a GPU would stop without saying where.
        """
        ids: np.ndarray = self._tokens[self._unit_offsets[unit] : self._unit_offsets[unit + 1]].astype(np.int32)
        size = self.manifest["tokenizer"]["size"]
        if len(ids) and not 0 <= ids.min() <= ids.max() < size:
            wrong = int(ids[(ids < 0) | (ids >= size)][0])
            raise self._damaged(f"tokens.npy: unit {unit:,} holds token {wrong:,} of a vocabulary of {size:,}")
        return ids

    @property
    def mention_offsets(self) -> np.ndarray:
        """Where each unit's mentions begin among all, int64 [U+1]."""
        return self._mention_offsets

    def mentions_of(self, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All mentions in `units`: for each the place in `units` of its unit, and its number among all; int64 both."""
        begin = np.asarray(self.mention_offsets[units])
        counts = np.asarray(self.mention_offsets[units + 1]) - begin
        first = np.cumsum(counts) - counts
        return np.repeat(np.arange(len(units)), counts), np.repeat(begin - first, counts) + np.arange(counts.sum())

    @property
    def mention_entities(self) -> np.ndarray:
        """The entity of every mention, in the order of the units, int32 [M]."""
        return self._mentions[:, 2]

    def mentions(self, unit: int) -> np.ndarray:
        """Mentions of a unit, int32 [m, 3]: first token, one past the last, entity; sorted, not overlapping.

        Raises:
            DataError: one lies outside of the unit, or means no entity.
        """
        found = np.array(self._mentions[self._mention_offsets[unit] : self._mention_offsets[unit + 1]])
        length = self._unit_offsets[unit + 1] - self._unit_offsets[unit]
        start, end, entity = found.T
        wrong = (start < 0) | (start >= end) | (end > length) | (entity < 0) | (entity >= self.entities)
        if wrong.any():
            raise self._damaged(f"mentions.npy: unit {unit:,} has a mention {found[wrong][0].tolist()} that is none")
        return found

    def surface(self, unit: int, mention: int) -> str:
        """The words of the unit's mention number `mention`."""
        start, end, _ = self._mentions[self._mention_offsets[unit] + mention]
        text = self.tokenizer().decode(self.tokens(unit)[start:end].tolist(), clean_up_tokenization_spaces=False)
        return str(text).strip()

    def article(self, unit: int) -> str:
        """Title of the article that the unit is from."""
        return self.title(int(self._articles[unit]))

    # entities

    @property
    def entities(self) -> int:
        """Number of entities E."""
        return len(self._title_offsets) - 1

    def title(self, entity: int) -> str:
        return str(self._tables["entities"]["title"][int(entity)])

    def description(self, entity: int) -> str:
        """Empty where the entity has none."""
        return str(self._tables["entities"]["description"][int(entity)])

    def title_tokens(self, entity: int) -> np.ndarray:
        """int32 [n], as in running text (a space before)."""
        return self._title_tokens[self._title_offsets[entity] : self._title_offsets[entity + 1]].astype(np.int32)

    def description_tokens(self, entity: int) -> np.ndarray:
        """int32 [n], as in running text (a space before); empty where the entity has no description."""
        a, b = self._description_offsets[entity], self._description_offsets[entity + 1]
        return self._description_tokens[a:b].astype(np.int32)

    @cached_property
    def knowledge_lengths(self) -> np.ndarray:
        """Tokens of title and description together, int32 [E]; 0 where there is no description."""
        description = np.diff(self._description_offsets)
        return np.where(description > 0, np.diff(self._title_offsets) + description, 0).astype(np.int32)

    def candidates(self, surface: str) -> list[tuple[int, int]]:
        """(entity, how often) that links with exactly this text lead to, the most frequent first."""
        anchors = self._tables["anchors"]
        surfaces, wanted = anchors["surface"], surface.encode()
        start = bisect_left(range(len(surfaces)), wanted, key=lambda i: str(surfaces[i]).encode())
        found = []
        while start < len(surfaces) and str(surfaces[start]) == surface:
            found.append((anchors["entity"][start].as_py(), anchors["count"][start].as_py()))
            start += 1
        return found

    # tokenizer

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that the corpus was built with."""
        return self._tokenizer

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        try:
            return load_tokenizer(self.folder / "tokenizer")
        except (OSError, ValueError, KeyError) as error:
            raise self._damaged(f"its tokenizer does not load ({error})") from None

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Make sure that the corpus' ids mean the same to `tokenizer`.

        Raises:
            DataError: they do not; names both.
        """
        built = self.manifest["tokenizer"]
        added = [token for token, index in tokenizer.get_added_vocab().items() if index >= built["size"]]
        found = fingerprint(tokenizer, ignore=added)
        if found != built["fingerprint"]:
            raise DataError(
                f"the corpus in {self.folder} was built with the tokenizer {built['name']} ({built['fingerprint']}), "
                f"the model has {tokenizer.name_or_path or type(tokenizer).__name__} ({found}): build a corpus for it "
                f"with `python -m kedit corpus --tokenizer ...`"
            )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
