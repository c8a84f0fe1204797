"""Agreement of the text towers: metrics on held-out texts that every tower has encoded.

Shapes: M towers, n texts, d dimensions; row i of every tower is the same text.

* `text_agreement`: the metrics; `agreement_rows`: result rows, for the towers together and for a student.

Mean cosine alone is misleading: towers that map every text to the same vector reach 1. It is reported with
    cos         same text, two towers
    cos_other   different texts, two towers; retrieval depends on cos minus cos_other
    cos_within  different texts, one tower; near 1 means the tower has collapsed; no rotation changes it
    ccos        same text, two towers, each tower's mean over these texts subtracted
    R@1         share of texts whose nearest text in the other tower is the same text, over ordered pairs; chance 1/n
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations, permutations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from m3bind.errors import ConfigError
from m3bind.evaluate.confidence import SIGNED, Estimate, Resampling, average, mean_estimate
from m3bind.evaluate.instance_search import Search, search_estimates
from m3bind.evaluate.results import Context, Row
from m3bind.evaluate.zero_shot import unit


def text_agreement(towers: Sequence[ArrayLike], resamples: int = 1000) -> dict[str, Estimate]:
    """cos, cos_other, cos_within, ccos and R@1 of two or more towers (n, d) of unit rows; texts are resampled,
    both as queries and as the others.

    cos and ccos average over unordered pairs, cos_other and R@1 over ordered ones. Chance of cos is cos_other (towers
    that agree on nothing but the mean), of ccos -1/(n-1) (centred rows sum to zero), of R@1 exactly 1/n.

    Raises:
        ConfigError: fewer than two towers or texts, or shapes differ.
    """
    rows = [np.asarray(tower, dtype=np.float64) for tower in towers]
    if len(rows) < 2 or len({r.shape for r in rows}) != 1 or len(rows[0]) < 2:
        shapes = ", ".join(str(r.shape) for r in rows)
        raise ConfigError(
            f"text agreement needs two or more towers of equal shape with two or more texts, not {shapes}."
        )
    n, draw = len(rows[0]), Resampling(None, resamples)
    centred = [unit(r - r.mean(0)) for r in rows]
    same = np.mean([_dots(a, b) for a, b in combinations(rows, 2)], axis=0)
    other = np.mean([_other(a, b) for a, b in permutations(rows, 2)], axis=0)
    numbers = np.arange(n)
    within = np.mean([_other(r, r) for r in rows], axis=0)
    values = {
        "cos": (same, float(other.mean())),
        "cos_other": (_both(other), np.nan),
        "cos_within": (_both(within), np.nan),
        "ccos": (np.mean([_dots(a, b) for a, b in combinations(centred, 2)], axis=0), -1 / (n - 1)),
    }
    found = {name: mean_estimate(each, chance, draw, SIGNED) for name, (each, chance) in values.items()}
    searches = [
        search_estimates([Search(a, b, numbers, numbers)], ["R@1"], resamples) for a, b in permutations(rows, 2)
    ]
    return {**found, "R@1": average([search["R@1"] for search in searches], n, n)}


def _both(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values whose mean is that of `values` and which vary twice as much: each text is on both sides of its pairs."""
    return np.asarray(2 * values - values.mean())


def _dots(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((a * b).sum(1))


def _other(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Per text of a, mean dot product with all other texts of b: (n,)."""
    return np.asarray((a @ b.sum(0) - _dots(a, b)) / (len(a) - 1))


def agreement_rows(
    towers: Mapping[str, ArrayLike], context: Context, student: ArrayLike | None = None, resamples: int = 1000
) -> list[Row]:
    """Rows of `text_agreement` over all towers (modality "mean"); with `student` also student against mean teacher.

    The mean teacher of a text is the normalised mean of the towers' embeddings of it.
    """
    n = len(np.asarray(next(iter(towers.values())))) if towers else 0
    together = replace(context, modality="mean", text_encoder="teacher", task="towers")
    metrics = text_agreement(list(towers.values()), resamples) if len(towers) > 1 else {}
    rows = [together.row("text_agreement", name, value, gallery=n) for name, value in metrics.items()]
    if student is not None:
        teacher = unit(np.mean([np.asarray(t, dtype=np.float64) for t in towers.values()], axis=0))
        place = replace(together, text_encoder="student", task="student to mean teacher")
        pair = text_agreement([student, teacher], resamples)
        rows += [place.row("text_agreement", name, value, gallery=n) for name, value in pair.items()]
    return rows
