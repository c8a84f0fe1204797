"""PLIP (histopathology): CLIP ViT-B/32 trained on pathology pictures from Twitter, through transformers.

The network is `clip`'s with quick_gelu. Its authors' package prepares pictures and texts with transformers' CLIP
processor, which differs from open_clip: half an odd remainder of the centre crop is always rounded down, and texts are
neither repaired (ftfy) nor freed of HTML entities. That processor has had two engines, one after the other: Pillow,
which the authors had, and torchvision (pixels differ by up to two of 255 steps). Huang et al. 2023,
https://www.nature.com/articles/s41591-023-02504-3.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Unpack

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from m3bind.errors import ConfigError
from m3bind.modalities.base import Sample
from m3bind.models.base import ModelCard
from m3bind.models.clip import SIZE, ClipModel
from m3bind.models.layers.transforms import CLIP_MEAN, CLIP_STD, rgb_picture, standardize
from m3bind.models.published import Common


class Plip(ClipModel):
    """PLIP as its authors published it, and as their package runs it."""

    name = "plip"
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
        self,
        processor: Literal["pil", "default"] = "pil",
        quick_gelu: bool | None = None,
        **common: Unpack[Common],
    ) -> None:
        """Build with random weights.

        Args:
            processor: how pictures are resized: "pil" as when the model was published, or "default", that of
                transformers 5 (torchvision).
            quick_gelu: see `ClipModel`.
            common: see `PublishedModel`; without `tokenizer` it is made from open_clip's vocabulary.

        Raises:
            ConfigError: an unknown `processor`.
        """
        if processor not in ("pil", "default"):
            raise ConfigError(f"processor={processor!r} of plip is unknown; choose 'pil' or 'default'.")
        super().__init__("", quick_gelu, **common)
        self.processor = processor

    def settings(self) -> dict[str, Any]:
        """Constructor arguments as JSON values."""
        return super().settings() | {"processor": self.processor}

    def preprocess(self, sample: Sample) -> Tensor:
        """(H, W), (H, W, 3) or (D, H, W) -> (3, 224, 224)."""
        picture = rgb_picture(sample)
        pixels = _resized(picture, self.processor)
        top, left = ((side - SIZE) // 2 for side in pixels.shape[1:])
        cropped = pixels[:, top : top + SIZE, left : left + SIZE].to(torch.float32)
        return standardize(cropped / 255, CLIP_MEAN, CLIP_STD)

    def _read_tokenizer(self) -> Tokenizer:
        return clip_tokenizer() if self._where[0] is None else super()._read_tokenizer()


def _resized(picture: Image.Image, processor: str) -> Tensor:
    """8-bit (3, H, W) whose shortest side is 224."""
    from torchvision.transforms.v2.functional import InterpolationMode, pil_to_tensor, resize

    if processor == "default":
        made: Tensor = resize(pil_to_tensor(picture), [SIZE], interpolation=InterpolationMode.BICUBIC, antialias=True)
        return made
    width, height = picture.size
    short = min(width, height)
    small = picture.resize((SIZE * width // short, SIZE * height // short), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)


def clip_tokenizer() -> Tokenizer:
    """CLIP's tokenizer as transformers builds it, from the vocabulary that comes with open_clip."""
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTokenizer

    bpe = SimpleTokenizer()
    pieces = [*list(bpe.encoder)[:-2], "<|startoftext|>", "<|endoftext|>"]
    made = CLIPTokenizer(vocab={piece: row for row, piece in enumerate(pieces)}, merges=list(bpe.bpe_ranks))
    backend: Tokenizer = made.backend_tokenizer
    return backend
