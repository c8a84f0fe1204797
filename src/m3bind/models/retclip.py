"""RET-CLIP (retina): CLIP ViT-B/16 and Chinese RoBERTa-wwm, heads for the left eye, the right eye and the patient, 512.

n items, L tokens, e eyes of an item (1 or 2).

    image: ViT-B/16 with quick GELU on each eye, class token 768, Linear 512; then, each without bias, a Linear of the
           head "left" or "right" on that eye, or of the head "patient" on both eyes side by side.
    text:  RoBERTa-wwm (a BERT), first token 768; then the same head's Linear 768, ReLU, Linear 512.

An image embedding can only be compared with texts of the same head, so the setting `head` chooses both. "left", the
default, takes single images: the authors also treat an image as the left eye by default. "patient" takes both eyes of
each person. The authors' features of a single image for their linear probes are those before the heads. Texts are
Chinese. Du et al. 2024, https://arxiv.org/abs/2405.14137.
"""

from typing import Literal, Unpack, get_args

from torch import Tensor, nn

from m3bind.errors import ConfigError
from m3bind.modalities.base import Sample
from m3bind.models.base import ModelCard
from m3bind.models.clip import ClipImageTrunk
from m3bind.models.layers.preprocess import rgb_image
from m3bind.models.layers.transforms import CLIP_MEAN, CLIP_STD, normalized
from m3bind.models.published import Common, LearnedScale, PublishedModel, bert_trunk
from m3bind.models.weights.checkpoint import rename
from m3bind.models.weights.clip_keys import huggingface_keys

SIZE, WIDTH, JOINT = 224, 768, 512
Head = Literal["left", "right", "patient"]
HEADS: tuple[str, ...] = get_args(Head)


class EyeHeads(nn.Module):
    """The three image heads, of which the one named `head` is used: (n, 768 e) -> (n, 512)."""

    def __init__(self, head: str) -> None:
        super().__init__()
        self.head = head
        self.projection = nn.Linear(WIDTH, JOINT, bias=False)
        self.left = nn.Linear(JOINT, JOINT, bias=False)
        self.right = nn.Linear(JOINT, JOINT, bias=False)
        self.patient = nn.Linear(2 * JOINT, JOINT, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(n, 768) of one eye, or (n, 1536) of both for "patient" -> (n, 512)."""
        return getattr(self, self.head)(self.eyes(features))  # type: ignore[no-any-return]

    def eyes(self, features: Tensor) -> Tensor:
        """Before the heads, the features of the authors' linear probes: (n, 768 e) -> (n, 512 e)."""
        eyes: Tensor = self.projection(features.reshape(-1, WIDTH))
        return eyes.reshape(features.shape[0], features.shape[1] // WIDTH * JOINT)


class TextHeads(nn.Module):
    """The three text heads, of which the one named `head` is used: (n, 768) -> (n, 512)."""

    def __init__(self, head: str) -> None:
        super().__init__()
        self.head = head
        for name in HEADS:
            self.add_module(name, nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, JOINT)))

    def forward(self, features: Tensor) -> Tensor:
        """(n, 768) -> (n, 512)."""
        return getattr(self, self.head)(features)  # type: ignore[no-any-return]


