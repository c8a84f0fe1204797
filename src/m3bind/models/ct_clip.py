"""CT-CLIP (chest CT): CTViT and CXR-BERT, 512 joint dimensions.

n volumes or texts, D slices (240 after `preprocess`).

    image: CTViT, mean over slabs, 294912 features (models/ctvit.py), Linear without bias.
    text:  CXR-BERT-specialized as a plain BERT, first token of the last layer, Linear without bias.
    logits: cosines times exp(temperature).

Orientation. The weights expect the axes (S, L, P): first towards the head, second towards the patient's left, third
towards the back. This is the result of the authors' code on their NIfTI files; it reads no orientation at all
(TorchIO issue 1282, CT-CLIP issue 41). A sample of m3bind is (D, H, W) = (S, P, L), whatever its file's orientation, so
`preprocess` swaps H and W and flips nothing. Hamamci et al. 2024, https://arxiv.org/abs/2403.17834.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3bind.errors import CheckpointError, ConfigError
from m3bind.modalities.base import Sample
from m3bind.models.base import ModelCard
from m3bind.models.layers.ctvit import FEATURES, SIDE, CTViT
from m3bind.models.layers.preprocess import centred
from m3bind.models.layers.volumes import CT_RATE_LABELS, checked_spacing, volume_of
from m3bind.models.published import Common, LearnedScale, PublishedModel, bert_trunk
from m3bind.models.weights.checkpoint import LoadReport, load_strict, rename
from m3bind.models.weights.weight_files import State, read_state

SPACING = (1.5, 0.75, 0.75)  # mm
SHAPE = (240, SIDE, SIDE)  # voxels at that spacing
HU = (-1000.0, 1000.0)
PROMPTS = ("{} is present.", "{} is not present.")  # zero-shot: the softmax over their two logits
_STRIPPED = str.maketrans("", "", "\"'()")
_BERT, _VQ = "text_trunk.bert", "image_trunk.vq._codebook"


def _plain(state: State, module_keys: frozenset[str]) -> State:
    """The quantiser's table without the first axis that most releases of vector-quantize-pytorch give it.

    Raises:
        CheckpointError: the table was never filled, or the network has more parts than the published one.
    """
    initted = state.get(f"{_VQ}.initted")
    if initted is not None and not bool(initted.all()):
        raise CheckpointError(f"{_VQ}.initted is 0: the table of codes of this checkpoint was never filled.")
    if any(value.numel() for key, value in state.items() if key.endswith(".null_kv")):
        raise CheckpointError("this CTViT attends to learned extra tokens (null_kv); the published one does not.")
    if f"{_VQ}.embed" not in state:
        return state
    table = state[f"{_VQ}.embed"]
    others = {key: value for key, value in state.items() if key != f"{_VQ}.embed"}
    return others | {"image_trunk.quantiser.table": table[0] if table.ndim == 3 and len(table) == 1 else table}


class CtClip(PublishedModel):
    """CT-CLIP as its authors published it: zero-shot, VocabFine and LiPro (ClassFine) checkpoints."""

    name = "ct_clip"
    check_shape = (1, 20, 480, 480)
    own_settings = ("clip", "spacing")
    tokenizer_source = "microsoft/BiomedVLP-CXR-BERT-specialized"
    lowercase = True
    migrations = (
        rename(r"^trained_model\.", ""),
        rename(r"^visual_transformer\.", "image_trunk."),
        rename(r"^text_transformer\.", "text_trunk.bert."),
        rename(r"^to_visual_latent\.", "image_head."),
        rename(r"^to_text_latent\.", "text_head."),
        rename(r"^temperature$", "scale.log"),
        rename(r"^image_trunk\.to_patch_emb\.", "image_trunk.patches."),
        rename(r"^image_trunk\.spatial_rel_pos_bias\.net\.0\.0\.", "image_trunk.position_bias.net.0."),
        rename(r"^image_trunk\.spatial_rel_pos_bias\.net\.1\.0\.", "image_trunk.position_bias.net.2."),
        rename(r"^image_trunk\.spatial_rel_pos_bias\.net\.2\.", "image_trunk.position_bias.net.4."),
        rename(r"^image_trunk\.enc_(spatial|temporal)_transformer\.", r"image_trunk.\1."),
        rename(r"^(image_trunk\.\w+)\.norm_out\.", r"\1.norm."),
        rename(r"^(image_trunk\.\w+\.layers\.\d+)\.0\.dsconv\.", r"\1.position."),
        rename(r"^(image_trunk\.\w+\.layers\.\d+)\.1\.", r"\1.attention."),
        rename(r"^(image_trunk\.\w+\.layers\.\d+)\.3\.", r"\1.feed_forward."),
        rename(r"^(image_trunk\..*norm)\.gamma$", r"\1.weight"),
        rename(r"^(image_trunk\..*norm)\.beta$", r"\1.bias"),
        _plain,
    )
    ignored_keys = (
        f"{_BERT}.pooler.*",
        "to_text_latent_extra.weight",  # copies that the published settings never use
        "to_visual_latent_extra.weight",
        "image_trunk.to_patch_emb_first_frame.*",
        "image_trunk.to_pixels*",
        "image_trunk.*.attention.context_norm.*",
        "image_trunk.*.attention.null_kv",  # without elements
        f"{_VQ}.initted",
        f"{_VQ}.cluster_size",  # counts of moving averages; newer releases also keep their sums
        f"{_VQ}.embed_avg",
    )
    card = ModelCard(
        source="https://github.com/ibrahimethemhamamci/CT-CLIP (Hamamci et al. 2024, arXiv:2403.17834)",
        revision="a2a155c",
        licence_code="CC BY-NC-SA 4.0",
        licence_weights="CC BY-NC-SA 4.0 (README of the source)",
        joint_dim=512,
        input="1x240x480x480 at 1.5 x 0.75 x 0.75 mm, HU / 1000 in -1..1, axes S L P",
        lora_text=("query", "value"),
        lora_image=("to_q", "to_kv"),
        training_data=("CT-RATE training split (47,149 volumes and reports)", "CXR-BERT: PubMed, MIMIC-III, MIMIC-CXR"),
        notes=(
            "CT-CLIP_v2.pt, CT_VocabFine_v2.pt, CT_LiPro_v2.pt (with a linear layer for 18 labels). Trap of CT-RATE "
            "v2: its files hold Hounsfield units already, while the metadata table still gives slope and intercept, "
            "which the authors' scripts would apply again (issue 50). m3bind reads the file alone: right for v2; those "
            "of the first release must be rescaled once beforehand. Heed the reader's warning about rescaling."
        ),
    )

    def __init__(
        self,
        clip: Literal["before", "after"] = "before",
        spacing: Sequence[float] | None = None,
        classifier: bool = False,
        **common: Unpack[Common],
    ) -> None:
        """Build with random weights.

        Args:
            clip: HU are limited to -1000..1000 "before" resampling (the authors' inference) or "after" it (training).
            spacing: voxel sides (D, H, W) in mm of volumes that state none; without it such volumes are refused.
            classifier: with the linear layer for the 18 labels; a checkpoint with such a layer adds it in any case.
            common: see `PublishedModel`.

        Raises:
            ConfigError: an unknown `clip`, or a `spacing` that is not three positive numbers.
        """
        super().__init__(**common)
        self._check_choice("clip", clip, ("before", "after"))
        self.clip, self.spacing, self.max_tokens = clip, checked_spacing(spacing, self.name), 512
        self.image_trunk = CTViT()
        self.image_head = nn.Linear(FEATURES, self.joint_dim, bias=False)
        self.text_trunk = bert_trunk(30522, "cls", hidden_dropout_prob=0.25, attention_probs_dropout_prob=0.25)
        self.text_head = nn.Linear(768, self.joint_dim, bias=False)
        self.scale = LearnedScale(initial=math.e)
        self.classifier = nn.Linear(self.joint_dim, len(CT_RATE_LABELS)) if classifier else None
        self._finish()

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the columns of `label_logits`, in order."""
        return CT_RATE_LABELS

    def label_logits(self, images: Tensor) -> Tensor:
        """The output of `encode_image`, (n, 512) -> (n, 18), by the linear layer of a LiPro checkpoint.

        Raises:
            ConfigError: the model has no such layer.
        """
        if self.classifier is None:
            raise ConfigError(
                "this ct_clip has no layer for labels; load CT_LiPro_v2.pt, or compare with the prompts "
                f"{' and '.join(map(repr, PROMPTS))}."
            )
        return self.classifier(F.relu(images))  # type: ignore[no-any-return]

    def label_probabilities(self, images: Tensor) -> Tensor:
        """(n, 512) -> (n, 18) in 0..1, one per label.

        Raises:
            ConfigError: as `label_logits`.
        """
        return self.label_logits(images).sigmoid()

    def settings(self) -> dict[str, Any]:
        """Constructor arguments as JSON values."""
        return super().settings() | {"classifier": self.classifier is not None}

    def load_checkpoint(self, path: Path | str) -> LoadReport:
        """Load published weights strictly; a linear layer for labels in the file becomes `classifier`.

        Raises:
            CheckpointError: the file is damaged, unsafe to read, or does not fit.
        """
        state = read_state(path)
        if self.classifier is None and any(key.endswith("classifier.weight") for key in state):
            self.classifier = nn.Linear(self.joint_dim, len(CT_RATE_LABELS)).eval()
        return load_strict(self, state, self.migrations, self.ignored_keys, source=str(path))

    def clean(self, text: str) -> str:
        """The text without quotation marks and round brackets."""
        return text.translate(_STRIPPED)

    def preprocess(self, sample: Sample) -> Tensor:
        """(D, H, W) in HU -> (1, 240, 480, 480), axes S L P.

        Raises:
            ConfigError: not a volume, or one without spacing while the setting `spacing` is None.
        """
        volume, spacing = volume_of(sample, self.spacing, self.name)
        if self.clip == "before":
            volume.clamp_(*HU)
        size = [resampled_size(*axis) for axis in zip(volume.shape, spacing, SPACING)]
        if size != list(volume.shape):
            volume = F.interpolate(volume[None, None], size, mode="trilinear", align_corners=False)[0, 0]
        volume = centred(volume, SHAPE, HU[0]).clamp(*HU).div_(1000)
        return volume.transpose(1, 2)[None].contiguous()

    def levels(self) -> Tensor:
        """(1, 2001): whole HU, of volumes that are not resampled."""
        return torch.arange(HU[0], HU[1] + 1)[None].float().div_(1000)


def resampled_size(count: int, old: float, new: float) -> int:
    """Voxels along an axis after resampling, truncated as the authors do.

    NIfTI headers hold 32-bit numbers: 0.9 mm comes back as 0.89999998, which would lose a voxel. A short decimal that
    is the same 32-bit number is used instead.
    """
    short = float(f"{old:.6g}")
    side = short if np.float32(short) == np.float32(old) else old
    return max(1, int(count * (side / new)))
