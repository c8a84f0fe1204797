"""Paired comparison of the metrics of two runs about the same patients, with significance.

* `paired`: difference of one metric; `interval`: its interval and p-value. `compare_rows`: of all common metrics.
* `holm`: p-values corrected for multiple tests.

Both runs resample the same patients in the same order (equal seeds), so their replicates are subtracted one by one.
With several training seeds, seeds are resampled as well, pair by pair.

Shapes: s seeds, b resamples.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from m3bind.evaluate.results import LOW_IS_GOOD, Row

_SEED_DRAWS = 20
_KEY = attrgetter("protocol", "dataset", "modality", "split", "metric", "task", "variant", "text_encoder", "stage")


@dataclass(frozen=True)
class Difference:
    """Second minus first. `low` and `high`: 95 % interval; `p`: two-sided; NaN where the two cannot be paired."""

    row: Row  # of the second
    first: float
    second: float
    low: float
    high: float
    p: float
    why: str = ""  # the reason if there is no interval

    @property
    def change(self) -> float:
        """Second minus first."""
        return self.second - self.first

    @property
    def significant(self) -> bool:
        """Whether p is below .05."""
        return math.isfinite(self.p) and self.p < 0.05

    @property
    def better(self) -> bool:
        """Whether the second is better: higher, or lower where `LOW_IS_GOOD` lists the metric."""
        return (self.change > 0) != (self.row.metric in LOW_IS_GOOD)


def paired(first: Sequence[Row], second: Sequence[Row], seed: int = 0) -> Difference:
    """Difference of one metric; the rows of each side differ only in their training seed, and seeds correspond.

    The p-value is twice the share of resampled differences on the other side of zero (minimum 1 / (b + 1)).
    """
    a, b = (sorted(rows, key=lambda row: row.seed) for rows in (first, second))
    values = (float(np.mean([row.value for row in a])), float(np.mean([row.value for row in b])))
    unpaired = Difference(b[0], *values, float("nan"), float("nan"), float("nan"))
    if len(a) != len(b):
        return replace(unpaired, why=f"{len(a)} seeds against {len(b)}")
    if any((x.n, x.gallery) != (y.n, y.gallery) for x, y in zip(a, b)):
        return replace(unpaired, why="not about the same files")
    drawn = [(x.replicates, y.replicates) for x, y in zip(a, b)]
    if any(x is None or y is None or len(x) != len(y) for x, y in drawn):
        return replace(unpaired, why="no resampled values are stored")
    changes = np.stack([np.asarray(y, dtype=np.float64) - np.asarray(x) for x, y in drawn])  # (s, b)
    low, high, p = interval(changes, seed)
    return replace(unpaired, low=low, high=high, p=p, why="" if math.isfinite(p) else "no resampled values are stored")


def interval(changes: NDArray[np.float64], seed: int = 0) -> tuple[float, float, float]:
    """95 % interval and two-sided p-value of the mean over seeds of resampled differences (s, b).

    Each resample is combined with several draws of the seeds, with replacement. With few seeds the interval is
    slightly too narrow. NaN where no value is defined.
    """
    values = changes[0]
    if len(changes) > 1:
        seeds, count = changes.shape
        drawn = np.random.default_rng(seed).integers(0, seeds, size=(_SEED_DRAWS, seeds, count))
        values = np.take_along_axis(changes[None], drawn, axis=1).mean(1).ravel()
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan"), float("nan")
    low, high = np.quantile(values, [0.025, 0.975])
    below, above = ((np.sum(side) + 1) / (len(values) + 1) for side in (values <= 0, values >= 0))
    return float(low), float(high), float(min(1.0, 2 * min(below, above)))


def compare_rows(first: Iterable[Row], second: Iterable[Row]) -> list[Difference]:
    """One difference for each metric that both sides have, p-values corrected for multiple tests (Holm)."""
    sides: list[dict[tuple[object, ...], list[Row]]] = []
    for rows in (first, second):
        groups: dict[tuple[object, ...], list[Row]] = {}
        for row in rows:
            groups.setdefault(_KEY(row), []).append(row)
        sides.append(groups)
    differences = [paired(sides[0][key], rows) for key, rows in sides[1].items() if key in sides[0]]
    corrected = holm([difference.p for difference in differences])
    return [replace(difference, p=p) for difference, p in zip(differences, corrected)]


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected by Holm's method, in the given order; NaN stays NaN and is not counted as a test."""
    order = sorted((i for i, p in enumerate(values) if math.isfinite(p)), key=lambda i: values[i])
    corrected, highest = list(values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, values[i] * (len(order) - rank)))
        corrected[i] = highest
    return corrected
