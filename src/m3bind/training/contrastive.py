"""The one image-text contrastive loss of all stages (Eq. 1 of stage 1, Eq. 8 of stage 2), and its targets.

* `clip_loss`: InfoNCE over a batch, either or both directions, with one, several or weighted positives per row.
* `identical_positives`, `mixed_positives`: target weights from the texts and labels of a batch.
* `full_precision`: float32 without autocast, in which every loss of this project is computed.

Shapes: n images (or rows of one tower), k texts (columns), d joint dimension.

A text that occurs several times in a batch is encoded once and gathered, `clip_loss(image, distinct[index], ...)`: the
gather's backward sums the duplicates' gradients, so this equals encoding each copy. Merging columns inside the loss
would be exact too (a column of multiplicity c adds log c to its logit), but would save little; the loss does not do it.
"""

import contextlib
from collections.abc import Hashable, Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from m3bind.errors import ConfigError

Direction = Literal["both", "i2t", "t2i"]
Reduction = Literal["mean", "sum"]


@contextlib.contextmanager
def full_precision(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Switch autocast off and yield `tensors` with half precisions widened to float32 (float64 stays).

    Cosines in bfloat16 have 3 digits; a logit scale of 100 turns the rest into noise, so losses never run in it.
    """
    with torch.autocast(tensors[0].device.type, enabled=False):
        yield tuple(tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor for tensor in tensors)


def clip_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    direction: Direction = "both",
    positives: Tensor | None = None,
    reduction: Reduction = "mean",
    ignore: Tensor | None = None,
) -> Tensor:
    """InfoNCE between images and texts, Eq. 1 (and Eq. 8, with the student's embeddings as `text`).

    With l = scale * image @ text.T, image to text is the cross-entropy of softmax(l_i) against the targets p_i, and
    text to image the same on l.T. "both" is the mean of the two directions. The paper's Eq. 1 is `direction="i2t",
    reduction="sum"`, its Eq. 8 `direction="t2i", reduction="sum"`.

    Args:
        image: (n, d) unit rows.
        text: (k, d) unit rows; k = n unless `positives` is given.
        scale: factor on cosines, a float or a scalar tensor.
        direction: "both", "i2t" (each image chooses among texts) or "t2i".
        positives: (n, k) bool or non-negative weights, rows images, columns texts; scaled to sum to 1 per row for i2t
            and per column for t2i. None: the diagonal. A row (column) without any positive only serves as a negative:
            it adds nothing to the sum and is not counted in the mean.
        reduction: over the rows of each direction.
        ignore: (n, k) bool pairs that are neither positives nor negatives: they are excluded from both sums.

    Returns:
        Scalar, in float32 or wider.

    Raises:
        ConfigError: unknown direction or reduction, or shapes that do not fit.
    """
    _check(image, text, direction, positives, reduction, ignore)
    with full_precision(image, text) as (image, text):
        logits = scale * image @ text.T
        if positives is not None:
            positives = positives.to(logits)
        if ignore is not None:
            logits = logits.masked_fill(ignore, -torch.inf)
            positives = positives.masked_fill(ignore, 0) if positives is not None else None
        losses = []
        if direction != "t2i":
            losses.append(_soft_cross_entropy(logits, positives, reduction))
        if direction != "i2t":
            losses.append(_soft_cross_entropy(logits.T, None if positives is None else positives.T, reduction))
        return losses[0] if len(losses) == 1 else (losses[0] + losses[1]) / 2


def _soft_cross_entropy(logits: Tensor, weights: Tensor | None, reduction: Reduction) -> Tensor:
    """Cross-entropy of each row's softmax against its row-normalised weights (None: the diagonal); (rows, columns)."""
    if weights is None:
        return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device), reduction=reduction)
    total = weights.sum(1, keepdim=True)
    used = total > 0
    targets = weights / total.where(used, 1)
    log_p = F.log_softmax(logits, dim=1)
    loss = -(targets * log_p.masked_fill(weights == 0, 0)).sum()  # 0 * -inf of ignored pairs would be nan
    return loss / used.sum().clamp(min=1) if reduction == "mean" else loss


def _check(
    image: Tensor, text: Tensor, direction: str, positives: Tensor | None, reduction: str, ignore: Tensor | None
) -> None:
    if direction not in ("both", "i2t", "t2i"):
        raise ConfigError(f"clip_loss: unknown direction {direction!r}; use 'both', 'i2t' or 't2i'")
    if reduction not in ("mean", "sum"):
        raise ConfigError(f"clip_loss: unknown reduction {reduction!r}; use 'mean' or 'sum'")
    if image.ndim != 2 or text.ndim != 2 or image.shape[1] != text.shape[1]:
        raise ConfigError(
            f"clip_loss: image {tuple(image.shape)} and text {tuple(text.shape)} must be (n, d) and (k, d) of one d; "
            "bridge both into the same space first"
        )
    shape = (len(image), len(text))
    if positives is None and shape[0] != shape[1]:
        raise ConfigError(f"clip_loss: {shape[0]} images and {shape[1]} texts need `positives` of shape {shape}")
    for name, mask in (("positives", positives), ("ignore", ignore)):
        if mask is not None and tuple(mask.shape) != shape:
            raise ConfigError(f"clip_loss: `{name}` has shape {tuple(mask.shape)}, expected (images, texts) = {shape}")


def identical_positives(ids: Tensor | Sequence[Hashable | None]) -> Tensor:
    """(n, n) bool, true where two items carry the same id: identical texts are positives of each other.

    `ids` are the n texts themselves, any hashable keys, or a (n,) tensor of indices. An unknown id (None, or a negative
    index) equals no id, not even itself.
    """
    if isinstance(ids, Tensor):
        codes = ids
    else:
        numbers: dict[Hashable, int] = {}
        codes = torch.tensor([-1 if key is None else numbers.setdefault(key, len(numbers)) for key in ids])
    return (codes[:, None] == codes[None, :]) & (codes[:, None] >= 0)


def mixed_positives(
    text_ids: Tensor | Sequence[Hashable | None],
    label_ids: Tensor | Sequence[Hashable | None],
    label_weight: float = 0.5,
) -> Tensor:
    """(n, n) float32 targets that share each row's weight between identical texts and items of the same label.

    P_ij = (1 - w) [text_i = text_j] / #text_i + w [class_i = class_j] / #class_i, with w = `label_weight`, # the number
    of items in the batch that share the text (class), and the class of an item its label or, if that is unknown, its
    text. Templates of one finding differ in wording only and would otherwise be each other's false negatives. P is
    symmetric and its rows and columns sum to 1, so `clip_loss` uses it unchanged in both directions.

    Args:
        text_ids: as in `identical_positives`, of n items, each known.
        label_ids: n labels, likewise, None or negative if unknown; several labels of one item are given as one
            sorted tuple, equal only as a whole.
        label_weight: share of the weight that goes to same-label pairs, in [0, 1]; 0 gives `identical_positives`.

    Raises:
        ConfigError: the lengths differ or the share is outside [0, 1].
    """
    if len(text_ids) != len(label_ids):
        raise ConfigError(f"mixed_positives: {len(text_ids)} texts but {len(label_ids)} labels; give one per item")
    if not 0 <= label_weight <= 1:
        raise ConfigError(f"mixed_positives: label_weight {label_weight} is outside [0, 1]")
    same_text = identical_positives(text_ids)
    same_class = identical_positives(label_ids).to(same_text.device)
    unknown = ~same_class.diagonal()
    same_class |= same_text & unknown[:, None] & unknown[None, :]
    parts = [same.float() / same.sum(1, keepdim=True) for same in (same_text, same_class)]
    return (1 - label_weight) * parts[0] + label_weight * parts[1]
