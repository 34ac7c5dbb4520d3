"""Confidence intervals of paired comparisons, where probes of one entity are no independent draws.

    means = (mean over probes, or over the entities' means, of each column of values);  statistic = of(means)

Entities (clusters) are drawn with replacement, all their probes with them; the interval is between percentiles of the
statistic over the resamples. Differences of the same probes under two models make it a paired bootstrap.
Knows no model.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np

Over = Literal["micro", "macro"]
"""The mean over all probes, or over clusters of the means of their probes."""
Of = Callable[[np.ndarray], np.ndarray]
"""Means [..., S] to statistics [...]."""
DRAWS = 4_000_000
"""Drawn clusters that are held at a time: about 50 MB."""


def first(means: np.ndarray) -> np.ndarray:
    """The mean of the one column."""
    return means[..., 0]


def ratio(means: np.ndarray) -> np.ndarray:
    """The first column's mean over the second's: with (base - edited, base - prepended) the share of the gain."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return means[..., 0] / means[..., 1]


def estimate(values: np.ndarray, clusters: Sequence[object], over: Over = "micro", of: Of = first) -> float:
    """The statistic itself; arguments as for `cluster_interval`."""
    sums_KS, counts_K = _sums(values, clusters, over)
    return float(of(sums_KS.sum(0) / counts_K.sum()))


def cluster_interval(
    values: np.ndarray,
    clusters: Sequence[object],
    over: Over = "micro",
    of: Of = first,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of a statistic under resampling of clusters.

    Args:
        values: one value a probe [N], or several columns [N, S] of which `of` makes one statistic.
        clusters: the entity of each probe, N of them.
        over: which mean is taken.
        of: statistic of the columns' means; the one column's mean by default, `ratio` for a share.
        resamples: how often clusters are drawn.
        seed: of the draws: the same seed draws the same clusters for every statistic.
        level: share of the resamples that the interval holds.

    Returns:
        both ends; (nan, nan) with one cluster, which says nothing of how clusters differ, and where the statistic is
        undefined (a share of no gain) in a resample.

    Raises:
        ValueError: there are no values, they are not finite, or not as many as clusters.
    """
    sums_KS, counts_K = _sums(values, clusters, over)
    if len(counts_K) < 2:
        return float("nan"), float("nan")
    drawn = [of((times @ sums_KS) / (times @ counts_K)[:, None]) for times in _draws(len(counts_K), resamples, seed)]
    low, high = np.quantile(np.concatenate(drawn), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _sums(values: np.ndarray, clusters: Sequence[object], over: Over) -> tuple[np.ndarray, np.ndarray]:
    """Sums [K, S] and counts [K] of clusters; for macro their means, each counted once."""
    values = np.asarray(values, dtype=np.float64)
    columns_NS = values[:, None] if values.ndim == 1 else values
    if not len(values) or len(values) != len(clusters):
        raise ValueError(f"{len(values)} values of {len(clusters)} clusters: wanted a cluster for each, at least one")
    if not np.isfinite(values).all():
        raise ValueError(f"{(~np.isfinite(values)).sum()} values are not finite: count and leave them out before")
    places = {cluster: place for place, cluster in enumerate(dict.fromkeys(clusters))}
    cluster_N = np.array([places[cluster] for cluster in clusters])
    counts_K = np.bincount(cluster_N).astype(np.float64)
    sums_KS = np.stack([np.bincount(cluster_N, column) for column in columns_NS.T], axis=1)
    return (sums_KS / counts_K[:, None], np.ones_like(counts_K)) if over == "macro" else (sums_KS, counts_K)


def _draws(clusters: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each cluster is drawn, float64 [some of the resamples, K], all resamples in turn."""
    generator = np.random.default_rng(seed)
    step = max(1, DRAWS // clusters)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = generator.integers(clusters, size=(rows, clusters), dtype=np.int64)
        drawn += np.arange(rows)[:, None] * clusters
        yield np.bincount(drawn.ravel(), minlength=rows * clusters).reshape(rows, clusters).astype(np.float64)
