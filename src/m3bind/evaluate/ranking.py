"""Ranking metrics with their chance level and interval.

* `RankStats`, `rank_stats`: rank of each query's best right answer.
* `recall_at_k`, `mrr`, `median_rank`, `precision_at_k`.
* `precision_effects`: of gallery items on the last.

The queries are resampled; instance_search.py adds the gallery. Queries may have several right answers. Ties count with
their expected value under a random order of the tied items, so a scorer that gives every item the same score obtains
exactly the chance level.

Shapes: n queries, g gallery items, b resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

from m3bind.errors import ConfigError
from m3bind.evaluate.confidence import DEFAULT, POSITIVE, Estimate, Floats, Resampling, mean_estimate, resampled


@dataclass(frozen=True)
class RankStats:
    """Per query, the rank of the best right answer and its ties. All arrays (n,), or (n, u) of `without`."""

    above: NDArray[np.int64]  # wrong items scored strictly higher than the best right answer
    tied: NDArray[np.int64]  # items, right or wrong, scored equal to it (itself included)
    tied_relevant: NDArray[np.int64]  # right items among `tied`
    relevant: NDArray[np.int64]  # right answers in the gallery
    gallery: NDArray[np.int64]  # items in the gallery

    def __len__(self) -> int:
        return len(self.above)

    @staticmethod
    def concatenate(parts: Sequence["RankStats"]) -> "RankStats":
        """The queries of all `parts` in order."""
        columns = zip(*((p.above, p.tied, p.tied_relevant, p.relevant, p.gallery) for p in parts), strict=True)
        return RankStats(*map(np.concatenate, columns))

    def hit_probability(self, k: int) -> Floats:
        """P(at least one right answer among the first k), over random orders of tied items; 0 or 1 without ties."""
        slots = np.clip(k - self.above, 0, self.tied)
        values = (slots > 0).astype(np.float64)
        unsure = self.tied > self.tied_relevant
        values[unsure] = 1 - _miss(self.tied[unsure], self.tied_relevant[unsure], slots[unsure])
        return values

    def expected_rank(self) -> Floats:
        """Expected rank (from 1) of the first right answer: above + (tied + 1) / (tied_relevant + 1)."""
        return self.above + (self.tied + 1) / (self.tied_relevant + 1)

    def reciprocal_rank(self) -> Floats:
        """Expected 1 / rank of the first right answer."""
        values = 1 / (self.above + 1.0)
        unsure = self.tied > self.tied_relevant
        if unsure.any():
            cases = np.stack([self.above[unsure], self.tied[unsure], self.tied_relevant[unsure]])
            distinct, which = np.unique(cases, axis=1, return_inverse=True)
            values[unsure] = np.array([_mean_reciprocal(*map(int, case)) for case in distinct.T])[which]
        return values

    def take(self, rows: NDArray[np.int64]) -> "RankStats":
        """The queries `rows`."""
        return RankStats(
            self.above[rows], self.tied[rows], self.tied_relevant[rows], self.relevant[rows], self.gallery[rows]
        )

    def without(self, above: Floats, tied: Floats) -> "RankStats":
        """The same (n, u) when the gallery lacks, per query, `above` and `tied` wrong items (n, u)."""
        columns = (self.above[:, None] - above.astype(np.int64), self.tied[:, None] - tied.astype(np.int64))
        rest = (
            np.broadcast_to(part[:, None], above.shape) for part in (self.tied_relevant, self.relevant, self.gallery)
        )
        return RankStats(*columns, *rest)


def rank_stats(scores: ArrayLike, relevant: ArrayLike) -> RankStats:
    """Rank statistics of `scores` (n, g) with right answers `relevant` (n, g, bool).

    Raises:
        ConfigError: shapes differ, or a query has no right answer in the gallery.
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


def _mean_reciprocal(above: int, tied: int, right: int) -> float:
    """Expected 1 / rank of the first of `right` among `tied` items in random order, below `above` others."""
    survival = _first_rank_survival(tied, right)
    return float(((survival[:-1] - survival[1:]) / (above + np.arange(1, len(survival)))).sum())


def _first_rank_survival(total: int, right: int) -> Floats:
    """P(rank of the first right answer > r), r = 0..total - right + 1, in random order."""
    ranks = np.arange(total - right + 2)
    return _miss(np.full(len(ranks), total), np.full(len(ranks), right), ranks)


def _kinds(stats: RankStats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Distinct (gallery, relevant) and the number of queries of each."""
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
    return resampled(metric, len(stats), chance, draw, POSITIVE)


def precision_values(scores: ArrayLike, relevant: ArrayLike, k: int) -> Floats:
    """Per query, the expected share of right answers among the first min(k, g): (n,)."""
    scores, right = np.asarray(scores), np.asarray(relevant, dtype=bool)
    k = min(k, scores.shape[1])
    edge = -np.partition(-scores, k - 1, axis=1)[:, k - 1 : k]
    above, tied = scores > edge, scores == edge
    share = (k - above.sum(1)) / tied.sum(1)
    return np.asarray(((above & right).sum(1) + share * (tied & right).sum(1)) / k)


def precision_effects(scores: ArrayLike, relevant: ArrayLike, k: int) -> Floats:
    """Change of each query's `precision_values` by each gallery item, compared with the hit that replaces it: (n, g).

    An item counts by the share in which it is among the first k; it is replaced by the mean of the items tied at the
    edge or, without such ties, by the first item below. Zero if the gallery has no more than k items.
    """
    scores, right = np.asarray(scores), np.asarray(relevant, dtype=np.float64)
    if k >= scores.shape[1]:
        return np.zeros(scores.shape)
    ordered = -np.partition(-scores, (k - 1, k), axis=1)[:, k - 1 : k + 1]
    edge, below = ordered[:, :1], ordered[:, 1:]
    tied, next_tied = scores == edge, scores == below
    share = (k - (scores > edge).sum(1, keepdims=True)) / tied.sum(1, keepdims=True)
    inside = np.where(scores > edge, 1.0, np.where(tied, share, 0.0))
    substitute = (right * next_tied).sum(1, keepdims=True) / next_tied.sum(1, keepdims=True)
    return np.asarray(inside * (right - substitute) / k)


def precision_at_k(scores: ArrayLike, relevant: ArrayLike, k: int, draw: Resampling = DEFAULT) -> Estimate:
    """Mean share of right answers among the first k. Chance exactly: mean share of right answers in the gallery."""
    chance = float(np.asarray(relevant, dtype=bool).mean()) if np.size(relevant) else np.nan
    return mean_estimate(precision_values(scores, relevant, k), chance, draw)
