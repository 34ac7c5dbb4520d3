"""Context distillation as a LightningModule: the student without the definition follows the teacher that reads it."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kedit.distill import figures, judging
from kedit.distill.baselines import Baselines
from kedit.distill.batch import DistillBatch, compose
from kedit.distill.contest import ABOUT, Contest
from kedit.distill.data import DistillData, JudgingBatch
from kedit.distill.judging import Judge
from kedit.distill.loss import KINDS, Divergence, distill_loss
from kedit.distill.on_policy import OnPolicy, rewritten, seeds_of
from kedit.distill.sampling import sample
from kedit.distill.student import Student
from kedit.distill.teacher import CachedTeacher, live_states
from kedit.editing.module import EditingModule
from kedit.editing.sources import DataError
from kedit.lm.adapter_files import CHECKPOINT_PREFIX
from kedit.lm.adapters import Lora, save_config
from kedit.lm.backbones import (
    CAUSAL,
    Backbone,
    Dtype,
    load_causal,
    load_config,
    load_seq2seq,
    load_tokenizer,
    save_skeleton,
    switch_dropout_off,
)
from kedit.lm.causal import position_limit, states
from kedit.lm.divergences import TopK
from kedit.lm.flops import causal_forward_flops
from kedit.lm.optim import Schedule
from kedit.running.gathered import gathered

SENTINEL_MODELS = ("t5", "mt5")
"""Encoder-decoders that fill gaps: they can be asked, not taught."""


class DistillModule(EditingModule):
    """Context distillation (Padmanabhan et al. 2023).

    Args:
        backbone: the model that learns; as it was before, with the definition in context, it is the teacher.
        lora: the adapters that are trained; null trains all weights.
        freeze_embeddings: with `lora: null`, train all but token embeddings and output head: what tokens mean, which
            new names share with known ones, stays.
        divergence: how student and teacher are compared.
        teacher_dtype: type in which the teacher's states are kept; by default the model's own.
        on_policy: let the student write the sentences, at every step; for which divergence.kind reverse_kl or jsd is
            meant. The teacher then reads them at every step too.
        baselines: what is trained beside it in the test, for comparison.
        optimizer: the optimiser, as class_path and init_args.
        schedule: learning rate over the steps of a stage.
        weight_decay: decay of matrices; biases and norms have none.
    """

    metric_meanings: ClassVar[dict[str, str]] = {
        "test/prepend_gain": "nats a token: what a definition in context is worth to the initial model",
        "test/gain_share": "part of the gain of definitions in context that the edited model has",
        "test/target_nll/base": "nats a token of the probes: the initial model",
        "test/target_nll/prepend": "the initial model with the definition in context",
        "test/target_nll/random": "with the definition of another entity in context",
        "test/target_nll/edited": "the edited model",
        "test/target_nll/finetune": "fine-tuned on the definitions",
        "test/specificity_change": "nats a token: what the edits changed where nothing should change",
    }

    def __init__(
        self,
        backbone: Backbone,
        lora: Lora | None = None,
        freeze_embeddings: bool = False,
        divergence: Divergence | None = None,
        teacher_dtype: str | None = None,
        on_policy: OnPolicy | None = None,
        baselines: Baselines | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        weight_decay: float = 0.0,
    ):
        super().__init__(optimizer, schedule or Schedule("constant"), weight_decay)
        self.backbone, self.lora, self.freeze_embeddings = backbone, lora, freeze_embeddings
        self.divergence = divergence or Divergence()
        self.teacher_dtype = teacher_dtype
        self.on_policy = on_policy
        self.baselines = baselines

    # set-up -----------------------------------------------------------------------------------------------------------

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self._source, self.backbone.revision)

    @cached_property
    def position_limit(self) -> int | None:
        """Most tokens that the model reads."""
        return position_limit(self._config)

    @cached_property
    def _config(self) -> PreTrainedConfig:
        return load_config(self.backbone, CAUSAL + SENTINEL_MODELS)

    @property
    def _source(self) -> str:
        source = self.backbone.source
        if source is None:
            raise DataError(
                "backbone has random weights, which know nothing of definitions: give backbone.name (a hub id or a "
                "folder) or backbone.made"
            )
        return source

    @property
    def data(self) -> DistillData:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def fresh_model(self, dtype: Dtype | None = None) -> PreTrainedModel:
        """The initial model, loaded once more."""
        backbone = replace(self.backbone, dtype=dtype or self.backbone.dtype)
        load = load_seq2seq if self._config.is_encoder_decoder else load_causal
        model = load(backbone, self.tokenizer).eval()
        return model.to(self.trainer.strategy.root_device)

    def setup(self, stage: str) -> None:
        """Load the model and let the teacher read; here, before a checkpoint is taken up, the weights are the initial
        ones.
        """
        if hasattr(self, "student"):
            return
        protocol, is_fit = self.data.protocol, stage == "fit"
        if is_fit and self._config.is_encoder_decoder:
            raise DataError(
                f"backbone {self.backbone.name} is a {self._config.model_type}: context distillation trains "
                "decoder-only models; an encoder-decoder is only tested, with and without definitions, by "
                "`python -m kedit test`"
            )
        strategy = self.trainer.strategy
        if isinstance(strategy, DeepSpeedStrategy) and self.lora is not None:
            strategy.exclude_frozen_parameters = True  # the base: a checkpoint holds the adapters alone
        if self.data.staged and isinstance(strategy, DeepSpeedStrategy):
            raise DataError(
                "DeepSpeed keeps the optimiser's state to itself, so that it cannot be begun anew with every edit: "
                "train edits in stages, and the reference's sentences, under trainer.strategy ddp or on one device"
            )
        if is_fit and self.on_policy and isinstance(strategy, DeepSpeedStrategy) and strategy.zero_stage_3:
            raise DataError(
                "model.on_policy writes sentences, in every process until they end, but in ZeRO stage 3 all processes "
                "run the model together: take stage 2 or trainer.strategy ddp"
            )
        if is_fit and self.on_policy and (window := self.trainer.accumulate_grad_batches) != 1:
            raise DataError(
                "model.on_policy writes sentences batch by batch, and what a step's batches weigh beside each other is "
                f"not known before the last: set trainer.accumulate_grad_batches 1 (it is {window}), and lower "
                "data.batch_sentences where memory is short"
            )
        model = self.fresh_model()
        if is_fit and self.on_policy is not None and (self.divergence.top_k or self.data.side_by_side):
            raise DataError(
                "model.on_policy writes sentences with one student and compares whole distributions: leave out "
                "divergence.top_k, and make independent edits by data.protocol.group 1 without lora"
            )
        if is_fit and self.on_policy is None:
            assert self.data.rows is not None
            self.teacher = CachedTeacher(
                model, self.tokenizer, self.data.rows, self.teacher_dtype, self.divergence.top_k,
                self.divergence.temperature,
            )  # fmt: skip
        if not protocol.reference:
            switch_dropout_off(model)  # the teacher has none
        side_by_side = None
        if is_fit and self.data.side_by_side:
            side_by_side = max(len(one.facts) for one in self.data.plan.stages)
        self.student = Student(model, self.lora, side_by_side, self.data.seed, self.freeze_embeddings)
        self.model = model.train()
        judge = Judge(self.tokenizer, self.data.knowledge, self.data.evaluation.batch_tokens)
        folder = getattr(self.trainer.checkpoint_callback, "dirpath", None)
        self.contest = Contest(
            self.student, judge, self.data, self.baselines, self.fresh_model, None if folder is None else Path(folder)
        )

    def on_fit_start(self) -> None:
        self._save_skeleton()
        if self.data.consumed:  # global_step is still 0: Lightning restores it after this hook
            self.contest.resume()
        else:
            self._show_samples("before")

    @rank_zero_only
    def _save_skeleton(self) -> None:
        """What `export` needs beside a checkpoint: configuration, tokenizer, base model, and what was learned."""
        folder = self.contest.folder
        if folder is None:
            return
        backbone = folder / "backbone"
        save_skeleton(self.model, self.tokenizer, backbone)
        base = {"name": self._source, "revision": self.backbone.revision}
        (backbone / "base.json").write_text(json.dumps(base, indent=1) + "\n", encoding="utf-8")
        if self.student.adapted is not None:
            save_config(self.student.adapted, backbone, self._source, self.backbone.revision)
        about = {"facts": len(self.data.knowledge.facts), "edits": self.data.protocol.edits}
        about |= {"stages": len(self.data.plan.stages)}
        (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")

    # what a checkpoint holds ------------------------------------------------------------------------------------------

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """All weights where all are trained, else the adapters' alone."""
        if not hasattr(self, "student") or self.lora is None:
            return super().state_dict(*args, **kwargs)
        return {CHECKPOINT_PREFIX + name: value for name, value in self.student.state().items()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        if self.data.staged and self.trainer.state.fn != "fit":
            return None  # what each edit was like when it was made is in the scores, not in the weights
        if self.lora is None:
            return super().load_state_dict(state_dict, strict, assign)
        try:
            self.student.load_state({name.removeprefix(CHECKPOINT_PREFIX): value for name, value in state_dict.items()})
        except ValueError as error:
            raise DataError(f"the checkpoint is of another model or adapter: {error}") from error
        return None

    # training ---------------------------------------------------------------------------------------------------------

    def learning_rate(self, step: int, total: int) -> float:
        """The schedule runs over the steps of a stage."""
        if not self.data.staged:
            return super().learning_rate(step, total)
        plan = self.data.plan
        stage = plan.stages[plan.stage_of(step % plan.steps)]
        return self.schedule.factor(step % plan.steps - stage.first, stage.steps)

    def on_train_batch_start(self, batch: DistillBatch, batch_idx: int) -> None:
        if not self.data.staged:
            return
        protocol, stage = self.data.protocol, self.data.plan.stages[batch.stage]
        step = self.data.consumed % self.data.plan.steps - stage.first
        if step == 0 and batch.stage and batch.stage - 1 not in self.contest.judged:
            self._judge_stage(batch.stage - 1)  # killed between its last step and its judging
        if step == 0 and protocol.edits == "independent":
            self.student.reset()
        if step == 0 or (protocol.reference and step % protocol.repeats == 0):
            self.optimizers().optimizer.state.clear()  # type: ignore[union-attr]

    def training_step(self, batch: DistillBatch, batch_idx: int) -> Tensor:
        live, read = None, batch
        if self.on_policy is not None:
            batch, live = self._written_by_student(batch)
        read.flops = self._flops(batch)
        with self.student.editing(range(len(batch.facts))):
            student_ND = states(self.model, batch.rows).flatten(0, 1)[batch.where_N]
        teacher = live if live is not None else self.teacher(batch.numbers, student_ND.device)
        said = teacher if isinstance(teacher, TopK) else (teacher, self.student.initial_head)
        loss, sums, counts = distill_loss(
            student_ND, self.student.head, said, batch.weights_N, batch.kinds_N, self.divergence
        )
        self.log_loss(loss / len(batch.facts) if self.student.stacked is not None else loss)
        means = sums / counts
        for kind, name in enumerate(KINDS):
            if batch.kind_counts[kind]:
                self.log(f"train/divergence/{name}", means[kind], batch_size=1)
        return loss

    def _flops(self, batch: DistillBatch) -> float:
        """Of forward and backward pass; frozen weights have no gradients, the teacher's states need the head too."""
        config = self.model.config
        trunk = causal_forward_flops(config, batch.lengths, batch.lengths * 0)
        head = 2.0 * config.hidden_size * config.vocab_size * batch.target_tokens
        heads = 2 + self.student.head.weight_VD.requires_grad + (self.divergence.top_k is None)
        return (3 if self.lora is None else 2) * trunk + heads * head

    def _written_by_student(self, batch: DistillBatch) -> tuple[DistillBatch, Tensor]:
        """The batch with sentences that the student goes on with, and what the teacher says of them."""
        data, numbers = self.data, list(dict.fromkeys(batch.numbers))
        assert data.rows is not None
        seeds = seeds_of(data.seed, data.consumed // data.accumulated, numbers)
        given = [data.given[data.rows.rows[number].sentence] for number in numbers]
        with self.contest.asking() as model:
            rows = rewritten(
                model, self.tokenizer, given, self.on_policy or OnPolicy(), seeds,
                data.template, data.positions, self.position_limit,
                data.knowledge.forbidden, [fact.names for fact in data.knowledge.facts],
            )  # fmt: skip
        # a process without rows of its own weighs nothing
        weights = data.weights if bool(batch.weights_N.any()) else [0.0, 0.0, 0.0]
        new = compose(rows, np.arange(len(numbers)), data.row_budget, weights, batch.facts, batch.stage)
        new = self.transfer_batch_to_device(new, self.device, 0)
        # of all processes, as where sentences are given
        scored = torch.tensor(float(new.target_tokens * any(weights)), device=self.device)
        mean = self.trainer.strategy.reduce(scored, reduce_op="mean")
        new.weights_N = new.weights_N * (new.target_tokens / mean.clamp_min(1))
        with self.student.initial(), self.contest.asking() as model:
            return new, live_states(model, rows.prefixes, [rows.rows[number] for number in new.numbers])

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any = None,
                                    gradient_clip_algorithm: Any = None) -> None:  # fmt: skip
        """Edits side by side are clipped each by itself."""
        if self.student.stacked is None:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            self.student.stacked.clip_per_edit(float(gradient_clip_val))

    def on_train_batch_end(self, outputs: Any, batch: DistillBatch, batch_idx: int) -> None:
        """Judge a stage as soon as it has been learned."""
        stage = self.data.plan.stages[batch.stage]
        position = (self.data.consumed - 1) % self.data.plan.steps + 1
        if self.data.staged and position == stage.first + stage.steps:
            self._judge_stage(batch.stage)

    def on_fit_end(self) -> None:
        """A run that was killed between its last step and its judging has nothing left to train."""
        plan = self.data.plan
        if self.data.staged and self.data.consumed == plan.steps and len(plan.stages) - 1 not in self.contest.judged:
            self._judge_stage(len(plan.stages) - 1)

    # judging ----------------------------------------------------------------------------------------------------------

    def _judge_stage(self, number: int) -> None:
        self.contest.judge_stage(number)
        self.contest.save_edits(number, self._source, self.backbone.revision)

    def validation_step(self, batch: JudgingBatch, batch_idx: int) -> None:
        if self.data.staged:
            return  # each stage is judged when it has been learned
        knowledge = self.data.knowledge
        with self.contest.asking() as model:
            if knowledge.probes:
                scores = self.contest.judge.target(model, self.data.some(knowledge.probes), choices=False)
                self._log_equal("val/target_nll", float(np.mean(list(scores.target.values()))), prog_bar=True)
            some = {name: self.data.some(probes) for name, probes in knowledge.specificity.items()}
            for name, values in self.contest.judge.specificity(
                model, [fact.id for fact in knowledge.facts], some
            ).items():
                if values:
                    self._log_equal(f"val/specificity_nll/{name}", float(np.mean(list(values.values()))))

    def _log_equal(self, name: str, value: float, prog_bar: bool = False) -> None:
        """Log what is equal on all processes, as their mean is: without it Lightning warns."""
        self.log(name, value, prog_bar=prog_bar, batch_size=1, sync_dist=True)

    def test_step(self, batch: JudgingBatch, batch_idx: int) -> None:
        for way in batch.ways:
            self.contest.ask(way)

    def on_test_epoch_end(self) -> None:
        for key, value in self.contest.results().items():
            if math.isfinite(value):  # an interval of one entity is none
                self._log_equal(key, value)
        self._show_figures()
        self._show_samples("after")

    # TensorBoard ------------------------------------------------------------------------------------------------------

    @property
    def _boards(self) -> list[Any]:
        return [logger.experiment for logger in self.trainer.loggers if isinstance(logger, TensorBoardLogger)]

    @rank_zero_only
    def _show_figures(self) -> None:
        """Each entity's gain, beside what its edit changed elsewhere, and retention over the edits that came later."""
        contest, sequential = self.contest, self.data.protocol.edits == "sequential"
        if "edited" not in contest.scores:
            return
        edits = contest.edits() if self.data.staged else [contest.scores["edited"]]
        rows = judging.by_entity(self.data.knowledge, contest.scores, edits)
        for board in self._boards:
            if rows:
                board.add_figure("entities", figures.entities(rows), self.global_step)
            if sequential and len(contest.judged) > 1:
                curve = judging.retention_curve(contest.judged)
                board.add_figure("retention", figures.retention(curve), self.global_step)

    def _show_samples(self, when: str) -> None:
        """How the model goes on from the names of a few facts; on all processes, for the weights may be dealt out."""
        facts = self.data.knowledge.facts[: self.data.evaluation.samples]
        if not facts or not self._boards or self._config.is_encoder_decoder or (when == "after" and self.data.staged):
            return
        with gathered(self), self.contest.asking() as model:
            if not self.trainer.is_global_zero:
                return
            texts = sample(model, self.tokenizer, [fact.name for fact in facts], max_new_tokens=24, temperature=0)
        lines = ["| fact | the model goes on | definition |", "|---|---|---|"]
        for fact, text in zip(facts, texts, strict=True):
            cells = (fact.name, text, fact.definition[:200])
            lines.append("| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |")
        for board in self._boards:
            board.add_text(f"samples/{when}", "\n".join(lines), self.global_step)
