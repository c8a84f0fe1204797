"""Swin-tiny (patch 4, window 7, 224 x 224) as an image trunk, and the keys of its checkpoints.

* `SwinTrunk`: transformers' SwinModel with the pooling of MedCLIP (average) or of CXR-CLIP (first patch token).
* `swin_names`: migration from the key names of transformers 4 to those of the installed one.

n images. The network returns 49 tokens of width 768. Other sizes than 224 are refused: transformers permanently changes
window and shift of a layer that gets a smaller map, so that later results would depend on earlier ones.
Swin: Liu et al. 2021, https://arxiv.org/abs/2103.14030.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from m3bind.errors import CheckpointError, ConfigError
from m3bind.models.weights.checkpoint import Migration
from m3bind.models.weights.weight_files import State

SIZE = 224
_NAMES = (  # transformers 4 -> 5, tried in this order
    ("attention.self.query.", "attention.q_proj."),
    ("attention.self.key.", "attention.k_proj."),
    ("attention.self.value.", "attention.v_proj."),
    ("attention.self.relative_position_bias_table", "attention.relative_position_bias.relative_position_bias_table"),
    ("attention.output.dense.", "attention.o_proj."),
    ("intermediate.dense.", "mlp.fc1."),
    ("output.dense.", "mlp.fc2."),
)


class SwinTrunk(nn.Module):
    """Swin-tiny, pooled after its last LayerNorm; `swin` holds the unmodified network."""

    def __init__(self, pooling: Literal["average", "first"]) -> None:
        """`pooling`: the mean of the 49 tokens, or the first of them (upper left)."""
        from transformers import SwinConfig, SwinModel

        super().__init__()
        self.pooling = pooling
        config = SwinConfig(
            image_size=SIZE, patch_size=4, embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), window_size=7
        )
        self.swin = SwinModel(config, add_pooling_layer=False)

    def forward(self, batch: Tensor) -> Tensor:
        """(n, 3, 224, 224) -> (n, 768).

        Raises:
            ConfigError: images of another size.
        """
        if batch.shape[-2:] != (SIZE, SIZE):
            height, width = batch.shape[-2:]
            raise ConfigError(f"images of {height} x {width} for Swin-tiny; it takes {SIZE} x {SIZE} (preprocess).")
        tokens: Tensor = self.swin(pixel_values=batch).last_hidden_state
        return tokens.mean(1) if self.pooling == "average" else tokens[:, 0]


def swin_names(prefix: str) -> Migration:
    """Keys after `prefix` as the installed transformers names them, whichever version wrote them.

    Version 4 also saved `relative_position_index`, which follows from the window's size: it is dropped if the network
    has no such buffer.

    Raises (when applied):
        CheckpointError: the index is not that of a square window, so dropping it would change the network.
    """

    def migrate(state: State, module_keys: frozenset[str]) -> State:
        renamed: State = {}
        for key, value in state.items():
            if not key.startswith(prefix) or key in module_keys:
                renamed[key] = value
            elif key.endswith(".relative_position_index"):
                if not torch.equal(value.long().flatten(), _window_index(math.isqrt(value.numel())).flatten()):
                    raise CheckpointError(f"{key} is not that of a square window: another network than Swin-tiny.")
            else:
                renamed[_new_name(key)] = value
        return renamed

    return migrate


def _new_name(key: str) -> str:
    for old, new in _NAMES:
        if old in key:
            return key.replace(old, new)
    return key


def _window_index(area: int) -> Tensor:
    """For each pair of the `area` places of a square window, the row of the bias table: (area, area)."""
    side = math.isqrt(area)
    row, column = torch.arange(area) // side, torch.arange(area) % side
    down, right = row[:, None] - row[None], column[:, None] - column[None]
    return (down + side - 1) * (2 * side - 1) + right + side - 1
