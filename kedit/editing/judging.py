"""Edits judged by their probes, in two ways that are never mixed. Knows no method.

    forced: the mean over a target's tokens of [likeliest token there == token], prompt and tokens before being given
    free:   [what the model writes by itself behind the prompt, cut and normalised, == an answer]

Locality asks whether anything changed: there the unedited model's likeliest tokens, and its text, are what is right.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from kedit.editing.editor import Answerer
from kedit.editing.metrics import normalise_answer
from kedit.editing.probes import Probe

Cut = Literal["line", "sentence"]
"""Where an answer ends that is written freely: with its line, or with its first sentence."""
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")


class Forced(NamedTuple):
    """A target's tokens: the likeliest one at each place, given prompt and target before it, and the target's own.

    Both int64 [n].
    """

    likeliest: np.ndarray
    target: np.ndarray


@runtime_checkable
class Judged(Answerer, Protocol):
    """An answerer that can be judged."""

    def greedy_tokens(self, prompts: Sequence[str], targets: Sequence[str]) -> list[Forced]:
        """The likeliest token in place of each of a target's tokens, the target being given up to there."""


@dataclass
class Verdicts:
    """Probes with how they were answered, N of them.

    Args:
        probes: what was asked.
        free_N: 1 where the text was right, else 0, float64.
        forced_N: the share of tokens that were right, float64; nan where there was no token to ask for.
        texts: what the model wrote.
    """

    probes: list[Probe]
    free_N: np.ndarray
    forced_N: np.ndarray
    texts: list[str]

    @property
    def groups(self) -> dict[str, np.ndarray]:
        """Numbers of the probes by aspect ("locality") and, where an aspect has parts, by group ("locality/near").

        Parts of reliability ask an edit's own prompt again, and so do not count among all edits.
        """
        members: dict[str, list[int]] = {}
        for number, probe in enumerate(self.probes):
            aspect = probe.group.split("/")[0]
            for name in {probe.group} if aspect == "reliability" else dict.fromkeys((aspect, probe.group)):
                members.setdefault(name, []).append(number)
        return {name: np.array(numbers) for name, numbers in members.items()}

    @cached_property
    def clusters(self) -> list[tuple[str, str]]:
        """What each probe is no independent draw from: its edit, or, in a group that asks at most half as many prompts
        as it has edits, its prompt, which is answered in the same way whatever edit it is asked for.
        """
        edits: dict[str, set[str]] = {}
        prompts: dict[str, set[str]] = {}
        for probe in self.probes:
            edits.setdefault(probe.group, set()).add(probe.cluster)
            prompts.setdefault(probe.group, set()).add(probe.prompt)
        shared = {group for group in edits if 2 * len(prompts[group]) <= len(edits[group])}
        return [("prompt", one.prompt) if one.group in shared else ("edit", one.cluster) for one in self.probes]

    def values(self, kind: str, numbers: np.ndarray) -> tuple[np.ndarray, list[tuple[str, str]]]:
        """Scores ("free" or "forced") of some probes that have one, and the clusters of these."""
        values = (self.free_N if kind == "free" else self.forced_N)[numbers]
        there = np.isfinite(values)
        return values[there], [self.clusters[number] for number in numbers[there]]

    def means(self) -> dict[str, dict[str, float]]:
        """By aspect or group the means of both kinds, and how many probes these are of."""
        found = {}
        for name, numbers in self.groups.items():
            forced, _ = self.values("forced", numbers)
            found[name] = {"free": float(self.free_N[numbers].mean()), "probes": len(numbers)}
            if len(forced):
                found[name]["forced"] = float(forced.mean())
        return found

    def rows(self) -> list[dict[str, Any]]:
        """One record a probe, for JSON Lines."""
        return [
            {"probe": probe.id, "edit": probe.fact, "group": probe.group, "prompt": probe.prompt, "target": probe.span,
             "said": text, "free": float(free), "forced": None if np.isnan(forced) else float(forced)}
            for probe, text, free, forced in zip(self.probes, self.texts, self.free_N, self.forced_N, strict=True)
        ]  # fmt: skip


def joined(parts: Iterable[Verdicts]) -> Verdicts:
    """Verdicts of several occasions as one."""
    parts = list(parts)
    return Verdicts(
        [probe for part in parts for probe in part.probes],
        np.concatenate([np.zeros(0), *(part.free_N for part in parts)]),
        np.concatenate([np.zeros(0), *(part.forced_N for part in parts)]),
        [text for part in parts for text in part.texts],
    )


