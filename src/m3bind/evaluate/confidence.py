"""A metric's value with its n, chance level and bootstrap interval.

* `Estimate`: a value with interval, n and chance; `mean_estimate`, `average` compute one from values or estimates.
* `Resampling`: how intervals are drawn (by patient if patients are given); `resampled` applies it.
* `ratio`, `row_means`: division and means in which undefined values are NaN and ignored.

Intervals are percentile intervals (2.5 %, 97.5 %) of 1,000 resamples.

Shapes: n samples or queries, b resamples.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from m3bind.errors import ConfigError

Floats = NDArray[np.float64]
Groups = ArrayLike | None
_LEVEL = 0.95
_BLOCK = 4_000_000  # elements of weights in memory at once


@dataclass(frozen=True)
class Estimate:
    """Value of a metric. `chance` is what an uninformed scorer reaches; NaN where undefined (one class only)."""

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
    Equal units and seed give equal draws, so replicates of two metrics about the same patients can be subtracted or
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
        """The resampling of the samples that `keep` (a mask or indices) selects."""
        return self if self.groups is None else replace(self, groups=np.asarray(self.groups)[np.asarray(keep)])


DEFAULT = Resampling()


def resampled(metric: Callable[[Floats], Floats], n: int, chance: float, draw: Resampling = DEFAULT) -> Estimate:
    """An `Estimate` of `metric`, a function from weights (b, n) to values (b,); weights of one give the value itself.

    Resamples in which the metric is undefined (no sample of one class) are excluded from the interval.
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
    return resampled(lambda w: ratio(w @ values, w.sum(1)), len(values), chance, draw)


def average(parts: Sequence[Estimate]) -> Estimate:
    """Unweighted mean of several estimates (e.g. over ordered modality pairs), n summed.

    The interval comes from replicates averaged one by one: patients are resampled jointly when all parts are
    about the same patients; parts about other patients count as drawn independently.
    """
    if not parts:
        return Estimate(np.nan, np.nan, np.nan, 0, np.nan)
    drawn = [part.replicates for part in parts if part.replicates is not None]
    same = len(drawn) == len(parts) and len({len(d) for d in drawn}) == 1
    replicates = np.mean(drawn, axis=0) if same else np.empty(0)
    value, chance = float(np.mean([part.value for part in parts])), float(np.mean([part.chance for part in parts]))
    return _estimate(value, replicates, sum(part.n for part in parts), chance)


def ratio(top: Floats, bottom: Floats) -> Floats:
    """Quotient, NaN where `bottom` is not positive."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(bottom > 0, top / bottom, np.nan)


def row_means(values: Floats) -> Floats:
    """Row means over finite entries; NaN for rows without finite entries."""
    finite = np.isfinite(values)
    return ratio(np.where(finite, values, 0).sum(1), finite.sum(1).astype(np.float64))
