"""FLAIR against the authors' own code."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import m3bind.models as models
from m3bind.errors import CheckpointError, ConfigError
from m3bind.modalities.base import Sample
from m3bind.models.base import DualEncoder
from m3bind.models.flair import field_of_view, place
from models.golden import Golden, assert_lora, assert_steady, assert_steady_text, fixture, pictures


@pytest.fixture(scope="module")
def golden() -> Golden:
    return fixture("flair")


@pytest.fixture(scope="module")
def model(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> DualEncoder:
    return golden.load("flair", tmp_path_factory.mktemp("flair"), pooling="upstream")


@pytest.fixture(scope="module")
def images(golden: Golden) -> torch.Tensor:
    return torch.from_numpy(golden.inputs.image("a", "image", (2, 3, 512, 512), scale=0.25, offset=0.5, clip=(0, 1)))


@torch.no_grad()
def test_images_texts_and_logits(golden: Golden, model: DualEncoder, images: torch.Tensor) -> None:
    features = model.image_features(images)
    raw = model.project_image(features)
    image = model.encode_image(images)
    got = {"img_pooled": features, "img_emb_raw": raw, "img_emb": image}
    for name, which, length in (
        ("pair", "pair", None),
        ("long", "long", None),
        ("pair77", "pair", 77),
        ("single", "single", None),
    ):
        tokens = golden.tokens(which, length=length)
        got[f"txt_{name}_pooled"] = model.text_features(tokens)
        got[f"txt_{name}_emb"] = model.encode_text(tokens)
    got["logits"] = model.logits(image, torch.cat([got["txt_pair_emb"], got["txt_long_emb"]]))
    golden.compare(got)


@torch.no_grad()
def test_the_default_mean_is_the_authors_value_for_a_text_alone(golden: Golden, model: DualEncoder) -> None:
    model.text_trunk.pooling = "mean"  # type: ignore[assignment]
    try:
        pair, far = golden.tokens("pair"), golden.tokens("pair", length=77)
        golden.compare(
            {"txt_single_emb": model.encode_text(pair)[:1], "txt_long_emb": model.encode_text(golden.tokens("long"))}
        )
        torch.testing.assert_close(model.encode_text(pair), model.encode_text(far), atol=2e-6, rtol=0)
        assert_steady_text(model, pair)
    finally:
        model.text_trunk.pooling = "padded"  # type: ignore[assignment]


def test_batches(model: DualEncoder, images: torch.Tensor) -> None:
    assert_steady(model.encode_image, images[..., :160, :160].contiguous())


def test_preprocessing(golden: Golden) -> None:
    network = models.build("flair")
    for name, pixels in pictures(golden):
        sample = Sample("retina", pixels.astype(np.float32) / 255)
        golden.compare_picture(f"preprocess_image_{name}", network.preprocess(sample)[None])
        chw = torch.from_numpy(pixels.transpose(2, 0, 1) / 255.0)
        golden.compare_picture(f"loader_canvas_{name}", place(chw, "loader"))
        golden.compare_picture(f"loader_nocanvas_{name}", place(chw, "stretch"))
        bordered = np.zeros((3, pixels.shape[0] + 60, pixels.shape[1] + 90))
        bordered[:, 20:-40, 30:-60] = 0.3 + 0.7 * chw.numpy()
        golden.compare_picture(f"fov_crop_{name}", field_of_view(bordered))


def test_normalisation_layers(golden: Golden) -> None:
    network = models.build("flair")
    norms = [m for m in network.modules() if isinstance(m, nn.LayerNorm)]
    assert {m.eps for m in norms} == {1e-12} and len(norms) == golden.meta["norm_eps"]["LayerNorm eps=1e-12"]["count"]
    assert {m.eps for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-5}


@pytest.mark.parametrize("part", ["text", "image"])
def test_lora(golden: Golden, model: DualEncoder, images: torch.Tensor, part: str) -> None:
    tokens, small = golden.tokens("pair"), images[:1, :, :128, :128]
    count = assert_lora(
        model, part, lambda: model.encode_image(small) if part == "image" else model.encode_text(tokens)
    )
    assert count == (24 if part == "text" else 49)


def test_another_models_checkpoint_is_named(golden: Golden, tmp_path: Path) -> None:
    path = tmp_path / "student.pt"
    torch.save(fixture("student_bioclinicalbert").state(only=lambda key: "layer.0" in key), path)
    with pytest.raises(CheckpointError, match=r"student\.pt does not fit Flair: \d+ missing"):
        models.load("flair", path)


def test_settings() -> None:
    for wrong in ({"pooling": "max"}, {"canvas": "round"}, {"prompt": "no place"}):
        with pytest.raises(ConfigError, match="flair"):
            models.build("flair", **wrong)
    with pytest.raises(ConfigError, match="tokenizer=<folder"):
        models.build("flair").tokenize(["drusen"])


def test_saved_and_loaded(golden: Golden, model: DualEncoder, tmp_path: Path) -> None:
    models.save(model, tmp_path / "flair")
    again = models.load(tmp_path / "flair")
    tokens = golden.tokens("pair")
    with torch.no_grad():
        assert torch.equal(again.encode_text(tokens), model.encode_text(tokens))
