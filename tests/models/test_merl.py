"""MERL against the authors' own code."""

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
from m3bind.errors import CheckpointError, ConfigError
from m3bind.modalities.base import Sample
from m3bind.models.base import DualEncoder
from models.golden import Golden, assert_lora, assert_steady, assert_steady_text, fixture

NAMES = ("merl_resnet18", "merl_vit_tiny")


@pytest.fixture(scope="module", params=NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return fixture(request.param)


@pytest.fixture(scope="module")
def checkpoint(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An epoch's file of the authors' trainer, by transformers <= 4.30."""
    path = tmp_path_factory.mktemp(golden.system) / "merl_1_ckpt.pth"
    state = golden.state("module.")
    state["module.lm_model.embeddings.position_ids"] = torch.arange(512)[None]
    torch.save({"epoch": 1, "model_state_dict": state, "optimizer_state_dict": {"state": {}}}, path)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def model(golden: Golden, checkpoint: Path) -> DualEncoder:
    return models.load(golden.system, checkpoint)


@pytest.fixture(scope="module")
def signals(golden: Golden) -> torch.Tensor:
    return torch.from_numpy(golden.inputs.signal("a", "ecg", (2, 12, 5000), scale=0.15, offset=0.45, clip=(0, 1)))


@torch.no_grad()
def test_signals_texts_and_logits(golden: Golden, model: DualEncoder, signals: torch.Tensor) -> None:
    features = model.image_features(signals)
    image = model.encode_image(signals)
    got: dict[str, Any] = {"ecg_emb_raw": model.project_image(features), "ecg_emb": image, "forward_ecg_emb": image}
    if golden.system == "merl_resnet18":
        maps = model.image_trunk.encoder(signals)
        got |= {"ecg_feat_map_sample": maps[:, ::16, ::20], "ecg_pooled_uniform": maps.mean(-1)}
    else:
        got["ecg_pooled"] = features
    for name in ("pair", "long"):
        tokens = golden.tokens(name)
        pooled = model.text_features(tokens)
        got[f"txt_{name}_pooled"] = pooled
        got[f"txt_{name}_emb_raw"] = model.project_text(pooled)
        got[f"txt_{name}_emb"] = model.encode_text(tokens)
    got["forward_txt_emb"] = got["txt_pair_emb"]
    got["logits"] = model.logits(image, torch.cat([got["txt_pair_emb"], got["txt_long_emb"]]))
    golden.compare(got)
    torch.testing.assert_close(
        model.encode_text(golden.tokens("pair", length=20)), got["txt_pair_emb"], atol=2e-6, rtol=0
    )


def test_batches(golden: Golden, model: DualEncoder, signals: torch.Tensor) -> None:
    assert_steady(model.encode_image, signals)
    assert_steady_text(model, golden.tokens("pair", length=16))


def test_preprocessing(golden: Golden) -> None:
    network, five_seconds = (models.build(golden.system, encoder_only=True, protocol=p) for p in ("ptbxl", "icbeb"))
    for name, values in (
        ("ptbxl", golden.inputs.ecg("a", 5000).T),
        ("icbeb", golden.inputs.ecg("a", 6200).T),
        ("chapman", np.round(1000 * golden.inputs.ecg("a", 5000).T)),
    ):
        chosen = five_seconds if name == "icbeb" else network
        got = chosen.preprocess(Sample("ecg", values.astype(np.float32), rate=500.0))
        golden.compare_picture(name, got)
        assert got.dtype == torch.float32 and got.is_contiguous()


def test_any_rate_and_length() -> None:
    network = models.build("merl_vit_tiny", encoder_only=True)
    time = np.arange(0, 10, 0.01)
    slow = np.stack([np.sin(2 * np.pi * (k + 1) * time / 4) for k in range(12)]).astype(np.float32)
    fine = np.arange(0, 10, 0.002)
    fast = np.stack([np.sin(2 * np.pi * (k + 1) * fine / 4) for k in range(12)]).astype(np.float32)
    got, want = (network.preprocess(Sample("ecg", x, rate=r)) for x, r in ((slow, 100.0), (fast, 500.0)))
    assert (got - want)[:, 100:-100].abs().max() < 0.01
    long = network.preprocess(Sample("ecg", np.tile(fast, 3), rate=500.0))
    assert torch.equal(long, want), "the first 10 s count"
    short = network.preprocess(Sample("ecg", fast[:, :1700] + 2, rate=500.0))
    assert (short[:, 1700:] == 0).all() and short.max() == 1
    for broken in (np.zeros((12, 5000)), np.full((12, 30), np.nan), np.full((12, 1), 3.0)):
        made = network.preprocess(Sample("ecg", broken.astype(np.float32), rate=500.0))
        assert made.shape == (12, 5000) and torch.isfinite(network.encode_image(made[None])).all()
    with pytest.raises(ConfigError, match=r"12 leads, time"):
        network.preprocess(Sample("ecg", fast[:3], rate=500.0))
    with pytest.raises(ConfigError, match="sampling rate"):
        network.preprocess(Sample("ecg", fast))
    with pytest.raises(ConfigError, match="10 s at 500 Hz"):
        network.encode_image(torch.zeros(1, 12, 1000))


def test_leads_are_swapped() -> None:
    values = np.repeat(np.arange(12, dtype=np.float32)[:, None], 5000, 1)
    got = models.build("merl_vit_tiny", encoder_only=True).preprocess(Sample("ecg", values, rate=500.0))
    assert (got[:, 0] * 11).round().int().tolist() == [0, 1, 2, 3, 5, 4, 6, 7, 8, 9, 10, 11]


def test_normalisation_layers_and_activations(golden: Golden, model: DualEncoder) -> None:
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm | nn.BatchNorm1d)]
    kinds = Counter(f"{type(m).__name__} eps={m.eps:g}" for m in norms)
    assert kinds == {kind: found["count"] for kind, found in golden.meta["norm_eps"].items()}
    assert model.text_head[1].approximate == "none"
    if golden.system == "merl_vit_tiny":
        assert model.image_trunk.blocks[0].mlp.act.approximate == "none"


def test_what_is_ignored(golden: Golden, model: DualEncoder, checkpoint: Path) -> None:
    want = {"linear1.weight", "linear2.weight"}
    if golden.system == "merl_resnet18":
        want |= {"image_trunk.encoder.linear.weight", "image_trunk.encoder.linear.bias"}
    assert set(model.load_checkpoint(checkpoint).ignored) == want


def test_the_encoder_file(golden: Golden, model: DualEncoder, signals: torch.Tensor, tmp_path: Path) -> None:
    path = tmp_path / "merl_encoder.safetensors"
    state = golden.state(only=lambda key: key.startswith("ecg_encoder."))
    save_file({key.removeprefix("ecg_encoder."): value for key, value in state.items()}, path)
    with pytest.raises(CheckpointError, match=r"merl_encoder\.safetensors holds the ECG encoder alone: no text tower"):
        model.load_checkpoint(path)
    tower = models.load(golden.system, path, encoder_only=True)
    linear_probe = "ecg_pooled" if golden.system == "merl_vit_tiny" else "ecg_pooled_uniform"
    with torch.no_grad():
        features = tower.image_features(signals)
        golden.compare({linear_probe: features})
        assert tower.encode_image(signals).shape == (2, tower.joint_dim) and tower.card.joint_dim == features.shape[1]
        for call in (tower.encode_text, tower.text_features):
            with pytest.raises(ConfigError, match="no text tower"):
                call(golden.tokens("pair"))
        with pytest.raises(ConfigError, match="no text tower"):
            tower.tokenize(["sinus rhythm"])
        models.save(tower, tmp_path / "saved")
        again = models.load(tmp_path / "saved")
        assert torch.equal(again.image_features(signals), features)
    whole = tmp_path / "merl_ckpt.safetensors"
    parts = golden.state(only=lambda key: not key.startswith(("lm_model.embeddings", "lm_model.encoder")))
    save_file({key: value.contiguous() for key, value in parts.items()}, whole)
    assert "text_head.0.weight" in tower.load_checkpoint(whole).ignored


def test_texts() -> None:
    prompts = models.build("merl_vit_tiny", encoder_only=True)
    reports = models.build("merl_vit_tiny", texts="report", encoder_only=True)
    assert prompts.clean("Sinus Rhythm ***") == "sinus rhythm ***"
    assert reports.clean("*** Abnormal EKG.\nSinus\trhythm ***") == "abnormal ecg. sinus rhythm."
    assert reports.clean("=- sinus rhythm -=") == " sinus rhythm ."
    assert reports.clean(" *** ") == "empty"


@pytest.mark.parametrize("part", ["text", "image"])
def test_lora(golden: Golden, model: DualEncoder, signals: torch.Tensor, part: str) -> None:
    tokens = golden.tokens("pair", length=16)
    count = assert_lora(
        model, part, lambda: model.encode_image(signals[:1]) if part == "image" else model.encode_text(tokens)
    )
    assert count == (24 if part == "text" else {"merl_resnet18": 17, "merl_vit_tiny": 12}[golden.system])


def test_settings(model: DualEncoder) -> None:
    for wrong in ({"protocol": "cpsc"}, {"texts": "both"}):
        with pytest.raises(ConfigError, match="merl_vit_tiny is unknown"):
            models.build("merl_vit_tiny", **wrong)
    with pytest.raises(ConfigError, match="tokenizer=<folder"):
        model.tokenize(["sinus rhythm"])
    assert models.card("merl_vit_tiny").lora_image == ("qkv",)


def test_saved_and_loaded(golden: Golden, model: DualEncoder, signals: torch.Tensor, tmp_path: Path) -> None:
    models.save(model, tmp_path / "merl")
    again = models.load(tmp_path / "merl")
    assert again.settings() == model.settings() and again.registered_name == golden.system
    tokens = golden.tokens("pair", length=16)
    with torch.no_grad():
        assert torch.equal(again.encode_text(tokens), model.encode_text(tokens))
        assert torch.equal(again.encode_image(signals[:1]), model.encode_image(signals[:1]))
