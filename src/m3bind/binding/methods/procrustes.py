"""Binding without training: text spaces rotated onto each other in closed form (generalised orthogonal Procrustes)."""

from m3bind.binding.bridge import Bridge, identity_map, procrustes
from m3bind.binding.methods.base import BindingInputs, BindingMethod
from m3bind.config import AlignConfig


def initial_bridges(inputs: BindingInputs, settings: AlignConfig) -> dict[str, Bridge]:
    """Bridges before any training, by `settings.bridge`: "procrustes" or "identity". Cosines within a modality stay."""
    dims = {m: pairs.model.joint_dim for m, pairs in inputs.pairs.items()}
    if settings.bridge == "identity":
        return {m: Bridge(identity_map(dim, settings.dim)) for m, dim in dims.items()}
    ids = inputs.draw_pool(settings.pool, settings.balance)
    maps = procrustes([inputs.embed_texts(m, ids) for m in dims], settings.dim)
    return {m: Bridge(weight.float()) for m, weight in zip(dims, maps, strict=True)}


class Procrustes(BindingMethod):
    """Closed form: seconds on a CPU, zero-shot of every modality exactly unchanged."""

    name = "procrustes"
    trains = False

    def bind(self, inputs: BindingInputs, settings: AlignConfig) -> dict[str, Bridge]:
        """The initial bridges are the result."""
        return initial_bridges(inputs, settings)
