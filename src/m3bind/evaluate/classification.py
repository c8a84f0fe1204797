"""Classification metrics: one class per sample, or several labels per sample.

* `auc`, `auroc`: area under the ROC curve of one label, and its mean over classes or labels.
* `accuracy`, `balanced_accuracy`, `macro_f1`, `weighted_f1`, `macro_precision`, `weighted_precision`, `kappa`: of
  predicted class numbers.
* `expected_calibration_error`.
* `classification`, `multilabel`: metrics by name, of scores (one class) or of predictions (several labels). `SINGLE`,
  `MULTI`: the names.

Chance is the expected value when the same predictions are assigned to the samples at random, except for accuracy,
where it is the best that guessing can reach, and for balanced accuracy, where any guessing reaches 1 / c.

Shapes: n samples, c classes or labels, b resamples.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from m3bind.errors import UnknownNameError
from m3bind.evaluate.confidence import (
    DEFAULT,
    SIGNED,
    Estimate,
    Floats,
    Resampling,
    mean_estimate,
    ratio,
    resampled,
    row_means,
)

BINS = 15  # of the calibration error, as in Guo et al. 2017


# ---------------------------------------------------------------------------------------------- area under the curve


def _area(truth: NDArray[np.bool_], values: Floats) -> Callable[[Floats], Floats]:
    """A function from weights (b, n) to areas (b,)."""
    order = np.argsort(values, kind="stable")
    truth, ordered = truth[order], values[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(ordered) else np.empty(0, np.int64)

    def metric(weights: Floats) -> Floats:
        weights = weights[:, order]
        positive = np.add.reduceat(weights * truth, starts, axis=1)
        negative = np.add.reduceat(weights * ~truth, starts, axis=1)
        below = np.cumsum(negative, axis=1) - negative / 2
        return ratio((positive * below).sum(1), positive.sum(1) * negative.sum(1))

    return metric


def auc(y: ArrayLike, scores: ArrayLike, draw: Resampling = DEFAULT) -> Estimate:
    """Area under the ROC curve: P(score of a positive > score of a negative), ties count one half. Chance .5 exactly.

    `y` (n,) true or false, `scores` (n,). NaN when only one class is present.
    """
    values = np.asarray(scores, dtype=np.float64)
    return resampled(_area(np.asarray(y).astype(bool), values), len(values), 0.5, draw)


def auroc(y: ArrayLike, scores: ArrayLike, draw: Resampling = DEFAULT) -> Estimate:
    """Mean area over the classes (one against the rest) or labels that have positives and negatives. Chance .5 exactly.

    `y` class numbers (n,), or labels (n, c) of 0, 1 and -1 for unknown, which are left out; `scores` (n, c).
    """
    y, scores = np.asarray(y), np.asarray(scores, dtype=np.float64)
    labels = (y[:, None] == np.arange(scores.shape[1])).astype(np.int64) if y.ndim == 1 else y
    areas = []
    for column, values in zip(labels.T, scores.T):
        known = column >= 0
        if len(np.unique(column[known])) == 2:
            areas.append((known, _area(column[known] == 1, values[known])))
    if not areas:
        return Estimate(np.nan, np.nan, np.nan, len(y), 0.5)

    def metric(weights: Floats) -> Floats:
        return row_means(np.stack([area(weights[:, known]) for known, area in areas], axis=1))

    return resampled(metric, len(y), 0.5, draw)


# ---------------------------------------------------------------------------------------------- counts per class


@dataclass(frozen=True)
class Counts:
    """Weighted numbers of samples per class or label, (b, c) each."""

    hit: Floats  # true and predicted
    true: Floats
    predicted: Floats
    known: Floats  # with a known answer

    def opposite(self) -> "Counts":
        """The counts of "not this label"."""
        true, predicted = self.known - self.true, self.known - self.predicted
        return Counts(self.known - self.true - self.predicted + self.hit, true, predicted, self.known)

    def expected(self) -> "Counts":
        """The counts when the predictions are assigned to the samples at random."""
        return replace(self, hit=np.nan_to_num(ratio(self.true * self.predicted, self.known)))


def _recall(counts: Counts) -> Floats:
    return ratio(counts.hit, counts.true)


def _precision(counts: Counts) -> Floats:
    """0 where a class that occurs is never predicted; NaN where it neither occurs nor is predicted."""
    absent = np.where(counts.true > 0, 0.0, np.nan)
    return np.where(counts.predicted > 0, ratio(counts.hit, counts.predicted), absent)


def _f1(counts: Counts) -> Floats:
    return ratio(2 * counts.hit, counts.true + counts.predicted)


def _weighted(values: Floats, counts: Counts) -> Floats:
    """Mean over classes weighted by how often they occur."""
    return ratio((np.where(counts.true > 0, values, 0) * counts.true).sum(1), counts.true.sum(1))


def _counted(
    rule: Callable[[Counts], Floats],
    true: NDArray[np.bool_],
    predicted: NDArray[np.bool_],
    draw: Resampling,
    known: NDArray[np.bool_] | None = None,
    chance: float | None = None,
) -> Estimate:
    """Estimate of `rule`, a function of counts, from truth and prediction (n, c)."""
    known = np.ones_like(true) if known is None else known
    columns = np.concatenate([true & predicted & known, true & known, predicted & known, known], axis=1)
    columns = columns.astype(np.float64)

    def counts(weights: Floats) -> Counts:
        return Counts(*np.split(weights @ columns, 4, axis=1))

    if chance is None:
        chance = float(rule(counts(np.ones((1, len(true)))).expected())[0]) if len(true) else np.nan
    return resampled(lambda weights: rule(counts(weights)), len(true), chance, draw)


def _one_hot(y: ArrayLike, predicted: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Truth and prediction (n, c) over the classes that occur in either."""
    y, predicted = np.asarray(y), np.asarray(predicted)
    present = np.union1d(y, predicted)
    return y[:, None] == present, predicted[:, None] == present


