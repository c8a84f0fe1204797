"""CLIP-Adapter: a small residual network on the image embedding, scored against the class texts.

x' = ratio * MLP(x) + (1 - ratio) * x, then unit length; logits = scale * x' . t. Gao et al. 2021, arXiv:2110.04544;
settings of FLAIR (reduction 4, ratio .2, AdamW 1e-3, 40 epochs of single samples, cosine).

Shapes: n samples, d joint dimension, c classes or labels.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3bind.core.files import sha256_text
from m3bind.evaluate.adapters.base import Adapter, FewShotProblem, Samples, Scorer, quality
from m3bind.evaluate.adapters.descent import Descent, descend, tensors
from m3bind.evaluate.confidence import Floats

REDUCTION = 4
RATIOS = (0.2, 0.4, 0.6, 0.8)  # the first without valid
_STEPS = 32  # maximum per epoch; the batch size follows from it


class Residual(nn.Module):
    """The adapter followed by the text classifier: (n, d) -> (n, c)."""

    def __init__(self, classes: Floats, bias: Floats, scale: float, ratio: float) -> None:
        super().__init__()
        dim = classes.shape[1]
        small = max(1, dim // REDUCTION)
        self.mlp = nn.Sequential(
            nn.Linear(dim, small, bias=False), nn.ReLU(), nn.Linear(small, dim, bias=False), nn.ReLU()
        )
        self.register_buffer("classes", torch.from_numpy(np.asarray(scale * classes, dtype=np.float32)))
        self.bias = nn.Parameter(torch.from_numpy(np.asarray(bias, dtype=np.float32)), requires_grad=bool(bias.any()))
        self.ratio = ratio

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        mixed = self.ratio * self.mlp(x) + (1 - self.ratio) * x
        return F.normalize(mixed, dim=-1) @ self.classes.T + self.bias  # type: ignore[operator]


def label_bias(train: Samples, problem: FewShotProblem) -> Floats:
    """(c,) added to text logits: 0 with classes; with labels, their mean over `train` becomes the log-odds there."""
    if not train.several:
        return np.zeros(len(problem.classes))
    known = train.labels >= 0
    share = ((train.labels == 1).sum(0) + 0.5) / (known.sum(0) + 1)
    logits = problem.scale * (np.asarray(train.embeddings, dtype=np.float64) @ problem.classes.T)
    return np.asarray(np.log(share / (1 - share)) - logits.mean(0))


class ClipAdapter(Adapter):
    """The residual adapter, with its ratio chosen on valid."""

    name = "clip_adapter"

    def fit(self, train: Samples, valid: Samples | None, problem: FewShotProblem) -> Scorer:
        """A scorer on the adapted embedding."""
        checked = valid if valid is not None and len(valid) else None
        fitted = [_fit(train, problem, ratio) for ratio in (RATIOS if checked else RATIOS[:1])]
        if checked is None:
            return fitted[0]
        return max(fitted, key=lambda scores: quality(checked.labels, scores(checked)))


def _fit(train: Samples, problem: FewShotProblem, ratio: float) -> Scorer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(sha256_text("clip_adapter", str(problem.seed))[:15], 16))
        module = Residual(problem.classes, label_bias(train, problem), problem.scale, ratio)
    settings = Descent(1e-3, 40, -(-len(train) // _STEPS), schedule="cosine", eps=1e-4, weight_decay=0.01)
    descend(module, tensors(train.embeddings, train.labels), settings, problem.seed)

    @torch.no_grad()
    def scores(samples: Samples) -> Floats:
        return module(torch.from_numpy(np.asarray(samples.embeddings, dtype=np.float32))).double().numpy()  # type: ignore[no-any-return]

    return scores
