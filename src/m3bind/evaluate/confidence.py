"""A metric's value with its n, chance level and bootstrap interval over patients.

* `Estimate`: a value with interval, n and chance; `mean_estimate`, `average` compute one from values or estimates.
* `Resampling`: how patients are drawn; `resampled` applies it to a metric of weights; `with_replicates`: the interval.
* `interval`, `standard_error`, `p_value`: from replicates. `over_seeds`: error of a mean over training seeds.
* `welch`: degrees of freedom of a sum of variances.
* `ratio`, `row_means`: division and means in which undefined values are NaN and ignored.

Patients are resampled by the Poisson bootstrap: in each of 1,000 resamples every patient gets an independent
Poisson(1) weight that depends only on the patient and the number of the resample. A patient's files therefore move
together, and the same patient moves together among queries and gallery, in all metrics, modalities, seeds and runs:
replicates of any two metrics can be subtracted or averaged one by one.

Intervals are Student's t with the bootstrap's standard error, on the logit scale for metrics with two bounds and on
the log scale with one. Percentile intervals are too narrow with few patients, and of an AUC they miss on one side:
with 30 patients they contained the true AUC of .89 in 89 % of simulations instead of 95 % (benchmarks/coverage.py).

Shapes: n samples or queries, u patients, b resamples, s seeds.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit, ndtr, ndtri, pdtr, stdtr, stdtrit

from m3bind.errors import ConfigError

Floats = NDArray[np.float64]
Groups = ArrayLike | None
Bounds = tuple[float, float]
UNIT: Bounds = (0.0, 1.0)
SIGNED: Bounds = (-1.0, 1.0)
POSITIVE: Bounds = (0.0, np.inf)
FREE: Bounds = (-np.inf, np.inf)
LEVEL = 0.95
_BLOCK = 4_000_000  # weights in memory at once
_POISSON = pdtr(np.arange(20), 1)


@dataclass(frozen=True)
class Estimate:
    """Value of a metric. `chance` is what an uninformed scorer reaches; NaN where undefined (one class only)."""

    value: float
    ci_low: float
    ci_high: float
    n: int
    chance: float
    patients: int = 0  # resampled units that the n files belong to
    freedom: float = np.nan  # degrees of freedom of the interval
    replicates: Floats | None = field(default=None, repr=False, compare=False)  # (b,) resampled values


@dataclass(frozen=True)
class Resampling:
    """How patients are resampled: `groups` has the patient of each sample; None: each sample is a unit of its own.

    `classes`: class of each sample, for metrics that average over classes: rare classes leave few degrees of freedom.
    """

    groups: Groups = None
    resamples: int = 1000
    seed: int = 0
    classes: ArrayLike | None = None

    def units(self, n: int) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
        """Sorted names (u,) of the patients, and the number of each sample's patient (n,).

        Raises:
            ConfigError: `groups` does not have one entry per sample.
        """
        names = np.arange(n) if self.groups is None else np.asarray(self.groups)
        if len(names) != n:
            raise ConfigError(f"{len(names)} groups given for {n} samples; give one patient per sample.")
        units, index = np.unique(names.astype(str), return_inverse=True)
        return units, index

    def unit_weights(self, units: Sequence[str] | NDArray[np.str_]) -> Iterator[Floats]:
        """Blocks of (b, u) weights of patients."""
        names = tuple(map(str, units))
        rows = max(1, min(self.resamples, _BLOCK // max(1, len(names))))
        for start in range(0, self.resamples, rows):
            yield _poisson(names, start, min(rows, self.resamples - start), self.seed).astype(np.float64)

    def weights(self, n: int) -> Iterator[Floats]:
        """Blocks of (b, n) weights of samples: those of their patients. Raises as `units`."""
        units, index = self.units(n)
        for block in self.unit_weights(units):
            yield block[:, index]

    def subset(self, keep: ArrayLike) -> "Resampling":
        """The resampling of the samples that `keep` (a mask or indices) selects."""
        sides = ((None if part is None else np.asarray(part)[np.asarray(keep)]) for part in (self.groups, self.classes))
        return Resampling(next(sides), self.resamples, self.seed, next(sides))

    def freedom(self, n: int) -> float:
        """Degrees of freedom: patients - 1; with `classes` Welch's for a sum of one variance per class."""
        units, index = self.units(n)
        if self.classes is None:
            return max(1.0, len(units) - 1.0)
        pairs = np.unique(np.stack([np.unique(np.asarray(self.classes), return_inverse=True)[1], index]), axis=1)
        counts = np.bincount(pairs[0]).astype(np.float64)
        return welch(1 / counts, np.maximum(2, counts - 1))


