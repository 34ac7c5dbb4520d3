"""KILM as a LightningModule: one packed forward pass, the loss by class, and the questions it is judged by."""

import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import nn
from torchmetrics import Metric

from kedit.editing.metrics import DisambiguationScore, ExactMatch, MeanOverTokens, RougeL, TokenF1
from kedit.editing.module import EditingModule
from kedit.editing.sources import DataError, MentionSource
from kedit.kilm.batch import KilmBatch
from kedit.kilm.infiller import Infiller
from kedit.kilm.infilling import CLASSES, markup
from kedit.kilm.loss import ClassWeights, kilm_loss
from kedit.kilm.marking import MarkedMention
from kedit.kilm.questions import MentionBatch, QuestionBatch
from kedit.lm.backbones import Backbone, load_seq2seq, load_tokenizer, output_head, save_skeleton
from kedit.lm.flops import forward_flops
from kedit.lm.optim import Schedule
from kedit.lm.packing import decode, encode, row_limit

USAGE = """\
```python
from kedit.kilm import Infiller

infiller = Infiller.from_pretrained("FOLDER")
infiller.describe(["The Joker was played by Joaquin Phoenix."], ["Joker"])
```

Without kedit, with transformers alone: mark the mention and let the model fill in what stands between `<ent_desc>` and
`</ent_desc>`.

```python
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained("FOLDER"), AutoTokenizer.from_pretrained("FOLDER")
ids = lambda text: tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
marked = "The<ent> Joker</ent><ent_desc>"
"""
USAGE_BY_FAMILY = {
    "bart": USAGE
    + """\
source = ids(f"<s>{marked}<mask></ent_desc> was played by Joaquin Phoenix.</s>")
answer = model.generate(source, decoder_input_ids=ids(f"</s><s>{marked}"), max_new_tokens=40,
                        eos_token_id=tokenizer.convert_tokens_to_ids("</ent_desc>"), num_beams=1)
print(tokenizer.decode(answer[0]))  # ... <ent_desc> title <sep> description </ent_desc>
```
""",
    "t5": USAGE
    + """\
source = ids(f"{marked}<extra_id_0></ent_desc> was played by Joaquin Phoenix.</s>")
answer = model.generate(source, decoder_input_ids=ids("<pad><extra_id_0>"), max_new_tokens=40,
                        eos_token_id=tokenizer.convert_tokens_to_ids("<extra_id_1>"), num_beams=1)
print(tokenizer.decode(answer[0]))  # <pad><extra_id_0> title <sep> description <extra_id_1>
```
""",
}


TEXT_METRICS: dict[str, type[Metric]] = {"exact_match": ExactMatch, "f1": TokenF1, "rouge_l": RougeL}


