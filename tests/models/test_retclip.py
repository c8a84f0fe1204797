"""RET-CLIP, its three heads, against the authors' own code."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import m3bind.models as models
from m3bind.errors import CheckpointError, ConfigError
from m3bind.modalities.base import Sample
from m3bind.models.layers.transforms import CLIP_MEAN, CLIP_STD
from m3bind.models.retclip import HEADS, RetClip
from m3bind.models.weights.checkpoint import load_strict
from models.golden import Golden, assert_lora, assert_steady, assert_steady_text, fixture, pictures


@pytest.fixture(scope="module")
def golden() -> Golden:
    return fixture("retclip_vitb16")


@pytest.fixture(scope="module")
def loaded(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> RetClip:
    """From a train state of several processes, as the authors write it."""
    path = tmp_path_factory.mktemp("retclip") / "epoch_latest.pt"
    torch.save({"epoch": 1, "name": "x", "state_dict": golden.state("module."), "optimizer": {}}, path)
    model = models.load("retclip_vitb16", path)
    path.unlink()
    assert isinstance(model, RetClip)
    return model


@pytest.fixture
def model(loaded: RetClip) -> RetClip:
    loaded.use_head("left")
    return loaded


@pytest.fixture(scope="module")
def eyes(golden: Golden) -> torch.Tensor:
    """(2, 2, 3, 224, 224): left and right of two people."""
    sides = [torch.from_numpy(golden.inputs.image("a", side, (2, 3, 224, 224))) for side in ("left", "right")]
    return torch.stack(sides, 1)


@torch.no_grad()
def test_images_texts_and_logits_of_all_heads(golden: Golden, model: RetClip, eyes: torch.Tensor) -> None:
    model.use_head("patient")
    both = model.image_features(eyes)
    visual = model.image_head.eyes(both)  # type: ignore[operator]
    got = {"img_left_visual": visual[:, :512], "img_right_visual": visual[:, 512:]}
    pair, long = golden.tokens("pair", length=20), golden.tokens("long", length=40)
    assert golden.tokens("pair")["input_ids"].shape == (2, 100)
    for head in HEADS:
        model.use_head(head)
        features = {"left": both[:, :768], "right": both[:, 768:], "patient": both}[head]
        raw = model.project_image(features)
        text = model.project_text(model.text_features(pair))
        got |= {f"img_{head}_emb_raw": raw, f"img_{head}_emb": nn.functional.normalize(raw, dim=-1)}
        got |= {f"txt_pair_{head}_emb_raw": text, f"txt_pair_{head}_emb": model.encode_text(pair)}
        got |= {f"txt_long_{head}_emb_raw": model.project_text(model.text_features(long))}
        got[f"scale_{head}"] = model.logit_scale
    model.use_head("patient")
    got["logits_patient"] = model.logits(got["img_patient_emb"], got["txt_pair_patient_emb"])
    got["txt_pair_pooled"] = model.text_features(golden.tokens("pair"))
    assert set(got) == set(golden.meta["outputs"])
    golden.compare(got)


@pytest.fixture
def shallow(model: RetClip) -> Iterator[RetClip]:
    """Two layers of the image trunk, for tests that do not depend on their number."""
    encoder: Any = model.image_trunk.model.encoder  # type: ignore[union-attr]
    layers = encoder.layers
    encoder.layers = layers[:2]
    yield model
    encoder.layers = layers


@torch.no_grad()
def test_one_picture_and_two(shallow: RetClip, eyes: torch.Tensor) -> None:
    for head, side in (("left", 0), ("right", 1)):
        shallow.use_head(head)
        assert torch.equal(shallow.encode_image(eyes), shallow.encode_image(eyes[:, side]))
    shallow.use_head("patient")
    assert_steady(shallow.encode_image, eyes)
    with pytest.raises(ConfigError, match="compares both eyes"):
        shallow.encode_image(eyes[:, 0])


@torch.no_grad()
def test_batches(golden: Golden, shallow: RetClip, eyes: torch.Tensor) -> None:
    assert_steady(shallow.encode_image, eyes[:, 0])
    short, full = golden.tokens("pair", length=20), golden.tokens("pair")
    torch.testing.assert_close(shallow.encode_text(short), shallow.encode_text(full), atol=2e-6, rtol=0)
    assert_steady_text(shallow, short)
    assert shallow.encode_text({key: value[:1, :1] for key, value in short.items()}).isfinite().all()


def test_preprocessing(golden: Golden, model: RetClip) -> None:
    for name, pixels in pictures(golden):
        sample = Sample("retina", pixels.astype(np.float32) / 255)
        golden.compare_picture(name, model.preprocess(sample))
        model.interpolation = "bilinear"
        plain = np.array(Image.fromarray(pixels).resize((224, 224), Image.Resampling.BILINEAR)) / 255
        wanted = torch.from_numpy((plain - np.array(CLIP_MEAN)) / np.array(CLIP_STD)).float().permute(2, 0, 1)
        torch.testing.assert_close(model.preprocess(sample), wanted, atol=1e-5, rtol=0)
        model.interpolation = "bicubic"
    for shape in ((100, 80), (300, 1, 3), (1, 7, 3), (90, 120, 3)):
        made = model.preprocess(Sample("retina", np.full(shape, 0.5, np.float32)))
        assert made.shape == (3, 224, 224) and made.isfinite().all()


def test_texts(model: RetClip, tmp_path: Path) -> None:
    assert model.clean("\u201cDR\u201d \u89c6\u7f51\u819c") == '"dr" \u89c6\u7f51\u819c'
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "\u89c6", "\u7f51", "\u819c", '"', "dr"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    with torch.device("meta"):
        network = models.build("retclip_vitb16", tokenizer=str(tmp_path))
    assert network.tokenize(["\u201cDR\u201d\u89c6\u7f51\u819c"])["input_ids"].tolist() == [[2, 8, 9, 8, 5, 6, 7, 3]]
    assert network.tokenize(["\u89c6" * 300])["input_ids"].shape == (1, 100)


def test_normalisation_layers_and_activations(golden: Golden, model: RetClip) -> None:
    count: dict[str, int] = {}
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            count[f"LayerNorm eps={module.eps}"] = count.get(f"LayerNorm eps={module.eps}", 0) + 1
    assert count == {name: entry["count"] for name, entry in golden.meta["norm_eps"].items()}
    forms = {part: _gelus(getattr(model, part)) for part in ("image_trunk", "text_trunk")}
    assert forms == {"image_trunk": {"QuickGELUActivation"}, "text_trunk": {"GELUActivation"}}


def _gelus(module: nn.Module) -> set[str]:
    return {type(child).__name__ for child in module.modules() if "GELU" in type(child).__name__}


@pytest.mark.parametrize("part", ["text", "image"])
def test_lora(golden: Golden, model: RetClip, eyes: torch.Tensor, part: str) -> None:
    tokens = golden.tokens("pair", length=20)
    encode = {"image": lambda: model.encode_image(eyes[:1, 0]), "text": lambda: model.encode_text(tokens)}[part]
    assert assert_lora(model, part, encode) == 24


def test_keys(golden: Golden) -> None:
    state = golden.outline()
    with torch.device("meta"):
        network = models.build("retclip_vitb16")
    extra = {"bert.pooler.dense.weight": torch.zeros(768, 768), "bert.pooler.dense.bias": torch.zeros(768)}
    report = load_strict(network, state | extra, network.migrations, network.ignored_keys)
    assert report.ignored == ("text_trunk.bert.pooler.dense.bias", "text_trunk.bert.pooler.dense.weight")
    state.pop("text_projection_left.2.bias")
    with pytest.raises(CheckpointError, match=r"1 missing: text_head\.left\.2\.bias"):
        load_strict(network, state, network.migrations, network.ignored_keys)


def test_settings() -> None:
    for wrong in ({"head": "both"}, {"interpolation": "nearest"}):
        with torch.device("meta"), pytest.raises(ConfigError, match=f"{next(iter(wrong))}=.* of retclip_vitb16"):
            models.build("retclip_vitb16", **wrong)


def test_saved_and_loaded(golden: Golden, model: RetClip, tmp_path: Path) -> None:
    model.use_head("right")
    models.save(model, tmp_path / "retclip")
    again = models.load(tmp_path / "retclip")
    tokens = golden.tokens("pair")
    assert again.settings() == {"frozen": [], "head": "right", "interpolation": "bicubic"} == model.settings()
    with torch.no_grad():
        assert torch.equal(again.encode_text(tokens), model.encode_text(tokens))
