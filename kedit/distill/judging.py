"""What edits changed: the likelihood of their probes, and of everything that they should have left alone.

Scores are kept probe by probe, so that ways of answering are compared on the same probes and averages are made last.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit.distill.teacher import model_fingerprint
from kedit.editing.bootstrap import Over, cluster_interval, estimate, ratio
from kedit.editing.probes import Knowledge, Probe
from kedit.editing.scores import choices as candidate_choices
from kedit.editing.scores import probe_nll
from kedit.lm.cache import cache_folder
from kedit.lm.text import fingerprint
from kedit.running.files import write_whole


@dataclass
class EditScores:
    """One way of answering, judged.

    Args:
        facts: ids of the facts it was judged for.
        target: mean token NLL by probe id, in nats, of the probes of these facts.
        right: whether the candidate was the right one, by probe id, raw and calibrated; of probes with candidates.
        specificity: mean token NLL by probe id, by the name of the set.
    """

    facts: list[str]
    target: dict[str, float] = field(default_factory=dict)
    right: dict[str, tuple[float, float]] = field(default_factory=dict)
    specificity: dict[str, dict[str, float]] = field(default_factory=dict)

    def to_state(self) -> dict[str, Any]:
        """In types that `torch.load(weights_only=True)` reads."""
        return {"facts": self.facts, "target": self.target, "right": {k: list(v) for k, v in self.right.items()},
                "specificity": self.specificity}  # fmt: skip

    def of(self, facts: Sequence[str], probes: Sequence[Probe]) -> "EditScores":
        """Those of the probes of some facts, without specificity."""
        ids = {probe.id for probe in probes if probe.fact in set(facts)}
        return EditScores(list(facts), {id: v for id, v in self.target.items() if id in ids},
                          {id: v for id, v in self.right.items() if id in ids})  # fmt: skip

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> "EditScores":
        right = {key: (float(raw), float(calibrated)) for key, (raw, calibrated) in state["right"].items()}
        return EditScores(state["facts"], state["target"], right, state["specificity"])


class Judge:
    """Asks a model the probes of a knowledge source; under several processes each asks its share.

    Args:
        tokenizer: the model's.
        knowledge: facts and probes.
        batch_tokens: most tokens of a batch.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, knowledge: Knowledge, batch_tokens: int = 8192) -> None:
        self.tokenizer, self.knowledge, self.batch_tokens = tokenizer, knowledge, batch_tokens
        self.facts = {fact.id: fact for fact in knowledge.facts}

    def definitions(self, shift: int = 0) -> dict[str, str]:
        """The definition of each fact by its id; shifted, that of another fact."""
        facts = self.knowledge.facts
        return {fact.id: facts[(index + shift) % len(facts)].definition for index, fact in enumerate(facts)}

    def target(
        self, model: PreTrainedModel, probes: Sequence[Probe] | None = None,
        definitions: Mapping[str, str] | None = None, choices: bool = True,
    ) -> EditScores:  # fmt: skip
        """Scores of the facts' probes, with definitions in context where they are given."""
        probes = self.knowledge.probes if probes is None else probes
        asked = {probe.fact for probe in probes}
        scores = EditScores([fact.id for fact in self.knowledge.facts if fact.id in asked])
        own = self._share(probes)
        scores.target = self._gathered(self._nll(model, own, definitions))
        chosen = [probe for probe in own if probe.candidates and choices]
        right: dict[str, tuple[float, float]] = {}
        if chosen:
            answers = candidate_choices(
                model, self.tokenizer, chosen, self.facts, definitions, batch_tokens=self.batch_tokens
            )
            pairs = zip(answers.right().tolist(), answers.right(calibrated=True).tolist(), strict=True)
            right = {probe.id: pair for probe, pair in zip(chosen, pairs, strict=True)}
        scores.right = self._gathered(right)
        return scores

    def specificity(
        self, model: PreTrainedModel, edited: Sequence[str] = (), sets: Mapping[str, Sequence[Probe]] | None = None
    ) -> dict[str, dict[str, float]]:
        """NLL of the probes that should not change, by set; without those that ask about an edited fact."""
        own = set(edited)
        return {
            name: self._gathered(self._nll(model, self._share([probe for probe in probes if probe.fact not in own])))
            for name, probes in (self.knowledge.specificity if sets is None else sets).items()
        }

    def initial(self, model: PreTrainedModel, edited: Sequence[str] = ()) -> EditScores:
        """Scores of the initial model, computed once and kept in the cache for every method and run."""
        asked = [
            [name, *([probe.id, probe.fact, probe.left, probe.span, probe.right, probe.candidates] for probe in probes)]
            for name, probes in (("", self.knowledge.probes), *self.knowledge.specificity.items())
        ]
        names = sorted((fact.id, fact.names) for fact in self.knowledge.facts)
        device = model.device.type
        computed = str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else str(model.dtype)
        key = [model_fingerprint(model), fingerprint(self.tokenizer), computed, sorted(edited)]
        digest = hashlib.sha256(json.dumps([*key, asked, names]).encode()).hexdigest()[:24]
        file = cache_folder() / "scores" / f"{digest}.json"
        kept = self._from_first(lambda: _read_scores(file))
        if kept is not None:
            return kept
        scores = self.target(model)
        scores.specificity = self.specificity(model, edited)
        if self._processes()[0] == 0:
            write_whole(file, json.dumps(scores.to_state()))
        return scores

    def _nll(
        self, model: PreTrainedModel, probes: Sequence[Probe], definitions: Mapping[str, str] | None = None
    ) -> dict[str, float]:
        if not probes:
            return {}
        nll = probe_nll(model, self.tokenizer, probes, definitions, batch_tokens=self.batch_tokens)
        return {probe.id: float(value) for probe, value in zip(probes, nll, strict=True)}

    @staticmethod
    def _processes() -> tuple[int, int]:
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return 0, 1
        return torch.distributed.get_rank(), torch.distributed.get_world_size()

    def _from_first(self, read: Callable[[], Any]) -> Any:
        """What the first process reads, to all: another machine's cache may hold other files."""
        rank, world = self._processes()
        found = [read() if rank == 0 else None]
        if world > 1:
            torch.distributed.broadcast_object_list(found)
        return found[0]

    def _share(self, probes: Sequence[Probe]) -> list[Probe]:
        rank, world = self._processes()
        return list(probes)[rank::world]

    def _gathered(self, own: dict[str, Any]) -> dict[str, Any]:
        world = self._processes()[1]
        if world == 1:
            return own
        parts: list[Any] = [None] * world
        torch.distributed.all_gather_object(parts, own)
        return {key: value for part in parts for key, value in part.items()}


