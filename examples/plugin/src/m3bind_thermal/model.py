"""A dual encoder of two linear towers: 8x8 pixels, bag of letters."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3bind.modalities.base import Sample
from m3bind.models.base import DualEncoder, ModelCard, Tokens


class Letters(nn.Module):
    """Mean of letter vectors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(28, width)
        self.value = nn.Linear(width, width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask[..., None].float()
        return self.value((self.table(input_ids) * mask).sum(1) / mask.sum(1).clamp(min=1))


class Linear(DualEncoder):
    """Linear in both towers."""

    name = "thermal_linear"
    card = ModelCard("an example", "Apache-2.0", "Apache-2.0", 12, "64 pixels", lora_text=("value",))

    def __init__(self, modality: str = "", joint_dim: int = 12, assets: Any = None) -> None:
        super().__init__()
        self.modality, self.joint_dim, self.max_tokens = modality, joint_dim, 64
        self.image_trunk, self.image_head = nn.Linear(64, 32), nn.Linear(32, joint_dim, bias=False)
        self.text_trunk, self.text_head = Letters(24), nn.Linear(24, joint_dim, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(2.0))

    @property
    def logit_scale(self) -> Tensor:
        return self.log_scale.exp()

    def preprocess(self, sample: Sample) -> Tensor:
        grey = torch.from_numpy(sample.array).reshape(1, *sample.array.shape[:2], -1).mean(-1)
        return F.adaptive_avg_pool2d(grey, 8).reshape(64)

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        rows = [[ord(c) - 96 if "a" <= c <= "z" else 27 for c in text.lower()[:64]] or [27] for text in texts]
        ids = torch.tensor([row + [0] * (max(map(len, rows)) - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}

    def text_features(self, tokens: Tokens) -> Tensor:
        return self.text_trunk(**tokens)

    def settings(self) -> dict[str, Any]:
        return {"modality": self.modality, "joint_dim": self.joint_dim}
