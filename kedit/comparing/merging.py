"""Trials of several seeds to a contestant's figures, each a mean with an interval in which a fact is one draw.

Knows records and numbers only.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import numpy as np

from kedit.comparing.record import Row, Trial
from kedit.comparing.results import Contestant, Costs, Example, Figure, Kept
from kedit.comparing.way import Way
from kedit.editing.bootstrap import cluster_interval
from kedit.editing.stream_report import MANY

EXAMPLES = {"reliability": 2, "generality": 2, "portability": 3, "locality": 3}
"""How many are shown of each aspect; what one aspect lacks, others have more."""


def contestant(name: str, base: str, way: Way, trials: Sequence[Trial], facts: int, shown: Sequence[str]) -> Contestant:
    """What a contestant's trials say together.

    Args:
        name: of the contestant.
        base: of its model.
        way: what it is.
        trials: one a seed, in the order of the seeds.
        facts: how many were taught.
        shown: ids of the probes that are shown as examples.
    """
    rows = {row.probe: row for row in trials[0].rows}
    return Contestant(
        name=name,
        base=base,
        method=way.method,
        together=way.together,
        unlearned=max(trial.unlearned for trial in trials),
        figures=dict(_figures(trials)),
        retention=tuple(_retention(trials)),
        costs=_costs(trials, facts),
        examples=tuple(_example(rows[probe]) for probe in shown if probe in rows),
    )


def figure(values: Sequence[Sequence[float]], clusters: Sequence[Sequence[str]]) -> Figure | None:
    """A mean over seeds, with its interval.

    Args:
        values: of each seed.
        clusters: what each value is no independent draw from; the same fact is the same draw under every seed.

    Returns:
        None where there is no value, or one is not finite: a model that broke has no such figure.
    """
    whole = np.array([value for one in values for value in one], dtype=np.float64)
    if not len(whole) or not np.isfinite(whole).all():
        return None
    drawn = [cluster for one in clusters for cluster in one]
    resamples = 10_000 if len(set(drawn)) < MANY else 1_000
    low, high = cluster_interval(whole, drawn, resamples=resamples)
    by_seed = tuple(float(np.mean(one)) for one in values) if len(values) > 1 and all(map(len, values)) else ()
    return Figure(float(whole.mean()), low, high, by_seed)


def said(trials: Sequence[Trial]) -> Figure | None:
    """The share of facts that are said, of a model as it is."""
    return _mean(trials, ("reliability",), _free)


def behind_text(trial: Trial) -> Figure | None:
    """The share of facts that the model says behind their text."""
    return figure([list(trial.in_context.values())], [list(trial.in_context)])


def examples(rows: Sequence[Row]) -> list[str]:
    """Ids of the probes that are shown: a few of each aspect, of different facts, the same whatever a model says."""
    order = np.random.default_rng(0).permutation(len(rows))
    chosen: dict[str, list[str]] = {aspect: [] for aspect in EXAMPLES}
    spare, facts = [], set()
    for row in (rows[number] for number in order):
        aspect = _aspect(row.group)
        is_part = aspect == "reliability" != row.group
        if is_part or row.group == "locality/text" or row.fact in facts:
            continue
        if len(chosen[aspect]) < EXAMPLES[aspect]:
            chosen[aspect].append(row.probe)
            facts.add(row.fact)
        else:
            spare.append(row.probe)
    found = [probe for probes in chosen.values() for probe in probes]
    return found + spare[: sum(EXAMPLES.values()) - len(found)]


def _aspect(group: str) -> str:
    return group.split("/")[0]


def _figures(trials: Sequence[Trial]) -> Iterator[tuple[str, Figure]]:
    groups = list(dict.fromkeys(row.group for row in trials[0].rows))
    # a part of reliability asks an edit's own prompt again, and so does not count among all
    members = {group: {group} for group in groups}
    for aspect in ("generality", "locality", "portability"):
        if own := {group for group in groups if _aspect(group) == aspect}:
            members[aspect] = own
    for name, own in members.items():
        for kind, value in (("free", _free), ("forced", _forced)):
            if (found := _mean(trials, own, value)) is not None:
                yield f"{name}/{kind}", found
    local = members.get("locality", set())
    others = {
        "span_nll": _mean(trials, set(groups) - local, _nll),
        "specificity_change": _mean(trials, local, _change),
    }
    for place, moment in enumerate(("before", "after")):
        others[f"perplexity/{moment}"] = _plain([one.perplexity[place] for one in trials if one.perplexity])
        answered = [one.qa[place] for one in trials if one.qa]
        others[f"qa/{moment}"] = figure(answered, [[str(number) for number in range(len(one))] for one in answered])
    yield from ((name, one) for name, one in others.items() if one is not None)


def _free(row: Row) -> float | None:
    return row.free


def _forced(row: Row) -> float | None:
    return row.forced


def _nll(row: Row) -> float | None:
    return row.nll


def _change(row: Row) -> float | None:
    return None if row.nll is None or row.before is None else row.nll - row.before


def _mean(trials: Sequence[Trial], groups: Collection[str], value: Callable[[Row], float | None]) -> Figure | None:
    """Of a value of the groups' rows that have one."""
    values, clusters = [], []
    for trial in trials:
        rows = [(found, row.cluster) for row in trial.rows if row.group in groups and (found := value(row)) is not None]
        values.append([one for one, _ in rows])
        clusters.append([one for _, one in rows])
    return figure(values, clusters)


def _plain(values: Sequence[float]) -> Figure | None:
    """Of figures that are one a seed, without an interval."""
    if not values or not all(map(math.isfinite, values)):
        return None
    return Figure(float(np.mean(values)), by_seed=tuple(values) if len(values) > 1 else ())


def _retention(trials: Sequence[Trial]) -> Iterator[Kept]:
    for count in trials[0].kept:
        points = [trial.kept.get(count, {}) for trial in trials]
        if (found := figure([list(one.values()) for one in points], [list(one) for one in points])) is not None:
            yield Kept(count, found)


def _costs(trials: Sequence[Trial], facts: int) -> Costs:
    first = trials[0]

    def mean(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    return Costs(
        training_seconds=mean(one.training_seconds for one in trials),
        seconds_per_fact=mean(one.teaching_seconds / facts for one in trials),
        added_inference_share=mean(one.added_inference_share for one in trials),
        memory_bytes=mean(one.memory_bytes for one in trials),
        bytes_per_fact=mean(one.stored_bytes / facts for one in trials),
        can_take_out=first.can_take_out,
        take_out=first.take_out,
    )


def _example(row: Row) -> Example:
    return Example(row.prompt, row.wanted.strip(), row.said.strip(), _aspect(row.group), row.free > 0.5)  # type: ignore[arg-type]
