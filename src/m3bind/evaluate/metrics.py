"""Figures with their n, chance level and bootstrap interval.

* `Estimate`: a value with interval, n and chance; `mean_estimate`, `average` make one from values or from estimates.
* `Resampling`: how intervals are drawn (unit: the patient where patients are given); `resampled` applies it.
* `auc`, `accuracy`, `balanced_accuracy`, `macro_f1`, and all that apply at once: `classification`.
* `RankStats`, `rank_stats`, `recall_at_k`, `mrr`, `median_rank`, `precision_at_k`: search.

Intervals are percentile intervals (2.5 %, 97.5 %) of 1,000 resamples. In search the queries are drawn and the gallery
is left as it is. Queries may have several right answers. Ties in search count with their expected value under a random
order of the tied items, so a scorer that gives every item the same score obtains exactly the chance level.

Shapes: n samples or queries, g gallery items, c classes, b resamples.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

from m3bind.errors import ConfigError

Floats = NDArray[np.float64]
Groups = Sequence[Any] | NDArray[Any] | None
_LEVEL = 0.95
_BLOCK = 4_000_000  # elements of weights held at once


@dataclass(frozen=True)
class Estimate:
    """A figure. `chance` is what a scorer without knowledge reaches; NaN where undefined (one class only)."""

    value: float
    ci_low: float
    ci_high: float
    n: int
    chance: float
    replicates: Floats | None = field(default=None, repr=False, compare=False)  # (b,) resampled values


@dataclass(frozen=True)
class Resampling:
    """How intervals are drawn: units with replacement, `resamples` times, seeded.

    Units are the distinct values of `groups` (one per sample, e.g. patients), sorted, or the samples themselves.
    Equal units and seed give equal draws, so replicates of two figures about the same patients can be subtracted or
    averaged one by one.
    """

    groups: Groups = None
    resamples: int = 1000
    seed: int = 0

    def weights(self, n: int) -> Iterator[Floats]:
        """Blocks of (b, n) weights: how often each sample's unit was drawn.

        Raises:
            ConfigError: `groups` does not have one entry per sample.
        """
        units = np.arange(n) if self.groups is None else np.unique(np.asarray(self.groups), return_inverse=True)[1]
        if len(units) != n:
            raise ConfigError(f"{len(units)} groups given for {n} samples; give one patient per sample.")
        count = int(units.max()) + 1 if n else 0
        rng = np.random.default_rng(self.seed)
        block = max(1, min(self.resamples, _BLOCK // max(1, n)))
        for start in range(0, self.resamples, block):
            rows = min(block, self.resamples - start)
            drawn = rng.integers(0, max(1, count), size=(rows, count)) + np.arange(rows)[:, None] * count
            table = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
            yield table[:, units].astype(np.float64)

    def subset(self, keep: ArrayLike) -> "Resampling":
        """The same for the samples that `keep` (a mask or indices) chooses."""
        return self if self.groups is None else replace(self, groups=np.asarray(self.groups)[np.asarray(keep)])


DEFAULT = Resampling()


def resampled(metric: Callable[[Floats], Floats], n: int, chance: float, draw: Resampling = DEFAULT) -> Estimate:
    """An `Estimate` of `metric`, a function from weights (b, n) to values (b,); weights of one give the value itself.

    Resamples in which the figure is undefined (no sample of one class) are left out of the interval.
    """
    if n == 0:
        return Estimate(np.nan, np.nan, np.nan, 0, chance)
    value = float(metric(np.ones((1, n)))[0])
    blocks = [metric(weights) for weights in draw.weights(n)]
    return _estimate(value, np.concatenate(blocks) if blocks else np.empty(0), n, chance)


def _estimate(value: float, replicates: Floats, n: int, chance: float) -> Estimate:
    finite = replicates[np.isfinite(replicates)]
    if not np.isfinite(value) or not len(finite):
        return Estimate(value, np.nan, np.nan, n, chance, replicates)
    low, high = np.quantile(finite, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Estimate(value, float(low), float(high), n, chance, replicates)


def mean_estimate(values: ArrayLike, chance: float, draw: Resampling = DEFAULT) -> Estimate:
    """Mean of one value per sample or query."""
    values = np.asarray(values, dtype=np.float64)
    return resampled(lambda w: _ratio(w @ values, w.sum(1)), len(values), chance, draw)


def average(parts: Sequence[Estimate]) -> Estimate:
    """Unweighted mean of several figures (e.g. over ordered modality pairs), n summed.

    The interval comes from replicates averaged one by one: patients are resampled jointly when all parts are
    about the same patients; parts about other patients enter as if drawn independently.
    """
    if not parts:
        return Estimate(np.nan, np.nan, np.nan, 0, np.nan)
    drawn = [part.replicates for part in parts if part.replicates is not None]
    same = len(drawn) == len(parts) and len({len(d) for d in drawn}) == 1
    replicates = np.mean(drawn, axis=0) if same else np.empty(0)
    value, chance = (float(np.mean([getattr(part, name) for part in parts])) for name in ("value", "chance"))
    return _estimate(value, replicates, sum(part.n for part in parts), chance)


def _ratio(top: Floats, bottom: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(bottom > 0, top / bottom, np.nan)


# ---------------------------------------------------------------------------------------------- classification


def auc(y: ArrayLike, scores: ArrayLike, draw: Resampling = DEFAULT) -> Estimate:
    """Area under the ROC curve: P(score of a positive > score of a negative), ties count one half. Chance .5 exactly.

    `y` (n,) true or false, `scores` (n,). NaN when only one class is present.
    """
    truth, values = np.asarray(y).astype(bool), np.asarray(scores, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    truth, ordered = truth[order], values[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(ordered) else np.empty(0, np.int64)

    def metric(weights: Floats) -> Floats:
        weights = weights[:, order]
        positive = np.add.reduceat(weights * truth, starts, axis=1)
        negative = np.add.reduceat(weights * ~truth, starts, axis=1)
        below = np.cumsum(negative, axis=1) - negative / 2
        return _ratio((positive * below).sum(1), positive.sum(1) * negative.sum(1))

    return resampled(metric, len(values), 0.5, draw)


def accuracy(y: ArrayLike, predicted: ArrayLike, draw: Resampling = DEFAULT) -> Estimate:
    """Share of samples predicted right. Chance: share of the most frequent class, the best that guessing can reach."""
    y, predicted = np.asarray(y), np.asarray(predicted)
    chance = float(np.unique(y, return_counts=True)[1].max() / len(y)) if len(y) else np.nan
    return mean_estimate(y == predicted, chance, draw)


def balanced_accuracy(
    y: ArrayLike, predicted: ArrayLike, classes: int | None = None, draw: Resampling = DEFAULT
) -> Estimate:
    """Mean over the classes present of the share predicted right. Chance 1 / `classes`, exactly, for any guessing.

    `classes`: how many classes the predictor chooses among (default: those present in `y`).
    """
    y, predicted = np.asarray(y), np.asarray(predicted)
    present = np.unique(y)
    members = (y[:, None] == present).astype(np.float64)  # (n, c)
    right = members * (y == predicted)[:, None]

    def metric(weights: Floats) -> Floats:
        return _nanmean(_ratio(weights @ right, weights @ members))

    chance = 1 / (classes or len(present)) if len(present) else np.nan
    return resampled(metric, len(y), chance, draw)


def macro_f1(
    y: ArrayLike,
    predicted: ArrayLike,
    draw: Resampling = DEFAULT,
    permutations: int = 200,
) -> Estimate:
    """Mean F1 over the classes that occur in truth or prediction.

    Chance has no closed form: mean over `permutations` seeded random re-assignments of the predictions to the samples.
    """
    y, predicted = np.asarray(y), np.asarray(predicted)
    present = np.unique(np.r_[y, predicted])
    true = (y[:, None] == present).astype(np.float64)
    said = (predicted[:, None] == present).astype(np.float64)

    def score(weights: Floats, said: Floats) -> Floats:
        return _nanmean(_ratio(2 * (weights @ (true * said)), weights @ (true + said)))

    rng, ones = np.random.default_rng(draw.seed), np.ones((1, len(y)))
    shuffled = [float(score(ones, said[rng.permutation(len(y))])[0]) for _ in range(permutations if len(y) else 0)]
    chance = float(np.mean(shuffled)) if shuffled else np.nan
    return resampled(lambda w: score(w, said), len(y), chance, draw)


def classification(y: ArrayLike, scores: ArrayLike, draw: Resampling = DEFAULT) -> dict[str, Estimate]:
    """All figures of a classifier from class numbers (n,) and scores (n, c); the largest score is the prediction.

    Two classes: balanced accuracy and AUC (second class against first, by the difference of the two scores). More
    classes: balanced accuracy, accuracy and macro F1.
    """
    y, scores = np.asarray(y), np.asarray(scores, dtype=np.float64)
    predicted = scores.argmax(1)
    found = {"balanced_accuracy": balanced_accuracy(y, predicted, scores.shape[1], draw)}
    if scores.shape[1] == 2:
        return {"auc": auc(y == 1, scores[:, 1] - scores[:, 0], draw), **found}
    return {**found, "accuracy": accuracy(y, predicted, draw), "macro_f1": macro_f1(y, predicted, draw)}


def _nanmean(values: Floats) -> Floats:
    """Row means over finite entries; NaN for rows without any."""
    finite = np.isfinite(values)
    return _ratio(np.where(finite, values, 0).sum(1), finite.sum(1).astype(np.float64))


# ---------------------------------------------------------------------------------------------- search


@dataclass(frozen=True)
class RankStats:
    """Per query, where the best right answer stands and what it is tied with. All arrays (n,)."""

    above: NDArray[np.int64]  # wrong items scored strictly higher than the best right answer
    tied: NDArray[np.int64]  # items, right or wrong, scored equal to it (itself included)
    tied_relevant: NDArray[np.int64]  # right ones among them
    relevant: NDArray[np.int64]  # right answers in the gallery
    gallery: NDArray[np.int64]  # items in the gallery

    def __len__(self) -> int:
        return len(self.above)

    @staticmethod
    def concatenate(parts: Sequence["RankStats"]) -> "RankStats":
        """The queries of all `parts` in order."""
        names = ("above", "tied", "tied_relevant", "relevant", "gallery")
        return RankStats(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def hit_probability(self, k: int) -> Floats:
        """P(at least one right answer among the first k), over random orders of tied items; 0 or 1 without ties."""
        slots = np.clip(k - self.above, 0, self.tied)
        return 1 - _miss(self.tied, self.tied_relevant, slots)

    def expected_rank(self) -> Floats:
        """Expected rank (from 1) of the first right answer: above + (tied + 1) / (tied_relevant + 1)."""
        return self.above + (self.tied + 1) / (self.tied_relevant + 1)

    def reciprocal_rank(self) -> Floats:
        """Expected 1 / rank of the first right answer."""
        values = 1 / (self.above + 1.0)
        for i in np.flatnonzero(self.tied > self.tied_relevant):
            survival = _first_rank_survival(int(self.tied[i]), int(self.tied_relevant[i]))
            values[i] = ((survival[:-1] - survival[1:]) / (self.above[i] + np.arange(1, len(survival)))).sum()
        return values


def rank_stats(scores: ArrayLike, relevant: ArrayLike) -> RankStats:
    """Rank statistics of `scores` (n, g) with right answers `relevant` (n, g, bool).

    Raises:
        ConfigError: shapes differ, or a query has no right answer in the gallery (leave it out before).
    """
    scores, right = np.asarray(scores), np.asarray(relevant, dtype=bool)
    if scores.shape != right.shape or scores.ndim != 2:
        raise ConfigError(
            f"scores {scores.shape} and relevant {right.shape} must be two equal (queries, gallery) tables."
        )
    count = right.sum(1)
    if len(count) and count.min() == 0:
        raise ConfigError(f"{int((count == 0).sum())} queries have no right answer in the gallery; leave them out.")
    best = np.where(right, scores, -np.inf).max(1, keepdims=True) if len(scores) else np.empty((0, 1))
    tied = scores == best
    sums = ((scores > best).sum(1), tied.sum(1), (tied & right).sum(1), count, np.full(len(scores), scores.shape[1]))
    return RankStats(*(np.asarray(s, dtype=np.int64) for s in sums))


def _miss(total: NDArray[np.int64], right: NDArray[np.int64], k: NDArray[np.int64] | int) -> Floats:
    """P(none of `right` among k draws without replacement from `total`) = C(total - right, k) / C(total, k)."""
    total, right, k = np.broadcast_arrays(total, right, np.minimum(k, total))
    possible = k <= total - right
    rest = np.where(possible, total - right - k, 0)
    logs = gammaln(total - right + 1.0) - gammaln(rest + 1.0) - gammaln(total + 1.0) + gammaln(total - k + 1.0)
    return np.where(possible, np.where(k == 0, 1.0, np.exp(logs)), 0.0)


def _first_rank_survival(total: int, right: int) -> Floats:
    """P(first right answer stands after rank r), r = 0..total - right + 1, in random order."""
    ranks = np.arange(total - right + 2)
    return _miss(np.full(len(ranks), total), np.full(len(ranks), right), ranks)


def _kinds(stats: RankStats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Distinct (gallery, relevant) with the number of queries of each."""
    return np.unique(np.stack([stats.gallery, stats.relevant], 1), axis=0, return_counts=True)


