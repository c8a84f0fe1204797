"""Temperature, abstention and the reliability curve."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from m3bind.errors import ConfigError
from m3bind.evaluate import calibration as c
from m3bind.evaluate.results import Context


def honest(n, classes, seed, several=False):
    """Logits whose probabilities are true, and what they say happens."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, classes))
    if several:
        return (rng.random(logits.shape) < expit(logits)).astype(int), logits
    powers = np.exp(logits)
    return np.array([rng.choice(classes, p=row / row.sum()) for row in powers]), logits


@pytest.mark.parametrize("several", [False, True])
def test_temperature_is_found_again(several):
    y, logits = honest(4000, 4, 0, several)
    for factor in (0.2, 1.0, 5.0):
        assert c.fit_temperature(y, factor * logits) == pytest.approx(factor, rel=0.1)
    if several:
        hidden = np.where(np.random.default_rng(1).random(y.shape) < 0.5, -1, y)
        assert c.fit_temperature(hidden, 5 * logits) == pytest.approx(5, rel=0.1)
    with pytest.raises(ConfigError, match="valid"):
        c.fit_temperature(y[:0], logits[:0])


def test_answers():
    single = c.answers([1, 0], np.log([[1.0, 3], [1, 4]]))
    np.testing.assert_allclose(single.confidence, [0.75, 0.8])
    assert single.right.tolist() == [True, False]
    several = c.answers([[1, -1], [0, 1]], np.log([[3.0, 9], [4, 0.25]]))
    np.testing.assert_allclose(several.confidence, [0.75, 0.8, 0.8])  # absent is an answer too
    assert several.right.tolist() == [True, False, False] and several.sample.tolist() == [0, 1, 1]
    assert several.groups(["a", "b"]).tolist() == ["a", "b", "b"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=20), st.floats(0.05, 1))
def test_abstention_gives_as_many_answers_as_the_target_allows(items, target):
    confidence, right = np.array([i[0] / 6 for i in items]), np.array([i[1] for i in items])
    found = c.abstention(c.Answers(confidence, right, np.arange(len(items))), target)
    possible = [t for t in set(confidence) if right[confidence >= t].mean() >= target]
    if not possible:
        assert found.threshold == float("inf") and found.coverage == 0
        return
    given = confidence >= min(possible)
    assert found.threshold == min(possible)
    assert (found.coverage, found.accuracy) == pytest.approx((given.mean(), right[given].mean()))


@pytest.mark.parametrize("several", [False, True])
def test_rows(several):
    (y, logits), valid = honest(1500, 3, 0, several), honest(1500, 3, 1, several)
    patients = [f"p{i // 3}" for i in range(1500)]
    rows = c.calibration_rows(
        y, 8 * logits, Context("s", "ct"), patients, valid=(valid[0], 8 * valid[1]), target=0.9, resamples=60
    )
    by = {(r.metric, r.variant): r for r in rows}
    before, after = by["ece", ""], by["ece", "temperature=valid"]
    assert after.value < 0.04 < before.value and before.ci_low < before.value < before.ci_high
    assert by["temperature", "temperature=valid"].value == pytest.approx(8, rel=0.15)
    kept = "answers for accuracy 0.9 on valid"
    assert by["answered_accuracy", kept].value == pytest.approx(0.9, abs=0.03)
    assert 0.1 < by["coverage", kept].value < 1
    assert by["answered_accuracy", kept].value > by["answered_accuracy", kept].chance
    assert [r.metric for r in c.calibration_rows(y, logits, Context())] == ["ece"]


def test_points_of_the_curve_hold_equally_many_answers() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.random(410)
    right = rng.random(410) < confidence
    found = c.Answers(confidence, right, np.arange(410))
    mean, share, count = c.reliability_curve(found, bins=10)
    assert len(count) == 10
    assert count.sum() == 410
    assert count.max() - count.min() <= 1
    assert (np.diff(mean) > 0).all()
    assert (mean * count).sum() == pytest.approx(confidence.sum())
    assert (share * count).sum() == pytest.approx(right.sum())
    few = c.Answers(confidence[:30], right[:30], np.arange(30))
    assert len(c.reliability_curve(few)[2]) == 1
