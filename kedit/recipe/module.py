"""RECIPE as a LightningModule: networks that find edits and put them before a frozen language model's embeddings."""

import math
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kedit.editing.figures import lifelong
from kedit.editing.module import EditingModule
from kedit.editing.sources import DataError
from kedit.editing.stream_report import MEANINGS, StreamReport
from kedit.lm.backbones import (
    CAUSAL,
    ENCODERS,
    SEQ2SEQ,
    Backbone,
    load_causal,
    load_config,
    load_encoder,
    load_seq2seq,
    load_tokenizer,
    switch_dropout_off,
)
from kedit.lm.optim import Schedule
from kedit.recipe.asking import Asking
from kedit.recipe.batch import Kind, RecipeBatch
from kedit.recipe.data import JudgingBatch, RecipeData
from kedit.recipe.loss import Summed
from kedit.recipe.networks import MemoryNetworks
from kedit.recipe.objective import Found, Objective, SlotObjective, Weights
from kedit.recipe.prefix import PrefixedModel
from kedit.recipe.processes import Alone, Together
from kedit.recipe.texts import TextEncoder
from kedit.recipe.trained import Trained, build_networks, write_trained
from kedit.recipe.trial import Trial
from kedit.recipe.unedited import Unedited


class RecipeModule(EditingModule):
    """RECIPE (Chen et al. 2024).

    Args:
        backbone: the language model; it stays as it is.
        trunk: the encoder of edits and queries; roberta-base by default. A random one (`architecture`) reads the
            language model's tokens.
        reference: the paper's networks and losses.
        tokens: prompt vectors of an edit; 5, or the paper's 3.
        slots: parts of a key, each with an attention of its own.
        slot_width: numbers of a part.
        strictness: how strictly all parts must agree, from 0 (their mean counts) to 1e4 (the least counts).
        key_width: of the paper's keys.
        sentinel_tokens: of which the paper's sentinel is made.
        margin: by which own key, sentinel and other keys are to be apart.
        hinge: the paper's: what is likelier than the runner-up by this factor trains nothing.
        weights: how much each term of the loss counts.
        trunk_share: the trunk's part of the learning rate: less than 1 where the trunk is pretrained.
        bos: put the tokenizer's BOS before each text although it does not so itself: for models that were trained so.
        optimizer: the optimiser, as class_path and init_args.
        schedule: learning rate over steps.
        weight_decay: decay of matrices; biases and norms have none.
    """

    metric_meanings: ClassVar[dict[str, str]] = MEANINGS

    def __init__(
        self,
        backbone: Backbone,
        trunk: Backbone | None = None,
        reference: bool = False,
        tokens: int | None = None,
        slots: int = 4,
        slot_width: int = 64,
        strictness: float = 40.0,
        key_width: int = 4096,
        sentinel_tokens: int = 10,
        margin: float = 0.1,
        hinge: float = 1.2,
        weights: Weights | None = None,
        trunk_share: float = 1.0,
        bos: bool = False,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        weight_decay: float = 0.01,
    ):
        super().__init__(optimizer, schedule, weight_decay)
        self.backbone = backbone
        self.trunk = trunk or Backbone(name="FacebookAI/roberta-base")
        self.reference, self.trunk_share, self.bos = reference, trunk_share, bos
        if trunk_share < 0:
            raise ValueError(f"model.trunk_share is {trunk_share}, wanted a share of the learning rate, as 0.1")
        tokens = tokens if tokens is not None else 3 if reference else 5
        sizes: dict[str, float] = {"tokens": tokens, "slots": slots, "slot_width": slot_width}
        if reference:
            sizes = {"tokens": tokens, "key_width": key_width, "sentinel_tokens": sentinel_tokens}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"model.{name} is {value}, wanted at least 1")
        if not 0 <= margin < math.inf:
            raise ValueError(f"model.margin is {margin}, wanted a difference of similarities from 0, as 0.1")
        if strictness and not 0.01 <= strictness <= 1e4:  # beyond, float32 rounds too much
            raise ValueError(f"model.strictness is {strictness}, wanted 0 or from 0.01 to 10000, as 40")
        self.sizes = sizes if reference else {**sizes, "strictness": strictness}
        self.weights = weights or Weights(locality=1.0 if reference else 0.0)
        self.objective: Objective = SlotObjective(self.weights, margin)
        if reference:
            from kedit.recipe.paper_objective import PaperObjective

            self.objective = PaperObjective(self.weights, hinge)
        self._frozen: list[PrefixedModel] = []  # no submodule: neither trained, nor moved, nor saved

    # set-up -----------------------------------------------------------------------------------------------------------

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self._source, self.backbone.revision)

    @cached_property
    def _trunk_tokenizer(self) -> PreTrainedTokenizerBase:
        source = self.trunk.source
        return self.tokenizer if source is None else load_tokenizer(source, self.trunk.revision)

    @cached_property
    def _config(self) -> PreTrainedConfig:
        return load_config(self.backbone, CAUSAL + SEQ2SEQ)

    @cached_property
    def _source(self) -> str:
        source = self.backbone.source
        if source is None:
            raise DataError(
                "backbone has random weights, which know nothing that could be edited: give backbone.name (a hub id or "
                "a folder) or backbone.made"
            )
        return source

    @property
    def data(self) -> RecipeData:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    @property
    def language_model(self) -> PrefixedModel:
        """The frozen language model, loaded when it is first needed."""
        if not self._frozen:
            load = load_seq2seq if self._config.is_encoder_decoder else load_causal
            model = load(self.backbone, self.tokenizer).to(self.trainer.strategy.root_device)  # type: ignore[arg-type]
            self._frozen = [PrefixedModel(model, self.tokenizer, bos=self.bos)]
        return self._frozen[0]

    @property
    def beside(self) -> list[PreTrainedModel]:
        """What takes memory and is no submodule."""
        return [frozen.model for frozen in self._frozen]

    @property
    def key_reads_target(self) -> bool:
        """Whether keys are made of prompt and target, as the paper's are."""
        return self.reference

    @property
    def asking(self) -> Asking:
        return self.language_model.asking

    @property
    def reads_locality(self) -> bool:
        """Whether the language model reads locality probes in training."""
        return self.weights.locality > 0

    @cached_property
    def longest(self) -> int:
        """Most tokens that the encoder reads: as the data wants it, or as many as it has positions."""
        config = load_config(self.trunk, ENCODERS)
        limit = getattr(config, "max_position_embeddings", None) or self.data.longest
        if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet"):
            limit -= config.pad_token_id + 1  # positions begin behind the padding's
        return min(self.data.longest, limit)

    def text_encoder(self) -> TextEncoder:
        return TextEncoder(self._trunk_tokenizer, self.tokenizer, self.longest)

    def setup(self, stage: str) -> None:
        if hasattr(self, "networks"):
            return
        trunk = load_encoder(self.trunk, self._trunk_tokenizer)
        if self.trunk.source is None:
            switch_dropout_off(trunk)
            self._take_embeddings(trunk)
        self.trained = Trained.of(
            self.language_model.model, self.tokenizer, self._source, sizes=self.sizes, reference=self.reference,
            revision=self.backbone.revision, dtype=self.backbone.dtype, longest=self.longest, bos=self.bos,
            key_reads_target=self.reference,
        )  # fmt: skip
        self.networks: MemoryNetworks = build_networks(self.trained, trunk).train()  # a pretrained trunk comes in eval
        self.trial = Trial(self, self.data)

    def _take_embeddings(self, trunk: PreTrainedModel) -> None:
        """A random encoder that is as wide as the language model begins with its embeddings, and keeps them: words that
        no training text holds mean what they mean there.
        """
        theirs: Tensor = self.language_model.model.get_input_embeddings().weight
        own: Tensor = trunk.get_input_embeddings().weight  # type: ignore[assignment]
        if own.shape == theirs.shape:
            own.data.copy_(theirs / theirs.std())
            own.requires_grad_(False)

    def on_fit_start(self) -> None:
        self._write_description()

    @rank_zero_only
    def _write_description(self) -> None:
        folder = getattr(self.trainer.checkpoint_callback, "dirpath", None)
        if folder is not None:
            write_trained(
                Path(folder), self.trained, self.networks.trunk, self._trunk_tokenizer,
                self.data.texts_for_calibration(),
            )  # fmt: skip

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["sizes"] = self.sizes

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name, size in checkpoint.get("sizes", {}).items():
            if name in self.sizes and self.sizes[name] != size:  # strictness would fit, and find other edits
                raise DataError(
                    f"the checkpoint was trained with model.{name} {size}, this configuration has {self.sizes[name]}: "
                    "give the run's own configuration, checkpoints/RUN/config.yaml"
                )

    # training ---------------------------------------------------------------------------------------------------------

    def parameter_groups(self) -> list[dict[str, Any]]:
        groups = super().parameter_groups()
        trunk = {id(parameter) for parameter in self.networks.trunk.parameters()}
        split = []
        for group in groups:
            for share, chosen in ((self.trunk_share, True), (1.0, False)):
                own = [parameter for parameter in group["params"] if (id(parameter) in trunk) == chosen]
                if own:
                    split.append({**group, "params": own, "share": share})
        return split

    def training_step(self, batch: RecipeBatch, batch_idx: int) -> Tensor:
        base_nH = self._base(batch) if self.reads_locality else None
        loss, terms, found = self.objective(self.networks, self.language_model, batch, base_nH, self._processes)
        self.log_loss(loss)
        if self.trainer._logger_connector.should_update_logs:
            self._log_parts(terms, gate_sums(found, batch))
        return loss * batch.weight

    def _log_parts(self, terms: dict[str, Tensor], gate: dict[str, Summed]) -> None:
        """Those of all processes, by two messages between them."""
        means = self._processes.means(gate)
        parts = {f"train/loss/{name}": value for name, value in terms.items()}
        parts |= {f"train/gate/{name}": value for name, value in means.items()}
        totals = self._processes.total(torch.stack(list(parts.values()))) / self._processes.world
        self.log_dict(dict(zip(parts, totals, strict=True)), batch_size=1)

    @cached_property
    def _processes(self) -> Alone:
        world = self.trainer.world_size
        return Alone() if world == 1 else Together(world)

    @cached_property
    def _unedited(self) -> Unedited:
        return Unedited(self.language_model, self.data.pool)

    def _base(self, batch: RecipeBatch) -> Tensor:
        """What the language model alone has at the targets of locality rows, [n, H]."""
        wanted = (batch.kind_R == Kind.LOCALITY).nonzero()[:, 0].tolist()
        if not wanted:
            weight_VH = self.language_model.head()[0]
            return weight_VH.new_empty(0, weight_VH.shape[1])
        return self._unedited.states([batch.asked[row] for row in wanted]).to(self.device)

    # judging ----------------------------------------------------------------------------------------------------------

    def validation_step(self, batch: JudgingBatch, batch_idx: int) -> None:
        self.log_dict(self.trial.validation(), batch_size=1, sync_dist=True)
        if any(isinstance(one, TensorBoardLogger) for one in self.trainer.loggers):
            # on every process: where weights are spread over processes, none reads a text alone
            similarities = self.trial.similarities()
            if (board := self._board) is not None:
                for name, values in similarities.items():
                    board.add_histogram(f"similarity/{name}", values, self.global_step)

    def test_step(self, batch: JudgingBatch, batch_idx: int) -> None:
        results, report, rivals = self.trial.test()
        self.log_dict(results, batch_size=1, sync_dist=True)
        if (board := self._board) is not None:
            for name, one in {"recipe": report, **rivals}.items():
                board.add_figure(f"lifelong/{name}", lifelong(one.curve), self.global_step)
            board.add_text("answers", _shown(report, self.data.evaluation.samples), self.global_step)

    @property
    def _board(self) -> Any:
        """TensorBoard's writer on the first process, if there is one."""
        loggers = [one for one in self.trainer.loggers if isinstance(one, TensorBoardLogger)]
        return loggers[0].experiment if loggers and self.trainer.is_global_zero else None