def recall_at_k(stats: RankStats, k: int, draw: Resampling = DEFAULT) -> Estimate:
    """R@K: share of queries with at least one right answer among the first k.

    Chance exactly: 1 - C(g - r, k) / C(g, k) for r right answers in a gallery of g, averaged over the queries.
    """
    chance = float(np.mean(1 - _miss(stats.gallery, stats.relevant, k))) if len(stats) else np.nan
    return mean_estimate(stats.hit_probability(k), chance, draw)


def mrr(stats: RankStats, draw: Resampling = DEFAULT) -> Estimate:
    """Mean of 1 / rank of the first right answer. Chance exactly, from the law of the first rank in a random order."""
    chance = np.nan
    if len(stats):
        kinds, counts = _kinds(stats)
        survivals = [_first_rank_survival(int(g), int(r)) for g, r in kinds]
        each = [((s[:-1] - s[1:]) / np.arange(1, len(s))).sum() for s in survivals]
        chance = float(np.average(each, weights=counts))
    return mean_estimate(stats.reciprocal_rank(), chance, draw)


def median_rank(stats: RankStats, draw: Resampling = DEFAULT) -> Estimate:
    """Median over queries of the (expected) rank of the first right answer, lower median; low is good.

    Chance exactly: the smallest r at which half of the queries have a right answer among r random items.
    """
    ranks = stats.expected_rank()
    order = np.argsort(ranks, kind="stable")

    def metric(weights: Floats) -> Floats:
        mass = np.cumsum(weights[:, order], axis=1)
        return np.asarray(ranks[order][np.argmax(mass >= mass[:, -1:] / 2, axis=1)])

    chance = np.nan
    if len(stats):
        kinds, counts = _kinds(stats)
        survival = np.zeros(int(stats.gallery.max()) + 2)
        for (gallery, right), count in zip(kinds, counts):
            law = _first_rank_survival(int(gallery), int(right))
            survival[: len(law)] += law * count
        chance = float(np.argmax(survival <= len(stats) / 2 + 1e-9))
    return resampled(metric, len(stats), chance, draw)


def precision_values(scores: ArrayLike, relevant: ArrayLike, k: int) -> Floats:
    """Per query, the expected share of right answers among the first min(k, g): (n,)."""
    scores, right = np.asarray(scores), np.asarray(relevant, dtype=bool)
    k = min(k, scores.shape[1])
    edge = -np.partition(-scores, k - 1, axis=1)[:, k - 1 : k]
    above, tied = scores > edge, scores == edge
    share = (k - above.sum(1)) / tied.sum(1)
    return np.asarray(((above & right).sum(1) + share * (tied & right).sum(1)) / k)


def precision_at_k(scores: ArrayLike, relevant: ArrayLike, k: int, draw: Resampling = DEFAULT) -> Estimate:
    """Mean share of right answers among the first k. Chance exactly: mean share of right answers in the gallery."""
    chance = float(np.asarray(relevant, dtype=bool).mean()) if np.size(relevant) else np.nan
    return mean_estimate(precision_values(scores, relevant, k), chance, draw)
