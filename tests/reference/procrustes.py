"""Naive pieces of generalised Procrustes: its objective as printed, and random maps and rotations near the identity."""

import numpy as np


def distance(embeddings, maps, weights=None):
    """sum_{a<b} w_a w_b mean_i ||X_a,i R_a - X_b,i R_b||^2."""
    w = [1.0] * len(maps) if weights is None else weights
    total = 0.0
    for a in range(len(maps)):
        for b in range(a + 1, len(maps)):
            difference = np.asarray(embeddings[a]) @ np.asarray(maps[a]) - np.asarray(embeddings[b]) @ np.asarray(
                maps[b]
            )
            total += w[a] * w[b] * (difference**2).sum(1).mean()
    return total


def rotation(random, dim):
    """A random orthogonal matrix."""
    q, r = np.linalg.qr(random.standard_normal((dim, dim)))
    return q * np.sign(np.diag(r))


def small_rotation(random, dim, angle):
    """exp of a random skew matrix of spectral size `angle`, by the Cayley transform."""
    noise = random.standard_normal((dim, dim))
    skew = noise - noise.T
    skew *= angle / np.linalg.norm(skew, 2) / 2
    eye = np.eye(dim)
    return np.linalg.solve(eye - skew, eye + skew)


def unit(rows):
    """Rows of length 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