class KilmModule(EditingModule):
    """Knowledge injection by infilling (Xu et al. 2023).

    Args:
        backbone: the BART or T5 to start from.
        class_weights: what copied, infilled and knowledge tokens weigh in the loss.
        optimizer: the optimiser, as class_path and init_args.
        schedule: learning rate over steps.
        weight_decay: decay of matrices; biases and norms have none.
    """

    metric_meanings: ClassVar[dict[str, str]] = {
        "test/infilling_loss": "nats a masked token of held-out text: has text infilling been forgotten?",
        "test/disambiguation_accuracy": "ambiguous mentions in unseen contexts, the right one of their candidates",
    } | {
        f"test/description_{metric}/{contexts}": f"descriptions in {contexts} contexts: {meaning}"
        for metric, meaning in {"exact_match": "word for word", "f1": "words", "rouge_l": "words in order"}.items()
        for contexts in ("seen", "unseen")
    }

    def __init__(
        self,
        backbone: Backbone,
        class_weights: ClassWeights | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        weight_decay: float = 0.01,
    ):
        super().__init__(optimizer, schedule or Schedule(warmup=0.02), weight_decay)
        self.backbone = backbone
        self.class_weights = class_weights or ClassWeights()
        self.scores = nn.ModuleDict()

    # set-up -----------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Build the model; here rather than in configure_model, where ZeRO-3 would skip its initialisation."""
        if hasattr(self, "model"):
            return
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.backbone.name is not None:
            self.tokenizer = load_tokenizer(self.backbone.name, self.backbone.revision)
            data.corpus.check_tokenizer(self.tokenizer)
            markup(self.tokenizer)
        else:
            self.tokenizer = data.tokenizer
        if data.infilling.reference:
            self.class_weights = ClassWeights(copied=1.0)  # the paper's code weighs all tokens alike
        self.model = load_seq2seq(self.backbone, self.tokenizer)
        if ("bart" in self.model.config.model_type) != (data.marks.family == "bart"):
            raise DataError(
                f"the model is a {self.model.config.model_type}, but the corpus was written for a {data.marks.family} "
                "tokenizer: build the corpus with the model's own tokenizer (--tokenizer)"
            )
        limit = row_limit(self.model)
        if limit is not None and data.row_tokens > limit:
            raise DataError(f"data.row_tokens is {data.row_tokens}, but the model has {limit} positions: lower it")
        self.model.train()

    def on_fit_start(self) -> None:
        self._save_skeleton()

    @rank_zero_only
    def _save_skeleton(self) -> None:
        """What `export` needs beside a checkpoint: configuration, tokenizer, and what the model card says."""
        folder = getattr(self.trainer.checkpoint_callback, "dirpath", None)
        if folder is None:
            return
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        save_skeleton(self.model, self.tokenizer, Path(folder) / "backbone")
        (Path(folder) / "backbone" / "usage.md").write_text(USAGE_BY_FAMILY[data.marks.family], encoding="utf-8")
        (Path(folder) / "data.json").write_text(json.dumps(data.corpus.manifest, indent=1), encoding="utf-8")

    def infiller(self) -> Infiller:
        """The model in use, as it stands now."""
        return Infiller(self.model, self.tokenizer)

    # training ---------------------------------------------------------------------------------------------------------

    def _loss(
        self, batch: KilmBatch, total: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        states = decode(self.model, encode(self.model, batch.rows), batch.rows)
        weight, bias = output_head(self.model)
        return kilm_loss(states, weight, bias, batch.where_N, batch.targets_N, batch.classes_N, self.class_weights,
                         total)  # fmt: skip

    def training_step(self, batch: KilmBatch, batch_idx: int) -> torch.Tensor:
        batch.flops = 3 * forward_flops(self.model.config, batch.source_lengths, batch.target_lengths)
        loss, sums, counts = self._loss(batch, self._total(batch))
        self.log_loss(loss)
        means = sums / counts
        for index, name in enumerate(CLASSES):
            if batch.class_counts[index]:
                self.log(f"train/loss/{name}", means[index], batch_size=1)
        return loss * batch.weight

    def _total(self, batch: KilmBatch) -> torch.Tensor:
        """What the tokens of a batch weigh, the mean over all processes: by it their mean gradient is that of one
        process with all rows.
        """
        total = self.class_weights.table(batch.classes_N.device)[batch.classes_N].sum()
        return self.trainer.strategy.reduce(total, reduce_op="mean")

    # validation and test ----------------------------------------------------------------------------------------------

    def _metric(self, key: str) -> Any:
        return self.scores[key]

    def _start(self, metrics: dict[str, type[Metric]]) -> None:
        """Make a stage's metrics: the same on every process, whatever questions it is dealt, for they are added up."""
        self.scores = nn.ModuleDict({key: kind() for key, kind in metrics.items()}).to(self.device)

    def on_validation_start(self) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        asked = data.infilling.knowledge
        metrics: dict[str, type[Metric]] = {"val/loss": MeanOverTokens}
        metrics |= {f"val/loss/{name}": MeanOverTokens for name in CLASSES if asked or name != "knowledge"}
        self._start(
            metrics | ({f"val/description_{name}": kind for name, kind in TEXT_METRICS.items()} if asked else {})
        )

    def on_test_start(self) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        metrics: dict[str, type[Metric]] = {"test/infilling_loss": MeanOverTokens}
        for name, kind in TEXT_METRICS.items():
            metrics |= {f"test/description_{name}/{contexts}": kind for contexts in ("seen", "unseen")}
        metrics["test/disambiguation"] = DisambiguationScore
        for benchmark in data.evaluation.benchmarks or []:
            if isinstance(benchmark, MentionSource):
                metrics[f"test/{benchmark.name}"] = DisambiguationScore
            else:
                metrics |= {f"test/{benchmark.name}/{name}": TEXT_METRICS[name] for name in ("exact_match", "f1")}
        self._start(metrics)

    def _judge_rows(self, batch: KilmBatch) -> None:
        _, sums, _ = self._loss(batch)
        self._metric("val/loss").update(sums.sum(), int(batch.class_counts.sum()))
        for index, name in enumerate(CLASSES):
            if f"val/loss/{name}" in self.scores:
                self._metric(f"val/loss/{name}").update(sums[index], int(batch.class_counts[index]))

    def _judge_descriptions(self, mentions: list[MarkedMention], prefix: str, suffix: str = "") -> None:
        answers = [answer.description for answer in self.infiller().describe_marked(mentions)]
        gold = [mention.question.description for mention in mentions]
        for name in TEXT_METRICS:
            self._metric(f"{prefix}_{name}{suffix}").update(answers, gold)

    def _judge_choices(self, mentions: list[MarkedMention], key: str) -> None:
        scoring = self.trainer.datamodule.evaluation.scoring  # type: ignore[attr-defined]
        questions = [mention.question for mention in mentions]
        choices = self.infiller().disambiguate_marked(mentions, scoring)
        titles = [
            question.candidates[choice.chosen].title if choice.chosen >= 0 else ""
            for question, choice in zip(questions, choices, strict=True)
        ]
        self._metric(key).update(titles, questions)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        if isinstance(batch, KilmBatch):
            self._judge_rows(batch)
        else:
            self._judge_descriptions(batch.mentions, "val/description")

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        if isinstance(batch, KilmBatch):
            _, sums, _ = self._loss(batch)
            self._metric("test/infilling_loss").update(sums[1], int(batch.class_counts[1]))
        elif isinstance(batch, QuestionBatch):
            answers = self.infiller().answer([question.question for question in batch.questions])
            gold = [question.answers for question in batch.questions]
            self._metric(f"test/{batch.task}/exact_match").update(answers, gold)
            self._metric(f"test/{batch.task}/f1").update(answers, gold)
        elif batch.task in ("seen", "unseen"):
            self._judge_descriptions(batch.mentions, "test/description", f"/{batch.task}")
        else:
            self._judge_choices(batch.mentions, f"test/{batch.task}")

    def _report(self) -> None:
        """Log every metric of this stage."""
        for key in self.scores:
            value = self._metric(key).compute()
            # test/disambiguation_accuracy is a name that others read; benchmarks are folders of names
            joint = "_" if key == "test/disambiguation" else "/"
            values = (
                {f"{key}{joint}{name}": v for name, v in value.items()} if isinstance(value, dict) else {key: value}
            )
            for name, number in values.items():
                shown = name in ("val/loss", "val/description_exact_match")
                # equal on all processes already, and so is their mean
                self.log(name, number.float(), prog_bar=shown, sync_dist=True)
        self._start({})

    def on_validation_epoch_end(self) -> None:
        self._report()
        self._show_panel()

    def on_test_epoch_end(self) -> None:
        self._report()

    @rank_zero_only
    def _show_panel(self) -> None:
        """The same few mentions after every validation: context, what the model says, what is right."""
        mentions = getattr(self.trainer.datamodule, "panel", [])  # type: ignore[attr-defined]
        loggers = [logger for logger in self.trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not mentions or not loggers or self.trainer.sanity_checking:
            return
        lines = ["| context | generated | gold |", "|---|---|---|"]
        for mention, answer in zip(mentions, self.infiller().describe_marked(mentions), strict=True):
            (start, end), text = mention.question.span, mention.question.text
            context = f"{text[max(0, start - 120) : start]}**{text[start:end]}**{text[end : end + 120]}"
            generated = f"{answer.title}: {answer.description}"
            gold = f"{mention.question.gold}: {mention.question.description}"
            lines.append("| " + " | ".join(cell.replace("|", "/").replace("\n", " ")
                                           for cell in (context, generated, gold)) + " |")  # fmt: skip
        for logger in loggers:
            logger.experiment.add_text("descriptions", "\n".join(lines), self.global_step)

    def predict_step(self, batch: MentionBatch, batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        """Title and description of each mention, and the likeliest candidate where there are candidates."""
        infiller = self.infiller()
        results = []
        answers, choices = infiller.describe_marked(batch.mentions), infiller.disambiguate_marked(batch.mentions)
        for mention, answer, choice in zip(batch.mentions, answers, choices, strict=True):
            question = mention.question
            result: dict[str, Any] = {"text": question.text, "span": list(question.span), "mention": question.mention}
            result |= {"title": answer.title, "description": answer.description}
            if choice.chosen >= 0:
                result |= {"choice": question.candidates[choice.chosen].title, "scores": choice.scores}
            results.append(result)
        return results