def _read_scores(file: Path) -> EditScores | None:
    if not file.is_file():
        return None
    try:
        return EditScores.from_state(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError):
        rank_zero_info(f"{file} is damaged: the initial model is asked again")
        return None


def merged(scores: Sequence[EditScores]) -> EditScores:
    """Independent edits as one: each probe under its own edit, specificity averaged over the edits."""
    whole = EditScores([id for one in scores for id in one.facts])
    sums: dict[str, dict[str, list[float]]] = {}
    for one in scores:
        whole.target |= one.target
        whole.right |= one.right
        for name, values in one.specificity.items():
            for key, value in values.items():
                sums.setdefault(name, {}).setdefault(key, []).append(value)
    whole.specificity = {name: {key: float(np.mean(v)) for key, v in keys.items()} for name, keys in sums.items()}
    return whole


def _with_interval(
    found: dict[str, float],
    key: str,
    values: np.ndarray,
    clusters: Sequence[object],
    over: Over = "micro",
    of: Any = None,
) -> None:
    more = {} if of is None else {"of": of}
    low, high = cluster_interval(values, clusters, over, **more)
    found[key] = estimate(values, clusters, over, **more)
    found[f"{key}_ci_low"], found[f"{key}_ci_high"] = low, high


def results(knowledge: Knowledge, scores: Mapping[str, EditScores]) -> dict[str, float]:
    """The figures of a test, each with a 95 % interval clustered by entity.

    Args:
        knowledge: the probes.
        scores: by way of answering: `base`, `prepend` and `edited`, and perhaps others that were trained.

    Returns:
        - probes: how many; those of facts that could not be taught count as the initial model's.
        - prepend_gain: what definitions in context are worth, in nats a token.
        - target_nll/WAY: mean over probes of the mean token NLL, in nats (its exponential is ECBD's perplexity);
          target_nll_by_entity/WAY: mean over entities; perplexity/WAY.
        - gain_share: the part of the gain of `prepend` over `base` that `edited` has; gain_share_WAY of others. Left
          out, as are other shares, where `prepend` gains nothing.
        - specificity_change: change of NLL under `edited` on the first specificity set that asks about no edited fact;
          specificity_change/SET of each, and specificity_change_WAY/SET; specificity_change_share/SET: over the gain
          of `prepend`.
        - accuracy/WAY and accuracy_calibrated/WAY, where probes have candidates.
    """
    found: dict[str, float] = {}
    first = scores.get("base") or next(iter(scores.values()))
    probes = [probe for probe in knowledge.probes if probe.id in first.target]
    facts = [probe.fact for probe in probes]
    # a fact that could not be taught has the answers of the initial model
    nll = {way: np.array([(first.target | one.target)[p.id] for p in probes]) for way, one in scores.items()}
    trained = [way for way in scores if scores[way].specificity and way != "base"]
    gain = prepend_gain(probes, scores)
    if probes:
        found["test/probes"] = float(len(probes))
        if "prepend" in nll:
            _with_interval(found, "test/prepend_gain", nll["base"] - nll["prepend"], facts)
        for way, values in nll.items():
            _with_interval(found, f"test/target_nll/{way}", values, facts)
            _with_interval(found, f"test/target_nll_by_entity/{way}", values, facts, "macro")
            found[f"test/perplexity/{way}"] = float(np.exp(values.mean()))
        if gain:
            for way in trained:
                gains = np.stack([nll["base"] - nll[way], nll["base"] - nll["prepend"]], 1)
                _with_interval(found, "test/gain_share" + _suffix(way), gains, facts, of=ratio)
        chosen = [probe for probe in probes if probe.id in first.right]
        for way in scores if chosen else ():
            for name, column in (("accuracy", 0), ("accuracy_calibrated", 1)):
                values = np.array([(first.right | scores[way].right)[probe.id][column] for probe in chosen])
                _with_interval(found, f"test/{name}/{way}", values, [probe.fact for probe in chosen])
    before = scores["base"].specificity if "base" in scores else {}
    for way in trained:
        for name, asked in knowledge.specificity.items():
            kept = [p for p in asked if p.id in before.get(name, {}) and p.id in scores[way].specificity.get(name, {})]
            if not kept:
                continue
            change = np.array([scores[way].specificity[name][p.id] - before[name][p.id] for p in kept])
            entities = [probe.cluster for probe in kept]
            key = "test/specificity_change" + _suffix(way)
            if key not in found:
                _with_interval(found, key, change, entities)
            _with_interval(found, f"{key}/{name}", change, entities)
            if gain:
                _with_interval(found, f"test/specificity_change_share{_suffix(way)}/{name}", change / gain, entities)
    return found


