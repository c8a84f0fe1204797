"""M3Bind, stage 1: text spaces aligned by Eq. 2 under the contrastive losses of Eq. 1, balanced by AMB (Eq. 3-6)."""

from collections.abc import Mapping

from m3bind.align import lora
from m3bind.align.methods.base import BindingInputs, BindingMethod
from m3bind.align.methods.procrustes import initial_bridges
from m3bind.align.procrustes import BaseBridge
from m3bind.align.stage import AlignStage
from m3bind.config import AlignConfig
from m3bind.models.bridges import TwoMaps
from m3bind.training.loop import train


class M3Bind(BindingMethod):
    """The paper's stage 1; `align.text`, `align.image` and `align.train_bridge` select what is trained."""

    name = "m3bind"
    uses = ("image-text pairs",)

    def bind(self, inputs: BindingInputs, settings: AlignConfig) -> dict[str, BaseBridge]:
        """Train from the initial bridges, merge LoRA, return the bridges; towers are changed in place."""
        start = initial_bridges(inputs, settings)
        bridges: Mapping[str, BaseBridge] = start
        if settings.bridge_maps == "two":
            bridges = {m: TwoMaps(bridge.weight) for m, bridge in start.items()}
        stage = AlignStage(inputs, bridges, settings)
        train(stage, settings, inputs.folder, inputs.seed, inputs.compute)
        for pairs in inputs.pairs.values():
            lora.merge(pairs.model)
            pairs.model.eval()
        return dict(bridges)
