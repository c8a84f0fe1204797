"""Naive oracles of Eq. 1, 2, 6, 7, 8 and 9: the definitions as loops over items, towers and pairs, scalar by scalar.

Written to be obviously correct, not fast. All take float64 tensors, so that autograd gives oracle gradients too.
"""

import torch
from torch import Tensor


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """||a - b||^2 of two vectors."""
    return sum(((x - y) ** 2 for x, y in zip(a, b)), torch.zeros((), dtype=a.dtype))


def info_nce_row(logits: list[Tensor], weights: list[float]) -> Tensor:
    """-sum_j p_j log(exp l_j / sum_k exp l_k), p the weights made to sum to 1; 0 if there are none."""
    mass = sum(weights)
    if mass == 0:
        return logits[0] * 0
    top = max(float(value) for value in logits)
    denominator = sum(torch.exp(value - top) for value in logits)
    return -sum((w / mass) * ((value - top) - torch.log(denominator)) for value, w in zip(logits, weights) if w > 0)


def clip_loss(image, text, scale, direction="both", positives=None, reduction="mean", ignore=None) -> Tensor:
    """Eq. 1 / Eq. 8 item by item."""
    n, k = len(image), len(text)

    def logit(i, j):
        return scale * sum(x * y for x, y in zip(image[i], text[j]))

    def weight(i, j):
        return float(i == j) if positives is None else float(positives[i, j])

    def kept(i, j):
        return ignore is None or not bool(ignore[i, j])

    rows = [[(logit(i, j), weight(i, j)) for j in range(k) if kept(i, j)] for i in range(n)]
    columns = [[(logit(i, j), weight(i, j)) for i in range(n) if kept(i, j)] for j in range(k)]
    answers = []
    for lines in {"i2t": [rows], "t2i": [columns], "both": [rows, columns]}[direction]:
        losses = [info_nce_row([x for x, _ in line], [w for _, w in line]) for line in lines]
        counted = sum(1 for line in lines if sum(w for _, w in line) > 0)
        answers.append(sum(losses) / (max(counted, 1) if reduction == "mean" else 1))
    return sum(answers) / len(answers)


def text_mse(embeddings, weights=None, reduction="sum") -> Tensor:
    """The double sum of Eq. 6 over unordered pairs, as printed."""
    m, (n, d) = len(embeddings), embeddings[0].shape
    w = [1.0] * m if weights is None else weights
    answer = embeddings[0].sum() * 0
    for a in range(m):
        for b in range(a + 1, m):
            for i in range(n):
                distance = squared_distance(embeddings[a][i], embeddings[b][i])
                answer = answer + w[a] * w[b] * distance / n / (d if reduction == "mean" else 1)
    return answer


def text_contrastive(embeddings, scale, weights=None, ids=None, pairs="mean") -> Tensor:
    """Weighted mean of InfoNCE losses, tower against the mean of the others or pair by pair."""
    m, n = len(embeddings), len(embeddings[0])
    w = [1.0] * m if weights is None else weights
    ignore = torch.zeros(n, n, dtype=torch.bool)
    for i in range(n):
        for j in range(n):
            ignore[i, j] = ids is not None and i != j and ids[i] == ids[j]
    numerator, denominator = embeddings[0].sum() * 0, 0.0
    for a in range(m):
        if pairs == "all":
            for b in range(a + 1, m):
                loss = clip_loss(embeddings[a], embeddings[b], scale, ignore=ignore)
                numerator, denominator = numerator + w[a] * w[b] * loss, denominator + w[a] * w[b]
        elif w[a] > 0 and sum(w) > w[a]:
            others = sum(w[b] * embeddings[b] for b in range(m) if b != a)
            others = torch.stack([row / sum(x * x for x in row).sqrt() for row in others])
            numerator = numerator + w[a] * clip_loss(embeddings[a], others, scale, ignore=ignore)
            denominator += w[a]
    return numerator / denominator if denominator else numerator


def kd_loss(student, teachers, mode="all", owner=None) -> Tensor:
    """Eq. 7 teacher by teacher, text by text."""
    n = len(student)
    if mode == "own":
        return sum(squared_distance(teachers[int(owner[i])][i], student[i]) for i in range(n)) / n
    return sum(squared_distance(teacher[i], student[i]) for teacher in teachers for i in range(n)) / n


def mixed_positives(texts, labels, label_weight=0.5) -> Tensor:
    """Targets of each row: a share spread over items of the same label (without one: same text), the rest by text."""
    n = len(texts)
    classes = [("text", text) if label is None else ("label", label) for text, label in zip(texts, labels)]
    answer = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        for keys, share in ((texts, 1 - label_weight), (classes, label_weight)):
            same = [j for j in range(n) if keys[j] == keys[i]]
            for j in same:
                answer[i, j] += share / len(same)
    return answer
