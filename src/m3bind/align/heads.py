"""Shared parts of the methods that train heads on precomputed embeddings.

* `SharedTexts`: the shared text pool embedded by every tower, sampled by Eq. 3, with the images averaged for each text.
* `aggregate`: texts -> soft averages of images (the pseudo-pairs of C-MCR) and their confidence.
* `perturb`: Gaussian noise with a strength independent of the dimension.
* `weighted_info_nce`, `star_info_nce`: InfoNCE with rows weighted by confidence.
* `train_heads`, `loop_settings`: heads trained by the common loop.

Shapes: n texts of a batch, K texts of the pool, N images of the memory, M towers, d_m and d dimensions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3bind.align.methods.base import BindingInputs
from m3bind.align.procrustes import BaseBridge
from m3bind.config import AlignConfig
from m3bind.data.batching import PoolSampler, distinct_ids
from m3bind.models.bridges import freeze
from m3bind.training.contrastive import full_precision, identical_positives
from m3bind.training.loop import ParameterGroup, train
from m3bind.training.pairs import Batch

TRAINING = {"steps": 200, "batch": 256, "lr": 1e-3, "weight_decay": 0.01}  # of heads, defaults of every method


@torch.no_grad()
def aggregate(texts: Tensor, images: Tensor, tau: float, chunk: int = 512) -> tuple[Tensor, Tensor]:
    """v(t) = normalise(sum_k p_k I_k), p = softmax_k(t . I_k / tau): (K, d) and (N, d) -> (K, d), confidence (K,).

    The confidence is 1 - H(p) / log N: 1 if a single image has all the weight, 0 for equal weights. For N = 1 it is 1.
    """
    rows, sure = [], []
    for part in torch.split(texts, chunk):
        logs = F.log_softmax(part @ images.T / tau, dim=-1)
        shares = logs.exp()
        rows.append(F.normalize(shares @ images, dim=-1))
        entropy = -(shares * logs).sum(-1)
        sure.append(1 - entropy / np.log(max(len(images), 2)))
    return torch.cat(rows), torch.cat(sure).clamp(0, 1)


def perturb(rows: Tensor, noise: float) -> Tensor:
    """normalise(x + e), e Gaussian with E||e||^2 = `noise` in every dimension: (n, d) -> (n, d)."""
    if not noise:
        return rows
    return F.normalize(rows + torch.randn_like(rows) * (noise / rows.shape[-1]) ** 0.5, dim=-1)


def weighted_info_nce(
    a: Tensor, b: Tensor, scale: float, weights: Tensor | None = None, same: Tensor | None = None
) -> Tensor:
    """Symmetric InfoNCE of (n, d) unit rows, weighted by w = `weights` (n,): sum_i w_i CE_i / sum_i w_i.

    `same` (n, n) bool: pairs of the same text, which are not negatives (the diagonal is always the positive).
    """
    with full_precision(a, b) as (a, b):
        logits = scale * a @ b.T
        if same is not None:
            off = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
            logits = logits.masked_fill(off.to(logits.device), -torch.inf)
        w = torch.ones(len(a), device=logits.device) if weights is None else weights.to(logits)
        right = logits.diagonal()
        each = (logits.logsumexp(1) + logits.logsumexp(0)) / 2 - right
        return (w * each).sum() / w.sum().clamp(min=1e-12)


def star_info_nce(
    towers: Sequence[Tensor], scale: float, weights: Sequence[Tensor] | None = None, same: Tensor | None = None
) -> Tensor:
    """Mean over towers of `weighted_info_nce` between tower m and the weighted mean of the others, normalised: O(M).

    `towers`: M tensors (n, d) of unit rows; `weights`: M tensors (n,), default ones. Row i of tower m has weight
    w_m,i * sum_{b != m} w_b,i. Without weights this is `align.objective.text_contrastive`.
    """
    w = [torch.ones(len(t), device=t.device) for t in towers] if weights is None else list(weights)
    losses = []
    for m, tower in enumerate(towers):
        others = [b for b in range(len(towers)) if b != m]
        centre = F.normalize(sum(w[b][:, None] * towers[b] for b in others), dim=-1)  # type: ignore[arg-type]
        losses.append(weighted_info_nce(tower, centre, scale, w[m] * sum(w[b] for b in others), same))
    return torch.stack(losses).mean()


class SharedTexts:
    """The pool texts embedded by every tower, and a sampler of them."""

    def __init__(self, inputs: BindingInputs, settings: AlignConfig, batch: int) -> None:
        """Texts are embedded once; modalities are sampled by `settings.balance`."""
        shares = inputs.pool_probabilities(settings.balance)
        names = list(inputs.pairs)
        self.ids = distinct_ids(*(inputs.pool[m] for m in names))
        self.texts = {m: inputs.embed_texts(m, torch.from_numpy(self.ids)) for m in names}  # (K, d_m)
        self.sampler = PoolSampler([inputs.pool[m] for m in names], [shares[m] for m in names], batch, inputs.seed)

    def batch(self, step: int) -> Batch:
        """Positions "at" (n,) in the pool, and the pairs of the batch with equal texts, "same" (n, n) bool."""
        ids, _ = self.sampler.batch(step)
        at = torch.from_numpy(np.searchsorted(self.ids, ids))
        return {"step": step, "items": len(at), "at": at, "same": identical_positives(at)}

    def aggregated(self, inputs: BindingInputs, tau: float, memory: int) -> dict[str, tuple[Tensor, Tensor]]:
        """`aggregate` of every pool text over each tower's own training images, at most `memory` of them."""
        return {m: aggregate(rows, inputs.embed_images(m, memory), tau) for m, rows in self.texts.items()}


@dataclass
class HeadStage:
    """The training stage: heads, batches as a function of the step, and the losses of a batch."""

    name: str
    heads: Mapping[str, BaseBridge]
    batch: Callable[[int], Batch]
    losses: Callable[[Batch], dict[str, Tensor]]

    def groups(self) -> Sequence[ParameterGroup]:
        """One group per modality."""
        return [ParameterGroup(m, list(head.parameters())) for m, head in self.heads.items()]

    def modules(self) -> Mapping[str, nn.Module]:
        """The heads."""
        return {f"head.{m}": head for m, head in self.heads.items()}


def train_heads(
    name: str,
    heads: Mapping[str, BaseBridge],
    batch: Callable[[int], Batch],
    losses: Callable[[Batch], dict[str, Tensor]],
    inputs: BindingInputs,
    settings: AlignConfig,
    options: Mapping[str, Any],
) -> dict[str, BaseBridge]:
    """Train `heads` in place with steps, batch, lr and weight decay of `options`, then freeze them."""
    for head in heads.values():
        head.train()
    stage = HeadStage(name, heads, batch, losses)
    train(stage, loop_settings(settings, options), inputs.folder, inputs.seed, inputs.compute)
    return {m: freeze(head) for m, head in heads.items()}


def loop_settings(settings: AlignConfig, options: Mapping[str, Any]) -> AlignConfig:
    """`settings` with the values of `options` for the loop."""
    return settings.model_copy(update={key: options[key] for key in TRAINING if key in options})
