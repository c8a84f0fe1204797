"""Metrics against scikit-learn and naive oracles."""

from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from m3bind.errors import ConfigError
from m3bind.evaluate.classification import accuracy, auc, balanced_accuracy, macro_f1
from m3bind.evaluate.confidence import Resampling, average, interval, mean_estimate
from m3bind.evaluate.ranking import median_rank, mrr, precision_at_k, rank_stats, recall_at_k


def random_case(seed, n=60, classes=4):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    scores = rng.normal(size=(n, classes)) + 0.8 * np.eye(classes)[y]
    return y, np.round(scores, 1)  # rounding makes ties


@pytest.mark.parametrize("seed", range(5))
def test_classification_equals_scikit_learn(seed):
    y, scores = random_case(seed)
    predicted = scores.argmax(1)
    assert accuracy(y, predicted).value == pytest.approx(sk.accuracy_score(y, predicted))
    assert balanced_accuracy(y, predicted).value == pytest.approx(sk.balanced_accuracy_score(y, predicted))
    assert macro_f1(y, predicted).value == pytest.approx(sk.f1_score(y, predicted, average="macro"))
    assert auc(y == 1, scores[:, 1]).value == pytest.approx(sk.roc_auc_score(y == 1, scores[:, 1]))


def test_resampled_values_equal_a_loop_over_resamples():
    y, scores = random_case(1)
    groups = np.arange(len(y)) // 3
    draw = Resampling(groups, resamples=40, seed=3)
    weights = np.concatenate(list(draw.weights(len(y)))).astype(int)
    assert all(len(set(row[groups == 5])) == 1 for row in weights)  # a patient is drawn as a whole
    predicted = scores.argmax(1)
    estimates = {
        "auc": (auc(y == 1, scores[:, 1], draw), lambda i: sk.roc_auc_score(y[i] == 1, scores[i, 1])),
        "f1": (macro_f1(y, predicted, draw), lambda i: sk.f1_score(y[i], predicted[i], average="macro")),
        "bal": (balanced_accuracy(y, predicted, 4, draw), lambda i: sk.balanced_accuracy_score(y[i], predicted[i])),
    }
    for estimate, oracle in estimates.values():
        expected = [oracle(np.repeat(np.arange(len(y)), row)) for row in weights]
        np.testing.assert_allclose(estimate.replicates, expected)
        assert (estimate.ci_low, estimate.ci_high) == pytest.approx(
            interval(estimate.value, np.std(expected, ddof=1), estimate.freedom)
        )


def test_interval_covers_the_truth_about_as_often_as_stated():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        estimate = mean_estimate(rng.random(80) < 0.7, 0.5, Resampling(resamples=300, seed=seed))
        covered += estimate.ci_low <= 0.7 <= estimate.ci_high
    assert 175 <= covered <= 200


def test_patients_widen_the_interval():
    values = np.repeat(np.random.default_rng(0).random(20) < 0.5, 10)
    alone = mean_estimate(values, 0.5)
    by_patient = mean_estimate(values, 0.5, Resampling(np.repeat(np.arange(20), 10)))
    assert by_patient.ci_high - by_patient.ci_low > 2 * (alone.ci_high - alone.ci_low)


def test_chance_of_classification():
    y, scores = random_case(2, n=400)
    predicted = scores.argmax(1)
    assert accuracy(y, predicted).chance == np.bincount(y).max() / len(y)
    assert balanced_accuracy(y, predicted, classes=5).chance == 0.2
    shuffled = np.random.default_rng(9).permutation(predicted)
    assert macro_f1(y, predicted).chance == pytest.approx(sk.f1_score(y, shuffled, average="macro"), abs=0.06)


def test_undefined_metrics_are_nan_and_wrong_groups_are_refused():
    assert np.isnan(auc([True, True], [0.1, 0.2]).value)
    assert np.isnan(auc([], []).value) and auc([], []).n == 0
    with pytest.raises(ConfigError, match="one patient per sample"):
        mean_estimate([1.0, 2.0], 0.0, Resampling(["a"]))


# ------------------------------------------------------------------------------------------------ search


