"""PLIP (histopathology): CLIP ViT-B/32 trained on pathology images from Twitter, through transformers.

The network is `clip`'s with quick_gelu. Its authors' package prepares images and texts with transformers' CLIP
processor, which differs from open_clip: half an odd remainder of the centre crop is always rounded down, and neither
broken encodings (ftfy) nor HTML entities of texts are repaired. That processor has had two backends: Pillow, which the
authors used, and later torchvision (pixels differ by up to two of 255 steps). Huang et al. 2023,
https://www.nature.com/articles/s41591-023-02504-3.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal, Unpack

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from m3bind.modalities.base import Sample
from m3bind.models.base import ModelCard
from m3bind.models.clip import SIZE, ClipModel
from m3bind.models.layers.preprocess import rgb_image
from m3bind.models.layers.transforms import CLIP_MEAN, CLIP_STD, standardize
from m3bind.models.published import Common


class Plip(ClipModel):
    """PLIP as its authors published it, and as their package runs it."""

    name = "plip"
    own_settings = (*ClipModel.own_settings, "processor")
    patches: ClassVar[Mapping[str, int]] = {"plip": 32}
    card = ModelCard(
        source="https://github.com/PathologyFoundation/plip (Huang et al. 2023, Nature Medicine)",
        revision="f010f3d",
        licence_code="MIT (setup.py)",
        licence_weights="not stated",
        joint_dim=512,
        input="3x224x224: shortest side 224 bicubic, centre crop, CLIP mean and std",
        lora_text=("q_proj", "v_proj"),
        lora_image=("q_proj", "v_proj"),
        training_data=("OpenPath (Twitter, LAION histopathology)", "400 million pairs (CLIP of OpenAI)"),
        notes="hub id vinid/plip: pytorch_model.bin. The authors' package returns embeddings that are not normalised.",
    )

    def __init__(
        self, processor: Literal["pil", "default"] = "pil", quick_gelu: bool | None = None, **common: Unpack[Common]
    ) -> None:
        """Build with random weights.

        Args:
            processor: how images are resized: "pil" as when the model was published, or "default", that of
                transformers 5 (torchvision).
            quick_gelu: see `ClipModel`.
            common: see `PublishedModel`; the default tokenizer is built from open_clip's vocabulary.

        Raises:
            ConfigError: an unknown `processor`.
        """
        super().__init__("", quick_gelu, **common)
        self._check_choice("processor", processor, ("pil", "default"))
        self.processor = processor

    def preprocess(self, sample: Sample) -> Tensor:
        """(H, W), (H, W, 3) or (D, H, W) -> (3, 224, 224)."""
        pixels = _resized(rgb_image(sample), self.processor)
        top, left = ((side - SIZE) // 2 for side in pixels.shape[1:])
        cropped = pixels[:, top : top + SIZE, left : left + SIZE].to(torch.float32)
        return standardize(cropped / 255, CLIP_MEAN, CLIP_STD)

    def _read_tokenizer(self) -> Tokenizer:
        return clip_tokenizer() if self._tokenizer_from[0] is None else super()._read_tokenizer()


def _resized(image: Image.Image, processor: str) -> Tensor:
    """8-bit (3, H, W) whose shortest side is 224."""
    from torchvision.transforms.v2.functional import InterpolationMode, pil_to_tensor, resize

    if processor == "default":
        bicubic = InterpolationMode.BICUBIC
        return resize(pil_to_tensor(image), [SIZE], interpolation=bicubic, antialias=True)  # type: ignore[no-any-return]
    width, height = image.size
    short = min(width, height)
    small = image.resize((SIZE * width // short, SIZE * height // short), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)


def clip_tokenizer() -> Tokenizer:
    """CLIP's tokenizer as transformers builds it, from the vocabulary that comes with open_clip."""
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTokenizer

    bpe = SimpleTokenizer()
    pieces = [*list(bpe.encoder)[:-2], "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: row for row, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=list(bpe.bpe_ranks)).backend_tokenizer  # type: ignore[no-any-return]