def prepend_gain(probes: Sequence[Probe], scores: Mapping[str, EditScores]) -> float:
    """What the definition in context is worth to the initial model, in nats a token; 0 where it is worth nothing."""
    if not probes or not {"base", "prepend"} <= scores.keys():
        return 0.0
    return max(0.0, float(np.mean([scores["base"].target[p.id] - scores["prepend"].target[p.id] for p in probes])))


def _suffix(way: str) -> str:
    return "" if way == "edited" else f"_{way}"


@dataclass(frozen=True)
class EntityRow:
    """One entity of a report, in nats: gain of the edit and of the definition in context, and change elsewhere."""

    name: str
    gain: float
    prepend_gain: float
    change: float


def by_entity(knowledge: Knowledge, scores: Mapping[str, EditScores], edits: Sequence[EditScores]) -> list[EntityRow]:
    """What became of each fact under the edit that taught it; the change is the edit's, which others may share."""
    base, prepend = scores["base"], scores.get("prepend", scores["base"])
    probes_of: dict[str, list[str]] = {}
    for probe in knowledge.probes:
        probes_of.setdefault(probe.fact, []).append(probe.id)
    rows = []
    for fact in knowledge.facts:
        ids = probes_of.get(fact.id, [])
        edit = next((one for one in edits if fact.id in one.facts), None)
        if edit is None or not ids or not all(id in edit.target for id in ids):
            continue
        changes = [
            value - base.specificity[name][key]
            for name, values in edit.specificity.items()
            for key, value in values.items()
            if key in base.specificity.get(name, {})
        ]
        gain, prepend_gain = (
            float(np.mean([base.target[id] - one.target[id] for id in ids])) for one in (edit, prepend)
        )
        rows.append(EntityRow(fact.name, gain, prepend_gain, float(np.mean(changes)) if changes else 0.0))
    return rows


def retention_curve(judged: Mapping[int, Sequence[EditScores]]) -> list[tuple[int, float]]:
    """After each stage of sequential edits: how many facts were learned, and the mean NLL of all their probes."""
    stages = [judged[stage][0] for stage in sorted(judged)]
    return [(len(one.facts), float(np.mean(list(one.target.values())))) for one in stages if one.target]


def retention(knowledge: Knowledge, base: EditScores, judged: Mapping[int, Sequence[EditScores]]) -> dict[str, float]:
    """How much of what each sequential edit gained is left after the last one.

    Returns:
        test/retention: gain after the last edit over the gain right after its own; test/target_nll/when_learned.
    """
    first: dict[str, float] = {}
    stages = [judged[stage][0] for stage in sorted(judged)]
    for one in stages:
        first = one.target | first
    last = stages[-1].target
    found: dict[str, float] = {}
    probes = [probe for probe in knowledge.probes if probe.id in first and probe.id in last]
    if probes:
        facts = [probe.fact for probe in probes]
        gains = np.array([[base.target[p.id] - last[p.id], base.target[p.id] - first[p.id]] for p in probes])
        _with_interval(found, "test/retention", gains, facts, of=ratio)
        _with_interval(found, "test/target_nll/when_learned", np.array([first[p.id] for p in probes]), facts)
    return found