def orders(scores):
    """All orders of the gallery that respect the scores."""
    items = range(len(scores))
    return [p for p in permutations(items) if all(scores[a] >= scores[b] for a, b in pairwise(p))]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=2, max_size=6), st.integers(1, 7))
def test_ties_count_with_their_mean_over_all_orders(items, k):
    scores, right = np.array([[s for s, _ in items]], float), np.array([[r for _, r in items]])
    if not right.any():
        right[0, 0] = True
    firsts = [1 + min(i for i, item in enumerate(order) if right[0, item]) for order in orders(scores[0])]
    stats = rank_stats(scores, right)
    draw = Resampling(resamples=2)
    assert recall_at_k(stats, k, draw).value == pytest.approx(np.mean([f <= k for f in firsts]))
    assert mrr(stats, draw).value == pytest.approx(np.mean([1 / f for f in firsts]))
    assert stats.expected_rank()[0] == pytest.approx(np.mean(firsts))
    top = [np.mean([right[0, i] for i in order[:k]]) for order in orders(scores[0])]
    assert precision_at_k(scores, right, k, draw).value == pytest.approx(np.mean(top))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 8))
def test_chance_is_the_value_of_a_scorer_that_knows_nothing(gallery, relevant, k):
    relevant = min(relevant, gallery)
    right = np.zeros((1, gallery), bool)
    right[0, :relevant] = True
    stats = rank_stats(np.zeros((1, gallery)), right)  # all tied: every order equally likely
    for metric in (recall_at_k(stats, k), mrr(stats)):
        assert metric.value == pytest.approx(metric.chance)


@pytest.mark.parametrize("seed", range(4))
def test_search_equals_a_naive_loop(seed):
    rng = np.random.default_rng(seed)
    scores, right = rng.normal(size=(31, 17)), rng.random((31, 17)) < 0.2
    right[np.arange(31), rng.integers(0, 17, 31)] = True
    ranks = [1 + min(np.flatnonzero(row_right[np.argsort(-row)])) for row, row_right in zip(scores, right)]
    stats = rank_stats(scores, right)
    for k in (1, 5, 10, 50):
        assert recall_at_k(stats, k).value == pytest.approx(np.mean(np.array(ranks) <= k))
    assert mrr(stats).value == pytest.approx(np.mean(1 / np.array(ranks)))
    assert median_rank(stats).value == np.median(ranks)
    five = [row_right[np.argsort(-row)[:5]].mean() for row, row_right in zip(scores, right)]
    assert precision_at_k(scores, right, 5).value == pytest.approx(np.mean(five))


def test_chance_of_search_equals_simulation():
    rng = np.random.default_rng(0)
    right = np.zeros((3000, 20), bool)
    right[:, :2] = True
    right[1500:, :6] = True
    stats = rank_stats(rng.random(right.shape), right)
    few = Resampling(resamples=2)
    for metric in (
        recall_at_k(stats, 3, few),
        mrr(stats, few),
        precision_at_k(rng.random(right.shape), right, 3, few),
    ):
        assert metric.value == pytest.approx(metric.chance, abs=0.03)
    assert abs(median_rank(stats, few).value - median_rank(stats, few).chance) <= 1


def test_average_resamples_patients_jointly():
    rng = np.random.default_rng(0)
    values, patients = rng.random(50), [f"p{i}" for i in range(50)]
    draw = Resampling(patients, seed=4)
    first, second = mean_estimate(values, 0.5, draw), mean_estimate(1 - values, 0.5, draw)
    both = average([first, second], 50, 50)
    assert both.value == pytest.approx(0.5) and both.n == 50
    assert both.ci_high - both.ci_low < 1e-12  # perfectly opposed on every patient
    assert np.isnan(average([], 0, 0).value)


def test_a_query_without_right_answer_is_refused():
    with pytest.raises(ConfigError, match="no right answer"):
        rank_stats(np.zeros((1, 3)), np.zeros((1, 3), bool))
    with pytest.raises(ConfigError, match="two equal"):
        rank_stats(np.zeros((1, 3)), np.zeros((3, 1), bool))
