"""MERL (ECG): ResNet-18 or ViT-tiny over 12 leads and MedCPT's query encoder, 256 joint dimensions.

n items, T = 5000 samples (10 s at 500 Hz), P positions along time, w width.

    merl_resnet18: 1-D ResNet-18 without max-pool (512 x 313), 1x1 convolution to 256, attention pool, Linear.
    merl_vit_tiny: patches of 50 samples, 12 pre-norm blocks of width 192, mean over patches, two layers with BatchNorm.
    text: MedCPT query encoder, BERT's tanh layer on the first token, 768-256-256 with GELU.

A `Sample` carries millivolts in the order I, II, III, aVR, aVL, aVF, V1-V6; the weights expect that of MIMIC-IV-ECG,
where aVF comes before aVL: `preprocess` swaps the two, as the authors do for PTB-XL, CPSC 2018 and Chapman.
Liu et al. 2024, https://arxiv.org/abs/2403.06659.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3bind.errors import CheckpointError, ConfigError
from m3bind.modalities.base import Sample
from m3bind.models.base import ModelCard, Tokens
from m3bind.models.layers.preprocess import resampled
from m3bind.models.published import Common, PublishedModel, bert_trunk
from m3bind.models.weights.checkpoint import LoadReport, load_strict, rename
from m3bind.models.weights.weight_files import read_state

LEADS, RATE, SAMPLES = 12, 500.0, 5000
SCALE = 1 / 0.07
_ORDER = [0, 1, 2, 3, 5, 4, 6, 7, 8, 9, 10, 11]  # aVF before aVL
_USED = {"ptbxl": SAMPLES, "chapman": SAMPLES, "icbeb": 2500}  # samples of a record by protocol
_PREFIX = "ecg_encoder."
_BLOCK = r"^ecg_encoder\.block(\d+)\."
_WITHOUT_ENCODER = ("text_trunk.*", "text_head.*", "image_head.*", "image_trunk.downconv.*", "image_trunk.pool.*")


class MerlBlock(nn.Module):
    """Two convolutions of length 3 with BatchNorm around a shortcut: (n, w', P') -> (n, w, P)."""

    def __init__(self, inner: int, width: int, stride: int) -> None:
        """From `inner` to `width` channels; the first convolution strides."""
        super().__init__()
        self.conv1 = nn.Conv1d(inner, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm1d(width)
        self.conv2 = nn.Conv1d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm1d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or inner != width:
            self.shortcut = nn.Sequential(nn.Conv1d(inner, width, 1, stride, bias=False), nn.BatchNorm1d(width))

    def forward(self, x: Tensor) -> Tensor:
        """(n, w', P') -> (n, w, P)."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet18(nn.Module):
    """Eight residual blocks after one strided convolution, no pooling: (n, 12, 5000) -> (n, 512, 313)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(LEADS, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm1d(64)
        self.layer1 = _stage(64, 64, 1)
        self.layer2 = _stage(64, 128, 2)
        self.layer3 = _stage(128, 256, 2)
        self.layer4 = _stage(256, 512, 2)

    def forward(self, batch: Tensor) -> Tensor:
        """(n, 12, 5000) -> (n, 512, 313)."""
        x = F.relu(self.bn1(self.conv1(batch)))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))  # type: ignore[no-any-return]


def _stage(inner: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(MerlBlock(inner, width, stride), MerlBlock(width, width, 1))


class AttentionPool(nn.Module):
    """One learned query attends to all positions: (n, w, P) -> (n, w).

    The query's position is added twice: to it alone, then with the others, as published.
    """

    def __init__(self, positions: int, width: int, heads: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(1, positions + 1, width) / width)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.mhsa = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """(n, w, P) -> (n, w)."""
        query = (self.cls_token + self.positional_embedding[:, :1]).expand(x.shape[0], -1, -1)
        x = torch.cat([query, x.transpose(1, 2)], dim=1) + self.positional_embedding
        out: Tensor = self.mhsa(x[:, :1], x, x, need_weights=False)[0]
        return out[:, 0]


class ResNetTrunk(nn.Module):
    """ResNet-18, 1x1 convolution and attention pool: (n, 12, 5000) -> (n, 256)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = ResNet18()
        self.downconv = nn.Conv1d(512, 256, 1)
        self.pool = AttentionPool(313, 256, 4)

    def forward(self, batch: Tensor) -> Tensor:
        """(n, 12, 5000) -> (n, 256), before the last Linear."""
        return self.pool(self.downconv(self.encoder(_checked(batch))))  # type: ignore[no-any-return]


