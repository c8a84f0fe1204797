"""Post steps on a bound space: affine maps that reduce the modality gap without training.

* `GAPS`, `gap_steps`: a post step fitted on training embeddings of one modality, for images and for texts.
* `iso_maps`: IsoCLIP, for towers with linear projectors; `linear_projectors` returns their weights.
* `after`: a bridge with the post steps of the settings.

    centre   z = x - mean, separately for images and texts (GR-CLIP 2507.19054, I0T-post 2412.14384)
    rotate   images: z = (x - mean_img) R + mean_txt, R the rotation of centred images onto their centred texts
             (mixed-modality search of 2510.13406); texts do not change
    realign  images: y = normalise(mean_txt + c (x - mean_img)), c = sqrt(tr S_txt / tr S_img), then
             z = y - mean(y) + mean_txt (ReAlign, 2602.07026, which maps texts onto images; here reversed)
    pc       z = (x - mean)(1 - V V^T), V the first `components` principal axes of the side: the residual gap has few
             directions (2605.07825)

Every step is followed by normalisation. Means, rotations and axes are fitted on training data alone. Each step changes
cosines between images and texts, and thus zero-shot; therefore the default is none, and `evaluate.post` applies them to
image-to-image search only.

Shapes: n training items, d dimension of the space, d_m joint dimension, p and q widths of the features.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from m3bind.align.procrustes import BaseBridge
from m3bind.config import PostConfig
from m3bind.errors import ConfigError, UnknownNameError
from m3bind.models.base import DualEncoder
from m3bind.models.bridges import Affine, Sided, freeze

Gap = Literal["none", "centre", "rotate", "realign", "pc"]
GAPS: tuple[Gap, ...] = get_args(Gap)


@torch.no_grad()
def gap_steps(gap: Gap, images: Tensor, texts: Tensor, components: int = 1) -> tuple[list[Affine], list[Affine]]:
    """Steps for images and for texts, fitted on unit rows `images` (n, d) and `texts` (n, d), row i one pair.

    The rows may be on any device, the steps are on the host.

    Raises:
        UnknownNameError: no such step.
        ConfigError: `components` leaves no dimension.
    """
    images, texts = _on_host(images), _on_host(texts)
    eye = torch.eye(images.shape[1], dtype=torch.float64)
    mean, mean_text = images.mean(0), texts.mean(0)
    if gap == "none":
        return [], []
    if gap == "centre":
        return [Affine(eye, -mean)], [Affine(eye, -mean_text)]
    if gap == "rotate":
        u, _, vt = torch.linalg.svd((images - mean).T @ (texts - mean_text))
        return [Affine(u @ vt, mean_text - mean @ (u @ vt))], []
    if gap == "realign":
        spread = [(rows - rows.mean(0)).square().sum(1).mean() for rows in (images, texts)]
        c = (spread[1] / spread[0].clamp(min=1e-12)).sqrt()
        first = Affine(c * eye, mean_text - c * mean)
        return [first, Affine(eye, mean_text - first(images.float()).double().mean(0))], []
    if gap == "pc":
        return [_without_axes(images, components)], [_without_axes(texts, components)]
    raise UnknownNameError("post step", gap, GAPS)


def _on_host(rows: Tensor) -> Tensor:
    """In float64, which not every device has."""
    return rows.to("cpu").double()


def _without_axes(rows: Tensor, components: int) -> Affine:
    """Centre, then remove the first principal axes."""
    if not 0 < components < rows.shape[1]:
        raise ConfigError(f"post.components={components} of {rows.shape[1]} dimensions; leave at least one over")
    mean = rows.mean(0)
    axes = torch.linalg.eigh((rows - mean).T @ (rows - mean))[1].flip(1)[:, :components]
    keep = torch.eye(len(axes), dtype=rows.dtype) - axes @ axes.T
    return Affine(keep, -mean @ keep)


@torch.no_grad()
def iso_maps(image: Tensor, text: Tensor, top: int, bottom: int) -> tuple[Tensor, Tensor]:
    """IsoCLIP (2603.19862) as maps (d_m, d_m) on embeddings from the right, for images and for texts.

    `image` (d_m, p) and `text` (d_m, q) are the projectors' weights W. With Psi = W_img^T W_txt = U S V^T and U_k, V_k
    the singular directions left after removing the `top` largest and `bottom` smallest, W_img' = W_img U_k U_k^T and
    W_txt' = W_txt V_k V_k^T. U_k lies in the row space of W_img, so an embedding z = W p is sufficient:
    z' = W U_k U_k^T W^+ z.

    Raises:
        ConfigError: no direction is left.
    """
    image, text = _on_host(image), _on_host(text)
    u, s, vt = torch.linalg.svd(image.T @ text, full_matrices=False)
    rank = int((s > s[0] * 1e-10).sum())
    if top < 0 or bottom < 0 or top + bottom >= rank:
        raise ConfigError(f"IsoCLIP: {top} + {bottom} directions of {rank} dropped; leave some over")
    remaining = slice(top, rank - bottom)
    sides = ((image, u[:, remaining]), (text, vt.T[:, remaining]))
    first, second = ((w @ axes @ axes.T @ torch.linalg.pinv(w)).T.float() for w, axes in sides)
    return first, second


def linear_projectors(model: DualEncoder) -> tuple[Tensor, Tensor] | None:
    """Weights (d_m, p) and (d_m, q) of a model's projectors, None unless both are linear without bias."""
    image, text = model.image_head, model.text_head
    if not isinstance(image, nn.Linear) or not isinstance(text, nn.Linear):
        return None
    if image.bias is not None or text.bias is not None:
        return None
    return image.weight.detach(), text.weight.detach()


@torch.no_grad()
def after(bridge: BaseBridge, settings: PostConfig, images: Tensor, texts: Tensor, model: DualEncoder) -> BaseBridge:
    """`bridge` with the post steps of `settings`, fitted on the embeddings (n, d_m) of the modality's pairs.

    Embeddings, bridge and result are on one device; the steps are computed on the host, in float64.

    Raises:
        ConfigError: IsoCLIP for a model whose projectors are not linear.
    """
    if settings.gap == "none" and not settings.iso:
        return bridge
    if settings.iso:
        weights = linear_projectors(model)
        if weights is None:
            raise ConfigError(
                "post.iso needs linear projectors without bias on both towers; "
                f"{model.registered_name or type(model).__name__} has others, leave it out"
            )
        maps = iso_maps(*weights, *settings.iso)
        bridge = Sided(bridge, before=(Affine(maps[0]), Affine(maps[1]))).to(images.device)
    steps = gap_steps(settings.gap, bridge.image(images), bridge.text(texts), settings.components)
    return freeze(Sided(bridge, *steps)).to(images.device)
