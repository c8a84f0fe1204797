"""Relative representations (Moschella et al., arXiv:2209.15430): a point is its cosines to shared anchors.

The anchors are texts of the shared pool that every tower has encoded, `align.dim` of them, so towers of any dimension
become comparable without a rotation or training. Each cosine is z-scored per modality and side (image, text): otherwise
the anchors a tower likes in general would decide.
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
        """Anchors by lot from the shared pool, statistics from training images and pool texts.

        Raises:
            ConfigError: fewer texts than `align.dim`.
        """
        ids = inputs.draw_pool(max(settings.pool, 2 * settings.dim), settings.balance)
        if len(ids) < settings.dim:
            raise ConfigError(
                f"relative needs align.dim={settings.dim} anchor texts, the shared pool has {len(ids)}; lower align.dim"
            )
        anchors = rng(inputs.seed, "anchors").permutation(len(ids))[: settings.dim]
        found: dict[str, BaseBridge] = {}
        for m in inputs.pairs:
            texts = inputs.embed_texts(m, ids)
            bridge = Relative(texts[anchors])
            bridge.calibrate(inputs.embed_images(m), texts)
            found[m] = freeze(bridge)
        return found
