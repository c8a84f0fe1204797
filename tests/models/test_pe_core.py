"""Perception Encoder against open_clip's own class, with random weights."""

from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
from open_clip.factory import get_model_config
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision import transforms

import m3bind.models as models
from m3bind.errors import CheckpointError, ConfigError
from m3bind.modalities.base import Sample
from m3bind.models.pe_core import PerceptionEncoder
from models.clip_checks import TEXTS, activations, shortened
from models.golden import assert_lora, assert_steady, assert_steady_text

NAMES = {"pe_core_t16": "PE-Core-T-16-384", "pe_core_s16": "PE-Core-S-16-384", "pe_core_b16": "PE-Core-B-16"}


@pytest.fixture(scope="module")
def own() -> nn.Module:
    """With weights large enough for every part to be seen in the output (biases start at zero)."""
    torch.manual_seed(4)
    made: nn.Module = open_clip.create_model(NAMES["pe_core_t16"]).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
            elif parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) / parameter[0].numel() ** 0.5)
    return made


@pytest.fixture(scope="module")
def model(own: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> PerceptionEncoder:
    folder = tmp_path_factory.mktemp("pe_core")
    save_file(own.state_dict(), folder / "open_clip_model.safetensors")
    made = models.load("pe_core_t16", folder)
    assert isinstance(made, PerceptionEncoder)
    return made


@torch.no_grad()
def test_images_texts_and_logits(own: nn.Module, model: PerceptionEncoder) -> None:
    images, ids = torch.randn(2, 3, 384, 384), open_clip.get_tokenizer(NAMES["pe_core_t16"])(TEXTS)
    image, text, scale = own(images, ids)
    assert ids.shape == (len(TEXTS), 32)
    tokens = model.tokenize(TEXTS)
    raw_image = model.project_image(model.image_features(images))
    raw_text = model.project_text(model.text_features(tokens))
    torch.testing.assert_close(raw_image, own.encode_image(images), atol=5e-5, rtol=0)
    torch.testing.assert_close(raw_text, own.encode_text(ids), atol=5e-5, rtol=0)
    torch.testing.assert_close(model.encode_image(images), image, atol=2e-6, rtol=0)
    torch.testing.assert_close(model.encode_text(tokens), text, atol=2e-6, rtol=0)
    torch.testing.assert_close(model.logits(image, text), scale * image @ text.T, atol=1e-5, rtol=0)
    assert torch.equal(tokens["input_ids"], ids[:, : tokens["input_ids"].shape[1]])


def test_layers(own: nn.Module, model: PerceptionEncoder) -> None:
    found, wanted = (sorted(m.eps for m in n.modules() if isinstance(m, nn.LayerNorm)) for n in (model, own))
    assert found == wanted and set(found) == {1e-5}
    assert activations(model) == {"GELU", "GELUActivation"}


@pytest.mark.parametrize("name", NAMES)
def test_the_keys_of_every_size_fit(name: str) -> None:
    config = {key: value for key, value in get_model_config(NAMES[name]).items() if key != "custom_text"}
    with torch.device("meta"):
        state = open_clip.CustomTextCLIP(**config).state_dict()
        network = models.build(name)
    for migration in network.migrations:
        state = migration(state, frozenset())
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    assert {key: value.shape for key, value in state.items()} == shapes
    assert models.card(name).joint_dim == network.image_head.out_features == network.text_head.out_features


def test_batches_and_padding(model: PerceptionEncoder) -> None:
    with shortened(model.image_trunk):
        assert_steady(model.encode_image, torch.randn(2, 3, 384, 384))
    assert_steady_text(model, model.tokenize(TEXTS[:4]))
    tokens = model.tokenize(["pneumonia", *TEXTS])
    with torch.no_grad():
        alone = model.encode_text(model.tokenize(["pneumonia"]))
        torch.testing.assert_close(model.encode_text(tokens)[:1], alone, atol=2e-6, rtol=0)


def test_preprocessing(model: PerceptionEncoder) -> None:
    resize = transforms.Resize((384, 384), interpolation=transforms.InterpolationMode.BILINEAR)
    chain = transforms.Compose([resize, transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)])
    for height, width in ((300, 420), (513, 257), (10, 10), (700, 1)):
        pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
        got = model.preprocess(Sample("pathology", pixels.astype(np.float32) / 255))
        torch.testing.assert_close(got, chain(Image.fromarray(pixels)), atol=2e-5, rtol=0)
    assert model.preprocess(Sample("xray", np.full((30, 20), 0.5, np.float32))).shape == (3, 384, 384)


def test_saved_and_loaded(model: PerceptionEncoder, tmp_path: Path) -> None:
    models.save(model, tmp_path / "saved")
    again = models.load(tmp_path / "saved")
    tokens, images = again.tokenize(TEXTS[:3]), torch.randn(1, 3, 384, 384)
    with torch.no_grad():
        assert torch.equal(again.encode_text(tokens), model.encode_text(tokens))
        assert torch.equal(again.encode_image(images), model.encode_image(images))
    assert again.registered_name == "pe_core_t16"


def test_what_does_not_fit(own: nn.Module, model: PerceptionEncoder, tmp_path: Path, monkeypatch) -> None:
    state = own.state_dict() | {"logit_bias": torch.zeros(())}
    del state["visual.trunk.attn_pool.latent"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing: image_trunk\.attn_pool\.latent; 1 unexpected: logit_bias"):
        model.load_checkpoint(tmp_path)
    monkeypatch.setattr(timm, "is_model", lambda name: False)
    with pytest.raises(ConfigError, match="pe_core_s16 needs a newer timm"):
        models.build("pe_core_s16")


@pytest.mark.parametrize(("part", "modules"), [("text", 24), ("image", 12)])
def test_lora(model: PerceptionEncoder, part: str, modules: int) -> None:
    tokens, images = model.tokenize(TEXTS[:2]), torch.randn(1, 3, 384, 384)
    count = assert_lora(
        model, part, lambda: model.encode_image(images) if part == "image" else model.encode_text(tokens)
    )
    assert count == modules
