"""CXR-CLIP, both image towers, against the authors' own code."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import m3bind.models as models
from m3bind.errors import CheckpointError, ConfigError
from m3bind.modalities.base import Sample
from m3bind.models.base import DualEncoder
from m3bind.models.weights.checkpoint import load_strict
from models.golden import Golden, assert_lora, assert_steady, assert_steady_text, fixture, pictures

NAMES = {"cxrclip_swin": "cxr_clip_swin", "cxrclip_resnet50": "cxr_clip_resnet50"}
POOLER = ("text_trunk.bert.pooler.dense.bias", "text_trunk.bert.pooler.dense.weight")


@pytest.fixture(scope="module", params=list(NAMES))
def golden(request: pytest.FixtureRequest) -> Golden:
    return fixture(request.param)


@pytest.fixture(scope="module")
def model(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> DualEncoder:
    """Loaded from a train state as the authors' trainer writes it, without the entries that safe reading refuses."""
    path = tmp_path_factory.mktemp("cxr_clip") / "model-best.tar"
    extra = {"optimizer": {"state": {}, "param_groups": []}, "config": {"base": {"amp": True}}, "epoch": 3}
    torch.save({"model": golden.state(), **extra}, path)
    model = models.load(NAMES[golden.system], path)
    path.unlink()
    return model


@pytest.fixture(scope="module")
def images(golden: Golden) -> torch.Tensor:
    return torch.from_numpy(golden.inputs.image("a", "image", (2, 3, 224, 224)))


@torch.no_grad()
def test_images_texts_and_logits(golden: Golden, model: DualEncoder, images: torch.Tensor) -> None:
    features = model.image_features(images)
    got = {
        "img_pooled": features,
        "img_emb_raw": model.project_image(features),
        "img_emb": model.encode_image(images),
        "logit_scale_exp": model.logit_scale,
    }
    for which in ("pair", "long"):
        features = model.text_features(golden.tokens(which))
        got[f"txt_{which}_pooled"] = features
        got[f"txt_{which}_emb_raw"] = model.project_text(features)
        got[f"txt_{which}_emb"] = model.encode_text(golden.tokens(which))
    got["logits"] = model.logits(got["img_emb"], torch.cat([got["txt_pair_emb"], got["txt_long_emb"]]))
    golden.compare(got)


@torch.no_grad()
def test_batches(golden: Golden, model: DualEncoder, images: torch.Tensor) -> None:
    assert_steady(model.encode_image, images if "swin" in golden.system else images[..., :96, :96].contiguous())
    pair, far = golden.tokens("pair"), golden.tokens("pair", length=77)
    torch.testing.assert_close(model.encode_text(pair), model.encode_text(far), atol=2e-6, rtol=0)
    assert_steady_text(model, pair)
    assert model.encode_text({key: value[:1, :1] for key, value in pair.items()}).isfinite().all()


def test_preprocessing(golden: Golden, model: DualEncoder) -> None:
    assert model.settings() == {"frozen": [], "normalize": "huggingface"}
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    for name, pixels in pictures(golden):
        grey = Sample("xray", pixels[..., 1].astype(np.float32) / 255)
        model.normalize = "huggingface"  # type: ignore[assignment]
        half = model.preprocess(grey)
        golden.compare_picture(name, half)
        model.normalize = "imagenet"  # type: ignore[assignment]
        wanted = (half / 2 + 0.5 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        torch.testing.assert_close(model.preprocess(grey), wanted, atol=1e-5, rtol=0)
    model.normalize = "huggingface"  # type: ignore[assignment]
    for shape in ((100, 80), (300, 1), (1, 7), (90, 120, 3)):
        made = model.preprocess(Sample("xray", np.full(shape, 0.5, np.float32)))
        assert made.shape == (3, 224, 224) and made.isfinite().all()


def test_normalisation_layers_and_activations(golden: Golden, model: DualEncoder) -> None:
    norms = {"LayerNorm": nn.LayerNorm, "SyncBatchNorm": nn.BatchNorm2d}
    found: dict[str, int] = {}
    for module in model.modules():
        for name, kind in norms.items():
            if isinstance(module, kind):
                key = f"{name} eps={module.eps}"
                found[key] = found.get(key, 0) + 1
    assert found == {name: entry["count"] for name, entry in golden.meta["norm_eps"].items()}
    forms = {type(m).__name__ for m in model.modules() if "GELU" in type(m).__name__}
    assert forms == {name for name in golden.meta["activation_modules"] if "GELU" in name}


@pytest.mark.parametrize("part", ["text", "image"])
def test_lora(golden: Golden, model: DualEncoder, images: torch.Tensor, part: str) -> None:
    tokens, resnet = golden.tokens("pair"), "resnet" in golden.system
    small = images[:1, :, :96, :96] if resnet else images[:1]
    encode = {"image": lambda: model.encode_image(small), "text": lambda: model.encode_text(tokens)}[part]
    assert assert_lora(model, part, encode) == (49 if resnet and part == "image" else 24)


def test_keys(golden: Golden) -> None:
    state = golden.outline()
    with torch.device("meta"):
        network = models.build(NAMES[golden.system])
    assert load_strict(network, state, network.migrations, network.ignored_keys).ignored == POOLER
    without = {key: value for key, value in state.items() if ".encoder.layer.3." not in key}
    with pytest.raises(CheckpointError, match=r"checkpoint does not fit CxrClip: 16 missing"):
        load_strict(network, without, network.migrations, network.ignored_keys)


def test_settings() -> None:
    with pytest.raises(ConfigError, match="normalize='none' of cxr_clip_swin"):
        models.build("cxr_clip_swin", normalize="none")
    assert models.card("cxr_clip_swin").lora_image != models.card("cxr_clip_resnet50").lora_image


def test_saved_and_loaded(golden: Golden, model: DualEncoder, tmp_path: Path) -> None:
    models.save(model, tmp_path / "cxr")
    again = models.load(tmp_path / "cxr")
    tokens = golden.tokens("pair")
    assert again.settings() == model.settings() and again.registered_name == NAMES[golden.system]
    with torch.no_grad():
        assert torch.equal(again.encode_text(tokens), model.encode_text(tokens))
