"""A memory of edits beside a frozen language model: it stores them, tells which one a question means, and makes the
prompt vectors that stand before that question.

Knows no files but its repository's. Shapes: N edits, Q questions, D width of keys, T prompt vectors, E width of the
language model's embeddings.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from kedit.editing.edits import Edit, check_edits
from kedit.editing.sources import DataError
from kedit.lm.text import encode
from kedit.recipe.encoding import device_of, encode_keys, encode_queries, like_length
from kedit.recipe.frozen import FrozenModel
from kedit.recipe.gate import Gate
from kedit.recipe.nearest import Nearest, nearest
from kedit.recipe.networks import MemoryNetworks
from kedit.recipe.repository import Repository
from kedit.recipe.search import FaissIndex, Index
from kedit.recipe.segments import RepositoryError
from kedit.recipe.tables import StoredEdit
from kedit.recipe.texts import TextEncoder


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a question means an edit.

    Args:
        edit: the one whose key is most similar to the question; where none could fire, one of the most similar; None
            where none is stored.
        fired: whether it is meant.
        similarity: of its key and the question; -inf without an edit.
        threshold: the sentinel's similarity to the question.
        margin: what the first must exceed the second by.
    """

    edit: StoredEdit | None
    fired: bool
    similarity: float
    threshold: float
    margin: float

    @property
    def score(self) -> float:
        """By how much the best key is more similar than the sentinel."""
        return self.similarity - self.threshold


@dataclass(frozen=True, slots=True)
class EditReport:
    """What became of edits.

    Args:
        stored: of each edit given, in their order, how it stands now.
        written: how many were new.
        replaced: how many of these took the place of one with the same prompt.
        known: how many stood word for word before.
        seconds: in all.
    """

    stored: tuple[StoredEdit, ...]
    written: int
    replaced: int
    known: int
    seconds: float

    @property
    def ids(self) -> tuple[str, ...]:
        """Under which each edit can be forgotten."""
        return tuple(one.id for one in self.stored)


