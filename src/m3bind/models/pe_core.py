"""Perception Encoder, core models T, S and B (general images): small image towers distilled from a very large one.

n items, f width of the image tower.

    image: timm's ViT/16 with rotary positions and a class token, pooled by attention, f; Linear with bias.
    text:  CLIP's causal transformer with plain GELU, 32 tokens, state of the end-of-text token; Linear without bias.

    pe_core_t16: 384 x 384, f  192,  512 joint dimensions, text tower of 12 layers
    pe_core_s16: 384 x 384, f  384,  512 joint dimensions, text tower of 12 layers
    pe_core_b16: 224 x 224, f  768, 1024 joint dimensions, text tower of 24 layers

Weights in open_clip's form. Images are resized to a square, whatever their aspect ratio. Bolya et al. 2025, https://arxiv.org/abs/2504.13181.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, NamedTuple

from PIL import Image
from torch import Tensor, nn

from m3bind.errors import ConfigError
from m3bind.modalities.base import Sample
from m3bind.models.base import ModelCard
from m3bind.models.clip import MAX_SCALE, BpeTexts, ClipTextTrunk
from m3bind.models.layers.preprocess import rgb_image
from m3bind.models.published import LearnedScale
from m3bind.models.weights.checkpoint import rename
from m3bind.models.weights.clip_keys import CLIP_PARTS, huggingface_keys


class _Size(NamedTuple):
    """One variant: timm's name, side in pixels, widths, layers and heads of the text tower."""

    trunk: str
    pixels: int
    features: int
    text: int
    layers: int
    heads: int


_SIZES = {
    "pe_core_t16": _Size("vit_pe_core_tiny_patch16_384", 384, 192, 512, 12, 8),
    "pe_core_s16": _Size("vit_pe_core_small_patch16_384", 384, 384, 512, 12, 8),
    "pe_core_b16": _Size("vit_pe_core_base_patch16_224", 224, 768, 1024, 24, 16),
}


def _card(name: str, hub: str) -> ModelCard:
    size = _SIZES[name]
    return ModelCard(
        source="https://github.com/facebookresearch/perception_models (Bolya et al. 2025, arXiv:2504.13181)",
        revision="open_clip 89fb801",
        licence_code="Apache-2.0",
        licence_weights="Apache-2.0",
        joint_dim=size.text,
        input=f"3x{size.pixels}x{size.pixels}: both sides resized, bilinear; -1..1",
        lora_text=("q_proj", "v_proj"),
        lora_image=("qkv",),
        training_data=("billions of image-text pairs from the web, and videos (not public)",),
        notes=f"hub id {hub}: open_clip_model.safetensors. Texts are cut at 32 tokens.",
        verified="open_clip's code, random weights",
    )


class PerceptionEncoder(BpeTexts):
    """A core model of the Perception Encoder as open_clip publishes it."""

    names = tuple(_SIZES)
    cards: ClassVar[Mapping[str, ModelCard]] = {
        "pe_core_t16": _card("pe_core_t16", "timm/PE-Core-T-16-384"),
        "pe_core_s16": _card("pe_core_s16", "timm/PE-Core-S-16-384"),
        "pe_core_b16": _card("pe_core_b16", "timm/PE-Core-B-16"),
    }
    migrations = (
        rename(r"^visual\.trunk\.head\.", "image_head."),
        rename(r"^visual\.trunk\.", "image_trunk."),
        huggingface_keys,
        *CLIP_PARTS,
    )

    def __init__(self, variant: str = "", frozen: Sequence[str] = ()) -> None:
        """Build with random weights; arguments as for `PublishedModel`.

        Raises:
            ConfigError: the installed timm is too old for these networks.
        """
        import timm

        super().__init__(variant, frozen=frozen)
        size = self.size = _SIZES[self.variant]
        if not timm.is_model(size.trunk):
            raise ConfigError(f"{self.variant} needs a newer timm (this is {timm.__version__}): pip install -U timm.")
        self.max_tokens = 32
        self.image_trunk = timm.create_model(size.trunk, pretrained=False, num_classes=0)
        self.image_head = nn.Linear(size.features, self.joint_dim)
        self.text_trunk = ClipTextTrunk(False, size.text, size.heads, size.layers, self.max_tokens)
        self.text_head = nn.Linear(size.text, self.joint_dim, bias=False)
        self.scale = LearnedScale(limit=MAX_SCALE)
        self._finish()

    def preprocess(self, sample: Sample) -> Tensor:
        """(H, W), (H, W, 3) or (D, H, W) -> (3, S, S) in -1..1."""
        return _transform(self.size.pixels)(rgb_image(sample))


def _transform(pixels: int) -> Callable[[Image.Image], Tensor]:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    half = (0.5, 0.5, 0.5)
    config = PreprocessCfg(size=pixels, mean=half, std=half, interpolation="bilinear", resize_mode="squash")
    return image_transform_v2(config, is_train=False)  # type: ignore[no-any-return]
