import time

import numpy as np
import pytest

from kedit.editing.bootstrap import cluster_interval, estimate, ratio


def reference(values, clusters, over, of, resamples):
    """The same draws, one at a time, with all probes of the drawn clusters written down."""
    names = list(dict.fromkeys(clusters))
    draws = np.random.default_rng(0).integers(len(names), size=(resamples, len(names)))
    parts = [values[[cluster == name for cluster in clusters]] for name in names]
    found = []
    for places in draws:
        drawn = [parts[at] for at in places]
        means = np.concatenate(drawn).mean(0) if over == "micro" else np.mean([part.mean(0) for part in drawn], axis=0)
        found.append(of(means))
    return np.quantile(found, [0.025, 0.975])


@pytest.fixture(scope="module")
def probes():
    rng = np.random.default_rng(3)
    clusters = [f"e{n}" for n in range(12) for _ in range(1 + n * n % 7)]
    level = {name: rng.normal() for name in dict.fromkeys(clusters)}
    gain = np.array([3 + level[name] for name in clusters]) + rng.normal(size=len(clusters))
    return np.stack([0.7 * gain + rng.normal(size=len(gain)), gain], axis=1), clusters


def test_the_two_means():
    values, clusters = [1.0, 2.0, 3.0, 10.0], ["a", "a", "a", "b"]
    assert estimate(values, clusters) == 4
    assert estimate(values, clusters, "macro") == 6
    assert estimate(np.log([[1.0], [4.0]]), [0, 1], of=lambda means: np.exp(means[..., 0])) == pytest.approx(2)


def test_the_share_of_a_gain_is_a_ratio_of_sums():
    columns = np.array([[1.0, 2.0], [2.0, 2.0], [3.0, 4.0]])
    assert estimate(columns, ["a", "a", "b"], of=ratio) == pytest.approx(6 / 8)
    assert estimate(columns, ["a", "a", "b"], "macro", ratio) == pytest.approx((1.5 + 3) / (2 + 4))


@pytest.mark.parametrize("over", ["micro", "macro"])
@pytest.mark.parametrize("columns", [1, 2])
def test_the_interval_is_that_of_a_plain_loop(probes, over, columns):
    values, clusters = probes
    of = ratio if columns == 2 else lambda means: means[..., 0]
    ours = cluster_interval(values[:, :columns], clusters, over, of, resamples=500)
    assert np.allclose(ours, reference(values[:, :columns], clusters, over, of, 500), atol=1e-12)
    assert ours[0] < estimate(values[:, :columns], clusters, over, of) < ours[1]


def test_probes_of_one_entity_are_no_independent_draws():
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=20), 50)
    low, high = cluster_interval(values, np.repeat(np.arange(20), 50).tolist())
    narrow = cluster_interval(values, range(1000))
    assert high - low > 5 * (narrow[1] - narrow[0])


def test_the_same_seed_gives_the_same_interval_and_the_level_its_width(probes):
    values, clusters = probes
    first = cluster_interval(values[:, 0], clusters, resamples=500)
    assert first == cluster_interval(values[:, 0], clusters, resamples=500)
    assert first != cluster_interval(values[:, 0], clusters, resamples=500, seed=1)
    low, high = cluster_interval(values[:, 0], clusters, resamples=500, level=0.5)
    assert first[0] < low < high < first[1]


def test_draws_in_parts_are_the_draws_at_once(probes, monkeypatch):
    values, clusters = probes
    whole = cluster_interval(values[:, 0], clusters, resamples=101)
    monkeypatch.setattr("kedit.editing.bootstrap.DRAWS", 120)
    assert cluster_interval(values[:, 0], clusters, resamples=101) == whole


def test_where_nothing_can_be_said():
    assert np.isnan(cluster_interval([1.0, 2.0], ["a", "a"])).all()
    assert np.isnan(cluster_interval(np.zeros((4, 2)), list("abcd"), of=ratio)).all()


def test_bad_values_are_refused():
    with pytest.raises(ValueError, match="0 values of 0 clusters"):
        cluster_interval([], [])
    with pytest.raises(ValueError, match="2 values of 1 clusters"):
        estimate([1.0, 2.0], ["a"])
    with pytest.raises(ValueError, match="1 values are not finite"):
        estimate([1.0, float("nan")], ["a", "b"])


def test_thousands_of_probes_take_no_time():
    values = np.random.default_rng(0).normal(size=(3000, 2))
    start = time.perf_counter()
    cluster_interval(values, range(3000))
    assert time.perf_counter() - start < 3
