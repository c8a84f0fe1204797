"""Naive oracles of the binding methods' objectives: loops over items and towers, scalar by scalar, float64."""

import torch
from torch import Tensor

from reference.losses import info_nce_row


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return sum(x * y for x, y in zip(a, b))


def _length(a: Tensor) -> Tensor:
    return sum(x * x for x in a).sqrt()


def weighted_info_nce(a, b, scale, weights=None, ids=None) -> Tensor:
    """sum_i w_i (CE of row i among b + CE of row i among a) / 2, over sum_i w_i; equal ids are no negatives."""
    n = len(a)
    w = [1.0] * n if weights is None else [float(x) for x in weights]
    total = a.sum() * 0
    for i in range(n):
        others = [j for j in range(n) if j == i or ids is None or ids[i] != ids[j]]
        hot = [float(j == i) for j in others]
        there = info_nce_row([scale * _dot(a[i], b[j]) for j in others], hot)
        back = info_nce_row([scale * _dot(a[j], b[i]) for j in others], hot)
        total = total + w[i] * (there + back) / 2
    return total / sum(w)


def star_info_nce(towers, scale, weights=None) -> Tensor:
    """Mean over towers of the loss against the normalised weighted mean of the others."""
    n, m = len(towers[0]), len(towers)
    w = [torch.ones(n, dtype=torch.float64)] * m if weights is None else weights
    total = towers[0].sum() * 0
    for a in range(m):
        rows, counts = [], []
        for i in range(n):
            mean = sum(w[b][i] * towers[b][i] for b in range(m) if b != a)
            rows.append(mean / _length(mean))
            counts.append(w[a][i] * sum(w[b][i] for b in range(m) if b != a))
        total = total + weighted_info_nce(towers[a], torch.stack(rows), scale, counts)
    return total / m


def cmcr_loss(texts, images, scale, lam, sure=None) -> Tensor:
    """inter of texts + inter of images + lam * intra."""
    n, m = len(texts[0]), len(texts)
    w = [[1.0] * n] * m if sure is None else [[float(x) for x in row] for row in sure]
    intra = sum(w[a][i] * _length(texts[a][i] - images[a][i]) for a in range(m) for i in range(n))
    intra = intra / sum(map(sum, w)) / 2
    return star_info_nce(texts, scale) + star_info_nce(images, scale, sure) + lam * intra


def dense_loss(leaf, base, scale) -> Tensor:
    """Mean over {texts, images} of the leaf x {texts, images} of the base."""
    total, n = leaf[0].sum() * 0, len(leaf[0])
    for a in (0, 1):
        for b in (0, 1):
            u = leaf[2] if a and leaf[2] is not None else [1.0] * n
            v = base[2] if b and base[2] is not None else [1.0] * n
            total = total + weighted_info_nce(leaf[a], base[b], scale, [float(x) * float(y) for x, y in zip(u, v)])
    return total / 4


def hard_negative_loss(rows, target, scale, ids=None) -> Tensor:
    """Cross-entropy of each row among itself and the targets whose cosine lies in [.1 s_ii, .9 s_ii]."""
    n, total = len(rows), rows.sum() * 0
    for i in range(n):
        own = _dot(rows[i], target[i])
        kept, hot = [scale * own], [1.0]
        for j in range(n):
            s = _dot(rows[i], target[j])
            if j != i and 0.1 * own <= s <= 0.9 * own and (ids is None or ids[i] != ids[j]):
                kept.append(scale * s)
                hot.append(0.0)
        total = total + info_nce_row(kept, hot)
    return total / n


def affinity_loss(image, student, teacher, scale) -> Tensor:
    """Mean over both directions and rows of -sum_j p_j log q_j; p the teacher's softmax, q the student's."""
    return _over_affinities(image, student, teacher, scale, lambda p, q: -sum(x * y.log() for x, y in zip(p, q))) / 2


def relation_loss(image, student, teacher, scale) -> Tensor:
    """Sum over both directions of the mean over rows of KL(p || q)."""
    return _over_affinities(
        image, student, teacher, scale, lambda p, q: sum(x * (x.log() - y.log()) for x, y in zip(p, q))
    )


def _over_affinities(image, student, teacher, scale, measure) -> Tensor:
    n, total = len(image), image.sum() * 0
    for i in range(n):
        for pick in (lambda t, i, j: _dot(image[i], t[j]), lambda t, i, j: _dot(t[i], image[j])):
            rows = []
            for text in (teacher, student):
                powers = [(scale * pick(text, i, j)).exp() for j in range(n)]
                rows.append([power / sum(powers) for power in powers])
            total = total + measure(*rows) / n
    return total
