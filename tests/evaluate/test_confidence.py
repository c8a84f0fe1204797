"""Weights of patients, intervals on their scale, means over pairs and seeds."""

import math

import numpy as np
import pytest
from scipy import stats

from m3bind.evaluate.confidence import (
    FREE,
    POSITIVE,
    Resampling,
    average,
    interval,
    mean_estimate,
    over_seeds,
    p_value,
    welch,
)


def test_a_patient_has_equal_weights_wherever_it_appears():
    first = np.concatenate(list(Resampling(["b", "a", "b"], 500).weights(3)))
    second = np.concatenate(list(Resampling(["x", "b", "y", "a"], 500).weights(4)))
    np.testing.assert_array_equal(first[:, 0], first[:, 2])
    np.testing.assert_array_equal(first[:, 0], second[:, 1])
    np.testing.assert_array_equal(first[:, 1], second[:, 3])
    other = np.concatenate(list(Resampling(["b"], 500, seed=1).weights(1)))
    assert (other[:, 0] != first[:, 0]).any()


def test_weights_are_independent_poisson_counts(monkeypatch):
    names = [str(i) for i in range(400)]
    weights = np.concatenate(list(Resampling(names, 300).weights(400)))
    counts = np.bincount(weights.astype(int).ravel(), minlength=6)[:6] / weights.size
    np.testing.assert_allclose(counts, stats.poisson.pmf(np.arange(6), 1), atol=0.004)
    correlation = np.corrcoef(weights.T)[np.triu_indices(400, 1)]
    assert abs(correlation.mean()) < 0.002 and correlation.std() == pytest.approx(300**-0.5, rel=0.05)
    monkeypatch.setattr("m3bind.evaluate.confidence._BLOCK", 400 * 7)  # blocks of seven
    np.testing.assert_array_equal(np.concatenate(list(Resampling(names, 300).weights(400))), weights)


def test_intervals_stay_within_the_range_of_the_metric():
    assert interval(0.5, 0.1, math.inf) == pytest.approx((0.3139, 0.6861), abs=1e-3)
    low, high = interval(0.97, 0.03, 20)
    assert 0.7 < low < 0.97 < high < 1 and 0.97 - low > high - 0.97
    assert interval(3.0, 1.0, math.inf, FREE) == pytest.approx((3 - 1.96, 3 + 1.96), abs=1e-3)
    low, high = interval(4.0, 1.0, 30, POSITIVE)
    assert low * high == pytest.approx(16) and low > 0
    assert math.isnan(interval(0.5, math.nan, 3)[0])


@pytest.mark.parametrize("patients", [10, 100])
def test_all_right_gets_the_exact_binomial_bound(patients):
    found = mean_estimate(np.ones(patients), 0.5)
    exact = stats.binomtest(patients, patients).proportion_ci(0.95, "exact")
    assert (found.ci_low, found.ci_high) == pytest.approx((exact.low, 1.0))
    assert mean_estimate(np.zeros(patients), 0.5).ci_high == pytest.approx(1 - exact.low)


def test_p_is_below_five_per_cent_iff_the_interval_excludes_zero():
    for change in np.linspace(0.01, 0.1, 30):
        low, _ = interval(change, 0.03, 12, FREE)
        assert (p_value(change, 0.03, 12, 1000) < 0.05) == (low > 0)
    assert p_value(0.0, 0.0, 5, 100) == 1
    assert p_value(1.0, 0.0, 5, 399) == pytest.approx(2 / 400)


def test_rare_classes_leave_few_degrees_of_freedom():
    patients = [f"p{i // 2}" for i in range(100)]
    assert Resampling(patients).freedom(100) == 49
    even = Resampling(patients, classes=np.arange(100) // 2 % 2).freedom(100)
    rare = Resampling(patients, classes=np.arange(100) < 10).freedom(100)
    assert even == pytest.approx(48) and rare < 7
    assert welch([1, 0], [3, 99]) == 3


def test_a_mean_over_pairs_counts_shared_patients_once():
    values = np.random.default_rng(0).random(60)
    draw = Resampling([f"p{i}" for i in range(60)])
    one = mean_estimate(values, 0.5, draw)
    three = average([one] * 3, 60, 60)
    assert (three.ci_low, three.ci_high) == pytest.approx((one.ci_low, one.ci_high), abs=0.005)
    assert three.n == 60 and three.patients == 60
    part = mean_estimate(values[:40], 0.5, draw.subset(np.arange(40)))
    mixed = average([one, part], 60, 60)
    assert np.corrcoef(one.replicates, part.replicates)[0, 1] > 0.6  # 40 patients in common
    assert np.isfinite(mixed.ci_low)


def test_error_of_a_mean_over_seeds_has_patients_and_seeds():
    rng = np.random.default_rng(0)
    patients, own = rng.normal(size=2000) * 0.03, rng.normal(size=(5, 2000)) * 0.01
    same = over_seeds([0.7] * 5, 0.7 + patients + own, 50)
    assert same[0] == pytest.approx(0.03, rel=0.1)
    spread = over_seeds([0.6, 0.65, 0.7, 0.75, 0.8], 0.7 + patients + own, 50)
    by_seed = np.sqrt((np.var([0.6, 0.65, 0.7, 0.75, 0.8], ddof=1) - 0.0001) / 5)
    assert spread[0] == pytest.approx(np.hypot(0.03, by_seed), rel=0.1)
    assert 4 < spread[1] < 50
    assert over_seeds([0.7], (0.7 + patients)[None], 50) == (pytest.approx(0.03, rel=0.1), 50)