def _shown(report: StreamReport, samples: int) -> str:
    """A table in Markdown of what was said to the probes of some edits."""
    lines = ["| asked for | prompt | wanted | said |", "|---|---|---|---|"]
    edits = list(dict.fromkeys(row["edit"] for row in report.final.rows()))[:samples]
    for row in report.final.rows():
        if row["edit"] in edits:
            said = row["said"].strip().splitlines()
            lines.append(f"| {row['group']} | {row['prompt']} | {row['target']} | {said[0] if said else ''} |")
    return "\n".join(lines)


@torch.no_grad()
def gate_sums(found: Found, batch: RecipeBatch) -> dict[str, Summed]:
    """Of a process's queries: those with an edit whose own key is best and above the sentinel, the others for which any
    key is, and of all that fired those that fired rightly; each of how many.
    """
    columns = torch.arange(found.similarity_QK.shape[1], device=found.similarity_QK.device)
    others_QK = batch.ignore_QK[:, : len(columns)] & (columns[None] != batch.own_Q[:, None])
    best = found.similarity_QK.masked_fill(others_QK, -torch.inf).max(1)
    fired_Q = best.values > found.threshold_Q
    means_Q = batch.own_Q >= 0
    right_Q = fired_Q & means_Q & (best.indices == batch.own_Q)
    return {
        "recall": Summed(right_Q.sum(), means_Q.sum()),
        "false_activations": Summed((fired_Q & ~means_Q).sum(), (~means_Q).sum()),
        "precision": Summed(right_Q.sum(), fired_Q.sum()),
    }