class RetClip(PublishedModel):
    """RET-CLIP (ViT-B/16) as its authors published it."""

    scale: nn.ModuleDict
    name = "retclip_vitb16"
    own_settings = ("head", "interpolation")
    tokenizer_source = "hfl/chinese-roberta-wwm-ext"
    lowercase = True
    migrations = (
        huggingface_keys,
        rename(r"^vision_model\.", "image_trunk.model."),
        rename(r"^visual_projection\.", "image_head.projection."),
        rename(r"^global_feature_mapping\.", "image_head.patient."),
        rename(r"^(left|right)_feature_mapping\.", r"image_head.\1."),
        rename(r"^bert\.", "text_trunk.bert."),
        rename(r"^text_projection\.", "text_head.patient."),
        rename(r"^text_projection_(left|right)\.", r"text_head.\1."),
        rename(r"^logit_scale$", "scale.patient.log"),
        rename(r"^logit_scale_(left|right)$", r"scale.\1.log"),
    )
    ignored_keys = ("text_trunk.bert.pooler.*",)
    card = ModelCard(
        source="https://github.com/sStonemason/RET-CLIP (Du et al. 2024, arXiv:2405.14137)",
        revision="1ddb9a1",
        licence_code="none stated",
        licence_weights="not stated",
        joint_dim=JOINT,
        input="3x224x224 (both eyes: 2x3x224x224); both sides to 224 (bicubic), CLIP mean and std",
        lora_text=("query", "value"),
        lora_image=("q_proj", "v_proj"),
        training_data=("photographs of both eyes and Chinese reports of 193,865 patients (not public)",),
        notes="the file the README of the source links to (ViT-b-16); head='left', 'right' or 'patient'. The "
        "vocabulary is also RET_CLIP/clip/vocab.txt of the source.",
    )

    def __init__(
        self, head: Head = "left", interpolation: Literal["bicubic", "bilinear"] = "bicubic", **common: Unpack[Common]
    ) -> None:
        """Build with random weights.

        Args:
            head: the pair of heads for images and texts, see the module's docstring.
            interpolation: of the resize; the authors' package has "bicubic", one of their evaluations "bilinear".
            common: see `PublishedModel`.

        Raises:
            ConfigError: an unknown `head` or `interpolation`.
        """
        super().__init__(**common)
        self._check_choice("interpolation", interpolation, ("bicubic", "bilinear"))
        self.interpolation, self.max_tokens = interpolation, 100
        self.image_trunk = ClipImageTrunk(16, quick_gelu=True)
        self.image_head = EyeHeads(head)
        self.text_trunk = bert_trunk(21128, "cls")
        self.text_head = TextHeads(head)
        self.scale = nn.ModuleDict({name: LearnedScale(90) for name in HEADS})
        self.use_head(head)
        self._finish()

    @property
    def head(self) -> str:
        """The pair of heads in use."""
        return str(self.image_head.head)

    def use_head(self, head: str) -> None:
        """Change the pair of heads to "left", "right" or "patient".

        Raises:
            ConfigError: an unknown `head`.
        """
        self._check_choice("head", head, HEADS)
        self.image_head.head = self.text_head.head = head  # type: ignore[assignment]

    @property
    def logit_scale(self) -> Tensor:
        """Learned, one for each head."""
        return self.scale[self.head]()  # type: ignore[no-any-return]

    def clean(self, text: str) -> str:
        """Lower case, Chinese quotation marks as plain ones."""
        return text.lower().replace("\u201c", '"').replace("\u201d", '"')

    def image_features(self, batch: Tensor) -> Tensor:
        """Images (n, 3, 224, 224), or left and right eyes (n, 2, 3, 224, 224) -> (n, 768).

        Of two eyes the heads "left" and "right" use theirs; the head "patient" needs both -> (n, 1536).

        Raises:
            ConfigError: single images for the head "patient".
        """
        if batch.ndim == 5 and self.head != "patient":
            batch = batch[:, HEADS.index(self.head)]
        if self.head != "patient":
            return super().image_features(batch)
        if batch.ndim != 5 or batch.shape[1] != 2:
            raise ConfigError(
                f"head='patient' of {self.name} compares both eyes of a person: give (n, 2, 3, {SIZE}, {SIZE}), left "
                "then right; for single images set head='left' or head='right'."
            )
        return super().image_features(batch.flatten(0, 1)).reshape(batch.shape[0], 2 * WIDTH)

    def preprocess(self, sample: Sample) -> Tensor:
        """One image (H, W, 3) -> (3, 224, 224), whatever its aspect ratio."""
        from torchvision.transforms.functional import InterpolationMode, resize

        image = resize(rgb_image(sample), [SIZE, SIZE], InterpolationMode(self.interpolation))
        return normalized(image, CLIP_MEAN, CLIP_STD)
