"""One contestant is taught the facts once, with one seed, and judged.

Runs in a process of its own, whose peak of memory is the contestant's. Knows no method.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from kedit.comparing.facts import FactSet, sentence
from kedit.comparing.record import Judging, Row, Trial
from kedit.comparing.way import Base, Opened, Way
from kedit.editing.edits import Edit
from kedit.editing.general_ability import TextPerplexity
from kedit.editing.judging import Judge, Judged, Verdicts, answers, is_local
from kedit.editing.probes import Probe
from kedit.editing.sources import DataError, Question
from kedit.editing.stream import EditedModel, added_inference_share, points_before, seconds
from kedit.running.taken import Baseline

GIVEN, SCORED = 8, 48
"""Words of a paragraph that are given, and most that are scored: models of few positions read a fact's text before."""
ROUNDS = 7
"""How often generation is timed; the median counts."""


def run_trial(
    way: Way,
    base: Base,
    facts: FactSet,
    judging: Judging,
    seed: int,
    plain: Way | None = None,
    questions: Sequence[Question] = (),
    texts: Sequence[str] = (),
    folder: Path | None = None,
) -> Trial:
    """Teach and judge.

    Args:
        way: the contestant.
        base: the model it starts from.
        facts: all of them, with probes.
        judging: how.
        seed: of everything that the contestant draws.
        plain: asks the model as it is; generation is timed beside it. None where the way is this one.
        questions: of general knowledge.
        texts: plain ones, whose perplexity is asked where `judging` names no file.
        folder: for what lies on the disk meanwhile; by default with temporary files.

    Raises:
        DataError: the way does not fit the model or the facts.
    """
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory(prefix="kedit-compare-", dir=folder) as place:
        memory = Baseline(torch.device("cuda" if torch.cuda.is_available() else "cpu"), tensors=0.0)
        opened = way.open(base, facts, seed, Path(place, "taught"))
        trial = _Trial(opened.editor, facts, judging, questions, texts, memory)
        found = trial.together(way.anew) if way.together else trial.apart()
        found.memory_bytes = trial.most_memory or None  # some systems do not tell
        found.training_seconds = opened.training_seconds
        found.stored_bytes = trial.stored
        found.can_take_out, found.take_out = opened.can_take_out, opened.take_out
        if plain is None:
            found.in_context = trial.in_context()
            found.parameters, found.architecture = _parameters(opened), base.architecture
        elif judging.timed and way.together:
            try:
                beside = plain.open(base, facts, seed, Path(place, "plain"))
                found.added_inference_share = trial.added(beside.editor)
            except (MemoryError, torch.OutOfMemoryError):  # a second copy, for this figure alone
                print("no memory for another copy of the base model: the time of an answer is not compared")
        return found


