"""FLAIR (retina): ResNet-50 and BioClinicalBERT, 512 joint dimensions.

n items, L tokens.

    image: ResNet-50, average pool 2048, divided by its norm, Linear without bias.
    text:  BioClinicalBERT, mean of hidden states 1, 2 and 12 over tokens, divided by its norm, Linear without bias.

The authors' mean runs over padding too, so that a text's embedding depends on its batch (cosine .91 to .98 for a short
text, untrained). `pooling="mean"`, the default, is the result of their code for each text alone; `pooling="upstream"`
is their mean over the padding of the batch. Silva-Rodriguez et al. 2023, https://arxiv.org/abs/2308.07898.
"""

from typing import Literal, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from m3bind.errors import ConfigError
from m3bind.modalities.base import Sample
from m3bind.models.base import ModelCard
from m3bind.models.layers.preprocess import rgb_image
from m3bind.models.published import BIOCLINICALBERT, Common, LearnedScale, PublishedModel, bert_trunk, resnet50_trunk
from m3bind.models.weights.checkpoint import rename

SIZE = 512
MAX_SCALE = 100.0
PROMPT = "A fundus photograph of {}"


class NormedLinear(nn.Module):
    """Linear without bias on unit rows: (n, f) -> (n, d)."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.projection = nn.Linear(in_dim, out_dim, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(n, f) -> (n, d), not normalised."""
        return self.projection(F.normalize(features, dim=-1))  # type: ignore[no-any-return]


class Flair(PublishedModel):
    """FLAIR as its authors published it (ResNet-50, expert-knowledge pre-training)."""

    name = "flair"
    own_settings = ("pooling", "canvas", "crop", "prompt")
    tokenizer_source = BIOCLINICALBERT
    migrations = (
        rename(r"^vision_model\.model\.", "image_trunk."),
        rename(r"^vision_model\.projection_head_vision\.", "image_head."),
        rename(r"^text_model\.model\.", "text_trunk.bert."),
        rename(r"^text_model\.projection_head_text\.", "text_head."),
        rename(r"^logit_scale$", "scale.log"),
    )
    ignored_keys = ("text_trunk.bert.pooler.*",)
    card = ModelCard(
        source="https://github.com/jusiro/FLAIR (Silva-Rodriguez et al. 2023, arXiv:2308.07898)",
        revision="d6652d5",
        licence_code="Apache-2.0",
        licence_weights="Apache-2.0 (README of the source)",
        joint_dim=512,
        input="3x512x512, 0..1; longest side 512, zeros right and below",
        lora_text=("query", "value"),
        lora_image=("conv1", "conv2", "conv3"),
        training_data=(
            "31 of the 38 public retina sets of FLAIR's assembly (EYEPACS, ODIR-5K without held-out classes, ...)",
            "MIMIC-III notes (BioClinicalBERT)",
        ),
        notes="flair_resnet.pth (in a zip) or hub id jusiro2/FLAIR; pooling='upstream': their mean over padding.",
    )

    def __init__(
        self,
        pooling: Literal["mean", "upstream"] = "mean",
        canvas: Literal["photograph", "loader", "stretch"] = "photograph",
        crop: bool = False,
        prompt: str = PROMPT,
        **common: Unpack[Common],
    ) -> None:
        """Build with random weights.

        Args:
            pooling: "mean" over real tokens, or "upstream", the authors' mean over padding too.
            canvas: "photograph" (the authors' inference path), "loader" (as in their data loader: square
                images are resized directly), or "stretch" (both sides to 512).
            crop: crop to the field of view first, as their newer loader does (Li threshold of the red channel).
            prompt: template around every text; "{}" is the text.
            common: see `PublishedModel`.

        Raises:
            ConfigError: an unknown `pooling` or `canvas`, or a prompt without "{}".
        """
        super().__init__(**common)
        self._check_choice("pooling", pooling, ("mean", "upstream"))
        self._check_choice("canvas", canvas, ("photograph", "loader", "stretch"))
        if "{}" not in prompt:
            raise ConfigError(f"prompt={prompt!r} of flair has no {{}} for the text; use '{{}}' for none.")
        self.pooling, self.canvas, self.crop, self.prompt, self.max_tokens = pooling, canvas, crop, prompt, 77
        self.image_trunk = resnet50_trunk()
        self.image_head = NormedLinear(2048, self.joint_dim)
        self.text_trunk = bert_trunk(28996, "padded" if pooling == "upstream" else "mean", states=(1, 2, 12))
        self.text_head = NormedLinear(768, self.joint_dim)
        self.scale = LearnedScale(limit=MAX_SCALE)
        self._finish()

    def clean(self, text: str) -> str:
        """The text inside the prompt."""
        return self.prompt.replace("{}", text)

    def preprocess(self, sample: Sample) -> Tensor:
        """(H, W, 3) -> (3, 512, 512) in 0..1."""
        pixels = np.array(rgb_image(sample), dtype=np.float32).transpose(2, 0, 1) / np.float32(255)
        if self.crop:
            pixels = field_of_view(pixels)
        return place(torch.from_numpy(pixels), self.canvas)


def place(image: Tensor, canvas: str) -> Tensor:
    """(3, H, W) -> (3, 512, 512): the longest side resized to 512 with zeros right and below, or both sides."""
    from torchvision.transforms.functional import resize

    height, width = image.shape[-2:]
    inner = [SIZE, SIZE]
    if canvas == "photograph" or (canvas == "loader" and height != width):
        scale = max(height, width) / SIZE
        inner = [max(1, int(height / scale)), max(1, int(width / scale))]
    image = resize(image, inner, antialias=True)
    return F.pad(image, (0, SIZE - inner[1], 0, SIZE - inner[0])).contiguous()


def field_of_view(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """(3, H, W) cut to the bounding box of the largest bright region of the red channel (Li threshold).

    An image without any contrast is returned unchanged.
    """
    from skimage.filters import threshold_li
    from skimage.measure import label, regionprops

    bright = label(pixels[0] > threshold_li(pixels[0]))
    regions = regionprops(bright)
    if not regions:
        return pixels
    top, left, bottom, right = max(regions, key=lambda region: region.area).bbox
    return pixels[:, top:bottom, left:right]