class Judge:
    """Asks models probes, and remembers what the unedited model says where nothing should change.

    Args:
        max_new_tokens: most tokens that are written freely.
        cut: where what is written ends as an answer.
    """

    def __init__(self, max_new_tokens: int = 32, cut: Cut = "sentence") -> None:
        self.max_new_tokens, self.cut = max_new_tokens, cut
        self.texts: dict[str, str] = {}
        self.tokens: dict[tuple[str, str], np.ndarray] = {}

    def remember(self, base: Judged, probes: Iterable[Probe]) -> None:
        """Ask the unedited model the locality probes among these, once each."""
        local = [probe for probe in probes if is_local(probe)]
        new = {probe.prompt for probe in local} - self.texts.keys()
        self.texts |= self._written(base, [probe.prompt for probe in local if probe.prompt in new])
        pairs = [pair for probe in local if (pair := self._pair(probe))[1] and pair not in self.tokens]
        self.tokens |= {pair: forced.likeliest for pair, forced in _forced(base, pairs).items()}

    def __call__(self, model: Judged, probes: Sequence[Probe]) -> Verdicts:
        """Ask a model; what several probes have in common is asked once.

        Raises:
            ValueError: a locality probe was not remembered, or the two models' tokens cannot be compared.
        """
        for probe in probes:
            if is_local(probe) and probe.prompt not in self.texts:
                raise ValueError(f"probe {probe.id!r}: the unedited model was not asked before: `remember` it first")
        texts = self._written(model, [probe.prompt for probe in probes])
        pairs = [self._pair(probe) for probe in probes]
        forced = _forced(model, [pair for pair in pairs if pair[1]])
        shares = [
            self._share(probe, pair, forced[pair]) if pair in forced else float("nan")
            for probe, pair in zip(probes, pairs, strict=True)
        ]
        right = [float(self._is_right(probe, texts[probe.prompt])) for probe in probes]
        return Verdicts(list(probes), np.array(right), np.array(shares), [texts[probe.prompt] for probe in probes])

    def _written(self, model: Judged, prompts: Sequence[str]) -> dict[str, str]:
        distinct = list(dict.fromkeys(prompts))
        texts = model.generate(distinct, max_new_tokens=self.max_new_tokens) if distinct else []
        return dict(zip(distinct, texts, strict=True))

    def _pair(self, probe: Probe) -> tuple[str, str]:
        """Prompt and target; where nothing is known to be right, what the unedited model says."""
        if probe.span or not is_local(probe):
            return probe.prompt, probe.span
        return probe.prompt, cut_text(self.texts[probe.prompt], self.cut)

    def _is_right(self, probe: Probe, text: str) -> bool:
        if is_local(probe):
            return cut_text(text, self.cut) == cut_text(self.texts[probe.prompt], self.cut)
        return answers(text, (probe.span, *probe.answers), self.cut)

    def _share(self, probe: Probe, pair: tuple[str, str], forced: Forced) -> float:
        right = self.tokens[pair] if is_local(probe) else forced.target
        if len(right) != len(forced.likeliest) or not len(right):
            raise ValueError(
                f"probe {probe.id!r}: {len(forced.likeliest)} tokens, wanted the target's {len(right)}, at least one:"
                " a model and its unedited form must share a tokenizer"
            )
        return float((forced.likeliest == right).mean())


def is_local(probe: Probe) -> bool:
    """Whether a probe asks for no change."""
    return probe.group.split("/")[0] == "locality"


def cut_text(text: str, cut: Cut) -> str:
    """The first line, or of it the first sentence, without space around it."""
    line = text.strip().partition("\n")[0].strip()
    end = _SENTENCE_END.search(line) if cut == "sentence" else None
    return line[: end.end()] if end else line


def answers(text: str, right: Sequence[str], cut: Cut) -> bool:
    """Whether what a model wrote, up to where the answer ends, is one of the right answers once normalised.

    Cut by the sentence it may end at any of the first line's full stops: "St. Louis." holds two of them.
    """
    line = cut_text(text, "line")
    said = [line]
    if cut == "sentence":
        said += [line[: end.end()] for end in _SENTENCE_END.finditer(line)]
    wanted = {_key(answer) for answer in right}
    return any(_key(one) in wanted for one in said)


def _key(text: str) -> str:
    """The normalised text; where that leaves nothing ("A", "?"), the text without case."""
    return normalise_answer(text) or text.strip().casefold()


def _forced(model: Judged, pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Forced]:
    distinct = list(dict.fromkeys(pairs))
    if not distinct:
        return {}
    prompts, targets = zip(*distinct, strict=True)
    return dict(zip(distinct, model.greedy_tokens(prompts, targets), strict=True))
