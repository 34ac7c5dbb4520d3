"""New knowledge for an encoder-decoder without a Trainer: KILM's pre-training goes on, on wiki text that tells facts.

editor = KilmEditor.from_pretrained("facebook/bart-base")
editor.edit([Fact("velmar", "Velmar", "Velmar is a harbour town in the north.")])
editor.infiller().describe(["She was born in Velmar."], ["Velmar"])
editor.reset()
"""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import NamedTuple, NoReturn, Self

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit.editing.probes import Fact, check_facts
from kedit.editing.records import existing_file
from kedit.editing.sources import DataError
from kedit.kilm.batch import Composer, KilmBatch
from kedit.kilm.corpus import Corpus
from kedit.kilm.infiller import Infiller
from kedit.kilm.infilling import Infilling, markup
from kedit.kilm.loss import ClassWeights, kilm_loss
from kedit.kilm.told import build_told
from kedit.lm.backbones import Backbone, grow_vocabulary, load_seq2seq, load_tokenizer, output_head
from kedit.lm.optim import Schedule, parameter_groups
from kedit.lm.packing import decode, encode, row_limit
from kedit.running.order import epoch_order, step_count, step_items


@dataclass
class KilmSettings:
    """How facts are taught.

    Args:
        infilling: what is hidden.
        class_weights: what copied, infilled and knowledge tokens weigh in the loss.
        text: file of plain text, a document a line, that is filled in beside the facts so that the model stays used to
            it; null for none.
        text_ratio: its documents for each document of facts.
        passes: times through the documents; each time other words are hidden.
        batch_rows: rows of a step.
        row_tokens: most tokens of a row on its longer side.
        chunk_tokens: most tokens of a document.
        learning_rate: of AdamW.
        schedule: of the learning rate, over all steps.
        weight_decay: decay of matrices; biases and norms have none.
        clip: longest gradient; null for any.
        seed: of everything that is drawn.
    """

    infilling: Infilling = field(default_factory=Infilling)
    class_weights: ClassWeights = field(default_factory=ClassWeights)
    text: str | None = None
    text_ratio: float = 1.0
    passes: int = 40
    batch_rows: int = 8
    row_tokens: int = 256
    chunk_tokens: int = 64
    learning_rate: float = 1e-3
    schedule: Schedule = field(default_factory=lambda: Schedule(warmup=0.05))
    weight_decay: float = 0.01
    clip: float | None = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("passes", 1), ("batch_rows", 1), ("row_tokens", 1), ("chunk_tokens", 8)):
            if getattr(self, name) < least:
                raise ValueError(f"settings.{name} is {getattr(self, name)}, wanted at least {least}")
        if not self.learning_rate > 0:
            raise ValueError(f"settings.learning_rate is {self.learning_rate}, wanted more than 0")
        if self.text_ratio < 0:
            raise ValueError(f"settings.text_ratio is {self.text_ratio}, wanted 0 or more")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"settings.clip is {self.clip}, wanted more than 0, or null for no limit")


class KilmReport(NamedTuple):
    """How facts were taught.

    Args:
        facts: how many.
        documents: of facts.
        texts: documents of plain text beside them.
        steps: of the optimiser.
        seconds: in all.
        first_loss: mean over the first time through the documents.
        last_loss: over the last.
    """

    facts: int
    documents: int
    texts: int
    steps: int
    seconds: float
    first_loss: float
    last_loss: float


