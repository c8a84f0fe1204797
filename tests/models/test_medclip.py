"""MedCLIP against the authors' own code, and Swin-tiny's key names."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import m3bind.models as models
from m3bind.errors import CheckpointError, ConfigError
from m3bind.modalities.base import Sample
from m3bind.models.base import DualEncoder
from m3bind.models.layers.swin import SwinTrunk, swin_names
from m3bind.models.weights.checkpoint import load_strict
from models.golden import Golden, assert_lora, assert_steady, assert_steady_text, fixture, pictures


@pytest.fixture(scope="module")
def golden() -> Golden:
    return fixture("medclip_vit")


@pytest.fixture(scope="module")
def model(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> DualEncoder:
    return golden.load("medclip_vit", tmp_path_factory.mktemp("medclip"), pooling="upstream")


@pytest.fixture(scope="module")
def images(golden: Golden) -> torch.Tensor:
    return torch.from_numpy(golden.inputs.image("a", "image", (2, 1, 224, 224)))


@torch.no_grad()
def test_images_texts_and_logits(golden: Golden, model: DualEncoder, images: torch.Tensor) -> None:
    features = model.image_features(images)
    got = {
        "img_pooled": features,
        "img_emb_raw": model.project_image(features),
        "img_emb": model.encode_image(images),
    }
    for name, which, length in (("pair", "pair", None), ("pair77", "pair", 77), ("long", "long", None)):
        features = model.text_features(golden.tokens(which, length=length))
        got[f"txt_{name}_emb_raw"] = model.project_text(features)
        got[f"txt_{name}_emb"] = nn.functional.normalize(got[f"txt_{name}_emb_raw"], dim=-1)
    got["logits"] = model.logits(got["img_emb"], torch.cat([got["txt_pair_emb"], got["txt_long_emb"]]))
    golden.compare(got)
    torch.testing.assert_close(model.encode_image(images.repeat(1, 3, 1, 1)), got["img_emb"], atol=1e-6, rtol=0)


@torch.no_grad()
def test_the_default_mean_is_the_authors_value_for_a_text_alone(golden: Golden, model: DualEncoder) -> None:
    model.text_trunk.pooling = "mean"  # type: ignore[assignment]
    try:
        pair, far = golden.tokens("pair"), golden.tokens("pair", length=77)
        assert golden.tokens("pair")["attention_mask"][1].all()  # the longer text of the pair has no padding
        alone = {"txt_pair_emb": model.encode_text(pair)[1:], "txt_long_emb": model.encode_text(golden.tokens("long"))}
        golden.compare({"txt_long_emb": alone["txt_long_emb"]})
        wanted = torch.from_numpy(golden.fixture.data["txt_pair_emb"][1:])
        torch.testing.assert_close(alone["txt_pair_emb"], wanted, atol=golden.fixture.tol["txt_pair_emb"], rtol=0)
        torch.testing.assert_close(model.encode_text(pair), model.encode_text(far), atol=2e-6, rtol=0)
        assert_steady_text(model, pair)
        one = {key: value[:1, :1] for key, value in pair.items()}
        assert model.encode_text(one).isfinite().all()
    finally:
        model.text_trunk.pooling = "padded"  # type: ignore[assignment]


def test_batches(model: DualEncoder, images: torch.Tensor) -> None:
    assert_steady(model.encode_image, images)


def test_preprocessing(golden: Golden, model: DualEncoder) -> None:
    for name, pixels in pictures(golden):
        grey = Sample("xray", pixels[..., 1].astype(np.float32) / 255)
        golden.compare_picture(f"processor_{name}", model.preprocess(grey))
    for shape in ((100, 80), (300, 1), (1, 7), (90, 120, 3)):
        made = model.preprocess(Sample("xray", np.full(shape, 0.5, np.float32)))
        assert made.shape == (1, 224, 224) and made.isfinite().all()


def test_normalisation_layers_and_activations(golden: Golden, model: DualEncoder) -> None:
    count = {"LayerNorm eps=1e-05": 0, "LayerNorm eps=1e-12": 0}
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            count[f"LayerNorm eps={module.eps}"] += 1
    assert count == {name: entry["count"] for name, entry in golden.meta["norm_eps"].items()}
    forms = {type(m).__name__ for m in model.modules() if "GELU" in type(m).__name__}
    assert forms == {name for name in golden.meta["activation_modules"] if "GELU" in name}


@pytest.mark.parametrize("part", ["text", "image"])
def test_lora(golden: Golden, model: DualEncoder, images: torch.Tensor, part: str) -> None:
    tokens = golden.tokens("pair")
    encode = {"image": lambda: model.encode_image(images[:1]), "text": lambda: model.encode_text(tokens)}[part]
    assert assert_lora(model, part, encode) == 24


def test_keys(golden: Golden) -> None:
    state = {f"module.{key}": value for key, value in golden.outline().items()}
    with torch.device("meta"):
        network = models.build("medclip_vit")
    report = load_strict(network, state, network.migrations, network.ignored_keys)
    assert report.ignored == ("text_trunk.bert.pooler.dense.bias", "text_trunk.bert.pooler.dense.weight")
    state.pop("module.logit_scale")
    with pytest.raises(CheckpointError, match=r"1 missing: scale\.log"):
        load_strict(network, state, network.migrations, network.ignored_keys)


def test_swin_keys_of_both_versions() -> None:
    trunk = SwinTrunk("first")
    new = trunk.state_dict()
    block = "swin.encoder.layers.0.blocks.0"
    old = {
        key.replace("attention.q_proj", "attention.self.query")
        .replace("attention.k_proj", "attention.self.key")
        .replace("attention.v_proj", "attention.self.value")
        .replace("attention.relative_position_bias.", "attention.self.")
        .replace("attention.o_proj", "attention.output.dense")
        .replace("mlp.fc1", "intermediate.dense")
        .replace("mlp.fc2", "output.dense"): value
        for key, value in new.items()
    }
    place = torch.arange(49)
    row, column = place // 7, place % 7
    index = (row[:, None] - row + 6) * 13 + column[:, None] - column + 6
    old[f"{block}.attention.self.relative_position_index"] = index
    migrations = (swin_names("swin."),)
    assert load_strict(trunk, old, migrations).loaded == load_strict(trunk, dict(new), migrations).loaded
    old[f"{block}.attention.self.relative_position_index"] = index.T
    with pytest.raises(CheckpointError, match="square window"):
        load_strict(trunk, old, migrations)


def test_settings_and_sizes(model: DualEncoder) -> None:
    with pytest.raises(ConfigError, match="pooling='max' of medclip_vit"):
        models.build("medclip_vit", pooling="max")
    with pytest.raises(ConfigError, match="tokenizer=<folder"):
        model.tokenize(["no effusion"])
    with pytest.raises(ConfigError, match="112 x 112 for Swin"):
        model.encode_image(torch.zeros(1, 1, 112, 112))


def test_saved_and_loaded(golden: Golden, model: DualEncoder, tmp_path: Path) -> None:
    models.save(model, tmp_path / "medclip")
    again = models.load(tmp_path / "medclip")
    tokens = golden.tokens("pair")
    assert again.settings() == model.settings() == {"frozen": [], "pooling": "upstream"}
    with torch.no_grad():
        assert torch.equal(again.encode_text(tokens), model.encode_text(tokens))
