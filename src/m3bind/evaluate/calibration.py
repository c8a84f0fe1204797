"""Calibration of scores: reliability, temperature scaling, and abstention.

* `Answers`: confidence of each answer and whether it is correct, for one class or several labels.
* `reliability_curve`: accuracy by confidence.
* `fit_temperature`: one factor fitted on validation (Guo et al. 2017).
* `abstention`: the confidence threshold at which the answers above it reach an accuracy.
* `calibration_rows`: calibration error before and after the temperature; accuracy and coverage with abstention.

Shapes: n samples, c classes or labels.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit, log_softmax

from m3bind.errors import ConfigError
from m3bind.evaluate.classification import BINS, expected_calibration_error, softmax
from m3bind.evaluate.confidence import Estimate, Floats, Groups, Resampling, mean_estimate, ratio, resampled
from m3bind.evaluate.results import Context, Row

TARGET = 0.9
_FEWEST = 20  # answers per point of the reliability curve


@dataclass(frozen=True)
class Answers:
    """One entry per answer: per sample with one class, per sample and known label with several."""

    confidence: Floats  # of the answer, 0..1
    right: NDArray[np.bool_]
    sample: NDArray[np.int64]  # number of its sample

    def groups(self, patients: Groups) -> Groups:
        """The unit of resampling of each answer: the sample's patient, or the sample."""
        return self.sample if patients is None else np.asarray(patients)[self.sample]


def answers(y: ArrayLike, logits: ArrayLike, temperature: float = 1.0) -> Answers:
    """Answers of `logits` (n, c) divided by `temperature`.

    One class (`y` (n,)): the most likely class and its probability. Labels (`y` (n, c) of 0, 1 and -1 for unknown):
    for each known label the more likely of present and absent, and its probability.
    """
    y, logits = np.asarray(y), np.asarray(logits, dtype=np.float64) / temperature
    if y.ndim == 1:
        return Answers(softmax(logits).max(1), logits.argmax(1) == y, np.arange(len(y)))
    sample, label = np.nonzero(y >= 0)
    chances, truth = expit(logits[sample, label]), y[sample, label] == 1
    return Answers(np.maximum(chances, 1 - chances), (chances > 0.5) == truth, sample)


def fit_temperature(y: ArrayLike, logits: ArrayLike) -> float:
    """The T between 1/100 and 100 that maximises the likelihood of `y` under logits / T.

    `y` class numbers (n,), or labels (n, c) of 0, 1 and -1 (unknown); `logits` (n, c).

    Raises:
        ConfigError: no sample.
    """
    y, logits = np.asarray(y), np.asarray(logits, dtype=np.float64)
    if not len(y):
        raise ConfigError("a temperature needs validation samples; give a valid split.")
    known = y >= 0

    def cost(log_temperature: float) -> float:
        scaled = logits * np.exp(-log_temperature)
        if y.ndim == 1:
            return -float(log_softmax(scaled, axis=1)[np.arange(len(y)), y].mean())
        return -float(log_expit(np.where(y == 1, scaled, -scaled))[known].mean())

    best = minimize_scalar(cost, bounds=(np.log(0.01), np.log(100)), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(best.x))


@dataclass(frozen=True)
class Abstention:
    """Answers with confidence of at least `threshold`; `coverage` and `accuracy` on the answers it was chosen on."""

    threshold: float
    coverage: float
    accuracy: float


def abstention(given: Answers, target: float = TARGET) -> Abstention:
    """The lowest confidence threshold above which at least `target` of the answers are right.

    If the most confident answers do not reach `target`, the threshold is infinite and the coverage 0.
    """
    order = np.argsort(-given.confidence, kind="stable")
    confidence, right = given.confidence[order], given.right[order]
    count = np.arange(1, len(right) + 1)
    share = np.cumsum(right) / count
    last_of_ties = np.append(confidence[1:] != confidence[:-1], True)[: len(confidence)]
    fitting = np.flatnonzero((share >= target) & last_of_ties)
    if not len(fitting):
        return Abstention(float("inf"), 0.0, float("nan"))
    at = fitting[-1]
    return Abstention(float(confidence[at]), float(count[at] / len(right)), float(share[at]))


def calibration_rows(
    y: ArrayLike,
    logits: ArrayLike,
    context: Context,
    patients: Groups = None,
    *,
    valid: tuple[ArrayLike, ArrayLike] | None = None,
    target: float = TARGET,
    resamples: int = 1000,
) -> list[Row]:
    """Rows of protocol "calibration": `ece` of the given logits and, with `valid`, after a temperature fitted there.

    With `valid` (truth and logits) also the `temperature` itself (no interval), and `answered_accuracy` and `coverage`
    when answers below the confidence threshold chosen there for an accuracy of `target` are withheld. Without a
    temperature, `logits` must be on the scale of the model (scaled cosines, log-odds of pairs).
    """
    given = answers(y, logits)
    draw = Resampling(given.groups(patients), resamples)
    rows = [context.row("calibration", "ece", expected_calibration_error(given.confidence, given.right, draw))]
    if valid is None or not len(np.asarray(valid[0])):
        return rows
    temperature = fit_temperature(*valid)
    warm = answers(y, logits, temperature)
    answered = warm.confidence >= abstention(answers(*valid, temperature), target).threshold
    right = (answered & warm.right).astype(np.float64)

    def accuracy(weights: Floats) -> Floats:
        return ratio(weights @ right, weights @ answered.astype(np.float64))

    scaled = context.varied("temperature=valid")
    withheld = context.varied(f"answers for accuracy {target:g} on valid")
    fixed = Estimate(temperature, np.nan, np.nan, len(np.asarray(valid[0])), np.nan)
    answered_accuracy = resampled(accuracy, len(right), float(warm.right.mean()), draw)
    return [
        *rows,
        scaled.row("calibration", "ece", expected_calibration_error(warm.confidence, warm.right, draw)),
        scaled.row("calibration", "temperature", fixed),
        withheld.row("calibration", "answered_accuracy", answered_accuracy),
        withheld.row("calibration", "coverage", mean_estimate(answered, np.nan, draw)),
    ]


def reliability_curve(given: Answers, bins: int = BINS) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Mean confidence, share right and count of groups of answers, ordered by confidence and of equal size.

    At most `bins` groups; each has at least `_FEWEST` answers if there are that many.
    """
    order = np.argsort(given.confidence, kind="stable")
    groups = np.array_split(order, max(1, min(bins, len(order) // _FEWEST)))
    confidence = np.array([given.confidence[group].mean() for group in groups])
    right = np.array([given.right[group].mean() for group in groups])
    return confidence, right, np.array([len(group) for group in groups], dtype=np.int64)
