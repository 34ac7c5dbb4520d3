"""Ways of answering, judged by the same probes: the initial model, with definitions in context, edited, fine-tuned.

Edits that are made in stages are judged when each has been learned, and their scores kept beside the checkpoints.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from transformers import PreTrainedModel

from kedit.distill import judging
from kedit.distill.baselines import FINETUNED, Baselines, Rival, Way
from kedit.distill.data import DistillData
from kedit.distill.judging import EditScores, Judge
from kedit.distill.student import Student
from kedit.editing.sources import DataError
from kedit.lm.backbones import Dtype
from kedit.running.files import write_whole

EDITS = "edits.json"
"""Beside a run's checkpoints: the scores of edits that were made independently or one after another."""
ABOUT = "data.json"
"""Beside them too: what there was to be learned."""


class Contest:
    """Who is asked what, and what they answered.

    Args:
        student: the model that learns or has learned.
        judge: asks the probes.
        data: facts, probes, and how the edits are made.
        baselines: what is fine-tuned for comparison, if anything.
        fresh_model: loads the initial model once more, in a given type.
        folder: the run's checkpoints, where the scores of stages and the adapters of edits are kept; None for nowhere.

    Attributes:
        judged: scores of the stages that were learned so far.
        scores: by way of answering, as far as it was asked.
    """

    def __init__(
        self, student: Student, judge: Judge, data: DistillData, baselines: Baselines | None,
        fresh_model: Callable[[Dtype], PreTrainedModel], folder: Path | None,
    ) -> None:  # fmt: skip
        self.student, self.judge, self.data, self.baselines = student, judge, data, baselines
        self.fresh_model, self.folder = fresh_model, folder
        self.judged: dict[int, list[EditScores]] = {}
        self.scores: dict[str, EditScores] = {}

    @contextmanager
    def asking(self, edits: Sequence[int] = ()) -> Iterator[PreTrainedModel]:
        """The student to be asked, with the adapters of these edits where edits are made side by side."""
        model = self.student.model
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad(), self.student.editing(edits):
                yield model
        finally:
            model.train(was_training)

    # stages -----------------------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """Take up the scores of earlier stages, where they were kept."""
        file = None if self.folder is None else self.folder / EDITS
        if file is None or not file.is_file():
            return
        state = json.loads(file.read_text(encoding="utf-8"))
        self.judged = {int(stage): [EditScores.from_state(one) for one in scores] for stage, scores in state.items()}

    def judge_stage(self, number: int) -> None:
        """Ask what a stage was to teach; edits side by side are asked one by one, sequential ones all so far."""
        plan, knowledge = self.data.plan, self.data.knowledge
        facts = plan.stages[number].facts
        groups = [[fact] for fact in facts] if self.student.stacked is not None else [list(facts)]
        if self.data.protocol.edits == "sequential":
            groups = [[fact for stage in plan.stages[: number + 1] for fact in stage.facts]]
        scores = []
        for edit, group in enumerate(groups):
            ids = [knowledge.facts[fact].id for fact in group]
            with self.asking([edit]) as model:
                one = self.judge.target(model, [probe for probe in knowledge.probes if probe.fact in set(ids)])
                one.facts = ids
                one.specificity = self.judge.specificity(model, ids)
            scores.append(one)
        self.judged[number] = scores
        self._write()

    @rank_zero_only
    def _write(self) -> None:
        if self.folder is not None:
            state = {stage: [one.to_state() for one in scores] for stage, scores in self.judged.items()}
            write_whole(self.folder / EDITS, json.dumps(state))

    @rank_zero_only
    def save_edits(self, number: int, base_name: str, revision: str | None) -> None:
        """Write the adapters of a stage of independent edits as PEFT reads them, under `edits/` in the run's folder."""
        if self.folder is None or self.student.lora is None or self.data.protocol.edits != "independent":
            return
        facts = self.data.plan.stages[number].facts
        names = [_file_name(self.data.knowledge.facts[fact].id, fact) for fact in facts]
        if self.student.stacked is None and len(facts) > 1:
            names = [f"stage-{number}"]
        folders = [self.folder / "edits" / name for name in names]
        self.student.save_adapters(folders, base_name, revision)

    def _stages(self) -> int:
        """How many were to be learned; a test that trains nothing has it from the run's folder."""
        if hasattr(self.data, "plan"):
            return len(self.data.plan.stages)
        about = None if self.folder is None else self.folder / ABOUT
        known = json.loads(about.read_text(encoding="utf-8")) if about is not None and about.is_file() else {}
        return max(1, known.get("stages", 1))

    def edits(self) -> list[EditScores]:
        """Scores of independent edits one by one; of sequential ones those after the last.

        Raises:
            DataError: a stage was not judged.
        """
        if not self.judged:
            self.resume()
        if len(self.judged) < self._stages():
            raise DataError(
                f"{self.data.protocol.edits} edits are judged while they are made, and {EDITS} beside the checkpoints "
                f"{'lacks some of them' if self.judged else 'is not there'}: train to the end first"
            )
        if self.data.protocol.edits == "sequential":
            return self.judged[max(self.judged)]
        return [one for stage in sorted(self.judged) for one in self.judged[stage]]

    # the test ---------------------------------------------------------------------------------------------------------

    @property
    def ways(self) -> list[str]:
        """What is compared; an encoder-decoder is not taught, only asked."""
        if not self.data.knowledge.probes:
            return ["base", "edited"]
        asked = ["base", "prepend", *(["random"] if len(self.data.knowledge.facts) > 1 else [])]
        if self.student.model.config.is_encoder_decoder:
            return asked
        return [*asked, "edited", *(self.baselines.ways if self.baselines is not None else [])]

    def ask(self, way: str) -> None:
        """Judge one way of answering."""
        judge, ids = self.judge, [fact.id for fact in self.data.knowledge.facts]
        if way in FINETUNED:
            with torch.inference_mode(False), torch.enable_grad():
                self.scores[way] = judging.merged(self._rival(way))
        elif way == "edited" and self.data.staged:
            edits = self.edits()
            learned = {id for one in edits for id in one.facts}
            # a fact without any sentence was not learned: its probes are answered as before, not left out
            silent = [id for id in ids if id not in learned]
            self.scores[way] = judging.merged([*edits, self.scores["base"].of(silent, judge.knowledge.probes)])
        elif way == "edited":
            with self.asking() as model:
                scores = judge.target(model)
                scores.specificity = judge.specificity(model, ids)
            self.scores[way] = scores
        else:
            with self.student.initial(), self.asking() as model:
                if way == "base":
                    self.scores[way] = judge.initial(model, [] if self.data.staged else ids)
                else:
                    definitions = judge.definitions(shift=1 if way == "random" else 0)
                    self.scores[way] = judge.target(model, definitions=definitions)

    def _rival(self, way: Way) -> list[EditScores]:
        """Fine-tune, tuned on the facts kept for that, and judge; in groups as the edits were made."""
        assert self.baselines is not None
        data, protocol = self.data, self.data.protocol
        # all methods in one precision where all weights are trained
        rival = Rival(self.fresh_model("float32"), self.judge, self.baselines, way, data.seed, data.row_budget)
        kept = data.kept_for_tuning()

        def groups(facts: int) -> list[list[int]]:
            size = facts if protocol.edits != "independent" else protocol.group or 1
            size = 1 if protocol.edits == "independent" and self.student.lora is not None else size
            return [list(range(start, min(start + size, facts))) for start in range(0, facts, size)]

        rate, passes = self.baselines.learning_rates[0], self.baselines.passes
        if kept.facts and kept.probes and (texts := rival.texts(kept, data.sentences_of(kept))):
            rate, passes, nll = rival.tune(kept, groups(len(kept.facts)), texts)
            rank_zero_info(
                f"{way}: learning rate {rate:g} and {passes} passes are best on {len(kept.facts)} facts kept for "
                f"tuning ({nll:.3f} nats)"
            )
        else:
            rank_zero_info(f"{way}: no facts are kept for tuning; learning rate {rate:g}, {passes} passes")
        texts = rival.texts(data.knowledge, data.sentences_of(data.knowledge))
        return rival.scores(groups(len(data.knowledge.facts)), texts, rate, passes)

    def results(self) -> dict[str, float]:
        """The figures of the test, those of retention with them where edits were made one after another."""
        knowledge = self.data.knowledge
        found = judging.results(knowledge, self.scores)
        if "prepend" in self.scores and not judging.prepend_gain(knowledge.probes, self.scores):
            rank_zero_info(
                "the initial model gains nothing from a definition in its context: as a teacher it has nothing to "
                "teach, and there is no gain to have a share of; take a model that reads"
            )
        if self.data.protocol.edits == "sequential" and self.judged:
            found |= judging.retention(knowledge, self.scores["base"], self.judged)
        return found


def _file_name(id: str, number: int) -> str:
    """An id as a folder's name; with its number where it cannot be one as it is, so that no two are the same."""
    name = re.sub(r"[^\w.-]+", "_", id)[:100]
    return name if name == id and not id.startswith(".") else f"{name.lstrip('.')}-{number}"
