"""ConVIRT-pytorch against that code."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import m3bind.models as models
from m3bind.errors import CheckpointError, ConfigError, UnknownNameError
from m3bind.modalities.base import Sample
from m3bind.models.base import DualEncoder
from models.golden import Golden, assert_lora, assert_steady, assert_steady_text, fixture
from models.published_keys import fit, keys, meta

NAME = "convirt"


@pytest.fixture(scope="module")
def golden() -> Golden:
    return fixture(NAME)


@pytest.fixture(scope="module")
def model(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> DualEncoder:
    return golden.load(NAME, tmp_path_factory.mktemp(NAME))


@pytest.fixture(scope="module")
def images(golden: Golden) -> torch.Tensor:
    return torch.from_numpy(golden.inputs.image("a", "image", (2, 3, 224, 224)))


@torch.no_grad()
def test_images_texts_and_logits(golden: Golden, model: DualEncoder, images: torch.Tensor) -> None:
    features = model.image_features(images)
    image = model.encode_image(images)
    got = {"img_pooled": features, "img_emb_raw": model.project_image(features), "img_emb": image}
    for which in ("pair", "long"):
        tokens = golden.tokens(which, length=None)
        pooled = model.text_features(tokens)
        got[f"txt_{which}_pooled"] = pooled
        got[f"txt_{which}_emb_raw"] = model.project_text(pooled)
        got[f"txt_{which}_emb"] = model.encode_text(tokens)
    got["logits"] = model.logits(image, torch.cat([got["txt_pair_emb"], got["txt_long_emb"]]))
    golden.compare(got)


def test_batches(golden: Golden, model: DualEncoder, images: torch.Tensor) -> None:
    assert_steady(model.encode_image, images[..., :96, :96].contiguous())
    near, far = golden.tokens("pair"), golden.tokens("pair", length=60)
    assert_steady_text(model, near)
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text(near), model.encode_text(far), atol=2e-6, rtol=0)


def test_normalisation_and_activation(golden: Golden) -> None:
    network = meta(NAME)
    norms = [m for m in network.modules() if isinstance(m, nn.LayerNorm)]
    assert {m.eps for m in norms} == {1e-12} and len(norms) == golden.meta["norm_eps"]["LayerNorm eps=1e-12"]["count"]
    batch = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {m.eps for m in batch} == {1e-5} and len(batch) == golden.meta["norm_eps"]["BatchNorm2d eps=1e-05"]["count"]
    assert network.text_trunk.config.hidden_act == "gelu"
    assert type(network.image_head[1]) is type(network.text_head[1]) is nn.ReLU


def test_what_is_loaded_and_ignored() -> None:
    listed = keys(NAME)
    report = fit(NAME, listed)
    assert report.ignored == ("text_trunk.bert.pooler.dense.bias", "text_trunk.bert.pooler.dense.weight")
    assert len(report.loaded) == len(listed) - 2
    assert fit(NAME, keys("convirt_edreisMD_reconstructed", "checkpoints")) == report
    positions = {"bert_model.embeddings.position_ids": torch.arange(512)[None]}
    assert fit(NAME, listed | positions) == report
    for prefix in ("module.", "model."):
        assert fit(NAME, listed, lambda key, p=prefix: p + key) == report
    with pytest.raises(CheckpointError, match=r"2 unexpected: image_trunk\.layer1\.3\.a, res_features\.8\.a"):
        extra = {"res_features.4.3.a": torch.zeros(1), "res_features.8.a": torch.zeros(1)}
        fit(NAME, listed | extra)


@pytest.mark.parametrize("part", ["text", "image"])
def test_lora(golden: Golden, model: DualEncoder, images: torch.Tensor, part: str) -> None:
    tokens, small = golden.tokens("pair"), images[:1, :, :128, :128]
    count = assert_lora(
        model, part, lambda: model.encode_image(small) if part == "image" else model.encode_text(tokens)
    )
    assert count == (24 if part == "text" else 49)


def test_saved_and_loaded(golden: Golden, model: DualEncoder, tmp_path: Path) -> None:
    models.save(model, tmp_path / "convirt")
    again = models.load(tmp_path / "convirt")
    tokens = golden.tokens("pair")
    with torch.no_grad():
        assert torch.equal(again.encode_text(tokens), model.encode_text(tokens))


@pytest.mark.parametrize("shape", [(224, 224), (1, 1), (1, 700), (600, 3), (300, 420, 3), (224, 224, 3)])
def test_pictures(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).random(shape, dtype=np.float32)
    image = meta(NAME).preprocess(Sample("xray", array))
    assert image.shape == (3, 224, 224) and image.dtype == torch.float32 and image.isfinite().all()
    if shape[:2] == (224, 224):  # nothing to resize
        pixels = np.broadcast_to((array * 255).round().reshape(224, 224, -1), (224, 224, 3)) / 255
        wanted = (pixels - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        assert np.abs(image.permute(1, 2, 0).numpy() - wanted).max() < 1e-6


@torch.no_grad()
def test_texts(model: DualEncoder, tmp_path: Path) -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "effusion", "pneumonia", "##s", "."]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces), encoding="utf-8")
    tokens = meta(NAME, tokenizer=str(tmp_path)).tokenize(["No\neffusions.", "Pneumonia", "no effusion " * 400])
    assert tokens["input_ids"].shape == (3, 512) and tokens["input_ids"][0, :6].tolist() == [2, 5, 6, 8, 9, 3]
    alone = {"input_ids": torch.tensor([[2]]), "attention_mask": torch.ones(1, 1, dtype=torch.int64)}
    assert model.encode_text(alone).isfinite().all()


def test_settings() -> None:
    network = meta(NAME)
    assert float(network.logit_scale) == 10 and network.settings() == {"frozen": []}
    with pytest.raises(UnknownNameError, match="pooling"):
        models.build(NAME, pooling="mean")
    with pytest.raises(ConfigError, match="tokenizer=<folder"):
        network.tokenize(["effusion"])
