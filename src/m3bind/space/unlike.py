"""How unlike the training data an input of an image tower is: one measure per modality, in one pass of the tower.

* `UnlikeMeasure`: scores inputs and states the reason; stored with the space. * `fit_unlike`: fits it.
* `unlike_of`: the reason of an item of several inputs. * `measured`: the features it is fitted on.

An input has the distances c_j, all larger for unusual inputs:

    log 1/k sum_i z_i^2 / lambda_i    in the span of the first k principal axes of the trunk's standardised features
    log |r|^2 / mean |r|^2            of the residual r outside this span
    log (s - m)' C^-1 (s - m) / S     of the statistics s of the input (`input_statistics`; Mahalanobis)
    w_g' (s - m)                      matched filter of each degradation g (`degradations`): w_g = C_g^-1 (m_g - m),
                                      with m_g the mean of the statistics of degraded training inputs

Each has its median a_j and its 99 % quantile b_j on inputs of held-out patients. The score is
max_j (c_j - a_j) / (b_j - a_j), divided by the 99 % quantile of this maximum on the same inputs, taken as conformal
prediction does (the ceil(.99 (h + 1))-th of h, so the largest of fewer than 199): above 1, the input is unlike the
training data.

Shapes: n inputs, f width of the trunk's features, k axes, S statistics, G degradations, J = 3 + G distances.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from m3bind.errors import SpaceError
from m3bind.space.input_statistics import STATISTICS, TINY, degradations, input_statistics, statistics_of

UNLIKE = "unlike"  # column of archives and indexes: why an item is unlike the training data
FALSE_ALARMS = 0.01
AXES = 48  # maximum k
SMALL = 0.01  # share of the largest variance, and of their sum, that is taken as real
WIDE = 16384  # widest features whose axes are stored
FEW = 20  # minimum training inputs, and four times the minimum of held-out ones
PLAIN = 6.0  # standard deviations from which a statistic with words is the reason
SPREADS = 2.0  # minimum of b_j - a_j in deviations above a_j: quantiles of few inputs are too low
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


class UnlikeMeasure(nn.Module):
    """The measure of one modality. All tensors are buffers."""

    mean: Tensor  # (f,) of the trunk's features
    spread: Tensor  # (f,) their standard deviation
    axes: Tensor  # (k, f) principal axes of the standardised features
    variances: Tensor  # (k,) along the axes
    rest: Tensor  # mean squared length of the residual
    usual: Tensor  # (S,) m
    deviation: Tensor  # (S,) standard deviation of the statistics
    precision: Tensor  # (S, S) inverse of C
    filters: Tensor  # (G, S) w_g
    kinds: Tensor  # (G,) numbers of the degradations in `KINDS`
    middle: Tensor  # (J,) a_j
    limit: Tensor  # (J,) b_j - a_j, times the quantile of the maximum

    def __init__(self, **values: Tensor) -> None:
        """`values`: one per buffer.

        Raises:
            SpaceError: one is missing, not finite, or of a shape that does not fit the others.
        """
        super().__init__()
        for name in FIELDS:
            self.register_buffer(name, values.get(name, torch.tensor(torch.nan)).detach().float())
        shapes = [tuple(value.shape) for value in self.buffers()]
        f, k, s, g = (value.numel() for value in (self.mean, self.variances, self.usual, self.kinds))
        fitting = [(f,), (f,), (k, f), (k,), (), (s,), (s,), (s, s), (g, s), (g,), (3 + g,), (3 + g,)]
        known = bool(((self.kinds >= 0) & (self.kinds < len(KINDS))).all())
        if shapes != fitting or not known or not all(torch.isfinite(value).all() for value in self.buffers()):
            raise SpaceError("the measure of unlike inputs is damaged; fit the space again")

    def feature_distances(self, features: Tensor) -> Tensor:
        """(n, f) features of the trunk -> (n, 2) the first two distances."""
        rows = (features.flatten(1).float() - self.mean) / self.spread
        along = rows @ self.axes.T
        residual = (rows.square().sum(1) - along.square().sum(1)).clamp(min=0)
        return torch.stack([(along.square() / self.variances).mean(1), residual / self.rest], 1).clamp(min=TINY).log()

    def distances(self, first: ArrayLike, statistics: ArrayLike) -> Doubles:
        """(n, J) all distances: `first` (n, 2) from `feature_distances`, `statistics` (n, S) of the inputs."""
        off = np.asarray(statistics, np.float64) - _array(self.usual)
        third = np.einsum("ns,st,nt->n", off, _array(self.precision), off) / off.shape[1]
        return np.column_stack([np.asarray(first, np.float64), np.log(third + TINY), off @ _array(self.filters).T])

    def scores(self, first: ArrayLike, statistics: ArrayLike) -> Doubles:
        """(n, J) whose largest entry is the score of an input."""
        return np.asarray((self.distances(first, statistics) - _array(self.middle)) / _array(self.limit))

    def reasons(self, first: ArrayLike, statistics: ArrayLike) -> list[str]:
        """Why each input is unlike the training data, "" if it is not."""
        scores = self.scores(first, statistics)
        off = (np.asarray(statistics, np.float64) - _array(self.usual)) / _array(self.deviation)
        blank = np.asarray(statistics)[:, -len(STATISTICS) + list(STATISTICS).index("contrast")] < np.log(2 * TINY)
        return [self._reason(*row) if row[0].max() > 1 else "" for row in zip(scores, off, blank)]

    def _reason(self, scores: Doubles, off: Doubles, blank: bool) -> str:
        """Of an input with scores (J,) and statistics `off` the usual ones by (S,) standard deviations."""
        if blank:
            return "blank: all values are equal"
        words = statistics_of(len(off))
        at = int(np.argmax([abs(value) if word.lower else 0 for value, word in zip(off, words)]))
        if scores[2] > 1 and abs(off[at]) > PLAIN:
            return words[at].higher if off[at] > 0 else words[at].lower
        if scores[3:].max() > 1:
            return KINDS[int(self.kinds[int(scores[3:].argmax())])]
        return f"unlike the training data (distance {scores.max():.1f}, at most 1 is usual)"


FIELDS = tuple(UnlikeMeasure.__annotations__)
KINDS = (  # by the number of the degradation
    "resolution lower than in training",
    "resolution much lower than in training",
    "noisier than the training data",
    "noise instead of structure",
    "magnified more than the training data, or resolution lower",
    "magnified less than the training data",
)


def unlike_of(reasons: Sequence[str]) -> str:
    """The most frequent reason why the parts of an item are unlike the training data, if more than half of them are."""
    unlike = Counter(filter(None, reasons))
    return unlike.most_common(1)[0][0] if 2 * unlike.total() > len(reasons) else ""


def measured(features: Tensor, joint: Tensor) -> Tensor:
    """The features (n, f) that are measured: the trunk's, or the joint embeddings if those are too wide to store."""
    flat = features.flatten(1)
    return flat if flat.shape[1] <= WIDE else joint


