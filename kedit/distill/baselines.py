"""Fine-tuning, the rival: causal language modelling on the definition or on the transfer set, tuned alike.

Each rival is trained on the same facts from the same initial weights, in the protocol's own groups, and its learning
rate and passes are chosen by the probes of facts that are kept for tuning. Knows no Lightning.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from kedit.distill.judging import EditScores, Judge
from kedit.distill.student import Student
from kedit.editing.probes import Knowledge
from kedit.lm.backbones import decoder_layers, output_head
from kedit.lm.causal import pack, start_ids, states
from kedit.lm.losses import linear_cross_entropy
from kedit.lm.packing import best_fit
from kedit.lm.text import encode
from kedit.running.order import epoch_order, step_count, step_items

Way = Literal["finetune", "finetune_last", "finetune_transfer"]
FINETUNED: tuple[Way, ...] = ("finetune", "finetune_last", "finetune_transfer")


@dataclass
class Baselines:
    """What distillation is compared with in the test, beside the initial model and definitions in context.

    Args:
        ways: finetune (on the definitions, all weights), finetune_last (the last layer only), finetune_transfer (on
            the transfer set, all weights).
        learning_rates: of which the best on the facts kept for tuning is taken; the first where none are kept.
        passes: most times through the texts; the best number is taken likewise.
        batch: texts of a step.
    """

    ways: list[Way] = field(default_factory=lambda: ["finetune"])
    learning_rates: list[float] = field(default_factory=lambda: [3e-5, 1e-4, 3e-4, 1e-3])
    passes: int = 5
    batch: int = 32

    def __post_init__(self) -> None:
        if not self.learning_rates or min(self.learning_rates) <= 0:
            raise ValueError(f"baselines.learning_rates is {self.learning_rates}, wanted one or more above 0")
        if self.passes < 1 or self.batch < 1:
            raise ValueError(f"baselines.passes is {self.passes} and batch {self.batch}, wanted at least 1 each")


def trained_part(model: PreTrainedModel, way: Way) -> list[torch.nn.Parameter]:
    """The weights that a rival trains."""
    return list((decoder_layers(model)[-1] if way == "finetune_last" else model).parameters())


def finetune(
    model: PreTrainedModel, texts: Sequence[np.ndarray], parameters: Iterable[torch.nn.Parameter], learning_rate: float,
    passes: int, batch: int, seed: int, row_tokens: int,
) -> Iterable[int]:  # fmt: skip
    """Causal language modelling, in place: a generator that gives the number of passes made, after each.

    Args:
        model: to be trained, with its dropout off.
        texts: token ids, with what stands before them.
        parameters: those that are trained.
        learning_rate: of AdamW without decay, constant.
        passes: times through the texts.
        batch: texts of a step.
        seed: of their order.
        row_tokens: most tokens of a packed row.
    """
    trained = set(parameters)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter in trained)
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    device = model.device
    for turn in range(passes):
        order = epoch_order(len(texts), seed, turn)
        for step in range(step_count(len(texts), batch)):
            chosen = [texts[index] for index in step_items(order, step, batch)]
            places = best_fit(np.array([len(text) for text in chosen]), row_tokens)
            rows = pack([[chosen[index] for index in place] for place in places])
            rows = replace(rows, **{name: value.to(device) for name, value in vars(rows).items()})
            # a token is predicted where the one before it belongs to the same text
            before, ids = rows.document_BL[:, :-1], rows.ids_BL[:, 1:]
            predicted = (before == rows.document_BL[:, 1:]) & (before >= 0)
            hidden = states(model, rows)[:, :-1][predicted]
            weights = torch.full((len(hidden),), 1 / max(1, len(hidden)), device=device)
            optimizer.zero_grad()
            loss, _ = linear_cross_entropy(hidden, *output_head(model), ids[predicted], weights)
            loss.backward()
            optimizer.step()
        yield turn + 1


class Rival:
    """One way of fine-tuning, from tuning to its scores.

    Args:
        model: the initial model; it is trained and put back.
        judge: asks the probes of the facts to be judged.
        baselines: how it is done.
        way: which of them.
        seed: of the order of texts.
        row_tokens: most tokens of a packed row.
    """

    def __init__(
        self, model: PreTrainedModel, judge: Judge, baselines: Baselines, way: Way, seed: int, row_tokens: int
    ) -> None:
        self.student = Student(model, None)
        self.judge, self.baselines, self.way = judge, baselines, way
        self.seed, self.row_tokens = seed, row_tokens
        self.tokenizer = judge.tokenizer

    def _train(self, texts: Sequence[np.ndarray], learning_rate: float, passes: int) -> Iterable[int]:
        model, settings = self.student.model, self.baselines
        self.student.reset()
        return finetune(
            model,
            texts,
            trained_part(model, self.way),
            learning_rate,
            passes,
            settings.batch,
            self.seed,
            self.row_tokens,
        )

    def texts(self, knowledge: Knowledge, sentences_of: Sequence[Sequence[str]]) -> list[list[np.ndarray]]:
        """The texts of each fact: its definition, or its sentences of the transfer set; empty where there are none."""
        start = np.asarray(start_ids(self.tokenizer), dtype=np.int64)
        if self.way != "finetune_transfer":
            encoded = encode(self.tokenizer, [fact.definition for fact in knowledge.facts])
            return [[np.concatenate([start, text.ids])] for text in encoded]
        texts = [
            [np.concatenate([start, text.ids]) for text in encode(self.tokenizer, own, leading_space=True)]
            for own in sentences_of
        ]
        return texts if any(texts) else []

    def tune(
        self, knowledge: Knowledge, groups: Sequence[Sequence[int]], texts_of: Sequence[Sequence[np.ndarray]]
    ) -> tuple[float, int, float]:
        """The best learning rate and number of passes for facts that are learned in groups, and their NLL in nats."""
        judge = Judge(self.tokenizer, knowledge, self.judge.batch_tokens)
        best = (self.baselines.learning_rates[0], self.baselines.passes, float("inf"))
        for rate in self.baselines.learning_rates:
            nll: dict[int, list[float]] = {}
            for group in groups:
                asked = {knowledge.facts[fact].id for fact in group}
                probes = [probe for probe in knowledge.probes if probe.fact in asked]
                texts = [text for fact in group for text in texts_of[fact]]
                if not texts or not probes:
                    continue
                for passes in self._train(texts, rate, self.baselines.passes):
                    nll.setdefault(passes, []).extend(
                        judge.target(self.student.model, probes, choices=False).target.values()
                    )
            best = min([best, *((rate, passes, float(np.mean(found))) for passes, found in nll.items())],
                       key=lambda one: one[2])  # fmt: skip
        return best

    def scores(
        self,
        groups: Sequence[Sequence[int]],
        texts_of: Sequence[Sequence[np.ndarray]],
        learning_rate: float,
        passes: int,
    ) -> list[EditScores]:
        """Train on each group of facts from the initial weights, and judge the group's probes and the specificity."""
        judged, facts = [], self.judge.knowledge.facts
        for group in groups:
            texts = [text for fact in group for text in texts_of[fact]]
            self.student.reset()  # also where there is nothing to train on
            for _ in self._train(texts, learning_rate, passes) if texts else ():
                pass
            ids = [facts[fact].id for fact in group]
            kept = set(ids)
            scores = self.judge.target(
                self.student.model, [probe for probe in self.judge.knowledge.probes if probe.fact in kept]
            )
            scores.specificity = self.judge.specificity(self.student.model, ids)
            judged.append(scores)
        self.student.reset()
        return judged
