import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3bind.align.balance import learning_rate_scales, loss_weights, sampling_probabilities
from m3bind.errors import ConfigError
from reference import balance as oracle

# Training pairs per modality in the paper.
PAPER = {"xray": 377110, "ct": 47149, "retina": 284660, "ecg": 800035, "pathology": 1017708}
SIZES = st.lists(st.integers(1, 10**7), min_size=1, max_size=8)


def rounded(values, digits):
    return [round(value, digits) for value in values.values()]


def test_values_of_the_paper():
    assert rounded(sampling_probabilities(PAPER), 3) == [0.159, 0.451, 0.183, 0.109, 0.097]
    assert rounded(learning_rate_scales(PAPER), 2) == [0.94, 2.66, 1.08, 0.65, 0.57]
    assert rounded(loss_weights(PAPER), 2) == [0.80, 2.25, 0.92, 0.55, 0.49]
    literal = {name: 2e-5 * scale for name, scale in learning_rate_scales(PAPER, literal=True).items()}
    assert [f"{rate:.1e}" for rate in literal.values()] == ["3.3e-08", "9.2e-08", "3.7e-08", "2.2e-08", "2.0e-08"]
    weights = loss_weights(PAPER, literal=True)
    assert all(9e-4 < weight < 5e-3 for weight in weights.values())


@given(SIZES, st.floats(-2, 2))
def test_equal_the_oracle_in_both_readings(sizes, beta):
    assert sampling_probabilities(sizes, beta) == pytest.approx(oracle.sampling_probabilities(sizes, beta), rel=1e-9)
    for literal in (False, True):
        ours, theirs = learning_rate_scales(sizes, literal), oracle.learning_rate_scales(sizes, literal)
        assert ours == pytest.approx(theirs, rel=1e-9)
        assert loss_weights(sizes, literal) == pytest.approx(oracle.loss_weights(sizes, literal), rel=1e-9)


@given(SIZES, st.integers(2, 1000))
def test_laws(sizes, factor):
    larger = [size * factor for size in sizes]
    assert sum(sampling_probabilities(sizes)) == pytest.approx(1)
    assert sampling_probabilities(sizes, 0) == pytest.approx([1 / len(sizes)] * len(sizes))
    assert sampling_probabilities(sizes, -1) == pytest.approx([size / sum(sizes) for size in sizes])
    assert math.prod(learning_rate_scales(sizes)) == pytest.approx(1)
    assert sum(loss_weights(sizes)) == pytest.approx(len(sizes))
    for rule in (sampling_probabilities, learning_rate_scales, loss_weights):
        assert rule(larger) == pytest.approx(rule(sizes))  # only ratios of sizes count
        assert rule(sizes[::-1]) == pytest.approx(rule(sizes)[::-1])
        assert all((a < b) == (p > q) for (a, p), (b, q) in itertools.combinations(zip(sizes, rule(sizes)), 2))


def test_the_container_stays():
    for rule in (sampling_probabilities, learning_rate_scales, loss_weights):
        assert rule({"b": 4, "a": 1}) == dict(zip("ba", rule([4, 1])))
        assert rule((4, 1)) == tuple(rule([4, 1]))
        assert isinstance(rule([4, 1]), list)


def test_huge_sizes_neither_overflow_nor_vanish():
    assert sampling_probabilities([10**300, 10**300], 2.0) == [0.5, 0.5]
    assert loss_weights([10**300, 10**300]) == pytest.approx([1, 1])


def test_wrong_use():
    with pytest.raises(ConfigError, match="'ct' has 0 pairs"):
        loss_weights({"xray": 3, "ct": 0})
    with pytest.raises(ConfigError, match="no modality"):
        learning_rate_scales([])
    with pytest.raises(ConfigError, match="beta nan"):
        sampling_probabilities([1], float("nan"))