DEFAULT = Resampling()


@lru_cache(maxsize=8)
def _poisson(names: tuple[str, ...], start: int, rows: int, seed: int) -> NDArray[np.uint8]:
    """Poisson(1) weights (rows, u) of the resamples from number `start`, from a hash of patient, seed and resample.

    The hash of a patient is advanced by SplitMix64 (Steele, Lea, Flood 2014, doi:10.1145/2714064.2660195).
    """
    hashes = [blake2b(f"{seed}:{name}".encode(), digest_size=8).digest() for name in names]
    states = np.frombuffer(b"".join(hashes), dtype="<u8")
    steps = np.arange(start + 1, start + rows + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = states + steps[:, None]
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    uniform = (mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)
    return np.asarray(np.searchsorted(_POISSON * 2.0**53, uniform, "right"), dtype=np.uint8)


def resampled(
    metric: Callable[[Floats], Floats], n: int, chance: float, draw: Resampling = DEFAULT, bounds: Bounds = UNIT
) -> Estimate:
    """An `Estimate` of `metric`, a function from weights (b, n) to values (b,); weights of one give the value itself.

    Resamples in which the metric is undefined (no sample of one class) are excluded from the interval.
    """
    if n == 0:
        return Estimate(np.nan, np.nan, np.nan, 0, chance)
    value = float(metric(np.ones((1, n)))[0])
    blocks = [metric(weights) for weights in draw.weights(n)]
    known = Estimate(value, np.nan, np.nan, n, chance, len(draw.units(n)[0]), draw.freedom(n))
    return with_replicates(known, np.concatenate(blocks) if blocks else np.empty(0), bounds)


def with_replicates(known: Estimate, replicates: Floats, bounds: Bounds = UNIT) -> Estimate:
    """`known` with `replicates` and the interval that follows from them."""
    low, high = interval(known.value, standard_error(replicates), known.freedom, bounds)
    return replace(known, ci_low=low, ci_high=high, replicates=replicates)


def standard_error(replicates: Floats) -> float:
    """Standard deviation of the finite replicates; NaN with fewer than two."""
    finite = replicates[np.isfinite(replicates)]
    return float(finite.std(ddof=1)) if len(finite) > 1 else np.nan


def interval(value: float, error: float, freedom: float, bounds: Bounds = UNIT) -> tuple[float, float]:
    """95 % interval of a value with standard error `error`: Student's t on the scale that `bounds` require.

    A share of exactly 0 or 1 has no standard error; it gets the exact binomial bound for `freedom` + 1 patients.
    """
    reach = float(stdtrit(freedom, (1 + LEVEL) / 2) if np.isfinite(freedom) else ndtri((1 + LEVEL) / 2)) * error
    if not np.isfinite(reach):
        return np.nan, np.nan
    low, high = bounds
    if np.isinf(low) or value <= low or value >= high:
        rest = 1 - ((1 - LEVEL) / 2) ** (1 / (freedom + 1)) if bounds == UNIT else 0.0
        return (
            (low, low + rest)
            if value <= low
            else (high - rest, high)
            if value >= high
            else (value - reach, value + reach)
        )
    if np.isinf(high):
        factor = np.exp(reach / (value - low))
        return low + (value - low) / factor, low + (value - low) * factor
    share = (value - low) / (high - low)
    centre, side = logit(share), reach / (high - low) / (share * (1 - share))
    below, above = low + (high - low) * expit([centre - side, centre + side])
    return float(below), float(above)


def p_value(change: float, error: float, freedom: float, resamples: int) -> float:
    """Two-sided p-value of a change against zero (Student's t), at least 2 / (resamples + 1); NaN without an error."""
    if not np.isfinite(error):
        return np.nan
    if change == 0:
        return 1.0
    score = abs(change) / error if error > 0 else np.inf
    below = stdtr(freedom, -score) if np.isfinite(freedom) else ndtr(-score)
    return float(max(2 * below, 2 / (resamples + 1)))


def welch(variances: ArrayLike, freedoms: ArrayLike) -> float:
    """Degrees of freedom of a sum of independent variances (Welch-Satterthwaite)."""
    parts, known = np.asarray(variances, dtype=np.float64), np.asarray(freedoms, dtype=np.float64)
    below = float((parts**2 / known).sum())
    return float(parts.sum() ** 2 / below) if below > 0 else float(known.max(initial=1.0))


def mean_estimate(values: ArrayLike, chance: float, draw: Resampling = DEFAULT, bounds: Bounds = UNIT) -> Estimate:
    """Mean of one value per sample or query."""
    values = np.asarray(values, dtype=np.float64)
    return resampled(lambda w: ratio(w @ values, w.sum(1)), len(values), chance, draw, bounds)


def average(parts: Sequence[Estimate], n: int, patients: int) -> Estimate:
    """Unweighted mean of several shares (e.g. over ordered modality pairs) about `n` files of `patients` in all.

    Replicates are averaged one by one, so a patient moves jointly in all parts in which it appears.
    """
    if not parts:
        return Estimate(np.nan, np.nan, np.nan, 0, np.nan)
    drawn = [part.replicates for part in parts if part.replicates is not None]
    same = len(drawn) == len(parts) and len({len(d) for d in drawn}) == 1
    replicates = np.mean(drawn, axis=0) if same else np.empty(0)
    value, chance = float(np.mean([part.value for part in parts])), float(np.mean([part.chance for part in parts]))
    freedom = welch([standard_error(d) ** 2 for d in drawn], [part.freedom for part in parts]) if same else np.nan
    return with_replicates(Estimate(value, np.nan, np.nan, n, chance, patients, freedom), replicates)


def over_seeds(values: ArrayLike, replicates: Floats, freedom: float) -> tuple[float, float]:
    """Standard error and degrees of freedom of a mean over training seeds, from values (s,) and replicates (s, b).

    Patients are resampled equally for all seeds, so the replicates' mean over seeds has the error from the patients
    (`freedom`). To it is added the seeds' variance / s (s - 1 degrees of freedom): that of `values` minus the part
    that comes from patients on which seeds differ.
    """
    values, count = np.asarray(values, dtype=np.float64), len(replicates)
    replicates = replicates[:, np.isfinite(replicates).all(0)]
    by_patient = standard_error(replicates.mean(0)) ** 2
    if count < 2:
        return float(np.sqrt(by_patient)), freedom
    mixed = np.mean([standard_error(part) ** 2 for part in replicates - replicates.mean(0)]) * count / (count - 1)
    by_seed = max(0.0, float(values.var(ddof=1) - mixed)) / count
    return float(np.sqrt(by_patient + by_seed)), welch([by_patient, by_seed], [freedom, count - 1])


def ratio(top: Floats, bottom: Floats) -> Floats:
    """Quotient, NaN where `bottom` is not positive."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(bottom > 0, top / bottom, np.nan)


def row_means(values: Floats) -> Floats:
    """Row means over finite entries; NaN for rows without finite entries."""
    finite = np.isfinite(values)
    return ratio(np.where(finite, values, 0).sum(1), finite.sum(1).astype(np.float64))
