"""Tip-Adapter: a cache of labelled images added to the text classifier, without training.

logits = scale * x . t + alpha * exp(-beta (1 - x . K)) V, with K the training embeddings and V their labels.
Zhang et al. 2022, arXiv:2111.03930 (alpha 1, beta 5.5, both searched on valid if it is given).

Shapes: n samples, N cached ones, d joint dimension, c classes or labels.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m3bind.errors import M3BindError
from m3bind.evaluate.adapters.base import Adapter, FewShotProblem, Samples, Scorer, quality
from m3bind.evaluate.adapters.clip_adapter import label_bias
from m3bind.evaluate.confidence import Floats

ALPHA, BETA = 1.0, 5.5
ALPHAS = np.linspace(0.1, 13.0, 20)
BETAS = np.linspace(0.1, 13.0, 20)
MAX_KEYS = 20_000
_BLOCK = 512  # samples scored at once


@dataclass(frozen=True)
class Cache:
    """Keys (N, d) unit rows with labels (N, c), and the text classifier."""

    keys: NDArray[np.float64]
    values: NDArray[np.float64]
    problem: FewShotProblem
    bias: Floats

    def text(self, samples: Samples) -> Floats:
        """Logits of the text classifier: (n, c)."""
        return np.asarray(self.problem.scale * np.asarray(samples.embeddings) @ self.problem.classes.T + self.bias)

    def votes(self, samples: Samples, beta: float) -> Floats:
        """exp(-beta (1 - x . K)) V: (n, c)."""
        x = np.asarray(samples.embeddings, dtype=np.float64)
        blocks = (np.exp(-beta * (1 - x[s : s + _BLOCK] @ self.keys.T)) for s in range(0, len(x), _BLOCK))
        return np.concatenate([block @ self.values for block in blocks] or [np.empty((0, self.values.shape[1]))])

    def scorer(self, alpha: float, beta: float) -> Scorer:
        """The sum of text logits and `alpha` times the votes."""
        return lambda samples: self.text(samples) + alpha * self.votes(samples, beta)

    def searched(self, valid: Samples | None) -> Scorer:
        """The scorer with the best alpha and beta of the grid on `valid`; without it those of the paper."""
        alpha, beta = ALPHA, BETA
        if valid is not None and len(valid):
            text, best = self.text(valid), -np.inf
            for b in (BETA, *BETAS):
                votes = self.votes(valid, b)
                for a in (ALPHA, *ALPHAS):
                    if (value := quality(valid.labels, text + a * votes)) > best:
                        alpha, beta, best = float(a), float(b), value
        return self.scorer(alpha, beta)


def build_cache(train: Samples, problem: FewShotProblem) -> Cache:
    """The samples as keys, with one column per class.

    Raises:
        M3BindError: more than `MAX_KEYS` samples.
    """
    if len(train) > MAX_KEYS:
        raise M3BindError(
            f"Tip-Adapter stores every sample: {len(train)} are more than {MAX_KEYS}; use linear_probe for large shares"
        )
    columns = np.arange(len(problem.classes))
    values = (train.labels == 1) if train.several else (train.labels[:, None] == columns)
    keys = np.asarray(train.embeddings, dtype=np.float64)
    return Cache(keys, values.astype(np.float64), problem, label_bias(train, problem))


class TipAdapter(Adapter):
    """The cache without training."""

    name = "tip_adapter"

    def fit(self, train: Samples, valid: Samples | None, problem: FewShotProblem) -> Scorer:
        """A scorer with alpha and beta chosen on `valid`."""
        return build_cache(train, problem).searched(valid)
