"""Transfer sets in batches, and the probes that judge what was learned: the LightningDataModule of distillation."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from kedit.distill.batch import DistillBatch, compose
from kedit.distill.generators import SourceSentences
from kedit.distill.made import MadeTransfer
from kedit.distill.plan import Plan, Protocol
from kedit.distill.regularise import KeptTexts, Regularisation
from kedit.distill.rows import Kind, Positions, Sentence, Template, TransferRows, make_rows
from kedit.distill.teacher import rows_fingerprint
from kedit.distill.transfer import Filters, TransferSentence, find_forbidden, read_transfer_set
from kedit.editing.facts import read_facts
from kedit.editing.probes import Knowledge, KnowledgeSource, Probe, check_facts
from kedit.editing.sources import DataError
from kedit.running.batches import Batches
from kedit.running.data import ResumableData


@dataclass
class Evaluation:
    """What is asked, and what the answers are compared with.

    Args:
        learn: which facts are learned and judged: those of the test, or those kept for tuning.
        validation_probes: probes, and as many of each specificity set, asked in each validation; all in the test.
        batch_tokens: most tokens of a batch of probes.
        samples: facts whose continuation is shown in TensorBoard, before and after.
    """

    learn: Literal["test", "validation"] = "test"
    validation_probes: int = 200
    batch_tokens: int = 8192
    samples: int = 4

    def __post_init__(self) -> None:
        if self.batch_tokens < 1 or min(self.validation_probes, self.samples) < 0:
            raise ValueError(f"data.evaluation holds a negative number, or batch_tokens 0: {self}")


@dataclass
class JudgingBatch:
    """One way of answering, to be judged by every probe; a process asks its share."""

    task: str
    ways: list[str] = field(default_factory=list)


class DistillData(ResumableData):
    """Facts to be learned, sentences of a transfer set about them, and probes.

    Args:
        source: facts with probes: a benchmark, or a made-up world.
        facts: JSONL of {"id", "name", "definition", optional "aliases"} instead.
        transfer: what `python -m kedit transfer` wrote; by default the sentences that come with the source.
        make: writes the transfer set when it is first needed, instead.
        protocol: how the edits are made.
        template: how a definition stands before a continuation.
        positions: which predictions are compared: those after the mention of the entity, or all.
        sentences: most sentences of a fact.
        regularisation: text on which the model is to stay as it was.
        batch_sentences: sentences of a step over all devices and accumulated batches; of each edit where they are made
            side by side.
        row_tokens: most tokens of a packed row; what the model reads where that is less.
        most_facts: learn only the first so many facts.
        evaluation: what is asked.
        num_workers: processes that prepare batches.
        pin_memory: hand out batches in pinned memory.
    """

    def __init__(
        self,
        source: KnowledgeSource | None = None,
        facts: str | None = None,
        transfer: str | None = None,
        make: MadeTransfer | None = None,
        protocol: Protocol | None = None,
        template: Template | None = None,
        positions: Positions = "after_mention",
        sentences: int = 5,
        regularisation: Regularisation | None = None,
        batch_sentences: int = 32,
        row_tokens: int = 512,
        most_facts: int | None = None,
        evaluation: Evaluation | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
    ):
        super().__init__()
        if (source is None) == (facts is None):
            raise ValueError("data needs facts: give either data.source (a class) or data.facts (a JSONL file)")
        if transfer is not None and make is not None:
            raise ValueError("data has two transfer sets: give data.transfer (a folder) or data.make, not both")
        for name, value, least in (
            ("sentences", sentences, 1), ("batch_sentences", batch_sentences, 1), ("row_tokens", row_tokens, 2),
            ("most_facts", most_facts, 1), ("num_workers", num_workers, 0),
        ):  # fmt: skip
            if value is not None and value < least:
                raise ValueError(f"data.{name} is {value}, wanted at least {least}")
        self.source, self.facts_file, self.transfer = source, facts, transfer
        self.make = make
        if make is None and transfer is None:
            # where all tokens are scored, a sentence need not mention its entity
            every = Filters(require_mention=False, min_words_after=0, min_words=1)
            self.make = MadeTransfer(SourceSentences(), None, every if positions == "all" else None)
        self.protocol = protocol or Protocol()
        self.template = template or Template()
        self.positions, self.sentences = positions, sentences
        self.regularisation = regularisation or Regularisation()
        self.batch_sentences, self.row_tokens = batch_sentences, row_tokens
        self.most_facts = most_facts
        self.evaluation = evaluation or Evaluation()
        self.num_workers, self.pin_memory = num_workers, pin_memory
        self.rows: TransferRows | None = None

    # set-up -----------------------------------------------------------------------------------------------------------

    @property
    def module(self) -> Any:
        """The model that learns: its tokenizer writes the rows, its backbone the sentences of a made transfer set."""
        if self.trainer is None:
            raise RuntimeError("DistillData is not connected to a trainer")
        return self.trainer.lightning_module

    def load(self) -> Knowledge:
        """Facts and probes, cut to what is learned in this run."""
        if self.source is not None:
            knowledge = self.source.load()
        else:
            knowledge = Knowledge(read_facts(Path(str(self.facts_file))), [])
        self.named = [*knowledge.facts, *knowledge.validation_facts]  # a transfer set may be of more than is learned
        if self.evaluation.learn == "validation":
            if not knowledge.validation_facts:
                raise DataError("data.evaluation.learn is validation, but the source keeps no facts for tuning")
            knowledge.facts, knowledge.probes = knowledge.validation_facts, knowledge.validation_probes
        if self.most_facts is not None:
            knowledge.facts = knowledge.facts[: self.most_facts]
            kept = {fact.id for fact in knowledge.facts}
            knowledge.probes = [probe for probe in knowledge.probes if probe.fact in kept]
        if not knowledge.facts:
            raise DataError(f"there is no fact to learn in {self.facts_file or self.source}")
        check_facts(knowledge.facts)
        return knowledge

    def prepare_data(self) -> None:
        if self.trainer is None or self.trainer.state.fn != "fit":
            return
        knowledge = self.load()
        if self.make is not None:
            if isinstance(self.make.generator, SourceSentences) and not knowledge.continuations:
                raise DataError(
                    "there is no transfer set: write one by `python -m kedit transfer` and give its folder as "
                    "data.transfer, or have it written by data.make"
                )
            self.make.write(knowledge, self.module.backbone, self.seed)
        if self.regularisation.wanted:
            self.knowledge = knowledge
            self.kept_texts.write(knowledge, self.edit_sentences())

    def setup(self, stage: str) -> None:
        if hasattr(self, "tokenizer"):
            return
        self.knowledge = self.load()
        if not self.knowledge.probes:
            rank_zero_info("there are no probes, so what is learned is not judged: probes come with a data.source")
        self.tokenizer = self.module.tokenizer
        if stage == "fit":
            self._set_up_training()

    def _set_up_training(self) -> None:
        sentences = self.edit_sentences()
        if self.regularisation.wanted:
            sentences += self.kept_texts.read(self.knowledge, sentences)
        self.given = sentences
        self.rows = make_rows(
            self.tokenizer, sentences, self.template, self.positions, self.module.position_limit,
            self.knowledge.facts, self.protocol.reference,
        )  # fmt: skip
        of: list[list[int]] = [[] for _ in self.knowledge.facts]
        kept: list[list[int]] = [[] for _ in self.knowledge.facts]
        for number, row in enumerate(self.rows.rows):
            (of if row.kind == Kind.EDIT else kept)[row.fact].append(number)
        for reason, count in self.rows.skipped.items():
            rank_zero_info(f"left out of the transfer set: {count} sentences {reason}")
        silent = [fact.name for fact, own in zip(self.knowledge.facts, of, strict=True) if not own]
        if len(silent) == len(of):
            raise DataError(
                f"none of {len(of)} facts has a sentence to learn from: "
                + "; ".join(f"{count} {reason}" for reason, count in self.rows.skipped.items())
            )
        if silent:
            shown = ", ".join(silent[:5]) + (", ..." if len(silent) > 5 else "")
            rank_zero_info(f"{len(silent)} of {len(of)} facts have no sentence and are not learned: {shown}")
        self.plan = Plan(
            of, self.protocol, self.batch_sentences, self.seed, self.side_by_side, kept, self.regularisation.ratio
        )
        self._check_plan()

    def _check_plan(self) -> None:
        trainer = self.trainer
        if trainer is None or not self.staged:
            return
        if trainer.max_epochs != 1:
            what = "the reference's edits" if self.protocol.reference else f"{self.protocol.edits} edits"
            raise DataError(
                f"{what} are one epoch: set trainer.max_epochs 1 (it is {trainer.max_epochs}) and data.protocol.passes "
                "to how often each goes through its sentences"
            )
        if trainer.accumulate_grad_batches != 1:
            raise DataError(
                "edits in stages, and the reference's single sentences, cannot be accumulated: set "
                "trainer.accumulate_grad_batches 1"
            )

    @property
    def staged(self) -> bool:
        """Whether edits are made in stages, each with an optimiser that begins anew and judged when it is learned."""
        return self.protocol.reference or self.protocol.edits != "joint"

    @property
    def side_by_side(self) -> bool:
        """Whether the facts of a stage are learned each by an adapter of its own, in the same pass."""
        return self.protocol.edits == "independent" and self.module.lora is not None and not self.protocol.reference

    @property
    def kept_texts(self) -> KeptTexts:
        return KeptTexts(self.regularisation, self.module.backbone, self.seed)

    def edit_sentences(self) -> list[Sentence]:
        """The transfer set: at most `sentences` of each fact, in the order of the file."""
        place = {fact.id: index for index, fact in enumerate(self.knowledge.facts)}
        chosen: list[Sentence] = []
        taken: Counter[str] = Counter()
        for sentence in self._transfer_set():
            id = sentence.fact.id
            if id in place and taken[id] < self.sentences:
                taken[id] += 1
                context = sentence.context or sentence.fact.definition
                chosen.append(Sentence(place[id], context, sentence.text, sentence.mention, Kind.EDIT))
        return chosen

    def _transfer_set(self) -> Sequence[TransferSentence]:
        if self.make is not None:
            return read_transfer_set(self.make.folder(self.knowledge, self.module.backbone, self.seed), self.named)
        found, forbidden = read_transfer_set(str(self.transfer), self.named), self.knowledge.forbidden
        kept = [one for one in found if find_forbidden(one.text, one.fact.names, forbidden) is None]
        if len(kept) < len(found):
            rank_zero_info(f"left out of {self.transfer}: {len(found) - len(kept)} sentences in the wording of probes")
        return kept

    def kept_for_tuning(self) -> Knowledge:
        """The facts that the source keeps for tuning, none where they are those of this run."""
        if self.source is None or self.evaluation.learn == "validation":
            return Knowledge([], [])
        whole = self.source.load()
        return Knowledge(whole.validation_facts, whole.validation_probes)

    def sentences_of(self, knowledge: Knowledge) -> list[list[str]]:
        """The transfer set of these facts, as plain sentences; none of a fact that it says nothing of."""
        place = {fact.id: index for index, fact in enumerate(knowledge.facts)}
        texts: list[list[str]] = [[] for _ in place]
        for sentence in self._transfer_set():
            if sentence.fact.id in place and len(texts[place[sentence.fact.id]]) < self.sentences:
                texts[place[sentence.fact.id]].append(sentence.text)
        return texts

    # training ---------------------------------------------------------------------------------------------------------

    @property
    def step_samples(self) -> int:
        return self.plan.batch

    @property
    def steps_per_epoch(self) -> int:
        return self.plan.steps

    @property
    def row_budget(self) -> int:
        """Most tokens of a packed row: no wider than the model's masks (GPT-Neo's have a size)."""
        return min(self.row_tokens, self.module.position_limit or self.row_tokens)

    @property
    def weights(self) -> list[float]:
        """What a position of each kind weighs."""
        return [1.0, self.regularisation.weight, self.regularisation.weight]

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | ({} if self.rows is None else {"rows": rows_fingerprint(self.rows)})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.rows is not None and state_dict.get("rows") not in (None, rows_fingerprint(self.rows)):
            raise DataError(
                "the checkpoint was trained on other sentences, or other tokens of them: resume with the same facts, "
                "transfer set, template and regularisation, or begin a run of another --run.name"
            )
        super().load_state_dict(state_dict)

    def make_batch(self, epoch: int, batch: int) -> DistillBatch:
        assert self.rows is not None
        share = self.share(batch)
        step = self.plan.rows(epoch, share.step)  # in stages, steps are of one batch
        numbers = share.own(step) if step.ndim == 1 else step[:, share.rank :: share.world]
        stage = self.plan.stage_of(share.step)
        weights = self.weights
        if not numbers.size:  # a last step with less rows than parts
            numbers, weights = step[..., :1], [0.0, 0.0, 0.0]
        facts = self.plan.stages[stage].facts
        parts = share.batches * share.world
        return compose(self.rows, numbers, self.row_budget, weights, facts, stage, step, parts)

    # evaluation -------------------------------------------------------------------------------------------------------

    def some(self, probes: Sequence[Probe]) -> list[Probe]:
        """Probes spread evenly over the set, as many as a validation asks."""
        most = self.evaluation.validation_probes
        return list(probes) if len(probes) <= most else [probes[int(k)] for k in np.linspace(0, len(probes) - 1, most)]

    def val_dataloader(self) -> Batches:
        return Batches(JudgingBatch, "validation", ["edited"], 1)

    def test_dataloader(self) -> Batches:
        return Batches(JudgingBatch, "test", self.module.contest.ways, 1)
