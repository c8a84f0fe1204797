"""Relative representations (Moschella et al., arXiv:2209.15430): an embedding is its cosines to shared anchors.

The anchors are `align.dim` texts of the shared pool, encoded by every tower, so towers of any dimension become
comparable without a rotation or training. Each cosine is z-scored per modality and side (image, text): otherwise the
anchors with generally large cosines in a tower would dominate.
"""

from m3bind.align.methods.base import BindingInputs, BindingMethod
from m3bind.align.procrustes import BaseBridge
from m3bind.config import AlignConfig
from m3bind.data.batching import rng
from m3bind.errors import ConfigError
from m3bind.models.bridges import Relative, freeze


class RelativeRepresentation(BindingMethod):
    """Nothing is trained; the dimension of the space is the number of anchors."""

    name = "relative"
    towers = False
    uses = ("images",)

    def bind(self, inputs: BindingInputs, settings: AlignConfig) -> dict[str, BaseBridge]:
        """Random anchors from the shared pool, statistics from training images and pool texts.

        Raises:
            ConfigError: fewer texts than `align.dim`.
        """
        ids = inputs.draw_pool(max(settings.pool, 2 * settings.dim), settings.balance)
        if len(ids) < settings.dim:
            raise ConfigError(
                f"relative needs align.dim={settings.dim} anchor texts, the shared pool has {len(ids)}; lower align.dim"
            )
        anchors = rng(inputs.seed, "anchors").permutation(len(ids))[: settings.dim]
        bridges: dict[str, BaseBridge] = {}
        for m in inputs.pairs:
            texts = inputs.embed_texts(m, ids)
            bridge = Relative(texts[anchors])
            bridge.calibrate(inputs.embed_images(m), texts)
            bridges[m] = freeze(bridge)
        return bridges
