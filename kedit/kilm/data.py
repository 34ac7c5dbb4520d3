"""A corpus as training rows, held-out rows, and questions: the LightningDataModule of KILM."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from kedit.editing.problems import BadInput, each
from kedit.editing.records import existing_file, fields, kind_of, read_json_lines
from kedit.editing.sources import Candidate, DataError, MentionQuestion, MentionSource, QuestionSource
from kedit.kilm.batch import Composer, KilmBatch
from kedit.kilm.corpus import Corpus
from kedit.kilm.infilling import Infilling, markup
from kedit.kilm.made import MadeCorpus
from kedit.kilm.marking import find_mention, mark
from kedit.kilm.questions import MentionBatch, QuestionBatch, described, mentioned, split
from kedit.running.batches import Batches
from kedit.running.data import ResumableData
from kedit.running.order import epoch_order, step_count, step_items

GROUPED = 256
"""Rows among which batches of like rows are formed."""
SAMPLED = 256
"""Documents, at least, whose tokens tell one corpus from another of the same sizes."""


@dataclass
class Evaluation:
    """What is asked in validation and test.

    Args:
        held_out: documents kept out of training for validation, and as many for test; at most a fifth of all each.
        validation_mentions: mentions described in each validation.
        panel: how many of these are shown in TensorBoard.
        test_mentions: mentions described and told apart in the test, in each set.
        scoring: how candidates are compared: sum of log p, its mean over tokens, or sum plus log prior.
        benchmarks: further sets of mentions or questions to test on.
        batch: mentions or questions at a time.
    """

    held_out: int = 1000
    validation_mentions: int = 128
    panel: int = 6
    test_mentions: int = 1000
    scoring: Literal["sum", "mean", "prior"] = "sum"
    benchmarks: list[MentionSource | QuestionSource] | None = None
    batch: int = 64

    def __post_init__(self) -> None:
        if self.batch < 1 or min(self.held_out, self.validation_mentions, self.panel, self.test_mentions) < 0:
            raise ValueError(f"data.evaluation holds a negative number, or batch 0: {self}")


class KilmData(ResumableData):
    """Documents of a corpus, in packed rows.

    Args:
        corpus: folder that `python -m kedit corpus` wrote.
        make: makes a corpus instead.
        infilling: what is hidden.
        row_tokens: most tokens of a row on its longer side: BART's target; T5's source, give or take a few.
        packing: several documents in a row; false for one.
        batch_rows: rows of an optimiser step over all devices and accumulated batches.
        batch_tokens: target tokens of such a step instead; rounded to whole rows.
        evaluation: what is asked in validation and test.
        predict: JSONL of {"text", "mention" or "span", optional "candidates"}, for `predict`.
        num_workers: processes that prepare batches.
        pin_memory: hand out batches in pinned memory.
    """

    def __init__(
        self,
        corpus: str | None = None,
        make: MadeCorpus | None = None,
        infilling: Infilling | None = None,
        row_tokens: int = 512,
        packing: bool = True,
        batch_rows: int | None = None,
        batch_tokens: int | None = None,
        evaluation: Evaluation | None = None,
        predict: str | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
    ):
        super().__init__()
        if (corpus is None) == (make is None):
            raise ValueError("data needs a corpus: give either data.corpus (a folder) or data.make")
        if (batch_rows is None) == (batch_tokens is None):
            raise ValueError("data needs a batch size: give either data.batch_rows or data.batch_tokens")
        for name, value, least in (
            ("row_tokens", row_tokens, 1), ("batch_rows", batch_rows, 1), ("batch_tokens", batch_tokens, 1),
            ("num_workers", num_workers, 0),
        ):  # fmt: skip
            if value is not None and value < least:
                raise ValueError(f"data.{name} is {value}, wanted at least {least}")
        self.folder = corpus
        self.make = make
        self.infilling = infilling or Infilling()
        self.row_tokens, self.packing = row_tokens, packing
        self.batch_rows, self.batch_tokens = batch_rows, batch_tokens
        self.evaluation = evaluation or Evaluation()
        self.predict_file = predict
        self.num_workers, self.pin_memory = num_workers, pin_memory
        self._corpus: Corpus | None = None
        self._order: tuple[int, np.ndarray] | None = None

    # set-up -----------------------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        if self.make is not None:
            self.make.make()

    def setup(self, stage: str) -> None:
        if self._corpus is not None:
            return
        corpus = self._corpus = Corpus(self.make.folder() / "corpus" if self.make is not None else str(self.folder))
        self.tokenizer = corpus.tokenizer()
        self.marks = markup(self.tokenizer)
        self.train_units, self.validation_units, self.test_units = split(
            len(corpus), self.evaluation.held_out, self.seed
        )
        if stage == "fit":
            self.train = self.composer(self.train_units, self.infilling)
            self._row_target_tokens = self._mean_target_tokens()
            for reason, count in self.train.skipped.items():
                if count:
                    rank_zero_info(f"left out of training: {count} {reason}")

    def composer(self, units: np.ndarray, infilling: Infilling) -> Composer:
        return Composer(self.corpus, units, self.marks, infilling, self.row_tokens, self.seed, self.packing)

    @property
    def corpus(self) -> Corpus:
        if self._corpus is None:
            raise RuntimeError("KilmData is not set up: call prepare_data() and setup('fit') first")
        return self._corpus

    # training ---------------------------------------------------------------------------------------------------------

    @property
    def trained_on(self) -> dict[str, str]:
        return self._trained_on

    @cached_property
    def _trained_on(self) -> dict[str, str]:
        if self._corpus is None or not hasattr(self, "train"):
            return {}
        rows = self.train.rows
        digest = hashlib.sha256(np.ascontiguousarray(rows.documents).tobytes() + rows.starts.tobytes())
        for unit in rows.documents[:: max(1, len(rows.documents) // SAMPLED)]:
            digest.update(self.corpus.tokens(int(unit)).tobytes())
        built = self.corpus.manifest
        return {
            "data.corpus": ", ".join(f"{built[name]:,} {name}" for name in ("units", "tokens", "mentions")),
            "data.evaluation.held_out": str(self.evaluation.held_out),
            "data.infilling": repr(self.infilling),
            "data.row_tokens": str(self.row_tokens),
            "data.packing": str(self.packing),
            "rows of a step": str(self.step_samples),
            "which documents are in which rows": digest.hexdigest()[:12],
        }

    @property
    def step_samples(self) -> int:
        """Rows of an optimiser step."""
        if self.batch_rows is not None:
            return self.batch_rows
        assert self.batch_tokens is not None
        return max(1, round(self.batch_tokens / self._row_target_tokens))

    def _mean_target_tokens(self) -> float:
        """Target tokens of a row, read off some."""
        rows = range(0, len(self.train.rows), max(1, len(self.train.rows) // 64))
        return self.train.batch(rows, epoch=0).target_tokens / len(rows)

    @property
    def steps_per_epoch(self) -> int:
        return step_count(len(self.train.rows), self.step_samples)

    def epoch_rows(self, epoch: int) -> np.ndarray:
        """All rows in the order of an epoch: shuffled, then sorted piece by piece so that a step's batches pad little.

        Rows are alike on their longer side; grouped are those whose other side is about as long.
        """
        order, size = epoch_order(len(self.train.rows), self.seed, epoch), self.step_samples
        piece = size * -(-GROUPED // size)
        batches: list[np.ndarray] = []
        for start in range(0, len(order), piece):
            rows = order[start : start + piece]
            rows = rows[np.argsort(self.train.other_side[rows], kind="stable")]
            # a last, partial batch stays the last
            whole, rest = np.split(rows, [len(rows) - len(rows) % size])
            shuffled = epoch_order(len(whole) // size, self.seed, start + epoch)
            batches += [whole.reshape(-1, size)[shuffled].reshape(-1), rest]
        return np.concatenate(batches)

    def make_batch(self, epoch: int, batch: int) -> KilmBatch:
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, self.epoch_rows(epoch)
        share = self.share(batch)
        rows = step_items(self._order[1], share.step, self.step_samples)
        own = share.own(rows).tolist()
        made = self.train.batch(own or rows[:1].tolist(), epoch, muted=not own)
        made.weight = share.weight(rows)
        return made

    # evaluation -------------------------------------------------------------------------------------------------------

    @cached_property
    def _known(self) -> np.ndarray:
        """How often training mentions each entity."""
        return mentioned(self.corpus, self.train_units)

    def _held_out_rows(self, units: np.ndarray, infilling: Infilling) -> Batches:
        composer = self.composer(units, infilling)
        rank, world = self.processes
        return Batches(lambda _, rows: composer.batch(rows, epoch=0), "rows", range(len(composer.rows)), 8, rank, world)

    def _mentions(self, task: str, mentions: list[Any]) -> Batches:
        return Batches(MentionBatch, task, mentions, self.evaluation.batch, *self.processes)

    def val_dataloader(self) -> list[Batches]:
        known = self._known
        self.panel = described(self.corpus, self.validation_units, known, self.evaluation.panel, self.seed)
        loaders = [self._held_out_rows(self.validation_units, self.infilling)]
        if self.infilling.knowledge:
            asked = described(self.corpus, self.validation_units, known, self.evaluation.validation_mentions, self.seed)
            loaders.append(self._mentions("description", asked))
        return loaders

    def test_dataloader(self) -> list[Batches]:
        corpus, most, seed = self.corpus, self.evaluation.test_mentions, self.seed
        known = self._known
        plain = Infilling(self.infilling.masked_share, self.infilling.span_length, knowledge=False)
        loaders = [
            self._held_out_rows(self.test_units, plain),
            self._mentions("seen", described(corpus, self.train_units, known, most, seed)),
            self._mentions("unseen", described(corpus, self.test_units, known, most, seed)),
            self._mentions("disambiguation", described(corpus, self.test_units, known, most, seed, ambiguous=True)),
        ]
        for benchmark in self.evaluation.benchmarks or []:
            if isinstance(benchmark, MentionSource):
                loaders.append(self._mentions(benchmark.name, [mark(self.tokenizer, one) for one in benchmark]))
            else:
                size, processes = self.evaluation.batch, self.processes
                loaders.append(Batches(QuestionBatch, benchmark.name, list(benchmark), size, *processes))
        return loaders

    def predict_dataloader(self) -> Batches:
        if self.predict_file is None:
            raise DataError("nothing to predict: give a JSONL file by --data.predict FILE")
        mentions = [mark(self.tokenizer, question) for question in read_mentions(Path(self.predict_file))]
        if not mentions:
            raise DataError(f"{self.predict_file} holds no line: nothing to predict")
        return Batches(MentionBatch, "predict", mentions, self.evaluation.batch, *self.processes)


def read_mentions(file: Path) -> Iterator[MentionQuestion]:
    """Mentions of a JSONL file: {"text", "mention" or "span", optional "candidates": [{"title", "description"}]}.

    Raises:
        DataError: a line is not such an object; it is named.
    """
    return each(read_json_lines(existing_file(file, "predict")), _mention)


def _mention(record: Any, where: str) -> MentionQuestion:
    (text,) = fields(record, where, text=str)
    if "span" in record:
        span = record["span"]
        if not (isinstance(span, list) and len(span) == 2 and all(type(place) is int for place in span)):
            what = f"'span' is {kind_of(span)}, wanted two character offsets [start, end]"
            raise BadInput(where, what, "count from 0, or give 'mention', its words", "span")
        start, end = span
        if not 0 <= start < end <= len(text):
            what = f"'span' is {span}, and the text has {len(text):,} characters"
            raise BadInput(where, what, "wanted 0 <= start < end <= that", "span")
    else:
        (mention,) = fields(record, where, mention=str)
        if not mention or mention not in text:
            what = f"mention {mention[:60]!r} does not stand in the text {text[:60]!r}"
            raise BadInput(where, what, "write it as the text does, letter by letter", "mention")
        start, end = find_mention(text, mention)
    candidates = []
    (given,) = fields({"candidates": []} | record, where, candidates=list)
    for number, candidate in enumerate(given, start=1):
        place = f"{where}, candidate {number}"
        (title,) = fields(candidate, place, title=str)
        filled = {"description": "", "prior": 0.0} | candidate
        if type(filled["prior"]) is int and abs(filled["prior"]) < 2**53:
            filled["prior"] = float(filled["prior"])
        description, prior = fields(filled, place, description=str, prior=float)
        candidates.append(Candidate(title, description, prior))
    return MentionQuestion(text, (start, end), candidates, source=where)