# ---------------------------------------------------------------------------------------------- one class per sample


def accuracy(y: ArrayLike, predicted: ArrayLike, draw: Resampling = DEFAULT) -> Estimate:
    """Share of correct predictions. Chance: share of the most frequent class, the best that guessing can reach."""
    y, predicted = np.asarray(y), np.asarray(predicted)
    chance = float(np.unique(y, return_counts=True)[1].max() / len(y)) if len(y) else np.nan
    return mean_estimate(y == predicted, chance, draw)


def balanced_accuracy(
    y: ArrayLike, predicted: ArrayLike, classes: int | None = None, draw: Resampling = DEFAULT
) -> Estimate:
    """Mean recall over the classes present (ACA). Chance 1 / `classes`, exactly.

    `classes`: how many classes the predictor chooses among (default: those present in `y`).
    """
    present = len(np.unique(np.asarray(y)))
    chance = 1 / (classes or present) if present else np.nan
    return _counted(lambda c: row_means(_recall(c)), *_one_hot(y, predicted), draw, chance=chance)


def macro_f1(y: ArrayLike, predicted: ArrayLike, draw: Resampling = DEFAULT) -> Estimate:
    """Mean F1 over the classes that occur in truth or prediction."""
    return _counted(lambda c: row_means(_f1(c)), *_one_hot(y, predicted), draw)


def weighted_f1(y: ArrayLike, predicted: ArrayLike, draw: Resampling = DEFAULT) -> Estimate:
    """Mean F1 over the classes, weighted by how often they occur."""
    return _counted(lambda c: _weighted(_f1(c), c), *_one_hot(y, predicted), draw)


def macro_precision(y: ArrayLike, predicted: ArrayLike, draw: Resampling = DEFAULT) -> Estimate:
    """Mean precision over the classes that occur in truth or prediction; 0 for a class that is never predicted."""
    return _counted(lambda c: row_means(_precision(c)), *_one_hot(y, predicted), draw)


def weighted_precision(y: ArrayLike, predicted: ArrayLike, draw: Resampling = DEFAULT) -> Estimate:
    """Mean precision over the classes, weighted by how often they occur; 0 for a class that is never predicted."""
    return _counted(lambda c: _weighted(_precision(c), c), *_one_hot(y, predicted), draw)


def kappa(y: ArrayLike, predicted: ArrayLike, draw: Resampling = DEFAULT) -> Estimate:
    """Cohen's kappa with quadratic weights over class numbers: 1 - observed / expected squared distance. Chance 0.

    For ordered classes (grades); a class that does not occur still counts in the distances. NaN when all truth and
    predictions are the same class.
    """
    a, b = (np.asarray(values, dtype=np.float64) for values in (y, predicted))
    columns = np.stack([(a - b) ** 2, a**2 + b**2, a, b, np.ones_like(a)], axis=1)

    def metric(weights: Floats) -> Floats:
        distance, squares, first, second, n = (weights @ columns).T
        expected = squares - 2 * ratio(first * second, n)
        return 1 - ratio(distance, np.where(expected > 1e-12, expected, 0))

    return resampled(metric, len(a), 0.0, draw, SIGNED)


# ---------------------------------------------------------------------------------------------- calibration


def expected_calibration_error(
    confidence: ArrayLike, right: ArrayLike, draw: Resampling = DEFAULT, bins: int = BINS
) -> Estimate:
    """ECE: mean over answers of |confidence - share right| of their bin (Guo et al. 2017, arXiv:1706.04599).

    `confidence` (n,) in 0..1, `right` (n,) true or false; bin i is (i / bins, (i + 1) / bins]. No chance level:
    always predicting the class frequencies has 0.
    """
    confidence, right = (np.asarray(values, dtype=np.float64) for values in (confidence, right))
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    members = (place[:, None] == np.arange(bins)).astype(np.float64)

    def metric(weights: Floats) -> Floats:
        sure, hits = weights @ (members * confidence[:, None]), weights @ (members * right[:, None])
        return ratio(np.abs(sure - hits).sum(1), (weights @ members).sum(1))

    return resampled(metric, len(right), np.nan, draw)


