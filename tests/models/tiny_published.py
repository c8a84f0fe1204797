"""A published model in miniature, added to the package as a file: convolution and BERT, 8 joint dimensions."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import m3bind.models as models
from m3bind.models import registry

SOURCE = '''
"""Tiny (nothing): a convolution and a BERT of one layer, 8 joint dimensions."""

import torch
import torch.nn.functional as F
from torch import nn

from m3bind.models.base import ModelCard
from m3bind.models.weights.checkpoint import rename
from m3bind.models.published import LearnedScale, PublishedModel, bert_trunk
from m3bind.models.layers.preprocess import rgb_image


class Trunk(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.Dropout(0.5)
        self.act = nn.GELU()
        self.register_buffer("grid", torch.linspace(0.5, 1.5, 8), persistent=False)
        self.register_buffer("steps", torch.arange(4))

    def forward(self, x):
        return self.drop(self.act(self.norm(self.conv(x)))).mean((2, 3)) * self.grid


class TinyPublished(PublishedModel):
    name = "tiny_published"
    tokenizer_source = "nobody/nothing"
    check_shape = (3, 16, 16)
    migrations = (rename(r"^visual\\\\.", "image_trunk."), rename(r"^logit_scale$", "scale.log"))
    ignored_keys = ("decoder.*",)
    card = ModelCard("https://example.org/tiny (Nobody 2020)", "MIT", "none", 8, "3x32x32", notes="tiny.ckpt. Small.")

    def __init__(self, width=8, act="gelu", tokenizer=None, tokenizer_revision="", assets=None, frozen=()):
        super().__init__(self.name, tokenizer, tokenizer_revision, assets, frozen)
        self.width, self.max_tokens = width, 16
        self.image_trunk, self.image_head = Trunk(), nn.Linear(8, 8, bias=False)
        sizes = {"hidden_size": width, "num_attention_heads": 2, "intermediate_size": 16, "hidden_act": act}
        self.text_trunk = bert_trunk(300, "mean", 1, max_position_embeddings=16, **sizes)
        self.text_head = nn.Linear(width, 8)
        self.scale = LearnedScale()
        self._finish()

    @property
    def logit_scale(self):
        return self.scale()

    def settings(self):
        return super().settings() | {"width": self.width}

    def preprocess(self, sample):
        picture = torch.tensor(list(rgb_image(sample).resize((32, 32)).tobytes()))
        return picture.reshape(32, 32, 3).permute(2, 0, 1) / 255
'''.replace("\\\\", "\\")


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of the model, while it exists."""
    import sys

    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "tiny_published_model.py").write_text(SOURCE)
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(folder)])
    registry.refresh()
    yield "tiny_published"
    registry.refresh()
    sys.modules.pop("m3bind.models.tiny_published_model", None)
