"""Scores and truth -> result rows, for zero-shot, few-shot and the linear probe.

* `score_rows`: rows of the given metrics, for one class per sample or for several labels.
* `corner_thresholds`, `THRESHOLDS`: thresholds above which a label counts as present.

Each of several labels needs a threshold. It is chosen on the validation part (variant "threshold=valid") and, as in
CT-CLIP's code, on the evaluated samples themselves (variant "threshold=test", an upper bound, not a prediction).

Shapes: n samples, c classes or labels, t thresholds tried.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from m3bind.evaluate.classification import MULTI, auroc, classification, multilabel
from m3bind.evaluate.confidence import Floats, Resampling, ratio
from m3bind.evaluate.results import Context, Row

STEPS = 100  # thresholds tried
THRESHOLDS = ("threshold=valid", "threshold=test")


def corner_thresholds(y: ArrayLike, scores: ArrayLike, span: tuple[float, float] | None = None) -> Floats:
    """Per label, the one of 100 evenly spaced thresholds whose (false, true positive rate) is nearest to (0, 1): (c,).

    `y` (n, c) of 0, 1 and -1 (unknown), `scores` (n, c); a label is predicted present if its score is above. `span`:
    range of the thresholds, (0, 1) for probabilities; default: the range of each label's scores. Of equally near ones
    the largest is taken, as upstream does. A label without positives or negatives gets the middle.
    """
    y, scores = np.asarray(y), np.asarray(scores, dtype=np.float64)
    chosen = np.empty(scores.shape[1])
    for label in range(scores.shape[1]):
        known = y[:, label] >= 0
        truth, values = y[known, label] == 1, scores[known, label]
        low, high = span or ((float(values.min()), float(values.max())) if len(values) else (0.0, 1.0))
        grid = np.linspace(low, high, STEPS)
        true, false = (_share_above(np.sort(part), grid) for part in (values[truth], values[~truth]))
        distance = np.hypot(1 - true, false)
        best = STEPS - 1 - int(np.argmin(distance[::-1])) if np.isfinite(distance).all() else STEPS // 2
        chosen[label] = grid[best]
    return chosen


def _share_above(ordered: Floats, grid: Floats) -> Floats:
    """Share of `ordered` (n,) above each of `grid`: (t,); NaN if `ordered` is empty."""
    above = len(ordered) - np.searchsorted(ordered, grid, "right")
    return ratio(above.astype(np.float64), np.full(len(grid), float(len(ordered))))


def score_rows(
    protocol: str,
    y: NDArray[np.int64],
    scores: Floats,
    context: Context,
    draw: Resampling,
    *,
    names: Sequence[str] = (),
    valid: tuple[NDArray[np.int64], Floats] | None = None,
    span: tuple[float, float] | None = None,
) -> list[Row]:
    """Rows of scores (n, c) against class numbers (n,) or labels (n, c) of 0 and 1; -1 (unknown) is ignored.

    `names` are metrics of `classification` (one class) or of `multilabel` and "auroc" (several); empty: the default
    ones. With several labels, metrics that need thresholds come once per `variant`; "threshold=valid" requires `valid`
    (its truth and scores).
    """
    if y.ndim == 1:
        known = y >= 0
        found = classification(y[known], scores[known], draw.subset(known), names)
        return [context.row(protocol, name, value) for name, value in found.items()]
    names = list(names) or ["auroc", *MULTI]
    rows = [context.row(protocol, "auroc", auroc(y, scores, draw))] if "auroc" in names else []
    thresholded = [name for name in names if name != "auroc"]
    for variant, chosen_on in zip(THRESHOLDS, (valid, (y, scores))):
        if chosen_on is None or not thresholded:
            continue
        predicted = scores > corner_thresholds(*chosen_on, span)
        place = context.varied(variant)
        rows += [place.row(protocol, n, value) for n, value in multilabel(y, predicted, draw, thresholded).items()]
    return sorted(rows, key=lambda row: names.index(row.metric))
