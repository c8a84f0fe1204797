"""Linear probe: what a supervised linear classifier reads out of frozen features.

* `linear_probe`: standardise, logistic regression, result rows. A ceiling to hold zero-shot figures against.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from m3bind.errors import M3BindError
from m3bind.evaluate import metrics
from m3bind.evaluate.metrics import Groups, Resampling
from m3bind.evaluate.results import Context, Row

STRENGTHS = (0.001, 0.01, 0.1, 1.0)


def linear_probe(
    train: tuple[ArrayLike, ArrayLike],
    test: tuple[ArrayLike, ArrayLike],
    context: Context,
    valid: tuple[ArrayLike, ArrayLike] | None = None,
    patients: Groups = None,
    strengths: Sequence[float] = STRENGTHS,
    resamples: int = 1000,
) -> list[Row]:
    """Rows of a logistic regression with balanced class weights on standardised features.

    Each of `train`, `test`, `valid` is (features (n, f), classes (n,)); classes below 0 are left out. The inverse
    penalty is the one of `strengths` with the best balanced accuracy on `valid`; without `valid` it is 0.01. `patients`
    of the test rows are the unit of resampling. Figures as in `metrics.classification`.

    Raises:
        M3BindError: fewer than two classes in `train`, or a class of `test` that `train` lacks.
    """
    (x, y), (test_x, test_y) = _kept(train), _kept(test)
    if len(np.unique(y)) < 2:
        raise M3BindError(
            f"linear probe of {context.modality or 'features'}: fewer than two classes to train on; skip it."
        )
    if valid is None:
        model = _fit(x, y, 0.01)
    else:
        valid_x, valid_y = _kept(valid)
        one = Resampling(resamples=1)
        fitted = [_fit(x, y, strength) for strength in strengths]
        model = max(fitted, key=lambda m: metrics.balanced_accuracy(valid_y, m.predict(valid_x), draw=one).value)
    if not np.isin(test_y, model.classes_).all():
        raise M3BindError("linear probe: the test rows have a class that the training rows lack; leave it out (-1).")
    number = np.searchsorted(model.classes_, test_y)
    scores = model.decision_function(test_x)
    scores = np.stack([-scores, scores], 1) if scores.ndim == 1 else scores
    draw = Resampling(patients, resamples, context.seed).subset(np.asarray(test[1]) >= 0)
    found = metrics.classification(number, scores, draw)
    return [context.row("linear_probe", name, value) for name, value in found.items()]


def _kept(pair: tuple[ArrayLike, ArrayLike]) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(pair[0], dtype=np.float64), np.asarray(pair[1])
    return x[y >= 0], y[y >= 0]


def _fit(x: np.ndarray, y: np.ndarray, strength: float):  # type: ignore[no-untyped-def]  # a scikit-learn pipeline
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000, class_weight="balanced"))
    return model.fit(x, y)
