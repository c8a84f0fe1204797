"""ECG-CLIP in the layout of the paper's repository against that code, repaired (see the fixture's notes)."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import m3bind.models as models
from m3bind.errors import CheckpointError, ConfigError, UnknownNameError
from m3bind.modalities.base import Sample
from m3bind.models.base import DualEncoder
from m3bind.models.ecg_clip_repository import EcgClipRepository, SampleTransformer
from m3bind.models.layers.augment import ItemRandom
from models.golden import Golden, assert_lora, assert_steady, assert_steady_text, fixture


@pytest.fixture(scope="module")
def golden() -> Golden:
    return fixture("m3bind_repo_ecgclip")


@pytest.fixture(scope="module")
def checkpoint(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("ecg_clip") / "ecg_clip.safetensors"
    save_file({key: value.contiguous() for key, value in golden.state("module.").items()}, path)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> DualEncoder:
    """By way of the name ecg_clip, which recognises the keys."""
    return models.load("ecg_clip", checkpoint, pooling="pooler")


@pytest.fixture(scope="module")
def signals(golden: Golden) -> torch.Tensor:
    return torch.from_numpy(golden.inputs.signal("a", "ecg1", (2, 1, 600)))


@torch.no_grad()
def test_signals_texts_and_logits(golden: Golden, model: DualEncoder, signals: torch.Tensor) -> None:
    assert isinstance(model, EcgClipRepository) and model.registered_name == "ecg_clip_repository"
    features = model.image_features(signals[:, 0])
    image = model.encode_image(signals)
    got: dict[str, Any] = {"ecg_pooled": features, "ecg_emb_raw": model.project_image(features), "ecg_emb": image}
    for pooling in ("cls", "pooler"):
        model.text_trunk.pooling = pooling  # type: ignore[assignment]
        for name in ("pair", "long"):
            tokens = golden.tokens(name)
            got[f"txt_{name}_{pooling}_emb_raw"] = model.project_text(model.text_features(tokens))
            got[f"txt_{name}_{pooling}_emb"] = model.encode_text(tokens)
    got["logits"] = model.logits(image, torch.cat([got["txt_pair_cls_emb"], got["txt_long_cls_emb"]]))
    golden.compare(got)


def test_batches(golden: Golden, model: DualEncoder, signals: torch.Tensor) -> None:
    assert_steady(model.encode_image, signals[..., :100])
    assert_steady_text(model, golden.tokens("pair"))


def test_few_records_at_a_time_give_the_same(
    model: DualEncoder, signals: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    layer = model.image_trunk.transformer_encoder.layers[0]
    hook = layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    five = signals[:, 0].reshape(-1, 60)[:5]
    with torch.no_grad():
        together = model.image_trunk(five)
        monkeypatch.setattr("m3bind.models.ecg_clip_repository.SAMPLES", 90)
        in_parts = model.image_trunk(five[:, :45])
    hook.remove()
    assert seen == [5, 4, 1] and together.shape == in_parts.shape
    with torch.no_grad():
        torch.testing.assert_close(in_parts[4:], model.image_trunk(five[4:, :45]), atol=2e-5, rtol=0)


def test_gradients_are_those_without_recomputing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    trunk, signal = SampleTransformer(0.1).train(), torch.randn(2, 20)

    def gradient() -> torch.Tensor:
        torch.manual_seed(1)
        trunk.zero_grad()
        trunk(signal).square().sum().backward()
        found = trunk.value_embedding.weight.grad
        assert found is not None
        return found.clone()

    recomputed = gradient()
    monkeypatch.setattr("m3bind.models.ecg_clip_repository.checkpoint", lambda layer, x, use_reentrant: layer(x))
    torch.testing.assert_close(recomputed, gradient())


def test_preprocessing() -> None:
    time = np.arange(0, 12, 0.004)
    leads = np.stack([np.sin(2 * np.pi * (k + 1) * time / 4) * (k + 1) / 4 for k in range(12)]).astype(np.float32)
    network = _light()
    got = network.preprocess(Sample("ecg", leads, rate=250.0))
    assert got.shape == (1, 5000) and got.dtype == torch.float32
    assert abs(float(got.max()) - 1.0) < 0.01, "lead II reaches 0.5 mV"
    first = _light(lead="I", rate=100.0, seconds=5.0).preprocess(Sample("ecg", leads, rate=250.0))
    assert first.shape == (1, 500) and abs(float(first.max()) - 0.5) < 0.01
    short = network.preprocess(Sample("ecg", leads[:, :500], rate=500.0))
    assert short.shape == (1, 5000) and (short[0, :2000] == 0).all()
    with pytest.raises(ConfigError, match="12 leads"):
        network.preprocess(Sample("ecg", leads[:1], rate=250.0))


def _light(**settings: Any) -> DualEncoder:
    """A model without weights: settings, preprocessing, names of keys."""
    with torch.device("meta"):
        return models.build("ecg_clip_repository", **settings)


def test_other_inputs(model: DualEncoder) -> None:
    with torch.no_grad():
        assert torch.isfinite(model.encode_image(torch.zeros(1, 1))).all(), "one sample"
        assert model.image_trunk(torch.zeros(0, 1, 50)).shape == (0, 512)
    for wrong in (torch.zeros(1, 12, 100), torch.zeros(1, 5001), torch.zeros(1, 0), torch.zeros(5)):
        with pytest.raises(ConfigError, match="one lead of at most 5000 samples"):
            model.encode_image(wrong)
    varied = model.augment(torch.ones(2, 1, 100), ItemRandom(0, range(2)))
    assert varied.shape == (2, 1, 100)


def test_normalisation_layers_and_activations(golden: Golden, model: DualEncoder) -> None:
    found = Counter(f"LayerNorm eps={m.eps:g}" for m in model.modules() if isinstance(m, nn.LayerNorm))
    assert found == {kind: value["count"] for kind, value in golden.meta["norm_eps"].items()}
    layer = model.image_trunk.transformer_encoder.layers[0]
    assert layer.activation is torch.nn.functional.relu and not layer.norm_first


def test_what_is_ignored(model: DualEncoder, checkpoint: Path, tmp_path: Path) -> None:
    assert model.load_checkpoint(checkpoint).ignored == ()
    ignored = _light().load_checkpoint(checkpoint).ignored
    assert ignored == ("text_trunk.bert.pooler.dense.bias", "text_trunk.bert.pooler.dense.weight")
    other = tmp_path / "other.safetensors"
    save_file({"ecg_encoder.cls_token": torch.zeros(1, 1, 512)}, other)
    with pytest.raises(CheckpointError, match=r"other\.safetensors does not fit EcgClipRepository: \d+ missing"):
        model.load_checkpoint(other)


def test_the_name_ecg_clip_keeps_its_own_layout(assets: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"text": "bert", "width": 32, "layers": 2, "heads": 4, "feed_forward": 48}
    own = models.build("ecg_clip", assets=assets, **settings)
    save_file(own.state_dict(), tmp_path / "own.safetensors")
    again = models.load("ecg_clip", tmp_path / "own.safetensors", assets=assets, **settings)
    assert again.registered_name == "ecg_clip" and type(again) is type(own)


def test_settings_of_the_other_layout(checkpoint: Path) -> None:
    with pytest.raises(UnknownNameError, match="setting of model ecg_clip_repository"):
        models.load("ecg_clip", checkpoint, patch_ms=20.0)


@pytest.mark.parametrize("part", ["text", "image"])
def test_lora(golden: Golden, model: DualEncoder, signals: torch.Tensor, part: str) -> None:
    tokens = golden.tokens("pair")
    count = assert_lora(
        model, part, lambda: model.encode_image(signals[:1, :, :50]) if part == "image" else model.encode_text(tokens)
    )
    assert count == (24 if part == "text" else 12)


def test_settings(model: DualEncoder) -> None:
    for wrong in ({"pooling": "mean"}, {"lead": "V7"}, {"rate": 1000.0}, {"seconds": 0.0}):
        with pytest.raises(ConfigError, match="ecg_clip_repository"):
            _light(**wrong)
    with pytest.raises(ConfigError, match="tokenizer=<folder"):
        model.tokenize(["sinus rhythm"])


def test_saved_and_loaded(golden: Golden, model: DualEncoder, signals: torch.Tensor, tmp_path: Path) -> None:
    models.save(model, tmp_path / "saved")
    again = models.load(tmp_path / "saved")
    assert again.settings() == model.settings() and isinstance(again, EcgClipRepository)
    tokens = golden.tokens("pair")
    with torch.no_grad():
        assert torch.equal(again.encode_text(tokens), model.encode_text(tokens))
        assert torch.equal(again.encode_image(signals[..., :50]), model.encode_image(signals[..., :50]))


@pytest.mark.slow
def test_the_memory_of_a_long_record_is_bounded() -> None:
    import resource

    trunk, signal = SampleTransformer(0.1).eval(), torch.randn(2, 5000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with torch.no_grad():
        assert torch.isfinite(trunk(signal)).all()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000, "kB; one attention matrix is 800 MB"
