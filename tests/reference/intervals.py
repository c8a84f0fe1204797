"""Naive oracles of the gallery's part in intervals: every patient left out, every pair compared, in loops."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def left_out_changes(
    metric: Callable[[int, Sequence[int]], float], queries: Sequence[str], gallery: Sequence[str]
) -> Array:
    """(q, u): for each query patient and gallery patient, sorted, the change of the mean by the patient's files.

    That is the sum over the query patient's files of `metric` (query, gallery -> value) minus `metric` without the
    gallery patient's files, divided by the number of queries.
    """
    everything = range(len(gallery))
    rows, columns = sorted(set(queries)), sorted(set(gallery))
    changes = np.zeros((len(rows), len(columns)))
    for i, query in enumerate(queries):
        for column, patient in enumerate(columns):
            rest = [j for j in everything if gallery[j] != patient]
            if patient != query:
                changes[rows.index(query), column] += metric(i, everything) - metric(i, rest)
    return changes / len(queries)


def weighted_concept_auc(scores: Array, y: Sequence[int], z: Sequence[int], w: Array, v: Array) -> float:
    """Concept AUC when query i counts w[i] times and gallery item j counts v[j] times."""
    areas = []
    for c in sorted(set(y)):
        total = won = 0.0
        mine = [i for i in range(len(y)) if y[i] == c]
        right = [(i, j) for i in mine for j in range(len(z)) if z[j] == c]
        wrong = [(i, j) for i in mine for j in range(len(z)) if z[j] != c]
        for i, j in right:
            for k, m in wrong:
                weight = w[i] * v[j] * w[k] * v[m]
                total += weight
                won += weight * ((scores[i, j] > scores[k, m]) + (scores[i, j] == scores[k, m]) / 2)
        areas.append(won / total)
    return float(np.mean(areas))


def main_effects(changes: Array) -> Array:
    """Effect of each column of (q, u), shrunk by the share of its variance that is not the interaction's."""
    rows, columns = changes.shape
    grand = changes.mean()
    residual = 0.0
    for i in range(rows):
        for j in range(columns):
            residual += (changes[i, j] - changes[i].mean() - changes[:, j].mean() + grand) ** 2
    noise = residual / ((rows - 1) * (columns - 1))
    sums = changes.sum(0) - changes.sum(0).mean()
    mean_square = (sums**2).sum() / (columns - 1)
    return np.asarray(sums * np.sqrt(max(0.0, 1 - rows * noise / mean_square)))
