"""Binding without training: text spaces rotated onto each other in closed form (generalised orthogonal Procrustes).

`center` (Canonical Q, arXiv:2602.17584, solves on centred embeddings and adds the target's mean back):

    none       fitted on the embeddings; the bridge is x @ R_m. Every cosine within a modality is preserved
    fit        fitted on embeddings minus their tower's mean; applied as above
    fit+readd  fitted as above, applied as normalise((x - mean_m) @ R_m + common mean), with separate means of images
               and of texts, the common mean being that of all rotated modalities: cosines, and zero-shot, change

Shapes: n rows, d_m joint dimension of modality m, d dimension of the bound space.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from m3bind.align.methods.base import BindingInputs, BindingMethod
from m3bind.align.procrustes import BaseBridge, Bridge, identity_map, procrustes
from m3bind.config import AlignConfig
from m3bind.core.device import device_of
from m3bind.errors import UnknownNameError
from m3bind.models.bridges import Affine, Sided, freeze

CENTER = ("none", "fit", "fit+readd")


def initial_bridges(inputs: BindingInputs, settings: AlignConfig) -> dict[str, Bridge]:
    """Bridges before training, by `settings.bridge`. Cosines within a modality are preserved."""
    return identity_bridges(inputs, settings) if settings.bridge == "identity" else procrustes_bridges(inputs, settings)


def identity_bridges(inputs: BindingInputs, settings: AlignConfig) -> dict[str, Bridge]:
    """Bridges that only resize each joint dimension to `settings.dim`."""
    return {m: _placed(Bridge(identity_map(dim, settings.dim)), inputs, m) for m, dim in inputs.dims.items()}


def procrustes_bridges(inputs: BindingInputs, settings: AlignConfig, center: bool = False) -> dict[str, Bridge]:
    """Bridges that align the embeddings of `settings.pool` texts in closed form."""
    ids = inputs.draw_pool(settings.pool, settings.balance)
    maps = procrustes([inputs.embed_texts(m, ids) for m in inputs.dims], settings.dim, center=center)
    return {m: _placed(Bridge(weight), inputs, m) for m, weight in zip(inputs.dims, maps, strict=True)}


def _placed(bridge: Bridge, inputs: BindingInputs, modality: str) -> Bridge:
    """`bridge` on the device of its modality's towers."""
    return bridge.to(device_of(inputs.pairs[modality].model))


class Procrustes(BindingMethod):
    """Closed form: seconds on a CPU; without centring, zero-shot within each modality does not change."""

    name = "procrustes"
    towers = False
    defaults: ClassVar[Mapping[str, Any]] = {"center": "none"}

    def bind(self, inputs: BindingInputs, settings: AlignConfig) -> dict[str, BaseBridge]:
        """Rotations, with the means if `center` is "fit+readd".

        Raises:
            UnknownNameError: `center` is not in `CENTER`.
        """
        center = self.options(settings)["center"]
        if center not in CENTER:
            raise UnknownNameError("align.options.center", center, CENTER)
        rotations = procrustes_bridges(inputs, settings, center != "none")
        if center != "fit+readd":
            return dict(rotations)
        return _recentred(rotations, inputs, inputs.draw_pool(settings.pool, settings.balance))


@torch.no_grad()
def _recentred(rotations: dict[str, Bridge], inputs: BindingInputs, ids: Tensor) -> dict[str, BaseBridge]:
    """Each side's mean replaced by the mean of all modalities' means."""
    images = {m: bridge.image(inputs.embed_images(m)).mean(0) for m, bridge in rotations.items()}
    texts = {m: bridge.text(inputs.embed_texts(m, ids)).mean(0) for m, bridge in rotations.items()}
    bridges: dict[str, BaseBridge] = {}
    for m, bridge in rotations.items():
        image, text = (
            [Affine(torch.eye(bridge.dim), torch.stack(list(means.values())).mean(0) - means[m])]
            for means in (images, texts)
        )
        bridges[m] = freeze(Sided(bridge, image, text)).to(bridge.weight.device)
    return bridges
