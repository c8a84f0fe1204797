"""Tip-Adapter-F: Tip-Adapter whose keys are trained (AdamW 1e-3, 20 epochs, batch 256, cosine).

The keys of the last epoch are used. The authors' code takes the best epoch on the test set, which is not used here.

Shapes: n samples, N cached ones, d joint dimension, c classes or labels.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from m3bind.evaluate.adapters.base import Adapter, FewShotProblem, Samples, Scorer
from m3bind.evaluate.adapters.descent import Descent, descend, tensors
from m3bind.evaluate.adapters.tip_adapter import ALPHA, BETA, Cache, build_cache

SETTINGS = Descent(1e-3, 20, 256, schedule="cosine", eps=1e-4, weight_decay=0.01)


class Keys(nn.Module):
    """The scorer of a cache with its keys as parameters: (n, d) -> (n, c)."""

    def __init__(self, cache: Cache) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.from_numpy(cache.keys).float())
        for name, value in (
            ("values", cache.values),
            ("classes", cache.problem.scale * cache.problem.classes),
            ("bias", cache.bias),
        ):
            self.register_buffer(name, torch.from_numpy(np.asarray(value, dtype=np.float32)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        votes = torch.exp(-BETA * (1 - x @ self.keys.T)) @ self.values  # type: ignore[operator]
        return x @ self.classes.T + self.bias + ALPHA * votes  # type: ignore[operator]


class TipAdapterF(Adapter):
    """The cache with trained keys."""

    name = "tip_adapter_f"

    def fit(self, train: Samples, valid: Samples | None, problem: FewShotProblem) -> Scorer:
        """A scorer whose keys are trained on `train`, then alpha and beta chosen on `valid`."""
        cache = build_cache(train, problem)
        module = Keys(cache)
        descend(module, tensors(train.embeddings, train.labels), SETTINGS, problem.seed)
        return replace(cache, keys=module.keys.detach().double().numpy()).searched(valid)
