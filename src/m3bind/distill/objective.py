"""The objective of stage 2, SESKD: the bound text towers are distilled into a student text encoder (Eq. 7-9).

* `kd_loss`: Eq. 7, distillation.
* `DistillPairs`, `seskd_loss`: Eq. 9, distillation and the image-text loss of Eq. 8 per modality, as named losses.

Shapes: M teachers, n texts of the shared batch, p pairs of one modality, d shared dimension.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from m3bind.errors import ConfigError
from m3bind.training.contrastive import Direction, Reduction, clip_loss, full_precision

Mode = Literal["all", "own"]


def kd_loss(
    student: Tensor,
    teachers: Sequence[Tensor] | Tensor,
    mode: Mode = "all",
    owner: Tensor | None = None,
    count: int = 1,
) -> Tensor:
    """Eq. 7: sum over teachers of mean_i ||T_m,i - S_i||^2 (squared norm, summed over d).

    For all teachers the identity sum_m ||T_m - s||^2 = M ||s - mean_m T_m||^2 + sum_m ||T_m - mean_m T_m||^2 is used:
    only their mean acts on the student, the rest is a constant. Given the teachers, the value includes the constant;
    given their mean alone, computed once per distinct text, the gradient is the same and the constant is omitted.

    Args:
        student: (n, d).
        teachers: M tensors (n, d) (or one (M, n, d)); or one (n, d): the teachers' mean, or any single target, such as
            the mean normalised.
        mode: "all": every teacher on every text. "own": text i only from the teacher of its modality; the mean runs
            over the whole batch, so a modality counts as often as it was sampled.
        owner: (n,) index of the teacher each text belongs to; needed for "own" with M teachers.
        count: M when `teachers` is a mean, so that the gradient has Eq. 7's size.

    Returns:
        Scalar, in float32 or wider.

    Raises:
        ConfigError: unknown mode, shapes that do not fit, or "own" without `owner`.
    """
    if mode not in ("all", "own"):
        raise ConfigError(f"kd_loss: unknown mode {mode!r}; use 'all' or 'own'")
    if not len(teachers):
        raise ConfigError("kd_loss: no teachers given")
    stacked = teachers if isinstance(teachers, Tensor) else torch.stack(list(teachers))
    if student.ndim != 2 or stacked.ndim not in (2, 3) or stacked.shape[-2:] != student.shape:
        raise ConfigError(
            f"kd_loss: student {tuple(student.shape)} and teachers {tuple(stacked.shape)} do not fit; "
            "each teacher must have the student's shape (n, d)"
        )
    with full_precision(student, stacked) as (student, stacked):
        if stacked.ndim == 2:
            return count * _mean_square(student - stacked)
        if mode == "all":
            centre = stacked.mean(0)
            return len(stacked) * (_mean_square(student - centre) + _mean_square(stacked - centre))
        if owner is None or owner.shape != student.shape[:1]:
            raise ConfigError(
                f"kd_loss: mode 'own' needs `owner`, the teacher's index for each of {len(student)} texts"
            )
        return _mean_square(student - stacked[owner, torch.arange(len(student), device=owner.device)])


def _mean_square(difference: Tensor) -> Tensor:
    """Mean over all leading axes of the squared norm along the last."""
    return difference.square().sum(-1).mean()


@dataclass(frozen=True)
class DistillPairs:
    """Image-text pairs of one modality in one step: unit rows, the texts embedded by the student."""

    image: Tensor  # (p, d), from the frozen image tower and bridge
    text: Tensor  # (p, d), student
    scale: Tensor | float  # the modality's frozen logit scale
    positives: Tensor | None = None  # (p, p), as in clip_loss


def seskd_loss(
    kd: Tensor,
    pairs: Mapping[str, DistillPairs],
    direction: Direction = "both",
    reduction: Reduction = "mean",
    contrastive_weight: float = 1.0,
    kd_weight: float = 1.0,
) -> dict[str, Tensor]:
    """Eq. 9: loss = kd_weight * Eq. 7 + contrastive_weight * sum over modalities of Eq. 8, as named losses of one step.

    Eq. 8 is `clip_loss` between the student's texts and the images of the same modality; negatives come from that
    modality only. The paper's form is `direction="t2i", reduction="sum"`. Without pairs (phase A) this is Eq. 7 alone.

    Args:
        kd: scalar, `kd_loss` of the shared batch.
        pairs: modalities with pairs in this step.
        direction: of Eq. 8.
        reduction: of Eq. 8, over the pairs of a modality.
        contrastive_weight: 1 in the paper.
        kd_weight: likewise.

    Returns:
        {"kd": ..., "clip/<modality>": ..., "loss": total}: the terms unweighted, and their sum.

    Raises:
        ConfigError: as `clip_loss`.
    """
    losses = {"kd": kd}
    loss = kd_weight * kd
    for name, batch in pairs.items():
        term = clip_loss(batch.image, batch.text, batch.scale, direction, batch.positives, reduction)
        losses[f"clip/{name}"] = term
        loss = loss + contrastive_weight * term
    return {**losses, "loss": loss}
