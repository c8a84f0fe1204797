"""Distillation losses of TinyCLIP and CLIP-KD, as terms of phase B in addition to or instead of Eq. 7.

* `affinity_loss`: affinity mimicking (TinyCLIP, arXiv:2309.12314).
* `feature_loss`, `relation_loss`, `interactive_loss`: FD, CRD and ICL (CLIP-KD, arXiv:2307.12732).
* `distillation_terms`: the terms with a weight, by name (`TERMS`).

Both papers distil a whole dual encoder. Here the images are those of the teacher, frozen, and the student is a text
encoder, so their terms on images of the student vanish or equal an existing loss. The teacher of a text is the bound
text tower of its modality; the batch is that of Eq. 8.

Shapes: n pairs of one modality, d dimension of the bound space. `image`, `student`, `teacher`: (n, d) unit rows, the
frozen images, the student's and the teacher's texts; `scale`: factor on cosines, equal for student and teacher.
"""

import torch
from torch import Tensor

from m3bind.training.contrastive import clip_loss, full_precision, identical_positives

TERMS = ("affinity", "relation", "feature", "interactive")  # also the names of their weights in the settings


def _affinities(image: Tensor, text: Tensor, scale: Tensor | float) -> tuple[Tensor, Tensor]:
    """log softmax of scaled cosines, image to text and text to image, both (n, n)."""
    logits = scale * image @ text.T
    return logits.log_softmax(1), logits.T.log_softmax(1)


def affinity_loss(image: Tensor, student: Tensor, teacher: Tensor, scale: Tensor | float) -> Tensor:
    """Affinity mimicking: 1/2 [CE(A_I2T^teacher, A_I2T^student) + CE(A_T2I^teacher, A_T2I^student)], mean over rows.

    A_I2T,ij = softmax_j(scale I_i . T_j), A_T2I,ij = softmax_j(scale T_i . I_j).
    """
    with full_precision(image, student, teacher) as (image, student, teacher):
        ours, theirs = _affinities(image, student, scale), _affinities(image, teacher, scale)
        each = [(p.exp() * q).sum(1).mean() for p, q in zip(theirs, ours, strict=True)]
        return -torch.stack(each).mean()


def relation_loss(image: Tensor, student: Tensor, teacher: Tensor, scale: Tensor | float) -> Tensor:
    """CRD: KL(A_I2T^teacher || A_I2T^student) + KL(A_T2I^teacher || A_T2I^student), mean over rows.

    With frozen images this is twice `affinity_loss` minus the teacher's entropy, a constant: the gradient is exactly
    twice as large. Both exist since the papers report them as two methods.
    """
    with full_precision(image, student, teacher) as (image, student, teacher):
        ours, theirs = _affinities(image, student, scale), _affinities(image, teacher, scale)
        each = [(p.exp() * (p - q)).sum(1).mean() for p, q in zip(theirs, ours, strict=True)]
        return torch.stack(each).sum()


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """FD: mean_i ||T_i - S_i||^2. Eq. 7 with `teachers: own` on the image batch's captions; images add nothing."""
    with full_precision(student, teacher) as (student, teacher):
        return (teacher - student).square().sum(1).mean()


def interactive_loss(student: Tensor, teacher: Tensor, ids: Tensor, scale: Tensor | float) -> Tensor:
    """ICL: InfoNCE from the student's texts to the teacher's, equal texts (`ids`, (n,)) being positives of each other.

    CLIP-KD contrasts the student's text with the teacher's image, which with frozen images is Eq. 8, and the student's
    image with the teacher's text, which trains nothing. Only text to text remains between student and teacher.
    """
    return clip_loss(student, teacher, scale, direction="i2t", positives=identical_positives(ids))


def distillation_terms(
    weights: dict[str, float],
    image: Tensor,
    student: Tensor,
    teacher: Tensor,
    ids: Tensor,
    scale: Tensor | float,
) -> dict[str, Tensor]:
    """The terms of `TERMS` whose weight is not zero, by name, unweighted."""
    terms = {
        "affinity": lambda: affinity_loss(image, student, teacher, scale),
        "relation": lambda: relation_loss(image, student, teacher, scale),
        "feature": lambda: feature_loss(student, teacher),
        "interactive": lambda: interactive_loss(student, teacher, ids, scale),
    }
    return {name: torch.as_tensor(terms[name]()) for name, weight in weights.items() if weight}
