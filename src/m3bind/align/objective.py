"""The objective of stage 1: image-text losses within modalities, text-text losses between them (Eq. 1, 2 and 6).

* `clip_loss`: Eq. 1, the InfoNCE of all stages, re-exported.
* `text_mse`: Eq. 2 and the double sum of Eq. 6, in O(M).
* `text_contrastive`: InfoNCE between text towers, beyond the paper.
* `total`: Eq. 6 from its terms, as named losses.

The paper's literal Eq. 6 is these functions with `clip_loss(..., direction="i2t", reduction="sum")` and the weights of
`balance.loss_weights(sizes, literal=True)`.

Shapes: M towers, n texts of the shared batch, d shared dimension. Embeddings are M tensors (n, d), row i of each the
same text.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from m3bind.errors import ConfigError
from m3bind.training.contrastive import Reduction, clip_loss, full_precision, identical_positives

__all__ = ["clip_loss", "text_contrastive", "text_mse", "total"]


def text_mse(
    embeddings: Sequence[Tensor], weights: Sequence[float] | None = None, reduction: Reduction = "sum"
) -> Tensor:
    """Sum over a < b of w_a w_b L_MSE(a, b), with L_MSE(a, b) = mean_i ||T_a,i - T_b,i||^2: Eq. 2 inside Eq. 6.

    Computed in O(M) by the centred identity, with W = sum_a w_a and C = sum_a w_a T_a / W:

        sum_{a<b} w_a w_b ||T_a - T_b||^2 = W * sum_a w_a ||T_a - C||^2

    All its terms are non-negative. The equal form W * sum w_a ||T_a||^2 - ||sum w_a T_a||^2 is a small difference of
    large numbers if towers agree: in float32, at distances of 1e-4, its error is 10 %, that of this one 1e-7. For the
    same reason C is computed from differences to the first tower, which are exact for close towers. As the derivative
    with respect to C is zero, C is a constant for the backward pass (first derivatives only).

    Args:
        embeddings: M tensors (n, d).
        weights: w_m >= 0 of Eq. 5; None: all 1.
        reduction: "sum" over the d dimensions, or "mean" (divides by d).

    Returns:
        Scalar, in float32 or wider; 0 for one tower.

    Raises:
        ConfigError: unequal shapes, unknown reduction, or weights that do not fit.
    """
    if reduction not in ("sum", "mean"):
        raise ConfigError(f"text_mse: unknown reduction {reduction!r}; use 'sum' or 'mean'")
    w = _check(embeddings, weights, "text_mse")
    with full_precision(*embeddings) as towers:
        whole = sum(w)
        with torch.no_grad():
            centre = torch.zeros_like(towers[0])
            for weight, tower in zip(w[1:], towers[1:]):
                centre.add_(tower - towers[0], alpha=weight / whole if whole else 0.0)
            centre += towers[0]
        spread = torch.stack([w_a * (tower - centre).square().sum() for w_a, tower in zip(w, towers)]).sum()
        rows, dim = centre.shape
        return spread * (whole / (rows * dim if reduction == "mean" else rows))


def text_contrastive(
    embeddings: Sequence[Tensor],
    scale: Tensor | float,
    weights: Sequence[float] | None = None,
    ids: Tensor | Sequence[Hashable] | None = None,
    pairs: Literal["mean", "all"] = "mean",
) -> Tensor:
    """Symmetric InfoNCE between text towers: the same text in two towers is the positive, other texts the negatives.

    Eq. 2 alone may collapse all texts; this term separates different texts. `pairs="mean"` compares each tower
    with the normalised weighted mean of the *other* towers, O(M): sum_a w_a L(T_a, C_-a) / sum_a w_a. `pairs="all"`
    compares all pairs: sum_{a<b} w_a w_b L(T_a, T_b) / sum_{a<b} w_a w_b. Both are weighted means, so the value does
    not grow with M nor with a common factor of the weights; for two towers of equal weight they agree.

    Args:
        embeddings: M tensors (n, d) of unit rows.
        scale: factor on cosines.
        weights: w_m >= 0; None: all 1.
        ids: (n,) text id of each row; another row with the same text is not a negative, it is excluded.
        pairs: "mean" or "all".

    Returns:
        Scalar, in float32 or wider; 0 if fewer than two towers have weight.

    Raises:
        ConfigError: unequal shapes, unknown `pairs`, or weights or ids that do not fit.
    """
    if pairs not in ("mean", "all"):
        raise ConfigError(f"text_contrastive: unknown pairs {pairs!r}; use 'mean' or 'all'")
    w = _check(embeddings, weights, "text_contrastive")
    if ids is not None and len(ids) != len(embeddings[0]):
        raise ConfigError(f"text_contrastive: {len(ids)} ids for {len(embeddings[0])} texts; give one per row")
    with full_precision(*embeddings) as towers:
        used = [(weight, tower) for weight, tower in zip(w, towers) if weight > 0]
        if len(used) < 2:
            return towers[0].sum() * 0
        same = None
        if ids is not None:
            same = identical_positives(ids).to(towers[0].device).fill_diagonal_(False)
        if pairs == "all":
            terms = [(v * u, x, y) for a, (v, x) in enumerate(used) for u, y in used[a + 1 :]]
        else:
            terms = [(v, x, y) for (v, x), y in zip(used, _means_of_others(used))]
        losses = torch.stack([weight * clip_loss(x, y, scale, ignore=same) for weight, x, y in terms])
        return losses.sum() / sum(weight for weight, _, _ in terms)


def _means_of_others(towers: list[tuple[float, Tensor]]) -> list[Tensor]:
    """Normalised weighted sum of all towers but one, for each, (n, d).

    Each is a cumulative sum from the left plus one from the right, so nothing is subtracted and no digits cancel.
    """
    scaled = [weight * tower for weight, tower in towers]
    left, right = [torch.zeros_like(scaled[0])], [torch.zeros_like(scaled[0])]
    for ahead, behind in zip(scaled[:-1], reversed(scaled[1:])):
        left.append(left[-1] + ahead)
        right.append(right[-1] + behind)
    return [F.normalize(before + after, dim=-1) for before, after in zip(left, reversed(right))]


def total(
    clip: Mapping[str, Tensor],
    weights: Mapping[str, float],
    mse: Tensor | None = None,
    lam: float = 10.0,
    contrastive: Tensor | None = None,
    contrastive_weight: float = 0.0,
    drift: Mapping[str, Tensor] | None = None,
    drift_weight: float = 0.0,
) -> dict[str, Tensor]:
    """Eq. 6: loss = sum_m w_m clip_m + lam * mse + contrastive_weight * contrastive, as the named losses of one step.

    Args:
        clip: Eq. 1 of each modality that has a batch in this step.
        weights: w_m of Eq. 5, at least for the modalities in `clip`.
        mse: `text_mse` of the shared batch, which includes the products w_a w_b; None: no such term.
        lam: lambda.
        contrastive: `text_contrastive` of the shared batch; None: no such term.
        contrastive_weight: its weight; 0 is the paper.
        drift: mean squared distance of copies of images to the images, of each modality that has copies.
        drift_weight: weight of their sum, in which each modality has its w_m; 0 is the paper.

    Returns:
        {"clip/<modality>": ..., "mse": ..., "text_contrastive": ..., "consistency": ..., "loss": total}: the given
        terms unweighted (consistency: the sum over modalities), and the weighted sum.

    Raises:
        ConfigError: there is no term, or a modality has no weight.
    """
    missing = [name for name in clip if name not in weights]
    if missing:
        raise ConfigError(f"total: no loss weight for modality {', '.join(missing)}; known: {', '.join(weights)}")
    named = {f"clip/{name}": loss for name, loss in clip.items()}
    terms = [weights[name] * loss for name, loss in clip.items()]
    if mse is not None:
        named["mse"] = mse
        terms.append(lam * mse)
    if contrastive is not None:
        named["text_contrastive"] = contrastive
        terms.append(contrastive_weight * contrastive)
    if drift:
        named["consistency"] = torch.stack([weights[name] * value for name, value in drift.items()]).sum()
        terms.append(drift_weight * named["consistency"])
    if not terms:
        raise ConfigError("total: a step needs an image-text batch or a text batch; both are missing")
    return {**named, "loss": torch.stack(terms).sum()}


def _check(embeddings: Sequence[Tensor], weights: Sequence[float] | None, what: str) -> list[float]:
    """The weights as floats, after checking that they and the embeddings fit."""
    shapes = [tuple(tower.shape) for tower in embeddings]
    if not shapes or len(set(shapes)) > 1 or len(shapes[0]) != 2 or not all(shapes[0]):
        raise ConfigError(
            f"{what}: towers have shapes {shapes}; all must be the same (n, d), n and d > 0: bridge them first"
        )
    w = [1.0] * len(shapes) if weights is None else [float(weight) for weight in weights]
    if len(w) != len(shapes) or not all(0 <= weight < float("inf") for weight in w):
        raise ConfigError(f"{what}: weights {w} do not fit {len(shapes)} towers; give one finite weight >= 0 each")
    return w
