"""The gallery's part in the interval of a search metric: which patients happen to be among the searched files.

* `GalleryEffect`: sums, over queries, how much each gallery patient changes a metric; `apply` adds it to an estimate.
* `resample_gallery`: the same from the effects of single files. `crossed_estimate`: an estimate that is smooth in the
  weights of pairs.
* `sorted_by`, `unit_sums`: files ordered by patient, and sums over the files of a patient.

Weights on queries alone treat the gallery as fixed: too narrow where a few gallery files are near to many queries.
Resampling the gallery with replacement is wrong for ranks: a file drawn twice is its own neighbour, a missing one
raises R@K, and chance meetings of a query and a file are counted two or three times (Owen 2007,
doi:10.1214/07-AOAS122). Instead each gallery patient enters with its first-order effect: the change D of a query's
value if the patient's files are left out of the gallery (jackknife), summed over the queries. From the variance of
these sums over patients is subtracted what the interaction of single queries and patients contributes, which the
weights of the queries already contain (two-way analysis of variance, without replication).

Shapes: q query patients, u gallery patients, b resamples.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from m3bind.evaluate.confidence import (
    UNIT,
    Bounds,
    Estimate,
    Floats,
    Resampling,
    standard_error,
    welch,
    with_replicates,
)


class GalleryEffect:
    """Accumulates changes D (q, u): a query patient's share in the metric minus the same without a gallery patient."""

    def __init__(self, units: NDArray[np.str_]) -> None:
        """`units`: names of the gallery patients (u,), sorted."""
        self.units, self.totals = units, np.zeros(len(units))
        self._queries, self._squares, self._row_squares = 0, 0.0, 0.0

    def add(self, changes: Floats, columns: NDArray[np.int64] | slice = slice(None)) -> None:
        """Add changes (q, u') of further query patients; `columns` are the gallery patients that they searched."""
        self.totals[columns] += changes.sum(0)
        self._queries += len(changes)
        self._squares += float((changes**2).sum())
        self._row_squares += float((changes.sum(1) ** 2).sum())

    def effects(self) -> Floats:
        """(u,) effect of each gallery patient's weight, mean 0, shrunk to the variance without the interaction."""
        count, queries = len(self.units), self._queries
        centred = self.totals - self.totals.mean()
        between = float((centred**2).sum())
        mean = self.totals.sum() ** 2 / (count * max(1, queries))
        within = self._squares - self._row_squares / count - (self.totals**2).sum() / max(1, queries) + mean
        if between == 0 or queries < 2:
            return np.zeros(count)
        return np.asarray(centred * np.sqrt(max(0.0, 1 - within * queries / (queries - 1) / between)))

    def apply(
        self, estimate: Estimate, draw: Resampling, freedom: float | None = None, bounds: Bounds = UNIT
    ) -> Estimate:
        """`estimate`, whose replicates resample the queries, with the gallery's patients resampled as well.

        `freedom`: degrees of freedom of the gallery's patients; default: their number - 1.
        """
        if estimate.replicates is None or not len(estimate.replicates):
            return estimate
        effects = self.effects()
        moved = np.concatenate([(weights - 1) @ effects for weights in draw.unit_weights(self.units)])
        variances = [standard_error(estimate.replicates) ** 2, float((effects**2).sum())]
        together = welch(variances, [estimate.freedom, max(1.0, len(effects) - 1.0) if freedom is None else freedom])
        return with_replicates(replace(estimate, freedom=together), estimate.replicates + moved, bounds)


def resample_gallery(
    found: Estimate, changes: Floats, draw: Resampling, gallery: Resampling, bounds: Bounds = UNIT
) -> Estimate:
    """`found` with the gallery resampled, from the effect of each file on each query's share in the metric: (n, g).

    `draw`, `gallery`: patients of the queries and of the gallery's files.
    """
    if found.replicates is None or not len(found.replicates):
        return found
    rows, row_starts, _ = sorted_by(draw.units(len(changes))[1])
    columns, column_starts, _ = sorted_by(gallery.units(changes.shape[1])[1])
    effect = GalleryEffect(gallery.units(changes.shape[1])[0])
    effect.add(unit_sums(unit_sums(changes[rows][:, columns], column_starts, 1), row_starts, 0))
    return effect.apply(found, draw, gallery.freedom(changes.shape[1]), bounds)


def crossed_estimate(value: float, chance: float, changes: Floats, draw: Resampling, gallery: Resampling) -> Estimate:
    """An estimate from the derivatives of a metric by the weight of each pair of query and gallery file: (n, g).

    A replicate is the value plus, for each patient, weight - 1 times the sum of the derivatives of the patient's files
    among queries and gallery. The interaction of single pairs is part of both sums. It is not subtracted here: metrics
    over all pairs have little of it, and means over both directions of a search contain it twice.
    """
    count, size = changes.shape
    sides = ((draw, changes.sum(1)), (gallery, changes.sum(0)))
    sums = [np.bincount(d.units(len(part))[1], part) for d, part in sides]
    freedom = welch([float((part**2).sum()) for part in sums], [draw.freedom(count), gallery.freedom(size)])
    known = Estimate(value, np.nan, np.nan, count, chance, len(sums[0]), freedom)
    if not draw.resamples:
        return known
    moved = []
    for (side, part), total in zip(sides, sums, strict=True):
        names = side.units(len(part))[0]
        moved.append(np.concatenate([(weights - 1) @ total for weights in draw.unit_weights(names)]))
    return with_replicates(known, value + moved[0] + moved[1])


def sorted_by(units: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.str_]]:
    """Order of files by patient, the start of each patient in it, and the patients' sorted names: (n,), (u,), (u,)."""
    names = np.asarray(units)
    order = np.argsort(names, kind="stable")
    distinct, starts = np.unique(names[order], return_index=True)
    return order, starts, distinct


def unit_sums(values: NDArray[np.generic], starts: NDArray[np.int64], axis: int) -> Floats:
    """Sums of `values` over the files of each patient, which are adjacent along `axis`."""
    if len(starts) == values.shape[axis] and values.dtype != bool:
        return np.asarray(values)
    return np.asarray(np.add.reduceat(values, starts, axis=axis, dtype=np.float64))
