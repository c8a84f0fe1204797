"""UniMed-CLIP against its authors' own code."""

from pathlib import Path

import pytest
import torch

import m3bind.models as models
from m3bind.models.base import DualEncoder
from models.clip_checks import activations, assert_batches, assert_golden, assert_norms, assert_pictures, golden_images
from models.golden import Golden, assert_lora, fixture


@pytest.fixture(scope="module")
def golden() -> Golden:
    return fixture("unimedclip_b16")


@pytest.fixture(scope="module")
def model(golden: Golden, scratch: Path) -> DualEncoder:
    """From a file as their trainer writes it: under "state_dict", from several processes."""
    path = scratch / "unimed_clip_vit_b16.pt"
    state = golden.state() | {"text_encoder.transformer.embeddings.position_ids": torch.arange(512)[None]}
    content = {"epoch": 10, "name": "run", "state_dict": {f"module.{key}": v for key, v in state.items()}}
    torch.save(content | {"optimizer": {"state": {}, "param_groups": []}}, path)
    return models.load("unimed_clip_b16", path)


def test_images_texts_and_logits(golden: Golden, model: DualEncoder) -> None:
    assert_golden(golden, model)


def test_norms_and_activations(golden: Golden, model: DualEncoder) -> None:
    assert_norms(golden, model)
    assert activations(model.image_trunk) == {"QuickGELUActivation"}
    assert activations(model.text_trunk) | activations(model.text_head) == {"GELU", "GELUActivation"}


def test_batches_and_padding(golden: Golden, model: DualEncoder) -> None:
    assert_batches(golden, model)


def test_preprocessing(golden: Golden, model: DualEncoder) -> None:
    assert_pictures(golden, model)


def test_saved_and_loaded(golden: Golden, model: DualEncoder, tmp_path: Path) -> None:
    models.save(model, tmp_path / "saved")
    again = models.load(tmp_path / "saved")
    tokens = golden.tokens("pair")
    with torch.no_grad():
        assert torch.equal(again.encode_text(tokens), model.encode_text(tokens))


def test_texts_are_repaired(model: DualEncoder) -> None:
    assert model.clean(" donâ€™t  &amp;\n wait ") == "don't & wait"  # type: ignore[attr-defined]


@pytest.mark.parametrize("part", ["text", "image"])
def test_lora(golden: Golden, model: DualEncoder, part: str) -> None:
    tokens, images = golden.tokens("pair"), golden_images(golden)[:1]
    count = assert_lora(
        model, part, lambda: model.encode_image(images) if part == "image" else model.encode_text(tokens)
    )
    assert count == 24
