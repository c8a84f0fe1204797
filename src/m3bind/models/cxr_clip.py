"""CXR-CLIP (chest X-ray): Swin-tiny or ResNet-50 and BioClinicalBERT, 512 joint dimensions.

n items, L tokens.

    image: Swin-tiny, the first (upper left) of its 49 tokens 768; or ResNet-50, average pool 2048; Linear.
    text:  BioClinicalBERT, last layer at the last real token 768, Linear.

Swin has no class token: the authors index the sequence as if it had one. Images are normalised by mean and standard
deviation .5, as the reference values of both towers were recorded; the authors' trainer and evaluator use ImageNet's
for the ResNet: `normalize="imagenet"`. Compare both on labelled images before relying on the ResNet.
You et al. 2023, https://arxiv.org/abs/2310.13292.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal, Unpack

from torch import Tensor, nn

from m3bind.modalities.base import Sample
from m3bind.models.base import ModelCard
from m3bind.models.layers.preprocess import rgb_image
from m3bind.models.layers.swin import SIZE, SwinTrunk, swin_names
from m3bind.models.layers.transforms import IMAGENET_MEAN, IMAGENET_STD, normalized
from m3bind.models.published import BIOCLINICALBERT, Common, LearnedScale, PublishedModel, bert_trunk, resnet50_trunk
from m3bind.models.weights.checkpoint import rename

SWIN, RESNET = "cxr_clip_swin", "cxr_clip_resnet50"
STATISTICS = {  # by the authors' names: mean, standard deviation
    "huggingface": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
}
_CARD = ModelCard(
    source="https://github.com/Soombit-ai/cxr-clip (You et al. 2023, arXiv:2310.13292)",
    revision="3118885",
    licence_code="CC BY-NC 4.0 (README) or CC BY-NC-SA 4.0 (LICENSE)",
    licence_weights="as the code",
    joint_dim=512,
    input="3x224x224; shortest side 224 (bilinear), centre crop, mean and std .5",
    lora_text=("query", "value"),
    lora_image=("q_proj", "v_proj"),
    training_data=(
        "MIMIC-CXR",
        "CheXpert (files _mc, _mcc)",
        "ChestX-ray14 (file _mcc)",
        "MIMIC-III notes (BioClinicalBERT)",
        "ImageNet",
    ),
    notes="swint_m.tar, swint_mc.tar, swint_mcc.tar: train states with the weights under 'model'. Their configuration "
    "seems to hold omegaconf lists, which safe reading refuses: convert the file once as the message says.",
)


class CxrClip(PublishedModel):
    """CXR-CLIP as its authors published it, with either image tower."""

    names = (SWIN, RESNET)
    own_settings = ("normalize",)
    tokenizer_source = BIOCLINICALBERT
    cards: ClassVar[Mapping[str, ModelCard]] = {
        SWIN: _CARD,
        RESNET: replace(
            _CARD,
            lora_image=("conv1", "conv2", "conv3"),
            notes=_CARD.notes.replace("swint_", "r50_") + " Their trainer took ImageNet's mean and std for the ResNet.",
        ),
    }
    migrations = (
        rename(r"^image_encoder\.image_encoder\.", "image_trunk.swin."),
        rename(r"^image_encoder\.resnet\.", "image_trunk."),
        rename(r"^image_projection\.projection\.", "image_head."),
        rename(r"^text_encoder\.text_encoder\.", "text_trunk.bert."),
        rename(r"^text_projection\.projection\.", "text_head."),
        rename(r"^logit_scale$", "scale.log"),
        swin_names("image_trunk.swin."),
    )
    ignored_keys = ("text_trunk.bert.pooler.*",)

    def __init__(
        self,
        variant: str = SWIN,
        normalize: Literal["huggingface", "imagenet"] = "huggingface",
        **common: Unpack[Common],
    ) -> None:
        """Build with random weights.

        Args:
            variant: "cxr_clip_swin" or "cxr_clip_resnet50".
            normalize: "huggingface" (mean and standard deviation .5) or "imagenet".
            common: see `PublishedModel`.

        Raises:
            ConfigError: an unknown `normalize`.
        """
        super().__init__(variant, **common)
        self._check_choice("normalize", normalize, STATISTICS)
        self.normalize = normalize
        self.max_tokens = 256
        swin = self.variant == SWIN
        self.image_trunk = SwinTrunk("first") if swin else resnet50_trunk()
        self.image_head = nn.Linear(768 if swin else 2048, self.joint_dim)
        self.text_trunk = bert_trunk(28996, "last")
        self.text_head = nn.Linear(768, self.joint_dim)
        self.scale = LearnedScale()
        self._finish()

    def preprocess(self, sample: Sample) -> Tensor:
        """(H, W) or (H, W, 3) -> (3, 224, 224)."""
        from torchvision.transforms.functional import center_crop, resize

        image = center_crop(resize(rgb_image(sample), SIZE), [SIZE, SIZE])
        return normalized(image, *STATISTICS[self.normalize])
