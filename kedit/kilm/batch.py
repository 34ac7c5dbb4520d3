"""Documents of a corpus, made into batches: which mentions are described, what is hidden, who shares a row.

Everything is a pure function of (seed, epoch, document); no copy of the data is kept. Shapes: B rows, S source tokens,
T target tokens, N target tokens that are not padding.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kedit.editing.sources import DataError
from kedit.kilm.corpus import Corpus
from kedit.kilm.infilling import CLASSES, Example, Infilling, Markup, Mention, build, generator
from kedit.kilm.rows import Rows
from kedit.lm.packing import PackedRows, lay_out

BRACKETS = 5
"""Tokens that describe a mention beside title and description: <ent> </ent> <ent_desc> <sep> </ent_desc>."""


@dataclass
class KilmBatch:
    """Rows of documents with what the decoder is to write.

    Args:
        rows: source and decoder input, packed.
        where_N: positions of the real target tokens in the flattened [B * T] rows.
        targets_N: their ids.
        classes_N: what each is (`infilling.CLASSES`).
        source_lengths: tokens of each document, for the FLOP formulas.
        target_lengths: likewise.
        documents: ids of the documents, in the order of the rows.
        class_counts: target tokens of each class.
        padding: padded positions, source and target.
        positions: all positions.
        weight: what the batch counts among those that are accumulated, on all processes; 1 for equal parts.
        flops: floating-point operations of forward and backward pass, set by the module.
    """

    rows: PackedRows
    where_N: Tensor
    targets_N: Tensor
    classes_N: Tensor
    source_lengths: np.ndarray
    target_lengths: np.ndarray
    documents: list[int]
    class_counts: np.ndarray
    padding: int
    positions: int
    weight: float = 1.0
    flops: float = 0.0

    @property
    def target_tokens(self) -> int:
        return int(self.target_lengths.sum())

    def pin_memory(self) -> "KilmBatch":
        """In pinned memory, from where copies to the GPU do not wait."""
        for part in (self.rows, self):
            for name, value in vars(part).items():
                if isinstance(value, Tensor):
                    setattr(part, name, value.pin_memory())
        return self


def collate(rows: Sequence[Sequence[Example]], marks: Markup, documents: Sequence[int] = ()) -> KilmBatch:
    """Lay examples side by side, row by row."""
    source, source_document, source_position = lay_out([[e.source for e in row] for row in rows], marks.pad)
    targets, document, position = lay_out([[e.target for e in row] for row in rows], marks.pad)
    shifted = [[np.concatenate([[marks.start], e.target[:-1]]) for e in row] for row in rows]
    classes = np.concatenate([e.classes for row in rows for e in row]) if any(rows) else np.zeros(0, dtype=np.int64)
    real = (document >= 0).flatten()
    where = real.nonzero()[:, 0]
    source_lengths = np.array([len(e.source) for row in rows for e in row])
    target_lengths = np.array([len(e.target) for row in rows for e in row])
    positions = source.numel() + targets.numel()
    return KilmBatch(
        rows=PackedRows(
            source, source_document, source_position, lay_out(shifted, marks.pad)[0], document, position, document
        ),
        where_N=where,
        targets_N=targets.flatten()[where],
        classes_N=torch.from_numpy(classes),
        source_lengths=source_lengths,
        target_lengths=target_lengths,
        documents=list(documents),
        class_counts=np.bincount(classes, minlength=len(CLASSES)),
        padding=positions - int(source_lengths.sum() + target_lengths.sum()),
        positions=positions,
    )


class Composer:
    """Rows of a corpus and their content in every epoch.

    Args:
        corpus: the documents.
        units: which of them.
        marks: ids of the structure.
        settings: what is hidden.
        row_tokens: most tokens of a row on its longer side: BART's target, T5's source.
        seed: of the shuffle and of every draw.
        packing: false for one document a row.

    Raises:
        DataError: no document fits into a row.
    """

    def __init__(
        self,
        corpus: Corpus,
        units: np.ndarray,
        marks: Markup,
        settings: Infilling,
        row_tokens: int,
        seed: int,
        packing: bool = True,
    ):
        self.corpus, self.marks, self.settings, self.seed = corpus, marks, settings, seed
        self.skipped: Counter[str] = Counter()
        bare = self._bare(corpus.lengths[units].astype(np.int64))
        fits = bare <= row_tokens
        self.skipped["documents longer than a row"] = int((~fits).sum())
        if not fits.any():
            raise DataError(
                f"none of {len(units)} documents fits into a row of {row_tokens} tokens (the shortest needs "
                f"{int(bare.min()) if len(bare) else 0}): raise data.row_tokens or build the corpus with a smaller "
                "--chunk_tokens"
            )
        units, bare = units[fits], bare[fits]
        sizes = bare + (self._reserve(units, row_tokens - bare) if settings.mentions else 0)
        self.rows = Rows(units, sizes, row_tokens, seed, packing)
        self.other_side = self._other_side()

    def _bare(self, lengths: np.ndarray) -> np.ndarray:
        """Tokens of documents on the longer side, nothing described."""
        if self.marks.family == "bart":
            return lengths + 2
        hidden = np.round(self.settings.masked_share * lengths)
        # spans are a little longer than the Poisson mean, zeros being left out; one more for a span that is cut
        spans = np.where(hidden > 0, np.ceil(hidden / self.settings.span_length) + 1, 0)
        return (lengths - hidden + spans + 1).astype(np.int64)

    def _other_side(self) -> np.ndarray:
        """For each row, in proportion, its tokens on the shorter side: BART's source, T5's target."""
        lengths = self.corpus.lengths[self.rows.documents].astype(np.int64)
        hidden = np.round(self.settings.masked_share * lengths)
        spans = hidden / self.settings.span_length
        tokens = lengths - hidden + spans + 2 if self.marks.family == "bart" else hidden + spans + 2
        return np.add.reduceat(tokens, self.rows.starts[:-1])

    def _cost(self, knowledge: np.ndarray) -> np.ndarray:
        """Tokens on the longer side that describing a mention adds."""
        return BRACKETS + knowledge if self.marks.family == "bart" else np.full_like(knowledge, BRACKETS)

    def _reserve(self, units: np.ndarray, room: np.ndarray) -> np.ndarray:
        """For each document room for what is likely to be drawn: exact where all its mentions are, else an estimate.

        Whichever mention is drawn first is sure to have room.
        """
        corpus = self.corpus
        owner, mention = corpus.mentions_of(units)
        knowledge = corpus.knowledge_lengths[corpus.mention_entities[mention]].astype(np.int64)
        cost = self._cost(knowledge)
        fits = cost <= room[owner]
        self.skipped["mentions whose description is longer than the row"] = int((~fits & (knowledge > 0)).sum())
        owner, cost = owner[fits & (knowledge > 0)], cost[fits & (knowledge > 0)]
        count = np.bincount(owner, minlength=len(units))
        total = np.bincount(owner, cost, minlength=len(units))
        largest = np.zeros(len(units), dtype=np.int64)
        np.maximum.at(largest, owner, cost)
        taken = np.minimum(count, self.settings.mentions)
        others = (taken - 1) * total / np.maximum(count, 1)
        estimate = np.where(count <= taken, total, largest + others)
        return np.minimum(np.ceil(estimate).astype(np.int64), room)

    def examples(self, row: int, epoch: int) -> list[Example]:
        """The documents of a row as they are in this epoch."""
        units = self.rows[row].tolist()
        randoms = [generator(self.seed, epoch, unit) for unit in units]
        chosen = self._choose(units, randoms) if self.settings.mentions else [[] for _ in units]
        return [
            build(np.asarray(self.corpus.tokens(unit)), mentions, self.marks, self.settings, random)
            for unit, mentions, random in zip(units, chosen, randoms, strict=True)
        ]

    def _choose(self, units: list[int], randoms: list[np.random.Generator]) -> list[list[Mention]]:
        """Draw mentions: one for every document, then more as long as the row has room."""
        corpus = self.corpus
        queues: list[list[tuple[int, int, int, int]]] = []
        room = self.rows.budget
        for unit, random in zip(units, randoms, strict=True):
            bare = int(self._bare(corpus.lengths[unit : unit + 1].astype(np.int64))[0])
            room -= bare
            if random.random() >= self.settings.described_share:
                queues.append([])
                continue
            mentions = np.asarray(corpus.mentions(unit))
            knowledge = corpus.knowledge_lengths[mentions[:, 2]].astype(np.int64)
            cost = self._cost(knowledge)
            known = np.flatnonzero((knowledge > 0) & (cost <= self.rows.budget - bare))
            queues.append([(*mentions[i].tolist(), int(cost[i])) for i in random.permutation(known).tolist()])
        chosen: list[list[tuple[int, int, int, int]]] = [[] for _ in units]
        for turn in range(self.settings.mentions):
            for queue, taken in zip(queues, chosen, strict=True):
                if turn < len(queue) and queue[turn][3] <= room:
                    taken.append(queue[turn])
                    room -= queue[turn][3]
        return [
            [
                Mention(start, end, corpus.title_tokens(entity), corpus.description_tokens(entity))
                for start, end, entity, _ in sorted(taken)
            ]
            for taken in chosen
        ]

    def batch(self, rows: Sequence[int], epoch: int, muted: bool = False) -> KilmBatch:
        """Rows side by side; `muted`: a stand-in that trains nothing, for a rank without rows of its own."""
        examples = [self.examples(int(row), epoch) for row in rows]
        documents = [unit for row in rows for unit in self.rows[int(row)].tolist()]
        batch = collate(examples, self.marks, documents)
        if muted:
            batch.classes_N.fill_(-1)
            batch.documents, batch.class_counts = [], np.zeros(len(CLASSES), dtype=np.int64)
        return batch
