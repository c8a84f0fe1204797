"""Binding without training: text spaces rotated onto each other in closed form (generalised orthogonal Procrustes).

`center` (Canonical Q, arXiv:2602.17584, solves on centred embeddings and adds the target's mean back):

    none       fitted on embeddings as they are; the bridge is x @ R_m. Every cosine within a modality stays
    fit        fitted on embeddings minus their tower's mean; applied as above
    fit+readd  fitted so, applied as normalise((x - mean_m) @ R_m + common mean), means of images and of texts each for
               their side, the common mean being that of all rotated modalities: cosines, and zero-shot, change

Shapes: n rows, d_m joint dimension of modality m, d dimension of the bound space.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from m3bind.align.methods.base import BindingInputs, BindingMethod
from m3bind.align.procrustes import BaseBridge, Bridge, identity_map, procrustes
from m3bind.config import AlignConfig
from m3bind.errors import UnknownNameError
from m3bind.models.bridges import Affine, Sided, freeze

CENTER = ("none", "fit", "fit+readd")


def initial_bridges(inputs: BindingInputs, settings: AlignConfig, center: bool = False) -> dict[str, Bridge]:
    """Bridges before any training, by `settings.bridge`: "procrustes" or "identity". Cosines within a modality stay."""
    dims = inputs.dims
    if settings.bridge == "identity":
        return {m: Bridge(identity_map(dim, settings.dim)) for m, dim in dims.items()}
    ids = inputs.draw_pool(settings.pool, settings.balance)
    maps = procrustes([inputs.embed_texts(m, ids) for m in dims], settings.dim, center=center)
    return {m: Bridge(weight.float()) for m, weight in zip(dims, maps, strict=True)}


class Procrustes(BindingMethod):
    """Closed form: seconds on a CPU; without centring, zero-shot of every modality exactly unchanged."""

    name = "procrustes"
    towers = False
    defaults: ClassVar[Mapping[str, Any]] = {"center": "none"}

    def bind(self, inputs: BindingInputs, settings: AlignConfig) -> dict[str, BaseBridge]:
        """Rotations, with the means where they are asked for.

        Raises:
            UnknownNameError: `center` is none of `CENTER`.
        """
        center = self.options(settings)["center"]
        if center not in CENTER:
            raise UnknownNameError("align.options.center", center, CENTER)
        rotations = initial_bridges(inputs, settings.model_copy(update={"bridge": "procrustes"}), center != "none")
        if center != "fit+readd":
            return dict(rotations)
        return _recentred(rotations, inputs, inputs.draw_pool(settings.pool, settings.balance))


@torch.no_grad()
def _recentred(rotations: dict[str, Bridge], inputs: BindingInputs, ids: Tensor) -> dict[str, BaseBridge]:
    """Each side's mean replaced by the mean of all modalities' means."""
    images = {m: bridge.image(inputs.embed_images(m)).mean(0) for m, bridge in rotations.items()}
    texts = {m: bridge.text(inputs.embed_texts(m, ids)).mean(0) for m, bridge in rotations.items()}
    found: dict[str, BaseBridge] = {}
    for m, bridge in rotations.items():
        image, text = (
            [Affine(torch.eye(bridge.dim), torch.stack(list(means.values())).mean(0) - means[m])]
            for means in (images, texts)
        )
        found[m] = freeze(Sided(bridge, image, text))
    return found
