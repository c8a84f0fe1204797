"""Paired comparison of the metrics of two runs about the same patients, with significance.

* `paired`: difference of one metric; `difference_of`: its interval and p-value. `compare_rows`: of all common metrics.
* `unresolved`: a sentence about differences that are smaller than their interval's half-width.
* `holm`: p-values corrected for multiple tests.

Patients have equal weights in the replicates of all metrics (confidence.py), so those of two runs are subtracted one by
one. Several training seeds correspond: their differences vary by seed as well (`confidence.over_seeds`).

Shapes: s seeds, b resamples.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from m3bind.evaluate.confidence import FREE, interval, over_seeds, p_value
from m3bind.evaluate.results import LOW_IS_GOOD, Row

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
    def half_width(self) -> float:
        """Half of the interval's width: smaller differences cannot be told from none."""
        return (self.high - self.low) / 2

    @property
    def significant(self) -> bool:
        """Whether p is below .05."""
        return math.isfinite(self.p) and self.p < 0.05

    @property
    def better(self) -> bool:
        """Whether the second is better: higher, or lower where `LOW_IS_GOOD` lists the metric."""
        return (self.change > 0) != (self.row.metric in LOW_IS_GOOD)


def paired(first: Sequence[Row], second: Sequence[Row]) -> Difference:
    """Difference of one metric; the rows of each side differ only in their training seed, and seeds correspond."""
    a, b = (sorted(rows, key=lambda row: row.seed) for rows in (first, second))
    values = (float(np.mean([row.value for row in a])), float(np.mean([row.value for row in b])))
    unpaired = Difference(b[0], *values, float("nan"), float("nan"), float("nan"))
    if len(a) != len(b):
        return replace(unpaired, why=f"{len(a)} seeds against {len(b)}")
    if any((x.n, x.gallery) != (y.n, y.gallery) for x, y in zip(a, b)):
        return replace(unpaired, why="not about the same files")
    if any((x.patients is None) != (y.patients is None) for x, y in zip(a, b)):
        return replace(unpaired, why="patients were resampled in different ways; evaluate the older run again")
    drawn = [(x.replicates, y.replicates) for x, y in zip(a, b)]
    if any(x is None or y is None or len(x) != len(y) for x, y in drawn):
        return replace(unpaired, why="no resampled values are stored")
    changes = np.stack([np.asarray(y, dtype=np.float64) - np.asarray(x) for x, y in drawn])  # (s, b)
    freedom = min((row.freedom for row in (*a, *b) if row.freedom is not None), default=math.inf)
    low, high, p = difference_of([y.value - x.value for x, y in zip(a, b)], changes, freedom)
    return replace(unpaired, low=low, high=high, p=p, why="" if math.isfinite(p) else "no resampled values are stored")


def difference_of(
    values: Sequence[float], replicates: NDArray[np.float64], freedom: float
) -> tuple[float, float, float]:
    """95 % interval and two-sided p-value of a mean difference, from values (s,) and replicates (s, b).

    NaN where no replicate is defined.
    """
    error, known = over_seeds(values, replicates, freedom)
    change = float(np.mean(values))
    return *interval(change, error, known, FREE), p_value(change, error, known, replicates.shape[1])


def unresolved(differences: Iterable[Difference]) -> str:
    """One sentence about the differences that are not significant, with their half-widths; "" if there are none."""
    known = [d for d in differences if math.isfinite(d.p)]
    open_ones = [d.half_width for d in known if not d.low > 0 and not d.high < 0]
    if not open_ones:
        return ""
    low, high = min(open_ones), max(open_ones)
    widths = f"{low:.3f}" if f"{low:.3f}" == f"{high:.3f}" else f"{low:.3f} to {high:.3f}"
    return (
        f"{len(open_ones)} of {len(known)} differences are not resolved: they are smaller than the half-width of their "
        f"95 % interval ({widths}), so these patients and seeds cannot tell them from none."
    )


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