def _array(values: Tensor) -> Doubles:
    return np.asarray(values.cpu().numpy(), np.float64)


def fit_unlike(
    features: Floats, statistics: Floats, held_features: Floats, held_statistics: Floats, examples: Tensor
) -> UnlikeMeasure | None:
    """The measure of one modality; None if there are too few inputs.

    Args:
        features: (n, f) of the trunk, of training inputs.
        statistics: (n, S) of the same.
        held_features: (h, f) of inputs of other patients, on which the thresholds are chosen.
        held_statistics: (h, S) of the same.
        examples: some of the training inputs, which are degraded.
    """
    if min(len(features), 4 * len(held_features)) < FEW:
        return None
    values = _principal(features) | _usual(statistics) | _filters(statistics, examples)
    j = 3 + len(values["kinds"])
    plain = UnlikeMeasure(**values, middle=torch.zeros(j), limit=torch.ones(j))
    found = plain.distances(plain.feature_distances(torch.from_numpy(held_features)), held_statistics)
    middle = np.median(found, axis=0)
    limit = np.quantile(found, 1 - FALSE_ALARMS, axis=0) - middle
    above = np.sqrt(2 * np.square(np.maximum(found - middle, 0)).mean(axis=0))  # of a normal sample its deviation
    limit = np.maximum(limit, SPREADS * above + TINY)
    largest = np.sort(((found - middle) / limit).max(axis=1))
    limit *= largest[min(len(largest), math.ceil((len(largest) + 1) * (1 - FALSE_ALARMS))) - 1]
    return UnlikeMeasure(**values, middle=torch.from_numpy(middle), limit=torch.from_numpy(limit))


def _principal(features: Floats) -> dict[str, Tensor]:
    """Mean, spread and principal axes of features (n, f), and the residual."""
    mean, spread = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64)
    spread = np.maximum(spread, 0.05 * np.median(spread) + 1e-9)  # features that are nearly constant in training
    rows = torch.from_numpy(((features - mean) / spread).astype(np.float32))
    _, lengths, axes = torch.linalg.svd(rows, full_matrices=False)
    variances = lengths.square() / len(rows)
    real = int((variances > SMALL * variances[0]).sum())  # axes of nearly constant features are not
    k = max(1, min(AXES, len(rows) // 4, rows.shape[1] - 1, real))
    return {
        "mean": torch.from_numpy(mean),
        "spread": torch.from_numpy(spread),
        "axes": axes[:k],
        "variances": variances[:k],
        "rest": variances[k:].sum().clamp(min=SMALL * float(variances.sum())),
    }


def _covariance(statistics: Floats) -> Doubles:
    """(S, S) of statistics (n, S), with the smallest variances that are taken as real added."""
    floors = [statistic.floor for statistic in statistics_of(statistics.shape[1])]
    return np.asarray(np.cov(statistics.T.astype(np.float64)) + np.diag(np.square(floors)))


def _usual(statistics: Floats) -> dict[str, Tensor]:
    """Mean, deviation and inverse covariance of statistics (n, S)."""
    covariance = _covariance(statistics)
    return {
        "usual": torch.from_numpy(statistics.mean(0)),
        "deviation": torch.from_numpy(np.sqrt(np.diag(covariance))),
        "precision": torch.from_numpy(np.linalg.inv(covariance)),
    }


def _filters(statistics: Floats, examples: Tensor) -> dict[str, Tensor]:
    """The matched filter of each degradation that applies to the examples (n, ...)."""
    filters, kinds = [], []
    own, mean = _covariance(statistics), input_statistics(examples).mean(0)
    for kind, degraded in degradations(examples):
        changed = input_statistics(degraded)
        filters.append(np.linalg.solve((own + _covariance(changed)) / 2, changed.mean(0) - mean))
        kinds.append(kind)
    return {"filters": torch.from_numpy(np.array(filters)), "kinds": torch.tensor(kinds)}
