"""KEEP (pathology): ViT-L/16 and PubMedBERT, 768 joint dimensions.

n items, L tokens.

    image: ViT-L/16 with layer scale, class token after the last LayerNorm 1024; Linear 768, GELU, Linear 768.
    text:  BERT, its own tanh layer on the first token 768; no projection.

The authors compare cosines: their learned scale is used in training only, so `logits` omits it.
Zhou et al. 2024, https://arxiv.org/abs/2412.13126.
"""

from typing import Unpack

from torch import Tensor, nn

from m3bind.modalities.base import Sample
from m3bind.models.base import ModelCard
from m3bind.models.layers.preprocess import rgb_image
from m3bind.models.layers.transforms import IMAGENET_MEAN, IMAGENET_STD, normalized
from m3bind.models.published import Common, LearnedScale, PublishedModel, bert_trunk
from m3bind.models.weights.checkpoint import rename

SIZE = 224
IMAGE_LAYERS, TEXT_LAYERS = 24, 12


class Keep(PublishedModel):
    """KEEP as its authors published it."""

    name = "keep"
    tokenizer_source = "Astaxanthin/KEEP"
    lowercase = True
    migrations = (
        rename(r"^visual\.", "image_trunk."),
        rename(r"^visual_head\.", "image_head."),
        rename(r"^text\.", "text_trunk.bert."),
        rename(r"^logit_scale$", "scale.log"),
    )
    card = ModelCard(
        source="https://github.com/MAGIC-AI4Med/KEEP (Zhou et al. 2024, arXiv:2412.13126)",
        revision="a346a70",
        licence_code="MIT",
        licence_weights="MIT (hub card); trained from UNI, whose own weights are gated under CC BY-NC-ND 4.0",
        joint_dim=768,
        input="3x224x224; shortest side 224 (bicubic), centre crop, ImageNet mean and std",
        lora_text=("query", "value"),
        lora_image=("qkv",),
        training_data=(
            "OpenPath and Quilt-1M, cleaned and regrouped",
            "Disease Ontology and UMLS (text)",
            "PubMed abstracts and full texts (PubMedBERT)",
            "Mass-100K (UNI)",
        ),
        notes="pytorch_model.bin or model.safetensors of hub id Astaxanthin/KEEP, with the tokenizer beside it.",
    )

    def __init__(self, **common: Unpack[Common]) -> None:
        """Build with random weights; arguments as for `PublishedModel`."""
        from timm import create_model

        super().__init__(**common)
        self.max_tokens = 256
        self.image_trunk = create_model(
            "vit_large_patch16_224", depth=IMAGE_LAYERS, init_values=1e-5, num_classes=0, dynamic_img_size=True
        )
        width = self.joint_dim
        self.image_head = nn.Sequential(nn.Linear(1024, width), nn.GELU(), nn.Linear(width, width))
        self.text_trunk = bert_trunk(30522, "pooler", layers=TEXT_LAYERS)
        self.text_head = nn.Identity()
        self.scale = LearnedScale(1 / 0.04)
        self._finish()

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """Unit rows (n, 768) and (k, 768) -> cosines (n, k), without the scale, as the authors do."""
        return images @ texts.T

    def preprocess(self, sample: Sample) -> Tensor:
        """(H, W, 3) or (H, W) -> (3, 224, 224)."""
        from torchvision.transforms.functional import InterpolationMode, center_crop, resize

        image = resize(rgb_image(sample), SIZE, InterpolationMode.BICUBIC)
        return normalized(center_crop(image, [SIZE, SIZE]), IMAGENET_MEAN, IMAGENET_STD)
