"""MGCA (chest X-ray): ViT-B/16 or ResNet-50 and six layers of BioClinicalBERT, 128 joint dimensions.

n items.

    image: mgca_vit_base   ViT-B/16 at 224 x 224, first token 768.
           mgca_resnet_50  ResNet-50 on the image upsampled to 299 x 299, average pool 2048.
    text:  the first 6 layers of BioClinicalBERT, without token types and word order, first token 768.
    heads: Linear to 2048, BatchNorm, ReLU, Linear to 128, BatchNorm without weights; the same form on both sides.

Word order: the authors pass token types (zeros) to their BERT as positions, in training and after, so that every token
gets the embedding of position 0 and a text is a bag of word pieces. This is reproduced here.

The authors' local heads, attention layers and prototypes are used by their training losses only: they are in the
checkpoint and are ignored here, as are BERT's cross-attention layers, which texts never pass. Pre-training texts were a
report's impression and findings joined by a space. Wang et al. 2022, https://arxiv.org/abs/2210.06044.
"""

from dataclasses import replace
from typing import Unpack

import torch
from torch import Tensor, nn

from m3bind.modalities.base import Sample
from m3bind.models.base import ModelCard
from m3bind.models.layers.chest import clean_report, radiograph, upsample
from m3bind.models.published import BIOCLINICALBERT, Common, PublishedModel, bert_trunk, resnet50_trunk
from m3bind.models.weights.checkpoint import rename

TEMPERATURE = 0.07
VIT, RESNET = "mgca_vit_base", "mgca_resnet_50"
_CARD = ModelCard(
    source="https://github.com/HKU-MedAI/MGCA (Wang et al. 2022, arXiv:2210.06044)",
    revision="680fe4a",
    licence_code="none stated",
    licence_weights="none stated",
    joint_dim=128,
    input="3x224x224, grey repeated, -1..1; longest side 256, zeros around, centre crop",
    lora_text=("query", "value"),
    training_data=(
        "MIMIC-CXR-JPG 2.0.0, AP and PA views",
        "ImageNet-1k (the image tower's start)",
        "MIMIC-III notes (BioClinicalBERT)",
    ),
)


class _NoTokenTypes(nn.Module):
    """In place of BERT's token type table, which the authors' network lacks."""

    def forward(self, ids: Tensor) -> Tensor:
        return torch.zeros((), device=ids.device)


class _FirstPosition(nn.Embedding):
    """BERT's position table, of which every token gets the first row."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(torch.zeros_like(input))


def _head(in_dim: int, out_dim: int, hidden: int = 2048) -> nn.Sequential:
    """(n, f) -> (n, 128)."""
    return nn.Sequential(
        nn.Linear(in_dim, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, out_dim),
        nn.BatchNorm1d(out_dim, affine=False),
    )


class Mgca(PublishedModel):
    """MGCA as its authors published it, one checkpoint per image tower."""

    names = (VIT, RESNET)
    tokenizer_source = BIOCLINICALBERT
    migrations = (
        rename(r"^img_encoder_q\.model\.", "image_trunk."),
        rename(r"^img_encoder_q\.global_embed\.head\.", "image_head."),
        rename(r"^text_encoder_q\.model\.", "text_trunk.bert."),
        rename(r"^text_encoder_q\.global_embed\.head\.", "text_head."),
    )
    ignored_keys = (
        "text_trunk.bert.encoder.layer.*.crossattention.*",
        "img_encoder_q.local_embed.*",
        "text_encoder_q.local_embed.*",
        "patch_local_atten_layer.*",
        "word_local_atten_layer.*",
        "prototype_layer.*",
    )
    cards = {
        VIT: replace(_CARD, lora_image=("qkv",), notes="Lightning checkpoint vit_base.ckpt."),
        RESNET: replace(
            _CARD,
            lora_image=("conv1", "conv2", "conv3"),
            notes="Lightning checkpoint resnet_50.ckpt; the network upsamples its input to 299x299.",
        ),
    }

    def __init__(self, variant: str = VIT, **common: Unpack[Common]) -> None:
        """Build with random weights.

        Args:
            variant: "mgca_vit_base" or "mgca_resnet_50".
            common: see `PublishedModel`.
        """
        from timm import create_model

        super().__init__(variant, **common)
        self.max_tokens = 112
        vit = self.variant == VIT
        self.image_trunk = create_model("vit_base_patch16_224", num_classes=0) if vit else resnet50_trunk()
        self.image_head = _head(768 if vit else 2048, self.joint_dim)
        self.text_trunk = bert_trunk(28996, "cls", layers=6)
        embeddings = self.text_trunk.bert.embeddings
        embeddings.token_type_embeddings = _NoTokenTypes()
        embeddings.position_embeddings = _FirstPosition(*embeddings.position_embeddings.weight.shape)
        self.text_head = _head(768, self.joint_dim)
        self._finish()

    @property
    def logit_scale(self) -> Tensor:
        """Fixed, 1 / 0.07."""
        return torch.tensor(1 / TEMPERATURE)

    def clean(self, text: str) -> str:
        """The authors' report cleaning; see `clean_report`."""
        return clean_report(text)

    def preprocess(self, sample: Sample) -> Tensor:
        """(H, W) or (H, W, 3) -> (3, 224, 224) in -1..1."""
        return radiograph(sample)

    def image_features(self, batch: Tensor) -> Tensor:
        """(n, 3, 224, 224) -> (n, 768) or (n, 2048)."""
        return super().image_features(batch if self.variant == VIT else upsample(batch))
