"""Search for right answers: ranks, and R@K, MRR and median rank with queries and gallery resampled by patient.

* `Search`: queries and gallery with keys (equal keys are right answers) and patients.
* `search_estimates`: metrics by name (`METRICS`) of one or more searches. `search_stats`: ranks alone.
* `cosines`: scores, rounded to six decimals, so that equal embeddings are ties whatever the order of summation.

Shapes: n queries, g gallery items, u gallery patients, d dimensions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from m3bind.evaluate.confidence import POSITIVE, UNIT, Estimate, Floats, Groups, Resampling
from m3bind.evaluate.gallery_effect import GalleryEffect, sorted_by, unit_sums
from m3bind.evaluate.ranking import RankStats, median_rank, mrr, rank_stats, recall_at_k

METRICS = ("R@1", "R@5", "R@10", "mrr", "median_rank")
_BLOCK = 1024  # queries scored at once
_MIDDLE = (0.4, 0.6)  # quantiles of the ranks over which the gallery's effect on the median is averaged


def cosines(queries: ArrayLike, gallery: ArrayLike) -> NDArray[np.float64]:
    """Cosines of unit rows, rounded to six decimals: (n, d), (g, d) -> (n, g)."""
    return np.round(np.asarray(queries, dtype=np.float64) @ np.asarray(gallery, dtype=np.float64).T, 6)


@dataclass(frozen=True)
class Search:
    """Unit rows (n, d) and (g, d), their keys and patients (None: each row is a unit of its own).

    Every key of a query must occur in the gallery.
    """

    queries: ArrayLike
    gallery: ArrayLike
    query_keys: ArrayLike
    gallery_keys: ArrayLike
    query_units: Groups = None
    gallery_units: Groups = None


def search_stats(queries: ArrayLike, gallery: ArrayLike, query_keys: ArrayLike, gallery_keys: ArrayLike) -> RankStats:
    """Rank statistics; items with the query's key are right. Every key of a query must occur in the gallery."""
    queries, query_keys, gallery_keys = np.asarray(queries), np.asarray(query_keys), np.asarray(gallery_keys)
    parts = []
    for start in range(0, max(1, len(queries)), _BLOCK):
        block = slice(start, start + _BLOCK)
        parts.append(rank_stats(cosines(queries[block], gallery), query_keys[block, None] == gallery_keys))
    return RankStats.concatenate(parts)


def search_estimates(
    searches: Sequence[Search], metrics: Sequence[str] = METRICS, resamples: int = 1000
) -> dict[str, Estimate]:
    """Metrics over the queries of all searches: "R@K", "mrr", "median_rank"."""
    stats = RankStats.concatenate([search_stats(s.queries, s.gallery, s.query_keys, s.gallery_keys) for s in searches])
    draw = Resampling(np.concatenate([_names(s.query_units, s.queries) for s in searches]), resamples)
    functions = {"mrr": mrr, "median_rank": median_rank}
    found = {
        name: functions[name](stats, draw) if name in functions else recall_at_k(stats, _rank(name), draw)
        for name in metrics
    }
    if not resamples or not len(stats):
        return found
    effects = _effects(searches, stats, metrics)
    return {m: effects[m].apply(e, draw, bounds=POSITIVE if m == "median_rank" else UNIT) for m, e in found.items()}


def _names(units: Groups, rows: ArrayLike) -> NDArray[np.str_]:
    return np.asarray(np.arange(len(np.asarray(rows))) if units is None else units).astype(str)


def _rank(name: str) -> int:
    return int(name.removeprefix("R@"))


def _effects(searches: Sequence[Search], stats: RankStats, metrics: Sequence[str]) -> dict[str, GalleryEffect]:
    """The effect of every gallery patient on each metric."""
    everyone = np.unique(np.concatenate([_names(s.gallery_units, s.gallery) for s in searches]))
    effects = {name: GalleryEffect(everyone) for name in metrics}
    ranks = stats.expected_rank()
    middle = np.quantile(ranks, _MIDDLE, method="inverted_cdf")
    counts = dict.fromkeys(metrics, len(stats)) | {"median_rank": int(_between(ranks, middle).sum())}
    for search in searches:
        for block, without, starts, columns in _left_out(search):
            at = np.searchsorted(everyone, columns)
            for name, effect in effects.items():
                changes = _changes(name, block, without, middle)
                effect.add(unit_sums(changes, starts, 0) / counts[name], at)
    return effects


def _between(ranks: Floats, middle: Floats) -> NDArray[np.bool_]:
    return np.asarray((ranks >= middle[0]) & (ranks <= middle[1]))


def _left_out(search: Search) -> Iterator[tuple[RankStats, RankStats, NDArray[np.int64], NDArray[np.str_]]]:
    """Blocks of queries (n,), the same without each gallery patient (n, u), starts of query patients, patients (u,)."""
    order, starts, _ = sorted_by(_names(search.query_units, search.queries))
    columns, firsts, names = sorted_by(_names(search.gallery_units, search.gallery))
    queries, keys = np.asarray(search.queries)[order], np.asarray(search.query_keys)[order]
    gallery, gallery_keys = np.asarray(search.gallery)[columns], np.asarray(search.gallery_keys)[columns]
    edges = np.append(starts, len(order))
    cuts = np.unique(edges[np.searchsorted(edges, np.arange(0, len(order) + _BLOCK, _BLOCK).clip(max=len(order)))])
    for low, high in pairwise(cuts):
        scores, right = cosines(queries[low:high], gallery), keys[low:high, None] == gallery_keys
        best = np.where(right, scores, -np.inf).max(1, keepdims=True)
        above = unit_sums(scores > best, firsts, 1)
        tied = unit_sums((scores == best) & ~right, firsts, 1)
        block = rank_stats(scores, right)
        yield block, block.without(above, tied), starts[(starts >= low) & (starts < high)] - low, names


def _changes(name: str, block: RankStats, without: RankStats, middle: Floats) -> Floats:
    """Each query's value minus its value without each gallery patient: (n, u)."""
    if name == "median_rank":
        ranks = block.expected_rank()
        return np.where(_between(ranks, middle)[:, None], ranks[:, None] - without.expected_rank(), 0.0)
    if name == "mrr":
        return block.reciprocal_rank()[:, None] - without.reciprocal_rank()
    k = _rank(name)
    hits = block.hit_probability(k)
    changes = np.zeros(without.above.shape)
    movable = np.flatnonzero((hits < 1) & (without.above.min(1) < k))
    changes[movable] = hits[movable, None] - without.take(movable).hit_probability(k)
    return changes