class Memory:
    """Edits, and what they are found by. What others write into the repository counts from the next question on.

    Args:
        networks: the trained ones; from now on in evaluation mode.
        texts: encodes texts for them.
        model: the language model, whose embeddings prompt vectors copy; not needed to store and to decide.
        repository: holds the edits, opened with the networks' hash.
        gate: decides on similarities; it has seen no key yet.
        index: an empty one; by default exact, on the networks' device.
        context: most tokens that the language model reads.

    Raises:
        DataError: the language model has other embeddings than the one that the networks were trained for.
    """

    def __init__(
        self,
        networks: MemoryNetworks,
        texts: TextEncoder,
        model: FrozenModel | None,
        repository: Repository,
        gate: Gate,
        index: Index | FaissIndex | None = None,
        context: int | None = None,
    ) -> None:
        self.networks, self.texts, self.repository, self.gate = networks.eval(), texts, repository, gate
        self.context, self.model = context, model
        self.index = Index(networks.key_width, device_of(networks)) if index is None else index
        self._seen: int | None = None  # the change up to which the index follows the repository

    def close(self) -> None:
        """Let go of the repository."""
        self.repository.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.repository)

    # store ------------------------------------------------------------------------------------------------------------

    def add(self, edits: Sequence[Edit], source: str | None = None, progress: Callable[[int], None] | None = None,
            batch: int | None = None) -> EditReport:  # fmt: skip
        """Store edits. Those of a batch are on the disk, and count, when it is done; all are checked before the first.

        Args:
            edits: any number; where prompts are the same the newest counts.
            source: where they come from; by default what each says.
            progress: told how many are stored.
            batch: edits that are written at once; by default all.

        Raises:
            DataError: one is malformed, or longer than the language model reads. Nothing is stored.
            RepositoryError: the disk is full, or the repository was opened to read. Earlier batches are stored.
        """
        began, edits = time.perf_counter(), list(edits)
        check_edits(edits)
        self.check_lengths(edits)
        stored: list[StoredEdit] = []
        counts = np.zeros(3, dtype=np.int64)
        for start in range(0, len(edits), batch or len(edits) or 1):
            part = edits[start : start + (batch or len(edits))]
            try:
                added = self.repository.add(part, self.keys(part), source)
            except RepositoryError as error:
                if not stored:
                    raise
                raise RepositoryError(
                    f"{error}\nthe first {len(stored):,} of {len(edits):,} edits are stored: call again for the others"
                ) from error
            counts += added.counts
            stored += added
            if progress is not None:
                progress(len(stored))
        written, replaced, known = counts.tolist()
        return EditReport(tuple(stored), written, replaced, known, time.perf_counter() - began)

    def keys(self, edits: Sequence[Edit]) -> np.ndarray:
        """Keys of edits as the repository takes them: float32 [N, D]."""
        return encode_keys(self.networks, self.texts, edits).cpu().numpy()

    def forget(self, ids: Sequence[str]) -> list[StoredEdit]:
        """Take edits out, by id; returns what they were.

        Raises:
            DataError: an id does not stand; nothing is forgotten.
        """
        return self.repository.forget(ids)

    def clear(self) -> None:
        """Take all edits out; the log still knows them."""
        if len(self.repository):
            self.repository.roll_back(0)

    def check_lengths(self, edits: Sequence[Edit]) -> None:
        """Refuse edits that the language model could not read whole.

        Raises:
            DataError: there is one.
        """
        if self.context is None:
            return
        # no tokenizer makes more tokens of a text than it has bytes
        room = self.context - self.networks.tokens
        for edit in (edit for edit in edits if len(edit.text.encode()) >= room):
            length = len(encode(self.texts.model, [edit.text], leading_space=True)[0].ids)
            if length >= room:
                where = edit.where or f"edit {edit.id!r}"
                raise DataError(
                    f"{where}: 'prompt' and 'target' have {length:,} tokens, and the language model reads "
                    f"{self.context:,}, {self.networks.tokens} prompt vectors included: shorten the target"
                )

    # find -------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def decide(self, queries: Sequence[str]) -> list[Decision]:
        """Which edit each question means.

        Args:
            queries: the user's words, without template, answer or continuation.
        """
        self.follow()
        queries_QD, threshold_Q = encode_queries(self.networks, self.texts, [query.strip() for query in queries])
        margin = self.gate.margin
        found = self._nearest(queries_QD, threshold_Q + margin)
        similarity_Q, number_Q = found.similarity_B.cpu(), found.number_B.tolist()
        threshold_Q = threshold_Q.cpu()
        fires_Q = self.gate.fires(similarity_Q, threshold_Q).tolist()
        known = sorted({number for number in number_Q if number >= 0})
        edits = dict(zip(known, self.repository.numbered(known), strict=True))
        return [
            Decision(edits.get(number), bool(fires) and number >= 0, similarity, threshold, margin)
            for number, fires, similarity, threshold in zip(
                number_Q, fires_Q, similarity_Q.tolist(), threshold_Q.tolist(), strict=True
            )
        ]

    @torch.no_grad()
    def vectors(self, decisions: Sequence[Decision]) -> list[Tensor | None]:
        """The prompt vectors [T, E] of what fired, made anew from the edits' texts; None where nothing did."""
        fired = {one.edit.number: one.edit.edit for one in decisions if one.fired and one.edit is not None}
        vectors = dict(zip(fired, self.prompt_vectors(list(fired.values())), strict=True))
        return [vectors[one.edit.number] if one.fired and one.edit is not None else None for one in decisions]

    @torch.no_grad()
    def prompt_vectors(self, edits: Sequence[Edit]) -> list[Tensor]:
        """The prompt vectors [T, E] of edits, stored or not."""
        if not edits:
            return []
        if (model := self.model) is None:
            raise ValueError("prompt vectors are made of the language model's embeddings: give the memory its model")
        device = device_of(self.networks)

        def embed(ids: Tensor) -> Tensor:
            return model.token_embeddings(ids).to(device)

        made: dict[int, Tensor] = {}
        for numbers, batch in like_length(self.texts, [edit.text for edit in edits], device, with_model=True):
            made.update(zip(numbers, self.networks.prompts(batch, embed).float(), strict=True))
        return [made[number] for number in range(len(edits))]

    def follow(self) -> None:
        """Bring index and gate to what the repository holds now, as every question does first."""
        latest = self.repository.latest
        if self._seen == latest:
            return
        if self._seen is None:
            if len(self.repository):
                for numbers, keys_ND in self.repository.key_blocks():
                    self._learn(numbers, keys_ND)
        else:
            moved = self.repository.moved(self._seen)
            latest = moved.change
            self.index.remove(moved.dropped)
            if len(moved.added):
                self._learn(moved.added, self.repository.keys_of(moved.added))
            self.gate.forget(torch.from_numpy(moved.dropped), self._nearest)
        self._seen = latest

    def _learn(self, numbers: np.ndarray, keys_ND: np.ndarray) -> None:
        if not len(numbers):
            return
        self.index.add(numbers, keys_ND)
        self.gate.observe(torch.from_numpy(np.array(keys_ND, dtype=np.float32)), torch.from_numpy(numbers))

    def _nearest(self, queries_BD: Tensor, floor_B: Tensor) -> Nearest:
        stored = self.index if isinstance(self.index, Index) else _OnDisk(self.index, self.repository)
        return nearest(stored, self.networks, queries_BD, floor_B)


class _OnDisk:
    """What FAISS finds, with the keys themselves from the repository: FAISS may have compressed its own."""

    def __init__(self, index: FaissIndex, repository: Repository) -> None:
        self.search, self.repository = index.search, repository

    def __len__(self) -> int:
        return len(self.repository)

    def keys(self, numbers: np.ndarray) -> Tensor:
        return torch.from_numpy(self.repository.keys_of(numbers).astype(np.float32))

    def blocks(self) -> Iterator[tuple[np.ndarray, Tensor]]:
        for numbers, keys_ND in self.repository.key_blocks():
            yield numbers, torch.from_numpy(np.array(keys_ND, dtype=np.float32))
