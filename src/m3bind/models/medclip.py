"""MedCLIP (chest X-ray): Swin-tiny and BioClinicalBERT, 512 joint dimensions.

n items, L tokens.

    image: one grey channel given to all three inputs, Swin-tiny, average of the tokens 768, Linear without bias.
    text:  BioClinicalBERT, mean of hidden states 1, 2 and 12 over tokens, Linear without bias.

The authors' mean runs over padding too, so that a text's embedding depends on its batch. `pooling="mean"`, the default,
is the result of their code for each text alone; `pooling="upstream"` is their mean over the padding of the batch.
Wang et al. 2022, https://arxiv.org/abs/2210.10163.
"""

import math
from typing import Literal, Unpack

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from m3bind.modalities.base import Sample
from m3bind.models.base import ModelCard
from m3bind.models.layers.swin import SIZE, SwinTrunk, swin_names
from m3bind.models.layers.transforms import grey_image, standardize
from m3bind.models.published import BIOCLINICALBERT, Common, LearnedScale, PublishedModel, bert_trunk
from m3bind.models.weights.checkpoint import rename

MEAN, STD = 0.5862785803043838, 0.27950088968644304
MAX_LOG_SCALE = 4.6052


class MedClip(PublishedModel):
    """MedCLIP with the Swin image tower ("MedCLIP-ViT") as its authors published it."""

    name = "medclip_vit"
    own_settings = ("pooling",)
    tokenizer_source = BIOCLINICALBERT
    migrations = (
        rename(r"^vision_model\.model\.", "image_trunk.swin."),
        rename(r"^vision_model\.projection_head\.", "image_head."),
        rename(r"^text_model\.model\.", "text_trunk.bert."),
        rename(r"^text_model\.projection_head\.", "text_head."),
        rename(r"^logit_scale$", "scale.log"),
        swin_names("image_trunk.swin."),
    )
    ignored_keys = ("text_trunk.bert.pooler.*",)
    card = ModelCard(
        source="https://github.com/RyanWangZf/MedCLIP (Wang et al. 2022, arXiv:2210.10163)",
        revision="9c3396f",
        licence_code="no licence file; setup.py says BSD",
        licence_weights="not stated",
        joint_dim=512,
        input="1x224x224, grey; zeros around to a square, bicubic, mean 0.5863, std 0.2795",
        lora_text=("query", "value"),
        lora_image=("q_proj", "v_proj"),
        training_data=("MIMIC-CXR", "CheXpert", "MIMIC-III notes (BioClinicalBERT)", "ImageNet"),
        notes="pytorch_model.bin (in the zip that medclip_vit_weight.txt of the source points to); "
        "pooling='upstream': the authors' mean over padding.",
    )

    def __init__(self, pooling: Literal["mean", "upstream"] = "mean", **common: Unpack[Common]) -> None:
        """Build with random weights.

        Args:
            pooling: "mean" over real tokens, or "upstream", the authors' mean over padding too.
            common: see `PublishedModel`.

        Raises:
            ConfigError: an unknown `pooling`.
        """
        super().__init__(**common)
        self._check_choice("pooling", pooling, ("mean", "upstream"))
        self.max_tokens = 77
        self.image_trunk = SwinTrunk("average")
        self.image_head = nn.Linear(768, self.joint_dim, bias=False)
        self.pooling = pooling
        self.text_trunk = bert_trunk(28996, "padded" if pooling == "upstream" else "mean", states=(1, 2, 12))
        self.text_head = nn.Linear(768, self.joint_dim, bias=False)
        self.scale = LearnedScale(limit=math.exp(MAX_LOG_SCALE))
        self._finish()

    def image_features(self, batch: Tensor) -> Tensor:
        """(n, 1, 224, 224), or 3 channels -> (n, 768)."""
        return super().image_features(batch.expand(-1, 3, -1, -1))

    def preprocess(self, sample: Sample) -> Tensor:
        """(H, W), colour as its luminance -> (1, 224, 224)."""
        image = grey_image(sample)
        side = max(SIZE, *image.size)
        square = Image.new("L", (side, side))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        pixels = np.array(square.resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float32) / np.float32(255)
        return standardize(torch.from_numpy(pixels)[None], (MEAN,), (STD,))
