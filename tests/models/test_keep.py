"""KEEP against the authors' own code."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import m3bind.models as models
from m3bind.errors import CheckpointError, ConfigError, UnknownNameError
from m3bind.modalities.base import Sample
from m3bind.models import keep
from m3bind.models.base import DualEncoder
from m3bind.models.weights.checkpoint import load_strict
from models.golden import Golden, assert_lora, assert_steady, assert_steady_text, fixture, pictures


@pytest.fixture(scope="module")
def golden() -> Golden:
    return fixture("keep")


@pytest.fixture(scope="module")
def model(golden: Golden) -> DualEncoder:
    """Without the 1.7 GB file: the way through one is `test_saved_and_loaded`, with fewer layers."""
    model = models.build("keep")
    report = load_strict(model, golden.state(), model.migrations, model.ignored_keys)
    assert len(report.loaded) == 546 and report.ignored == ()
    return model


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> DualEncoder:
    """Two layers in each tower, for what does not depend on their number."""
    monkeypatch.setattr(keep, "IMAGE_LAYERS", 2)
    monkeypatch.setattr(keep, "TEXT_LAYERS", 2)
    torch.manual_seed(0)
    return models.build("keep")


@pytest.fixture(scope="module")
def images(golden: Golden) -> torch.Tensor:
    return torch.from_numpy(golden.inputs.image("a", "image", (2, 3, 224, 224)))


@torch.no_grad()
def test_images_texts_and_cosines(golden: Golden, model: DualEncoder, images: torch.Tensor) -> None:
    features = model.image_features(images)
    raw = model.project_image(features)
    image = nn.functional.normalize(raw, dim=-1)
    got = {"img_pooled": features, "img_emb_raw": raw, "img_emb": image, "logit_scale_exp": model.logit_scale}
    for which in ("pair", "long"):
        tokens = golden.tokens(which)
        got[f"txt_{which}_emb_raw"] = model.project_text(model.text_features(tokens))
        got[f"txt_{which}_emb"] = model.encode_text(tokens)
    got["similarity"] = model.logits(image, torch.cat([got["txt_pair_emb"], got["txt_long_emb"]]))
    golden.compare(got)


@torch.no_grad()
def test_batches(golden: Golden, small: DualEncoder, images: torch.Tensor) -> None:
    assert_steady(small.encode_image, images[..., :112, :112].contiguous())
    short, full = golden.tokens("pair", length=20), golden.tokens("pair")
    torch.testing.assert_close(small.encode_text(short), small.encode_text(full), atol=2e-6, rtol=0)
    assert_steady_text(small, short)
    assert small.encode_text({key: value[:1, :1] for key, value in short.items()}).isfinite().all()


def test_preprocessing(golden: Golden, model: DualEncoder) -> None:
    for name, pixels in pictures(golden):
        sample = Sample("pathology", pixels.astype(np.float32) / 255)
        golden.compare_picture(name, model.preprocess(sample))
    for shape in ((100, 80), (300, 1, 3), (1, 7, 3), (90, 120, 3)):
        made = model.preprocess(Sample("pathology", np.full(shape, 0.5, np.float32)))
        assert made.shape == (3, 224, 224) and made.isfinite().all()


def test_normalisation_layers_and_activations(golden: Golden, model: DualEncoder) -> None:
    count: dict[str, int] = {}
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            count[f"LayerNorm eps={module.eps}"] = count.get(f"LayerNorm eps={module.eps}", 0) + 1
    assert count == {name: v["count"] for name, v in golden.meta["norm_eps"].items()}
    gelus = [m for m in model.modules() if "GELU" in type(m).__name__]
    assert {type(m).__name__ for m in gelus} <= set(golden.meta["activation_modules"])
    assert all(m.approximate == "none" for m in gelus if isinstance(m, nn.GELU))


@pytest.mark.parametrize("part", ["text", "image"])
def test_lora(golden: Golden, small: DualEncoder, model: DualEncoder, images: torch.Tensor, part: str) -> None:
    tokens, pictures = golden.tokens("pair", length=20), images[:1, :, :112, :112]
    encode = {"image": lambda: small.encode_image(pictures), "text": lambda: small.encode_text(tokens)}[part]
    with torch.no_grad():
        for name, parameter in small.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(1)  # 1e-5 at first: the tower would hardly show its adapters
    assert assert_lora(small, part, encode) == {"image": 2, "text": 4}[part]
    targets = {"image": model.card.lora_image, "text": model.card.lora_text}[part]
    trunk: nn.Module = getattr(model, f"{part}_trunk")
    assert sum(name.endswith(targets) for name, _ in trunk.named_modules()) == 24


def test_keys(golden: Golden) -> None:
    state = golden.outline()
    with torch.device("meta"):
        network = models.build("keep")
    state["text.embeddings.position_ids"] = torch.arange(512)[None]
    assert load_strict(network, state, network.migrations, network.ignored_keys).ignored == ()
    state.pop("visual.blocks.7.ls1.gamma")
    with pytest.raises(CheckpointError, match=r"1 missing: image_trunk\.blocks\.7\.ls1\.gamma"):
        load_strict(network, state, network.migrations, network.ignored_keys)


def test_saved_and_loaded(golden: Golden, small: DualEncoder, tmp_path: Path) -> None:
    small.freeze(["image_trunk"])
    models.save(small, tmp_path / "keep")
    again = models.load(tmp_path / "keep")
    tokens = golden.tokens("pair")
    assert again.settings() == small.settings() == {"frozen": ["image_trunk"]}
    with torch.no_grad():
        assert torch.equal(again.encode_text(tokens), small.encode_text(tokens))
    names = {"image_trunk.": "visual.", "image_head.": "visual_head.", "text_trunk.bert.": "text."}
    theirs = {"logit_scale": small.state_dict()["scale.log"]}
    for key, value in small.state_dict().items():
        theirs |= {new + key.removeprefix(old): value for old, new in names.items() if key.startswith(old)}
    (tmp_path / "hub").mkdir()
    torch.save(theirs, tmp_path / "hub" / "pytorch_model.bin")
    state = models.load("keep", tmp_path / "hub").state_dict()
    assert all(torch.equal(state[key], value) for key, value in small.state_dict().items())


def test_settings(small: DualEncoder) -> None:
    with pytest.raises(ConfigError, match="tokenizer=<folder"):
        small.tokenize(["an H&E image of skin."])
    with pytest.raises(UnknownNameError, match="prompt"):
        models.build("keep", prompt="x")
