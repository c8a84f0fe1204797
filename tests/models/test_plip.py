"""PLIP against transformers' CLIPModel and image processors, which its authors' package calls."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import m3bind.models as models
from m3bind.errors import ConfigError
from m3bind.modalities.base import Sample
from m3bind.models.clip import bpe_tokens
from m3bind.models.plip import Plip
from models.clip_checks import activations, assert_batches, assert_golden, assert_norms, assert_pictures, golden_images
from models.golden import Golden, assert_lora, fixture


@pytest.fixture(scope="module")
def golden() -> Golden:
    return fixture("plip")


@pytest.fixture(scope="module")
def folder(golden: Golden, scratch: Path) -> Path:
    """As on the hub: a pickle with position_ids, as transformers 4 wrote it, and a configuration."""
    ids = {"text_model": torch.arange(77)[None], "vision_model": torch.arange(50)[None]}
    state = golden.state() | {f"{tower}.embeddings.position_ids": value for tower, value in ids.items()}
    torch.save(state, scratch / "pytorch_model.bin")
    (scratch / "config.json").write_text(json.dumps({"model_type": "clip", "text_config": {"eos_token_id": 2}}))
    return scratch


@pytest.fixture(scope="module")
def model(folder: Path) -> Plip:
    made = models.load("plip", folder)
    assert isinstance(made, Plip)
    return made


def test_images_texts_and_logits(golden: Golden, model: Plip) -> None:
    assert_golden(golden, model)
    assert_norms(golden, model)
    assert activations(model) == set(golden.meta["activation_modules"])


def test_batches_and_padding(golden: Golden, model: Plip) -> None:
    assert_batches(golden, model)


@pytest.mark.parametrize("processor", ["pil", "default"])
def test_preprocessing(golden: Golden, model: Plip, processor: str) -> None:
    model.processor = processor  # type: ignore[assignment]
    try:
        assert_pictures(golden, model, f"{processor}_")
    finally:
        model.processor = "pil"


def test_pictures_no_fixture_holds() -> None:
    import transformers
    from PIL import Image

    engines = {"default": transformers.CLIPImageProcessor(), "pil": transformers.CLIPImageProcessorPil()}
    shell = Plip.__new__(Plip)
    torch.nn.Module.__init__(shell)
    for height, width in ((10, 17), (225, 224), (223, 224), (601, 402), (31, 999)):
        pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
        for shell.processor, engine in engines.items():  # type: ignore[assignment]
            wanted = engine(images=Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0]
            got = shell.preprocess(Sample("pathology", pixels.astype(np.float32) / 255))
            torch.testing.assert_close(got, wanted, atol=2e-6, rtol=0)


def test_tokens(model: Plip) -> None:
    plain = ["An H&E image patch of adipose tissue.", "Lymphocytes, 3+ (CD20-positive)!", "tumor " * 90]
    tokens = model.tokenize(plain)
    wanted = bpe_tokens(plain)
    assert torch.equal(tokens["input_ids"], wanted["input_ids"])
    assert torch.equal(tokens["attention_mask"], wanted["attention_mask"])
    entity = model.tokenize(["&lt;b&gt;"])["input_ids"]
    assert entity.shape[1] > bpe_tokens(["&lt;b&gt;"])["input_ids"].shape[1], "entities stay as they are"


def test_saved_and_loaded(golden: Golden, model: Plip, tmp_path: Path) -> None:
    models.save(model, tmp_path / "plip")
    assert (tmp_path / "plip" / "assets" / "tokenizer.json").is_file()
    again = models.load(tmp_path / "plip", processor="default")
    assert again.settings() == {"frozen": [], "quick_gelu": True, "processor": "default"}
    tokens = again.tokenize(["An H&E image of tumor."])
    assert torch.equal(tokens["input_ids"], model.tokenize(["An H&E image of tumor."])["input_ids"])
    with torch.no_grad():
        assert torch.equal(again.encode_text(tokens), model.encode_text(tokens))


def test_settings() -> None:
    with pytest.raises(ConfigError, match="processor='fast' of plip"):
        models.build("plip", processor="fast")


@pytest.mark.parametrize("part", ["text", "image"])
def test_lora(golden: Golden, model: Plip, part: str) -> None:
    tokens, images = golden.tokens("pair"), golden_images(golden)[:1]
    count = assert_lora(
        model, part, lambda: model.encode_image(images) if part == "image" else model.encode_text(tokens)
    )
    assert count == 24