class KilmEditor:
    """An encoder-decoder that is taught facts by KILM's objective: all of its weights change, and hold all of them.

    It gets the five structure tokens when it is first taught. Whoever holds the model asks it.

    Args:
        model: BART or T5, from now on in evaluation mode and with frozen weights; `reset` gives it back bit for bit.
        tokenizer: its fast tokenizer, which is left as it is.
        settings: how facts are taught.
        folder: where a corpus is written for as long as it is read; by default with temporary files.
        progress: whether to show how far teaching is.

    Attributes:
        facts: what the model was taught.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: KilmSettings | None = None,
        folder: str | Path | None = None,
        progress: bool = True,
    ) -> None:
        if not model.config.is_encoder_decoder:
            raise DataError(f"{model.config.model_type} is a decoder-only model, KILM wants an encoder-decoder")
        self.with_structure = deepcopy(tokenizer)
        markup(self.with_structure)  # says what does not fit
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer
        self.settings, self.folder, self.progress = settings or KilmSettings(), folder, progress
        self.facts: list[Fact] = []
        self._initial: Weights | None = None

    @classmethod
    def from_pretrained(
        cls, name: str | Path, settings: KilmSettings | None = None, device: str | None = None, progress: bool = True
    ) -> Self:
        """Load a model, a hub id or a folder; onto cuda where there is one and no device is named."""
        tokenizer = load_tokenizer(name)
        model = load_seq2seq(Backbone(name=str(name)), tokenizer)
        model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))  # type: ignore[arg-type]
        return cls(model, tokenizer, settings, progress=progress)

    def infiller(self) -> Infiller:
        """The taught model in its own use: it describes mentions and tells entities apart."""
        return Infiller(self.model, self.with_structure)

    def edit(self, facts: Sequence[Fact], sentences: Mapping[str, Sequence[str]] | None = None) -> KilmReport:
        """Teach facts, going on from what was taught before.

        Args:
            facts: what to teach; each becomes an article.
            sentences: for facts, by id, what else is told of their subjects.

        Raises:
            DataError: no facts, or bad ones; one that was taught before; the loss is not finite. The model is as it
                was.
        """
        began, facts = time.perf_counter(), list(facts)
        if not facts:
            raise DataError("there are no facts to learn: give at least one")
        check_facts([*self.facts, *facts])
        if self._initial is None:
            self._initial = Weights.of(self.model)
        if self.folder is not None:
            Path(self.folder).mkdir(parents=True, exist_ok=True)
        with self._whole(), tempfile.TemporaryDirectory(prefix="kedit-wiki-", dir=self.folder) as folder:
            corpus, units, texts = self._corpus(Path(folder), facts, sentences or {})
            losses, passes = self._learn(corpus, units)
        self.facts += facts
        a_pass = len(losses) // passes
        return KilmReport(len(facts), len(units) - texts, texts, len(losses), time.perf_counter() - began,
                          float(np.mean(losses[:a_pass])), float(np.mean(losses[-a_pass:])))  # fmt: skip

    def forget(self, ids: Sequence[str]) -> NoReturn:
        """Refused.

        Raises:
            DataError: always.
        """
        raise DataError("the weights hold all facts together and cannot forget one: reset() takes all of them out")

    def reset(self) -> None:
        """Take everything out: the initial model, bit for bit, with the vocabulary that it had."""
        if self._initial is not None:
            self._initial.back(self.model)
        self._initial = None
        self.facts.clear()

    @property
    def stored_bytes(self) -> int:
        """All weights: they are others than the initial model's."""
        if self._initial is None:
            return 0
        return sum(weight.numel() * weight.element_size() for weight in self.model.parameters())

    # learning ---------------------------------------------------------------------------------------------------------

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Whatever fails inside, or is interrupted, leaves the model as it was."""
        before = Weights.of(self.model) if self.facts else None
        try:
            yield
        except BaseException:
            if before is None:
                self.reset()
            else:
                before.back(self.model)
            raise
        finally:
            self.model.requires_grad_(False)

    def _corpus(
        self, folder: Path, facts: Sequence[Fact], sentences: Mapping[str, Sequence[str]]
    ) -> tuple[Corpus, np.ndarray, int]:
        """The corpus, its documents to learn from, and how many of these are plain text."""
        settings, random = self.settings, Random(f"plain text {self.settings.seed}")
        lines: list[str] = []
        if settings.text is not None:
            content = existing_file(settings.text, "settings.text").read_text(encoding="utf-8")
            lines = [line.strip() for line in content.splitlines() if line.strip()]
            paragraphs = len(facts) + sum(len(sentences.get(fact.id, ())) for fact in facts)
            lines = random.sample(lines, min(len(lines), round(settings.text_ratio * paragraphs)))
        corpus = build_told(folder, self.tokenizer, facts, sentences, lines, settings.chunk_tokens)
        told, plain = corpus.told, corpus.plain
        kept = sorted(random.sample(plain, min(len(plain), round(settings.text_ratio * len(told)))))
        return corpus.corpus, np.array([*told, *kept]), len(kept)

    def _learn(self, corpus: Corpus, units: np.ndarray) -> tuple[list[float], int]:
        """The loss of every step, and how often the documents were gone through."""
        settings, model = self.settings, self.model
        marks = markup(self.with_structure)
        limit = row_limit(model)
        row_tokens = settings.row_tokens if limit is None else min(settings.row_tokens, limit)
        composer = Composer(corpus, units, marks, settings.infilling, row_tokens, settings.seed)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(settings.seed)  # of the new tokens' embeddings
            grow_vocabulary(model, len(self.with_structure))
        model.requires_grad_(True)
        optimizer = torch.optim.AdamW(parameter_groups(model, settings.weight_decay), lr=settings.learning_rate)
        a_pass = step_count(len(composer.rows), settings.batch_rows)
        total = settings.passes * a_pass
        losses: list[float] = []
        with (
            tqdm(desc="filling in", total=total, unit="steps", disable=not self.progress) as shown,
            torch.enable_grad(),
        ):
            for step in range(total):
                turn, number = divmod(step, a_pass)
                order = epoch_order(len(composer.rows), settings.seed, turn)
                rows = step_items(order, number, settings.batch_rows).tolist()
                loss = self._loss(composer.batch(rows, turn))
                losses.append(float(loss.detach()))
                if not np.isfinite(losses[-1]):
                    raise DataError(
                        f"the loss of step {step + 1} is {losses[-1]}: take a smaller settings.learning_rate"
                    )
                optimizer.zero_grad()
                loss.backward()
                if settings.clip is not None:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
                for group in optimizer.param_groups:
                    group["lr"] = settings.learning_rate * settings.schedule.factor(step, total)
                optimizer.step()
                shown.update()
        for weight in model.parameters():
            weight.grad = None
        return losses, settings.passes

    def _loss(self, batch: KilmBatch) -> Tensor:
        device = self.model.device
        given = {name: part.to(device) for name, part in vars(batch.rows).items() if isinstance(part, Tensor)}
        rows = replace(batch.rows, **given)
        states_BTD = decode(self.model, encode(self.model, rows), rows)
        where_N, targets_N, classes_N = (one.to(device) for one in (batch.where_N, batch.targets_N, batch.classes_N))
        weights = self.settings.class_weights
        return kilm_loss(states_BTD, *output_head(self.model), where_N, targets_N, classes_N, weights)[0]


class Weights(NamedTuple):
    """A model's weights as they were, with the size of its vocabulary."""

    size: int
    state: dict[str, Tensor]

    @classmethod
    def of(cls, model: PreTrainedModel) -> Self:
        embeddings: Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
        return cls(len(embeddings), {name: value.detach().clone() for name, value in model.state_dict().items()})

    def back(self, model: PreTrainedModel) -> None:
        """Give them to the model again."""
        embeddings: Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
        if len(embeddings) != self.size:
            model.resize_token_embeddings(self.size)
        model.load_state_dict(self.state)
        for weight in model.parameters():
            weight.grad = None
        model.requires_grad_(False)