class MeanTrunk(nn.Module):
    """ResNet-18 and the mean over time: (n, 12, 5000) -> (n, 512), the features of the authors' linear probe."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = ResNet18()

    def forward(self, batch: Tensor) -> Tensor:
        """(n, 12, 5000) -> (n, 512)."""
        return self.encoder(_checked(batch)).mean(-1)  # type: ignore[no-any-return]


class ViTTrunk(nn.Module):
    """ViT-tiny over patches of time without a first token: (n, 12, 5000) -> (n, 192)."""

    def __init__(self, width: int = 192, depth: int = 12, heads: int = 3, patch: int = 50) -> None:
        from timm.models.vision_transformer import Block

        super().__init__()
        self.to_patch_embedding = nn.Conv1d(LEADS, width, patch, patch, bias=False)
        self.pos_embedding = nn.Parameter(torch.randn(1, SAMPLES // patch, width))
        self.blocks = nn.Sequential(
            *(Block(width, heads, qkv_bias=True, norm_layer=nn.LayerNorm) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, batch: Tensor) -> Tensor:
        """(n, 12, 5000) -> (n, 192): mean over patches, then LayerNorm."""
        x = self.to_patch_embedding(_checked(batch)).transpose(1, 2) + self.pos_embedding
        return self.norm(self.blocks(x).mean(1))  # type: ignore[no-any-return]


def _checked(batch: Tensor) -> Tensor:
    if batch.ndim != 3 or tuple(batch.shape[1:]) != (LEADS, SAMPLES):
        raise ConfigError(
            f"MERL takes (n, {LEADS}, {SAMPLES}) signals, 10 s at 500 Hz, not {tuple(batch.shape)}; "
            "its preprocess makes them from a record of any rate and length."
        )
    return batch


def _card(trunk: str, lora: tuple[str, ...]) -> ModelCard:
    return ModelCard(
        source="https://github.com/cheliu-computation/MERL-ICML2024 (Liu et al. 2024, arXiv:2403.06659)",
        revision="38799b7",
        licence_code="MIT",
        licence_weights="not stated (drive folder linked by the source)",
        joint_dim=256,
        input="12x5000 at 500 Hz (10 s), all leads to 0..1 together; aVF before aVL, zeros after a short record",
        lora_text=("query", "value"),
        lora_image=lora,
        training_data=("MIMIC-IV-ECG 1.0 (771,693 records)", "PubMed search logs (MedCPT query encoder)"),
        notes=f"{trunk} of the two published; *_ckpt.pth is the whole model, *_encoder.pth (encoder_only=True) the ECG "
        "encoder alone. The text encoder ran without gradient in the authors' training.",
    )


class Merl(PublishedModel):
    """MERL as its authors published it, with a ResNet-18 or a ViT-tiny."""

    names = ("merl_resnet18", "merl_vit_tiny")
    own_settings = ("protocol", "texts", "encoder_only")
    tokenizer_source = "ncbi/MedCPT-Query-Encoder"
    cards: ClassVar[Mapping[str, ModelCard]] = {
        "merl_resnet18": _card("ResNet-18", ("conv1", "conv2")),
        "merl_vit_tiny": _card("ViT-tiny", ("qkv",)),
    }
    migrations = (
        rename(r"^ecg_encoder\.(conv1|bn1|layer\d|linear)\.", r"image_trunk.encoder.\1."),
        rename(_BLOCK + r"attn\.norm\.", r"image_trunk.blocks.\1.norm1."),
        rename(_BLOCK + r"attn\.fn\.to_qkv\.", r"image_trunk.blocks.\1.attn.qkv."),
        rename(_BLOCK + r"attn\.fn\.to_out\.0\.", r"image_trunk.blocks.\1.attn.proj."),
        rename(_BLOCK + r"ff\.norm\.", r"image_trunk.blocks.\1.norm2."),
        rename(_BLOCK + r"ff\.fn\.net\.0\.", r"image_trunk.blocks.\1.mlp.fc1."),
        rename(_BLOCK + r"ff\.fn\.net\.3\.", r"image_trunk.blocks.\1.mlp.fc2."),
        rename(r"^ecg_encoder\.", "image_trunk."),
        rename(r"^downconv\.", "image_trunk.downconv."),
        rename(r"^att_pool_head\.c_proj\.", "image_head."),
        rename(r"^att_pool_head\.", "image_trunk.pool."),
        rename(r"^proj_e\.", "image_head."),
        rename(r"^lm_model\.", "text_trunk.bert."),
        rename(r"^proj_t\.", "text_head."),
    )
    ignored_keys = ("image_trunk.encoder.linear.*", "linear1.*", "linear2.*")

    def __init__(
        self,
        variant: str = "",
        protocol: Literal["ptbxl", "chapman", "icbeb"] = "ptbxl",
        texts: Literal["prompt", "report"] = "prompt",
        encoder_only: bool = False,
        **common: Unpack[Common],
    ) -> None:
        """Build with random weights.

        Args:
            variant: registered name.
            protocol: the authors' data set, which sets the part of a record that is used: "ptbxl" and "chapman" the
                first 10 s, "icbeb" (CPSC 2018) the first 5 s; the rest of 10 s is zero.
            texts: "prompt" lower-cases a text, as the authors' zero-shot test does; "report" cleans it as they cleaned
                the machine reports they trained on.
            encoder_only: the ECG tower without pooling head, projection and text tower, for the authors' *_encoder.pth;
                features are then those of their linear probe (512 or 192).
            common: see `PublishedModel`.

        Raises:
            ConfigError: an unknown `protocol` or `texts`.
        """
        super().__init__(variant, **common)
        self._check_choice("protocol", protocol, _USED)
        self._check_choice("texts", texts, ("prompt", "report"))
        self.protocol, self.texts, self.encoder_only, self.max_tokens = protocol, texts, encoder_only, 256
        resnet = self.variant == "merl_resnet18"
        if encoder_only:
            self.joint_dim = 512 if resnet else 192
            self.card = replace(self.card, joint_dim=self.joint_dim)
            self.image_trunk = MeanTrunk() if resnet else ViTTrunk()
            self.image_head, self.text_trunk, self.text_head = nn.Identity(), nn.Identity(), nn.Identity()
        else:
            self.image_trunk = ResNetTrunk() if resnet else ViTTrunk()
            self.image_head = nn.Linear(256, self.joint_dim) if resnet else _vit_head(192, self.joint_dim)
            self.text_trunk = bert_trunk(30522, "pooler")
            self.text_head = nn.Sequential(nn.Linear(768, 256), nn.GELU(), nn.Linear(256, self.joint_dim))
        self._finish()

    @property
    def logit_scale(self) -> Tensor:
        """Fixed, 1 / 0.07."""
        return torch.tensor(SCALE)

    def load_checkpoint(self, path: Path | str) -> LoadReport:
        """Load the authors' *_ckpt.pth strictly; with `encoder_only` also their *_encoder.pth.

        Raises:
            CheckpointError: damaged, unsafe to read, of another model, or an encoder without its text tower.
        """
        state = read_state(path)
        if not any(_PREFIX in key for key in state):
            is_encoder = any(key.endswith(("conv1.weight", "to_patch_embedding.weight")) for key in state)
            if is_encoder and not self.encoder_only:
                raise CheckpointError(
                    f"{path} holds the ECG encoder alone: no text tower (lm_model, proj_t) and no projection. Give "
                    f"{self.variant} the authors' *_ckpt.pth, or set encoder_only=True for an ECG tower without texts."
                )
            state = {_PREFIX + key.removeprefix("module."): value for key, value in state.items()}
        ignored = self.ignored_keys + (_WITHOUT_ENCODER if self.encoder_only else ())
        return load_strict(self, state, self.migrations, ignored, source=str(path))

    def clean(self, text: str) -> str:
        """Lower case; for "report" also EKG -> ECG, no stars or rules at the ends, one line, a full stop at the end."""
        if self.texts == "prompt":
            return text.lower()
        report = text.replace("EKG", "ECG").replace("ekg", "ecg").strip(" *").strip("=-").lower()
        for space in "\n\r\t":
            report = report.replace(space, " ")
        return report + "." if report.split() else "empty"

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """The authors' cleaning, tokenizer and truncation; padded to the longest of `texts`.

        Raises:
            ConfigError: a model with `encoder_only`.
        """
        self._need_text()
        return super().tokenize(texts)

    def text_features(self, tokens: Tokens) -> Tensor:
        """Tokens -> (n, 768).

        Raises:
            ConfigError: a model with `encoder_only`.
        """
        self._need_text()
        return super().text_features(tokens)

    def _need_text(self) -> None:
        if self.encoder_only:
            raise ConfigError(
                f"{self.variant} with encoder_only=True has no text tower; load the authors' *_ckpt.pth without that "
                "setting to encode texts."
            )

    def preprocess(self, sample: Sample) -> Tensor:
        """(12, T) in mV -> (12, 5000), 0..1 over all leads and samples, aVF before aVL.

        Resampled to 500 Hz if the rate differs (all of the authors' data are at 500 Hz). The start of the record
        is used (see `protocol`), padded with zeros (mV); then the lowest value of all leads becomes 0, the highest 1.

        Raises:
            ConfigError: no sampling rate, or not 12 leads.
        """
        start = resampled(sample, RATE, LEADS)[:, : _USED[self.protocol]]
        signal = np.zeros((LEADS, SAMPLES), np.float32)
        signal[:, : start.shape[1]] = start
        low, high = signal.min(), signal.max()
        return torch.from_numpy((signal - low) / (high - low + np.float32(1e-8)))[_ORDER]


def _vit_head(inner: int, dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inner, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, dim), nn.BatchNorm1d(dim)
    )
