"""Edits to train on, a held-out stream to choose the best checkpoint by, and the stream of the test."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any, Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from kedit.editing.edits import Edit, EditSource
from kedit.editing.sources import DataError, QuestionSource
from kedit.recipe.batch import Composer, RecipeBatch
from kedit.recipe.finetune import Tuning
from kedit.recipe.negatives import Negatives
from kedit.recipe.rewording import Rewording, words_to_put_in
from kedit.running.batches import Batches
from kedit.running.data import ResumableData
from kedit.running.order import epoch_order, step_count, step_items

Rivals = Literal["none", "text_prefix", "finetune", "finetune_layer", "finetune_bound", "lora"]


@dataclass
class Evaluation:
    """What is judged.

    Args:
        edits: most edits of the test's stream; null for all.
        validation_edits: edits of a validation's stream.
        validation_stored: edits of the training pool that are stored beside them, so that finding is as hard as in use.
        batch: edits made at once in the stream.
        immediate: edits judged right after they were made.
        retained: earlier edits judged after 1, 10, 100, ... edits.
        rate: wanted share of texts that no edit concerns and that fire one all the same.
        max_new_tokens: of free answers.
        samples: edits whose answers are shown in TensorBoard.
        rivals: what goes through the same stream for comparison: none (the model as it is), text_prefix (the same
            retriever, but the edit's text is put before the prompt), finetune, finetune_layer (the last layer),
            finetune_bound (no weight moves further than 1e-3 for an edit), lora.
        rival_edits: edits of the stream by which rivals are judged, drawn from all; those that learn by gradients go
            no further into it.
        tuning: how they learn.
        perplexity: plain text on which the model is judged before and after.
    """

    edits: int | None = None
    validation_edits: int = 200
    validation_stored: int = 800
    batch: int = 100
    immediate: int = 500
    retained: int = 500
    rate: float = 0.01
    max_new_tokens: int = 16
    samples: int = 6
    rivals: list[Rivals] = field(default_factory=list)
    rival_edits: int = 1000
    tuning: Tuning = field(default_factory=Tuning)
    perplexity: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ValueError(f"data.evaluation.rate is {self.rate}, wanted a share between 0 and 1")
        least = {"batch": 1, "max_new_tokens": 1, "validation_edits": 1}
        for name in ("batch", "max_new_tokens", "validation_edits", "validation_stored", "immediate", "retained"):
            if getattr(self, name) < least.get(name, 0):
                raise ValueError(
                    f"data.evaluation.{name} is {getattr(self, name)}, wanted {least.get(name, 0)} or more"
                )


@dataclass
class JudgingBatch:
    """A stream to be judged, whole, by every process: what an edit does depends on those before it."""

    task: str
    streams: list[str] = field(default_factory=list)


class RecipeData(ResumableData):
    """Edits and texts for RECIPE.

    Args:
        train: edits to learn from, with probes of generality and locality.
        edits: the stream of the test.
        validation: the stream of validation; by default the last `evaluation.validation_edits` of `train`.
        unrelated: texts that no edit concerns, to learn from.
        calibration: others, by which the margin is set.
        far: others again, on which false activations are counted in the test.
        batch_edits: edits of a step over all devices and accumulated batches.
        negatives: further edits of a step over all devices, read without gradient; of each of the accumulated batches
            as many, for a batch is compared within itself.
        unrelated_queries: unrelated texts of a step over all devices; of each of the accumulated batches as many.
        reworded: share of queries into which words are put, or in which some are exchanged, in training.
        answer_end: what is learned to follow a target, as "." where answers are sentences; without it nothing ends a
            free answer but the language model's own habit.
        longest: most tokens that the encoder reads.
        evaluation: what is judged.
        num_workers: processes that prepare batches.
        pin_memory: hand out batches in pinned memory.
    """

    def __init__(
        self,
        train: EditSource,
        edits: EditSource | None = None,
        validation: EditSource | None = None,
        unrelated: list[QuestionSource] | None = None,
        calibration: list[QuestionSource] | None = None,
        far: list[QuestionSource] | None = None,
        batch_edits: int = 32,
        negatives: int = 192,
        unrelated_queries: int = 32,
        reworded: float = 0.0,
        answer_end: str = "",
        longest: int = 512,
        evaluation: Evaluation | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
    ):
        super().__init__()
        for name, value, least in (
            ("batch_edits", batch_edits, 1), ("negatives", negatives, 0), ("unrelated_queries", unrelated_queries, 0),
            ("longest", longest, 8), ("num_workers", num_workers, 0),
        ):  # fmt: skip
            if value < least:
                raise ValueError(f"data.{name} is {value}, wanted at least {least}")
        self.train_source, self.edits_source, self.validation_source = train, edits, validation
        self.unrelated, self.calibration, self.far = unrelated or [], calibration or [], far or []
        self.batch_edits, self.negatives, self.unrelated_queries = batch_edits, negatives, unrelated_queries
        self.reworded, self.answer_end, self.longest = reworded, answer_end, longest
        if not 0 <= reworded <= 1:
            raise ValueError(f"data.reworded is {reworded}, wanted a share of queries between 0 and 1")
        self.evaluation = evaluation or Evaluation()
        self.num_workers, self.pin_memory = num_workers, pin_memory

    # set-up -----------------------------------------------------------------------------------------------------------

    @property
    def module(self) -> Any:
        """The model: its tokenizers encode the texts."""
        if self.trainer is None:
            raise RuntimeError("RecipeData is not connected to a trainer")
        return self.trainer.lightning_module

    def setup(self, stage: str) -> None:
        if hasattr(self, "pool"):
            return
        self.pool = self.train_source.load()
        kept = self.evaluation.validation_edits
        if self.validation_source is not None:
            self.validation = self.validation_source.load()[:kept]
        else:
            if len(self.pool) <= kept:
                raise DataError(
                    f"data.train has {len(self.pool)} edits, of which {kept} are kept for validation: none is left to "
                    "learn from; give more, lower data.evaluation.validation_edits, or give data.validation"
                )
            self.pool, self.validation = self.pool[:-kept], self.pool[-kept:]
        if stage != "fit":
            return
        without = sum(not edit.asked("generality") for edit in self.pool)
        if without == len(self.pool):
            raise DataError(
                f"none of {len(self.pool):,} edits of data.train has another wording (a probe of generality): queries "
                "cannot be learned"
            )
        if without:
            rank_zero_info(f"{without:,} of {len(self.pool):,} edits to learn from have no other wording")
        self.composer = Composer(
            self.pool, self.module.text_encoder(), self.module.asking, self.module.key_reads_target,
            questions(self.unrelated), self.negatives, self.unrelated_queries, self.module.reads_locality,
            self.answer_end, Negatives(self.pool),
            Rewording(words_to_put_in(self.module.tokenizer, self.pool) if self.reworded else [], self.reworded),
        )  # fmt: skip

    def stream(self) -> list[Edit]:
        """The edits of the test."""
        if self.edits_source is None:
            raise DataError("there is no stream to test on: give data.edits")
        edits = self.edits_source.load()
        return edits[: self.evaluation.edits]

    def texts_for_calibration(self) -> list[str]:
        return questions(self.calibration)

    # training ---------------------------------------------------------------------------------------------------------

    @property
    def trained_on(self) -> dict[str, str]:
        return self._trained_on

    @cached_property
    def _trained_on(self) -> dict[str, str]:
        if not hasattr(self, "composer"):
            return {}
        digest = hashlib.sha256()
        for edit in self.pool:
            asked = [(one.group, one.left, one.span, one.right) for one in edit.probes]
            digest.update(repr((edit.prompt, edit.target, edit.subject, asked)).encode())
        for text in self.composer.unrelated:
            digest.update(text.encode() + b"\0")
        settings = ("batch_edits", "negatives", "unrelated_queries", "reworded", "answer_end", "longest")
        return {
            "data.train": f"{len(self.pool):,} edits",
            **{f"data.{name}": repr(getattr(self, name)) for name in settings},
            "texts of edits and of data.unrelated": digest.hexdigest()[:12],
        }

    @property
    def step_samples(self) -> int:
        return self.batch_edits

    @property
    def steps_per_epoch(self) -> int:
        return step_count(len(self.pool), self.batch_edits)

    def make_batch(self, epoch: int, batch: int) -> RecipeBatch:
        share = self.share(batch)
        step = step_items(epoch_order(len(self.pool), self.seed, epoch), share.step, self.batch_edits)
        numbers = share.group(step)
        if not len(numbers):  # a last step with less edits than accumulated batches: read, with weight 0
            numbers = step[:1]
        rng = np.random.default_rng([self.seed, epoch, share.step, share.batch])
        made = self.composer.compose(numbers.tolist(), rng, share.rank, share.world)
        made.weight = share.weight(step)
        return made

    # evaluation -------------------------------------------------------------------------------------------------------

    def val_dataloader(self) -> Batches:
        return Batches(JudgingBatch, "validation", ["validation"], 1)

    def test_dataloader(self) -> Batches:
        return Batches(JudgingBatch, "test", ["test"], 1)


def questions(sources: Sequence[QuestionSource]) -> list[str]:
    """The texts of all sources, one after another."""
    return [question.question for question in chain.from_iterable(sources)]
