"""Probes scored by a language model: the likelihood of their spans, and the choice among their candidates.

Turns probes into the sentences that `lm.scoring` reads, and token losses into the figures that are reported. Knows no
method: a model that was edited and one that reads a definition are asked in the same way.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit.editing.bootstrap import estimate
from kedit.editing.probes import Fact, Probe
from kedit.editing.sources import DataError
from kedit.lm.scoring import Span, candidate_log_probs, span_nll

NEUTRAL = "it"
"""What stands for an entity where a candidate's prior is asked for."""


def probe_nll(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    probes: Sequence[Probe],
    definitions: Mapping[str, str] | None = None,
    **options: Any,
) -> np.ndarray:
    """Mean negative log-likelihood of the span's tokens, in nats, for each probe: float64 [N].

    Args:
        model: as it stands, in `eval`.
        tokenizer: its fast tokenizer.
        probes: whose spans are scored.
        definitions: what is prepended, by the id of a probe's fact; probes of other facts are read alone. (A random
            definition is another fact's text under this fact's id.)
        options: `batch_tokens` and `progress`, as for `lm.scoring.span_nll`.

    Raises:
        DataError: a probe cannot be scored.
    """
    try:
        losses = span_nll(model, tokenizer, _spans(probes), _contexts(probes, definitions), **options)
    except ValueError as error:
        raise DataError(str(error)) from error
    return np.array([loss.mean(dtype=np.float64) for loss in losses])


@dataclass(frozen=True, slots=True)
class SpanScore:
    """Span losses of many probes as two means, in nats, and as perplexities.

    Args:
        nll: mean over probes of their mean token loss. Its exponential is the perplexity that ECBD's authors report.
        nll_by_entity: mean over entities of the mean over their probes: no entity counts more for having more probes.
    """

    nll: float
    nll_by_entity: float

    @property
    def perplexity(self) -> float:
        return float(np.exp(self.nll))

    @property
    def perplexity_by_entity(self) -> float:
        return float(np.exp(self.nll_by_entity))


def span_score(nll_N: np.ndarray, entities: Sequence[object]) -> SpanScore:
    """Both means of what `probe_nll` gives; `entities` are the probes' facts."""
    return SpanScore(estimate(nll_N, entities, "micro"), estimate(nll_N, entities, "macro"))


@dataclass
class Choices:
    """Candidates of N probes with their scores.

    Args:
        log_probs: for each probe the candidates' log-probabilities in place, summed over their tokens [K].
        priors: the same in the sentence that names no entity and has no definition before it.
        gold: number of the right candidate of each probe, int64 [N].
    """

    log_probs: list[np.ndarray]
    priors: list[np.ndarray]
    gold: np.ndarray

    def right(self, calibrated: bool = False) -> np.ndarray:
        """Whether each probe's right candidate scores above all others, float64 [N]; a tie is no choice.

        The raw score favours what is short and common; the calibrated one is log p(candidate | sentence) - log
        p(candidate | sentence without the entity's name), how much the entity speaks for it.
        """
        scores = [raw - prior if calibrated else raw for raw, prior in zip(self.log_probs, self.priors, strict=True)]
        return np.array([
            float((np.delete(score, gold) < score[gold]).all()) for score, gold in zip(scores, self.gold, strict=True)
        ])  # fmt: skip


def choices(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    probes: Sequence[Probe],
    facts: Mapping[str, Fact],
    definitions: Mapping[str, str] | None = None,
    **options: Any,
) -> Choices:
    """Score the candidates of probes, each in a pass of its own, and their priors under the same model.

    Args:
        model: as it stands, in `eval`.
        tokenizer: its fast tokenizer.
        probes: with candidates.
        facts: what the probes ask about, by id: their names give way to "it" for the prior.
        definitions: what is prepended, as for `probe_nll`; never for the prior.
        options: `batch_tokens` and `progress`, as for `lm.scoring.candidate_log_probs`.

    Raises:
        DataError: a probe has no candidates, or does not name its entity left of the span, or cannot be scored.
    """
    for probe in probes:
        if probe.span not in probe.candidates:
            raise DataError(f"{_where(probe)}: {probe.span!r} is none of its {len(probe.candidates)} candidates")
    candidates = [probe.candidates for probe in probes]
    gold = np.array([probe.candidates.index(probe.span) for probe in probes], dtype=np.int64)
    nameless = [Span(nameless_left(probe, facts), probe.span, probe.right, _where(probe)) for probe in probes]
    try:
        raw = candidate_log_probs(
            model, tokenizer, _spans(probes), candidates, _contexts(probes, definitions), **options
        )
        return Choices(raw, candidate_log_probs(model, tokenizer, nameless, candidates, **options), gold)
    except ValueError as error:
        raise DataError(str(error)) from error


def nameless_left(probe: Probe, facts: Mapping[str, Fact]) -> str:
    """The probe's left text with "it" ("It" at its start) for every mention of its entity.

    Raises:
        DataError: its fact is not known, or is not mentioned there.
    """
    if probe.fact not in facts:
        raise DataError(f"{_where(probe)}: asks about the fact {probe.fact!r}, which is not among those given")
    names = "|".join(map(re.escape, facts[probe.fact].names))
    left, mentions = re.subn(
        rf"(?<!\w)(?:{names})(?!\w)", lambda found: NEUTRAL if found.start() else NEUTRAL.capitalize(), probe.left
    )
    if not mentions:
        raise DataError(
            f"{_where(probe)}: none of the names {', '.join(map(repr, facts[probe.fact].names))} stands in"
            f" {probe.left!r}: a prior without the entity cannot be had; give the fact this name as an alias"
        )
    return left


def _where(probe: Probe) -> str:
    return f"{probe.where}, probe {probe.id!r}" if probe.where else f"probe {probe.id!r}"


def _spans(probes: Sequence[Probe]) -> list[Span]:
    return [Span(probe.left, probe.span, probe.right, _where(probe)) for probe in probes]


def _contexts(probes: Sequence[Probe], definitions: Mapping[str, str] | None) -> list[str | None]:
    return [None if definitions is None else definitions.get(probe.fact) for probe in probes]