# ---------------------------------------------------------------------------------------------- metrics by name


def softmax(logits: ArrayLike) -> Floats:
    """Rows (n, c) that sum to one."""
    logits = np.asarray(logits, dtype=np.float64)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


_Metric = Callable[[NDArray[np.int64], Floats, Resampling], Estimate]


def _of_prediction(metric: Callable[..., Estimate]) -> _Metric:
    return lambda y, scores, draw: metric(y, scores.argmax(1), draw=draw)


SINGLE: Mapping[str, _Metric] = {
    "auc": lambda y, scores, draw: auc(y == 1, scores[:, 1] - scores[:, 0], draw),
    "auroc": lambda y, scores, draw: auroc(y, softmax(scores), draw),
    "balanced_accuracy": lambda y, scores, draw: balanced_accuracy(y, scores.argmax(1), scores.shape[1], draw),
    "ece": lambda y, scores, draw: expected_calibration_error(softmax(scores).max(1), scores.argmax(1) == y, draw),
    "accuracy": _of_prediction(accuracy),
    "macro_f1": _of_prediction(macro_f1),
    "weighted_f1": _of_prediction(weighted_f1),
    "macro_precision": _of_prediction(macro_precision),
    "weighted_precision": _of_prediction(weighted_precision),
    "kappa": _of_prediction(kappa),
}


_OVERALL = ("accuracy", "ece", "kappa", "weighted_f1", "weighted_precision")  # not means over classes


def _label_weighted(value: Callable[[Counts], Floats], c: Counts) -> Floats:
    """Mean of `value` of a label and of its opposite, weighted by how often they occur: (b, c)."""
    sides = (c, c.opposite())
    return ratio(sum((np.where(s.true > 0, value(s), 0) * s.true for s in sides), np.zeros_like(c.known)), c.known)


MULTI: Mapping[str, Callable[[Counts], Floats]] = {
    "accuracy": lambda c: ratio(c.hit + c.opposite().hit, c.known),
    "balanced_accuracy": lambda c: (_recall(c) + _recall(c.opposite())) / 2,
    "macro_f1": _f1,
    "weighted_f1": partial(_label_weighted, _f1),
    "macro_precision": _precision,
    "weighted_precision": partial(_label_weighted, _precision),
}


def classification(
    y: ArrayLike, scores: ArrayLike, draw: Resampling = DEFAULT, names: Sequence[str] = ()
) -> dict[str, Estimate]:
    """Metrics of a classifier from class numbers (n,) and scores (n, c); the largest score is the prediction.

    `names` of `SINGLE` determine the order. Default: with two classes AUC (second class against first, by the
    difference of the two scores) and balanced accuracy, with more balanced accuracy, accuracy and macro F1. Areas of
    more than two classes and the calibration error take the scores as logits.

    Raises:
        UnknownNameError: an unknown metric.
    """
    y, scores = np.asarray(y), np.asarray(scores, dtype=np.float64)
    usual = ("auc", "balanced_accuracy") if scores.shape[1] == 2 else ("balanced_accuracy", "accuracy", "macro_f1")
    for name in names:
        if name not in SINGLE:
            raise UnknownNameError("metric", name, SINGLE)
    by_class = replace(draw, classes=y)
    return {name: SINGLE[name](y, scores, draw if name in _OVERALL else by_class) for name in names or usual}


def multilabel(
    y: ArrayLike, predicted: ArrayLike, draw: Resampling = DEFAULT, names: Sequence[str] = tuple(MULTI)
) -> dict[str, Estimate]:
    """Metrics of predicted labels, means over labels: `y` (n, c) of 0, 1 and -1 (unknown), `predicted` (n, c) bool.

    macro_f1 and macro_precision are of the positives, over the labels that occur in truth or prediction; the weighted
    ones average a label and its opposite by how often each occurs, as scikit-learn's "weighted" does for one label.

    Raises:
        UnknownNameError: an unknown metric.
    """
    y, predicted = np.asarray(y), np.asarray(predicted, dtype=bool)
    true, known = y == 1, y >= 0
    found = {}
    for name in names:
        if name not in MULTI:
            raise UnknownNameError("metric of several labels", name, MULTI)
        rule = MULTI[name]
        chance = None
        if name == "accuracy":
            share = ratio((true & known).sum(0).astype(np.float64), known.sum(0).astype(np.float64))
            chance = float(row_means(np.maximum(share, 1 - share)[None])[0])
        elif name == "balanced_accuracy":
            chance = 0.5
        found[name] = _counted(lambda c, rule=rule: row_means(rule(c)), true, predicted, draw, known, chance)  # type: ignore[misc]
    return found
