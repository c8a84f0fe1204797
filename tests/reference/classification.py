"""Naive classification metrics: one sample at a time."""

import math

import numpy as np


def corner_threshold(truth, scores, low=0.0, high=1.0):
    """Of 100 evenly spaced thresholds the last one nearest to the corner (no false positives, all true ones)."""
    best, chosen = math.inf, None
    for threshold in np.linspace(low, high, 100):
        found = [score > threshold for score in scores]
        hits = sum(f and t for f, t in zip(found, truth)) / sum(truth)
        false = sum(f and not t for f, t in zip(found, truth)) / sum(not t for t in truth)
        distance = math.sqrt((1 - hits) ** 2 + false**2)
        if distance <= best:
            best, chosen = distance, threshold
    return chosen


def calibration_error(confidence, right, bins):
    """Sum over bins of share of answers x |mean confidence - share right|; bin i is (i / bins, (i + 1) / bins]."""
    total = 0.0
    for i in range(bins):
        members = [j for j, c in enumerate(confidence) if i / bins < c <= (i + 1) / bins or (i == 0 and c == 0)]
        if members:
            sure = sum(confidence[j] for j in members) / len(members)
            share = sum(bool(right[j]) for j in members) / len(members)
            total += len(members) / len(confidence) * abs(sure - share)
    return total


def shuffled_mean(figure, y, said, times=3000, seed=0):
    """Mean of `figure(y, said)` over random re-orderings of the predictions."""
    rng = np.random.default_rng(seed)
    return float(np.mean([figure(y, said[rng.permutation(len(said))]) for _ in range(times)]))
