"""BiomedCLIP (figures of PubMed articles): timm's ViT-B/16 and BiomedBERT, 512 joint dimensions.

n items, L tokens.

    image: ViT-B/16, class token after the last LayerNorm 768, Linear without bias.
    text:  BiomedBERT (abstracts), first token of the last state 768, Linear 640, GELU, Linear 512, no biases.

`BiomedBertModel` is the part that UniMed-CLIP shares. Zhang et al. 2023, https://arxiv.org/abs/2303.00915.
"""

from abc import abstractmethod
from typing import Unpack

from torch import Tensor, nn

from m3bind.modalities.base import Sample
from m3bind.models.base import ModelCard
from m3bind.models.clip import MAX_SCALE, SIZE, repaired
from m3bind.models.layers.preprocess import rgb_image
from m3bind.models.layers.transforms import clip_transform
from m3bind.models.published import Common, LearnedScale, PublishedModel, bert_trunk
from m3bind.models.weights.checkpoint import rename

BIOMEDBERT = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"


class BiomedBertModel(PublishedModel):
    """Texts through BiomedBERT, up to 256 tokens; CLIP's image preprocessing; a subclass builds the image parts."""

    tokenizer_source = BIOMEDBERT

    def __init__(self, **common: Unpack[Common]) -> None:
        """Build with random weights; arguments as for `PublishedModel`."""
        super().__init__(**common)
        self.max_tokens = 256
        self.image_trunk, self.image_head = self._image_parts()
        self.text_trunk = bert_trunk(30522, "cls")
        inner = (768 + self.joint_dim) // 2
        self.text_head = nn.Sequential(
            nn.Linear(768, inner, bias=False), nn.GELU(), nn.Linear(inner, self.joint_dim, bias=False)
        )
        self.scale = LearnedScale(limit=MAX_SCALE)
        self._finish()

    @abstractmethod
    def _image_parts(self) -> tuple[nn.Module, nn.Module]:
        """Trunk (n, 3, 224, 224) -> (n, f) and head (n, f) -> (n, d_m)."""

    def clean(self, text: str) -> str:
        """The text as repaired by open_clip."""
        return repaired(text)

    def preprocess(self, sample: Sample) -> Tensor:
        """(H, W), (H, W, 3) or (D, H, W) -> (3, 224, 224): shortest side 224, centre crop, CLIP's mean and std."""
        return clip_transform(SIZE)(rgb_image(sample))


class BiomedClip(BiomedBertModel):
    """BiomedCLIP as its authors published it, through open_clip."""

    name = "biomedclip"
    migrations = (
        rename(r"^visual\.trunk\.", "image_trunk."),
        rename(r"^visual\.head\.proj\.", "image_head."),
        rename(r"^text\.transformer\.", "text_trunk.bert."),
        rename(r"^text\.proj\.", "text_head."),
        rename(r"^logit_scale$", "scale.log"),
    )
    card = ModelCard(
        source="hub: microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224 (Zhang et al. 2023, arXiv:2303.00915)",
        revision="open_clip 89fb801",
        licence_code="MIT",
        licence_weights="MIT (hub card)",
        joint_dim=512,
        input="3x224x224: shortest side 224 bicubic, centre crop, CLIP mean and std",
        lora_text=("query", "value"),
        lora_image=("qkv",),
        training_data=("PMC-15M (figures and captions of PubMed Central)", "PubMed abstracts (BiomedBERT)"),
        notes="open_clip_pytorch_model.bin; the weights were replaced once (November 2023), so pin a revision.",
    )

    def _image_parts(self) -> tuple[nn.Module, nn.Module]:
        from timm import create_model

        trunk: nn.Module = create_model("vit_base_patch16_224", num_classes=0)
        return trunk, nn.Linear(768, self.joint_dim, bias=False)