class _Trial:
    """An editor and what it is asked; `editor` answers as the unedited model until it is taught."""

    def __init__(
        self,
        editor: EditedModel,
        facts: FactSet,
        judging: Judging,
        questions: Sequence[Question],
        texts: Sequence[str],
        memory: Baseline,
    ) -> None:
        self.memory, self.most_memory = memory, 0.0
        self.editor, self.facts, self.judging = editor, facts, judging
        self.edits = list(facts.edits)
        self.questions = questions
        self.judge = Judge(judging.max_new_tokens, judging.cut)
        self.probes = [probe for edit in self.edits for probe in edit.all_probes]
        self.judge.remember(editor, self.probes)
        self.before = _nll(editor, [probe for probe in self.probes if is_local(probe)])
        self.text = None
        if judging.perplexity is not None:
            self.text = TextPerplexity(judging.perplexity, context=GIVEN, words=SCORED)
        elif texts:
            self.text = TextPerplexity.of(texts)
        self.ability = self._ability(editor)
        self.stored = 0.0

    def _ability(self, model: EditedModel) -> tuple[float | None, list[float]]:
        """Perplexity, and which questions are answered rightly."""
        asked = [one.question for one in self.questions]
        said = model.generate(asked, max_new_tokens=self.judging.max_new_tokens) if asked else []
        right = [
            float(answers(text, tuple(one.answers), self.judging.cut))
            for text, one in zip(said, self.questions, strict=True)
        ]
        return None if self.text is None else self.text(model), right

    def together(self, anew: bool) -> Trial:
        """All facts in one model."""
        kept, spent, done = {}, 0.0, 0
        counts = [*points_before(len(self.edits)), len(self.edits)] if self.judging.retention else [len(self.edits)]
        for count in counts:
            if anew and done:
                self.editor.reset()
                done, spent = 0, 0.0
            spent += self._teach(self.edits[done:count])
            done = count
            if count < len(self.edits):
                kept[count] = self._said(self.edits[:count])
        verdicts = self.judge(self.editor, self.probes)
        rows = list(self._rows(verdicts, self.editor))
        kept[len(self.edits)] = {row.fact: row.free for row in rows if row.group == "reliability"}
        self.stored = float(_stored(self.editor))
        perplexity, qa = self._ability(self.editor)
        return Trial(
            rows,
            kept if self.judging.retention else {},
            spent,
            unlearned=len(_unlearned(self.editor)),
            perplexity=None if perplexity is None or self.ability[0] is None else (self.ability[0], perplexity),
            qa=(self.ability[1], qa) if qa else None,
        )

    def _teach(self, edits: Sequence[Edit]) -> float:
        """The seconds that it takes."""
        self.memory.forget_peak()
        began = seconds()
        self.editor.edit(edits)
        spent = seconds() - began
        self.most_memory = max(self.most_memory, self.memory.peak)
        return spent

    def _said(self, edits: Sequence[Edit]) -> dict[str, float]:
        """Which of the facts are said, by their edits' ids; a drawn part of them where they are many."""
        asked = list(edits)
        if len(asked) > self.judging.retained:
            drawn = np.random.default_rng(0).choice(len(asked), self.judging.retained, replace=False)
            asked = [asked[number] for number in sorted(drawn)]
        verdicts = self.judge(self.editor, [edit.own for edit in asked])
        return {edit.id: float(free) for edit, free in zip(asked, verdicts.free_N, strict=True)}

    def apart(self) -> Trial:
        """Each subject's facts in a model of their own."""
        groups: dict[str, list[Edit]] = {}
        for edit in self.edits:
            groups.setdefault(edit.subject or edit.id, []).append(edit)
        rows: list[Row] = []
        spent, unlearned = 0.0, 0
        for group in groups.values():
            spent += self._teach(group)
            unlearned += len(_unlearned(self.editor))
            self.stored += _stored(self.editor)
            probes = [probe for edit in group for probe in edit.all_probes]
            rows += self._rows(self.judge(self.editor, probes), self.editor)
            self.editor.reset()
        return Trial(rows, teaching_seconds=spent, unlearned=unlearned)

    def _rows(self, verdicts: Verdicts, model: EditedModel) -> Iterator[Row]:
        losses = _nll(model, verdicts.probes)
        places = enumerate(zip(verdicts.probes, verdicts.clusters, strict=True))
        for number, (probe, cluster) in places:
            forced, nll = float(verdicts.forced_N[number]), losses.get((probe.prompt, probe.span))
            yield Row(
                probe=probe.id,
                fact=probe.fact,
                cluster="/".join(cluster),
                group=probe.group,
                prompt=probe.prompt,
                wanted=self.judge.texts[probe.prompt] if is_local(probe) else probe.span,
                said=verdicts.texts[number],
                free=float(verdicts.free_N[number]),
                forced=None if np.isnan(forced) else forced,
                nll=nll,
                before=self.before.get((probe.prompt, probe.span)) if is_local(probe) else None,
            )

    def in_context(self) -> dict[str, float]:
        """Whether the unedited model says each fact behind the text of its definition."""
        self.editor.reset()
        told = {fact.name: fact.definition for fact in self.facts.definitions(self.edits)}
        texts = [told[edit.subject] if edit.subject else sentence(edit) for edit in self.edits]
        prompts = [f"{text} {edit.prompt}" for text, edit in zip(texts, self.edits, strict=True)]
        try:
            said = self.editor.generate(prompts, max_new_tokens=self.judging.max_new_tokens)
        except DataError as error:
            print(f"nothing is known of what the model says behind definitions: {error}")
            return {}
        return {
            edit.id: float(answers(text, (edit.target,), self.judging.cut))
            for edit, text in zip(self.edits, said, strict=True)
        }

    def added(self, plain: EditedModel) -> float:
        """How much longer answers take than the unedited model's, as a share."""
        every = max(1, len(self.edits) // self.judging.timed)
        timed = [probe for edit in self.edits[::every][: self.judging.timed] for probe in edit.all_probes]
        prompts = list(dict.fromkeys(probe.prompt for probe in timed))
        return added_inference_share(plain, self.editor, prompts, self.judging.max_new_tokens, rounds=ROUNDS)


def _nll(model: Judged, probes: Sequence[Probe]) -> dict[tuple[str, str], float]:
    """Mean loss of each probe's span behind its prompt, in nats a token; none where there is no span."""
    pairs = list(dict.fromkeys((probe.prompt, probe.span) for probe in probes if probe.span))
    if not pairs:
        return {}
    losses = model.score([prompt for prompt, _ in pairs], [span for _, span in pairs])
    return {pair: float(np.mean(one, dtype=np.float64)) for pair, one in zip(pairs, losses, strict=True)}


def _stored(editor: object) -> int:
    return int(getattr(editor, "stored_bytes", 0))


def _unlearned(editor: object) -> set[str]:
    return getattr(editor, "unlearned", set())


def _parameters(opened: Opened) -> int | None:
    model = getattr(getattr(opened.editor, "model", None), "model", None)
    return sum(weight.numel() for weight in model.parameters()) if isinstance(model, torch.nn.Module) else None
