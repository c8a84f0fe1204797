"""An image tower with a `TextEncoder`: the base of `compact_*` and `ecg_clip`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from m3bind.models.base import DualEncoder, Tokens
from m3bind.models.layers.text_encoder import TextEncoder, lora_targets

MAX_SCALE = 100.0
INITIAL_SCALE = 1 / 0.07


class TowerPair(DualEncoder):
    """An image trunk and head with a TextEncoder; learned logit scale; the tokenizer is the only asset."""

    def __init__(
        self,
        image_trunk: nn.Module,
        image_head: nn.Module,
        text: TextEncoder,
        own: Mapping[str, Any],
        frozen: Sequence[str],
    ) -> None:
        """`text` becomes `text_trunk`, `text_head` and the tokenizer; `own`: arguments that `settings` returns."""
        super().__init__()
        self.image_trunk, self.image_head = image_trunk, image_head
        self.text_trunk, self.text_head = text.trunk, text.head
        self.tokenizer, self.max_tokens = text.tokenizer, text.max_tokens
        self.text_settings: Mapping[str, Any] = text.settings()
        self.joint_dim = int(text.head_settings["dim"])
        self._own, self.modality = dict(own), str(own["modality"])
        self.card = replace(type(self).card, joint_dim=self.joint_dim, lora_text=lora_targets(self.text_trunk))
        self.log_scale = nn.Parameter(torch.tensor(math.log(INITIAL_SCALE)))
        self.freeze(frozen)

    @property
    def logit_scale(self) -> Tensor:
        """exp(log_scale), at most 100; starts at 1 / 0.07."""
        return self.log_scale.exp().clamp(max=MAX_SCALE)

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """The text tower's own tokenizer; padded to the longest of `texts`."""
        return self.tokenizer(texts)

    def tokenizer_key(self) -> str:
        """That of the tokenizer alone."""
        return self.tokenizer.key

    def settings(self) -> dict[str, Any]:
        """Constructor arguments as JSON values; `text` is the text tower's configuration, not a name."""
        return {**self._own, "text": dict(self.text_settings), "frozen": list(self.frozen)}

    def save_assets(self, folder: Path) -> None:
        """Write tokenizer.json."""
        self.tokenizer.save(folder)
