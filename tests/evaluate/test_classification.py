"""Classification metrics against scikit-learn and naive loops, with absent classes and unknown labels."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from m3bind.errors import UnknownNameError
from m3bind.evaluate import classification as c
from m3bind.evaluate.confidence import Resampling
from reference import classification as naive

NONE = Resampling(resamples=0)
CLASSES = 4
warnings.filterwarnings("ignore")
samples = st.lists(st.tuples(st.integers(0, CLASSES - 1), st.integers(0, CLASSES - 1)), min_size=1, max_size=25)
several = st.lists(
    st.tuples(*[st.tuples(st.integers(-1, 1), st.booleans(), st.integers(0, 4)) for _ in range(3)]),
    min_size=1,
    max_size=20,
)


@settings(max_examples=150, deadline=None)
@given(samples)
def test_metrics_of_predictions_equal_scikit_learn(pairs):
    y, said = np.array(pairs).T
    options = {"zero_division": 0}
    for ours, oracle in (
        (c.macro_f1, sk.f1_score(y, said, average="macro", **options)),
        (c.weighted_f1, sk.f1_score(y, said, average="weighted", **options)),
        (c.macro_precision, sk.precision_score(y, said, average="macro", **options)),
        (c.weighted_precision, sk.precision_score(y, said, average="weighted", **options)),
        (c.accuracy, sk.accuracy_score(y, said)),
        (c.balanced_accuracy, np.mean([np.mean(said[y == k] == k) for k in np.unique(y)])),
        (c.kappa, sk.cohen_kappa_score(y, said, weights="quadratic", labels=range(CLASSES))),
    ):
        assert ours(y, said, draw=NONE).value == pytest.approx(oracle, nan_ok=True, abs=1e-12)


@settings(max_examples=80, deadline=None)
@given(samples, st.integers(0, 1000))
def test_auroc_equals_scikit_learn_over_the_classes_that_occur(pairs, seed):
    y = np.array(pairs)[:, 0]
    scores = np.random.default_rng(seed).integers(0, 4, (len(y), CLASSES)).astype(float)
    present = [k for k in range(CLASSES) if 0 < (y == k).sum() < len(y)]
    expected = np.mean([sk.roc_auc_score(y == k, scores[:, k]) for k in present]) if present else np.nan
    found = c.auroc(y, scores, NONE)
    assert found.value == pytest.approx(expected, nan_ok=True) and found.chance == 0.5
    if len(present) == CLASSES:
        probabilities = c.softmax(scores)
        assert c.SINGLE["auroc"](y, scores, NONE).value == pytest.approx(
            sk.roc_auc_score(y, probabilities, multi_class="ovr", average="macro", labels=range(CLASSES))
        )


def of_known(rows, metric):
    """Mean over labels of `metric` (truth, prediction) on the known samples of each; labels it gives None leave out."""
    values = []
    for column in zip(*rows):
        known = [(y == 1, said) for y, said, _ in column if y >= 0]
        value = metric(*map(np.array, zip(*known))) if known else None
        if value is not None:
            values.append(value)
    return np.mean(values) if values else np.nan


@settings(max_examples=150, deadline=None)
@given(several)
def test_metrics_of_labels_equal_scikit_learn_label_by_label(rows):
    y, said = (np.array([[entry[i] for entry in row] for row in rows]) for i in (0, 1))
    scores = np.array([[entry[2] for entry in row] for row in rows], dtype=float)
    either, options = (lambda t, s: t.any() or s.any()), {"zero_division": 0}
    oracles = {
        "accuracy": lambda t, s: np.mean(t == s),
        "balanced_accuracy": lambda t, s: (np.mean(s[t]) + np.mean(~s[~t])) / 2 if t.any() and (~t).any() else None,
        "macro_f1": lambda t, s: sk.f1_score(t, s, **options) if either(t, s) else None,
        "weighted_f1": lambda t, s: sk.f1_score(t, s, average="weighted", **options),
        "macro_precision": lambda t, s: sk.precision_score(t, s, **options) if either(t, s) else None,
        "weighted_precision": lambda t, s: sk.precision_score(t, s, average="weighted", **options),
    }
    found = c.multilabel(y, said, NONE)
    assert set(found) == set(oracles) == set(c.MULTI)
    for name, oracle in oracles.items():
        assert found[name].value == pytest.approx(of_known(rows, oracle), nan_ok=True), name
    areas = []
    for column, values in zip(y.T, scores.T):
        known = column >= 0
        if len(set(column[known])) == 2:
            areas.append(sk.roc_auc_score(column[known], values[known]))
    assert c.auroc(y, scores, NONE).value == pytest.approx(np.mean(areas) if areas else np.nan, nan_ok=True)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40), st.integers(1, 15))
def test_calibration_error_equals_a_loop_over_bins(answers, bins):
    confidence, right = map(np.array, zip(*answers))
    found = c.expected_calibration_error(confidence, right, NONE, bins)
    assert found.value == pytest.approx(naive.calibration_error(confidence, right, bins))
    assert np.isnan(found.chance)


def test_intervals_equal_a_loop_over_resampled_patients():
    rng = np.random.default_rng(0)
    y, said = rng.integers(0, 3, 40), rng.integers(0, 3, 40)
    labels, scores = rng.integers(-1, 2, (40, 3)), rng.normal(size=(40, 3))
    draw = Resampling(np.arange(40) // 2, resamples=30, seed=5)
    rows = [np.repeat(np.arange(40), row.astype(int)) for block in draw.weights(40) for row in block]
    none = {"draw": NONE}
    for metric, data in (
        (c.weighted_f1, (y, said)),
        (c.kappa, (y, said)),
        (c.macro_precision, (y, said)),
        (c.auroc, (labels, scores)),
        (c.expected_calibration_error, (scores[:, 0] % 1, y == said)),
    ):
        found = metric(*data, draw=draw)
        expected = [metric(*(values[at] for values in data), **none).value for at in rows]
        np.testing.assert_allclose(found.replicates, expected, err_msg=metric.__name__)
        assert found.ci_low < found.value < found.ci_high


@pytest.mark.parametrize("name", ["macro_f1", "weighted_f1", "macro_precision", "weighted_precision", "kappa"])
def test_chance_is_the_mean_over_reordered_predictions(name):
    rng = np.random.default_rng(1)
    y, said = rng.choice(3, 60, p=[0.6, 0.3, 0.1]), rng.choice(3, 60, p=[0.2, 0.3, 0.5])
    metric = getattr(c, name)
    simulated = naive.shuffled_mean(lambda a, b: metric(a, b, NONE).value, y, said, times=400)
    assert metric(y, said, NONE).chance == pytest.approx(simulated, abs=0.02)


def test_classification_gives_the_requested_metrics_in_order():
    y, scores = np.array([0, 1, 1, 0]), np.array([[2.0, 1], [0, 1], [1, 0], [3, 1]])
    assert list(c.classification(y, scores, NONE)) == ["auc", "balanced_accuracy"]
    asked = ["kappa", "accuracy", "weighted_precision"]
    found = c.classification(y, scores, NONE, asked)
    assert list(found) == asked and found["accuracy"].value == 0.75
    for call in (
        lambda: c.classification(y, scores, NONE, ["acuracy"]),
        lambda: c.multilabel([[1]], [[True]], NONE, ["acuracy"]),
    ):
        with pytest.raises(UnknownNameError, match="accuracy"):
            call()
    assert np.isnan(c.kappa([1, 1], [1, 1]).value)
    assert (
        c.multilabel(np.array([[1, -1], [0, -1]]), np.array([[True, True], [True, False]]), NONE)["accuracy"].value
        == 0.5
    )
