"""LoRA: injected at the card's names, only adapters train, state survives, merging restores the model's own modules."""

import copy

import pytest
import torch
from torch import Tensor, nn

from m3bind.align import lora
from m3bind.config import LoraConfig
from m3bind.errors import ConfigError
from m3bind.models.base import DualEncoder, ModelCard
from m3bind.models.layers.bert import BertTrunk


def bert() -> nn.Module:
    from transformers import BertConfig

    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return BertTrunk(BertConfig(vocab_size=50, max_position_embeddings=16, **size))


class ClipVision(nn.Module):
    def __init__(self) -> None:
        from transformers import CLIPVisionConfig, CLIPVisionModel

        super().__init__()
        size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        self.vision = CLIPVisionModel(CLIPVisionConfig(image_size=16, patch_size=8, **size))

    def forward(self, batch: Tensor) -> Tensor:
        return self.vision(batch).pooler_output


def timm_vit() -> nn.Module:
    import timm

    size = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
    return timm.create_model("vit_tiny_patch16_224", num_classes=0, **size)


def open_clip_vit() -> nn.Module:
    from open_clip.transformer import VisionTransformer

    return VisionTransformer(16, 8, width=32, layers=2, heads=4, mlp_ratio=2.0, output_dim=16)


class Ecg(nn.Module):
    """Transformer encoder layers over 3 x 256 values as 24 tokens of 32."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, batch: Tensor) -> Tensor:
        return self.encoder(batch.reshape(len(batch), -1, 32)).mean(1)


def linear_tower() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(768, 32), nn.BatchNorm1d(32), nn.GELU(), nn.Linear(32, 16))


def conv_tower() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Model(DualEncoder):
    name = "lora_test"

    def __init__(self, image: nn.Module, targets: tuple[str, ...]) -> None:
        super().__init__()
        self.card = ModelCard("here", "Apache-2.0", "none", 8, "any", lora_text=("query", "value"), lora_image=targets)
        self.text_trunk, self.image_trunk = bert(), image
        self.text_head, self.image_head = nn.Linear(32, 8), nn.LazyLinear(8)

    logit_scale = torch.tensor(10.0)

    def preprocess(self, sample):
        raise AssertionError("not used")

    def tokenize(self, texts):
        raise AssertionError("not used")

    def settings(self):
        return {}

    def text_features(self, tokens):
        return self.text_trunk(tokens["input_ids"], tokens["attention_mask"])


IMAGE_TOWERS = {
    "hf_clip": (ClipVision, ("q_proj", "v_proj")),
    "timm": (timm_vit, ("qkv",)),
    "open_clip_mlp": (open_clip_vit, ("c_fc", "c_proj")),
    "open_clip_attention": (open_clip_vit, ("attn",)),
    "transformer_encoder": (Ecg, ("linear1", "linear2")),
    "transformer_attention": (Ecg, ("self_attn",)),
    "linear": (linear_tower, ("1", "4")),
    "root": (lambda: nn.Linear(16, 16), ("trunk",)),
    "convolution": (conv_tower, ("0",)),
}
LAST = {"input_ids": torch.tensor([[3, 4, 5], [6, 7, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}


def make(kind: str) -> tuple[Model, Tensor]:
    torch.manual_seed(0)
    build, targets = IMAGE_TOWERS[kind]
    model, batch = Model(build(), targets), torch.randn(4, 3, 16, 16)
    model.eval().encode_image(batch)  # fixes the lazy layer's width
    return model, batch


def shake(model: nn.Module) -> None:
    """Give every adapter weights that matter."""
    with torch.no_grad():
        for parameter in lora.lora_parameters(model).values():
            parameter.normal_(std=0.2)


@pytest.mark.parametrize("kind", IMAGE_TOWERS)
def test_inject_train_merge(kind: str) -> None:
    model, batch = make(kind)
    with torch.no_grad():
        before = model.encode_image(batch)
    keys = {key: value.clone() for key, value in model.state_dict().items()}
    classes = {name: type(module) for name, module in model.named_modules()}
    model.requires_grad_(False)
    names = lora.inject(model, "image", LoraConfig())
    assert names
    torch.testing.assert_close(model.encode_image(batch), before, atol=1e-6, rtol=0)

    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == set(lora.lora_parameters(model)) and trained
    shake(model)
    model.encode_image(batch).square().mul(torch.arange(8)).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert set(gradients) == trained

    with torch.no_grad():
        adapted = model.encode_image(batch)
    assert (adapted - before).abs().max() > 1e-3  # also without gradients, where torch has a fast path of its own
    assert lora.merge(model) == len(names)
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(batch), adapted, atol=1e-5, rtol=1e-5)
    assert model.state_dict().keys() == keys.keys()
    assert {name: type(module) for name, module in model.named_modules()} == classes
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, keys[key])}
    assert changed and all(key.startswith("image_trunk") for key in changed)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    if kind == "transformer_encoder":
        assert [layer.activation_relu_or_gelu for layer in model.image_trunk.encoder.layers] == [1, 1]


def test_text_tower_and_both_parts() -> None:
    model, _ = make("timm")
    model.requires_grad_(False)
    names = lora.inject(model, "text", LoraConfig(r=4)) + lora.inject(model, "image", LoraConfig(r=4))
    assert len(names) == 2 * 2 + 2
    shake(model)
    state = lora.lora_parameters(model)
    assert len(state) == 2 * len(names) and all("lora_" in name for name in state)
    assert sum(value.numel() for value in state.values()) == 4 * (4 * 64) + 2 * 4 * (32 + 96)
    text = model.encode_text(LAST)
    lora.merge(model)
    torch.testing.assert_close(model.encode_text(LAST), text, atol=1e-5, rtol=0)


@pytest.mark.parametrize("targets", [("qkvx",), (), ("qkv", "wrong")])
def test_targets_that_match_nothing_are_named(targets: tuple[str, ...]) -> None:
    model, _ = make("timm")
    model.card = ModelCard("here", "x", "x", 8, "any", lora_image=targets)
    with pytest.raises(ConfigError, match=r"qkvx|wrong|names no LoRA targets") as error:
        lora.inject(model, "image")
    assert "fc1" in str(error.value)  # what it could have been
    assert not lora.lora_parameters(model)


def test_twice_is_refused() -> None:
    model, _ = make("timm")
    lora.inject(model, "image")
    with pytest.raises(ConfigError, match="already"):
        lora.inject(model, "image")


def test_dropout_acts_in_training_only() -> None:
    model, _ = make("timm")
    lora.inject(model, "text", LoraConfig(dropout=0.5))
    shake(model)
    for module in model.text_trunk.modules():  # leave only the adapters' own dropout
        if isinstance(module, nn.Dropout) and module.p < 0.5:
            module.p = 0.0
    assert torch.equal(model.encode_text(LAST), model.encode_text(LAST))
    model.train()
    assert not torch.equal(model.encode_text(LAST), model.encode_text(LAST))


class Codebook(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("embed_avg", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.embed_avg += x.mean()
        return x


def test_drifting_modules_stay_as_they_are() -> None:
    tower = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), Codebook(), nn.LayerNorm(4))
    tower.append(nn.BatchNorm1d(4, track_running_stats=False))
    assert lora.freeze_running_stats(tower) == ["0", "2"]
    copied = copy.deepcopy(tower)
    for module in (tower, copied):
        before = {key: value.clone() for key, value in module.state_dict().items()}
        module.train()
        assert [child.training for child in module] == [False, True, False, True, True]
        module(torch.randn(8, 4))
        assert all(torch.equal(module.state_dict()[key], value) for key, value in before.items())
