"""CT-Net against the authors' own code."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import m3bind.models as models
from m3bind.errors import CheckpointError, ConfigError
from m3bind.modalities.base import Sample
from m3bind.modalities.ct import CT
from m3bind.models.ct_net import LABELS, CtNet, resampled
from models.golden import Golden, assert_lora, assert_steady, fixture

MM = (0.8, 0.8, 0.8)


@pytest.fixture(scope="module")
def golden() -> Golden:
    return fixture("ctnet83")


@pytest.fixture(scope="module")
def model(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> CtNet:
    return golden.load("ct_net", tmp_path_factory.mktemp("ct_net"), outputs=83)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def volume(golden: Golden) -> torch.Tensor:
    x = golden.inputs.image("a", "ctnet", (1, 1, 402, 420, 420), scale=0.25, offset=0.05, clip=(-0.449, 0.551))
    return torch.from_numpy(x.reshape(1, 134, 3, 420, 420))


@torch.no_grad()
def test_features_and_labels(golden: Golden, model: CtNet, volume: torch.Tensor, tmp_path: Path) -> None:
    """The only run over a whole volume (half a minute of one core); the network of 18 outputs shares its trunk."""
    kept: list[torch.Tensor] = []
    hook = model.image_trunk.reduce.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0][0]))
    features = model.image_features(volume)
    hook.remove()
    golden.compare({"reduced_7200": features, "slice_feat_mean": kept[0][::13].mean((2, 3))})
    golden.compare({"slice_feat_map_sample": kept[0][::33, ::64]})
    fewer = fixture("ctnet18")
    for found, network in ((golden, model), (fewer, fewer.load("ct_net", tmp_path))):
        network.image_features = lambda batch: features  # type: ignore[method-assign]
        try:
            got = {"logits": network.logits(volume), "probs": network.probabilities(volume)}  # type: ignore[attr-defined,call-arg]
            found.compare(got)
            rows = network.encode_image(volume)
        finally:
            del network.image_features
        assert rows.shape == (1, 96) and abs(rows.norm() - 1) < 1e-5 and (rows >= 0).all()


def test_pictures_one_by_one(model: CtNet, volume: torch.Tensor) -> None:
    assert_steady(model.image_trunk.maps, volume[0, :2], atol=5e-6)


@torch.no_grad()
def test_batches(model: CtNet, volume: torch.Tensor) -> None:
    """Volume by volume, the same as together; with a cheap stand-in for the ResNet."""
    trunk = copy.deepcopy(model.image_trunk)
    trunk.resnet = nn.Sequential(nn.AvgPool2d(30), nn.Conv2d(3, 512, 1))
    two = torch.cat([volume, volume.flip(1)])
    apart = trunk(two)
    torch.testing.assert_close(apart[1:], trunk(volume.flip(1)), atol=0, rtol=0)
    assert not torch.equal(apart[0], apart[1]) and trunk(two[:0]).shape == (0, 7200)
    torch.testing.assert_close(trunk.train()(two), apart, atol=1e-5, rtol=0)
    for wrong in (two[:, :100], two[..., :400], two[0]):
        with pytest.raises(ConfigError, match="prepare samples with the model's preprocess"):
            trunk(wrong)


def test_normalisation_layers(golden: Golden, model: CtNet) -> None:
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {m.eps for m in norms} == {1e-5} and len(norms) == golden.meta["norm_eps"]["BatchNorm2d eps=1e-05"]["count"]
    assert golden.meta["activation_modules"] == ["ReLU"]


def test_lora(model: CtNet, volume: torch.Tensor) -> None:
    plain = copy.deepcopy(model.image_trunk)
    try:
        assert assert_lora(model, "image", lambda: model.image_trunk.maps(volume[0, 60:61])) == 17
    finally:
        model.image_trunk = plain


# ---- checkpoints


def test_the_authors_training_files(golden: Golden, tmp_path: Path) -> None:
    network = models.build("ct_net")
    state = {f"module.{key}": value for key, value in golden.state().items()}
    torch.save({"params": state, "optimizer": {"state": {}, "param_groups": [{"lr": 0.001}]}}, tmp_path / "CTNet83")
    report = network.load_checkpoint(tmp_path / "CTNet83")
    assert report.ignored == () and len(report.loaded) == len(state)
    with pytest.raises(CheckpointError, match=r"2 of another shape: classifier\.1\.weight \(83, 96\)"):
        models.load("ct_net", tmp_path / "CTNet83", outputs=18)
    torch.save({key: value for key, value in golden.state().items() if "features.7" not in key}, tmp_path / "part.pt")
    with pytest.raises(CheckpointError, match=r"part\.pt does not fit CtNet: \d+ missing"):
        network.load_checkpoint(tmp_path / "part.pt")


def test_saved_and_loaded(model: CtNet, volume: torch.Tensor, tmp_path: Path) -> None:
    models.save(model, tmp_path / "ct_net")
    again = models.load(tmp_path / "ct_net")
    assert again.settings() == model.settings() == {"frozen": [], "outputs": 83, "spacing": None}
    with torch.no_grad():
        assert torch.equal(again.image_trunk.maps(volume[0, :1]), model.image_trunk.maps(volume[0, :1]))
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values()))


# ---- settings, labels, texts


def test_settings_and_labels() -> None:
    for wrong in ({"outputs": 9}, {"spacing": [1.0]}):
        with pytest.raises(ConfigError, match="ct_net"):
            models.build("ct_net", **wrong)
    network = models.build("ct_net", outputs=18, spacing=[1, 1, 1], frozen=["image_trunk"])
    assert network.settings() == {"frozen": ["image_trunk"], "outputs": 18, "spacing": [1.0, 1.0, 1.0]}
    assert network.labels[3] == "Pericardial effusion" and network.logit_scale == 1
    many = LABELS[83]
    assert len(set(many)) == 83 and (many[0], many[-1]) == ("bandlike_or_linear", "gi_tube")


def test_texts_are_refused(model: CtNet, volume: torch.Tensor) -> None:
    tokens = {"input_ids": torch.ones(1, 1, dtype=torch.int64), "attention_mask": torch.ones(1, 1, dtype=torch.int64)}
    for ask in (
        lambda: model.tokenize(["nodule"]),
        lambda: model.text_features(tokens),
        lambda: model.encode_text(tokens),
        lambda: model.project_text(torch.zeros(1, 96)),
        lambda: model.logits(volume, torch.zeros(1, 96)),
    ):
        with pytest.raises(ConfigError, match="ct_net has no text tower"):
            ask()


# ---- samples


def test_preprocessing(golden: Golden, model: CtNet, tmp_path: Path) -> None:
    stored, facts = golden.inputs.ct_volume("a")
    small = stored.transpose(2, 0, 1) + np.int16(facts["intercept"])  # as the authors store volumes: from the head down
    for name, volume in (("prepare_small", small), ("prepare_big", np.tile(small, (12, 9, 10)))):
        sample = Sample("ct", volume[::-1].astype(np.float32), spacing=MM)
        golden.compare_picture(name, model.preprocess(sample))
    np.savez(tmp_path / "rad.npz", ct=small.clip(-1000, 1000))
    clipped = Sample("ct", small[::-1].clip(-1000, 1000).astype(np.float32), spacing=MM)
    assert torch.equal(model.preprocess(CT().read(tmp_path / "rad.npz")), model.preprocess(clipped))


def test_resampling_as_the_authors_library() -> None:
    """Values of SimpleITK 2 with its B-spline interpolator, spacing 1.25 -> 0.8."""
    line = torch.tensor([-900.0, -700, 40, 60, -1000, 300, 20, -50])
    want = [-900.0, -837.6555, -520.002, -16.9656, 265.6687, -186.5732]
    want += [-974.4485, -458.6216, 371.555, 161.8012, -72.1691, -50.3933]
    for axis in range(3):
        shape, spacing = [4, 5, 6], [0.8, 0.8, 0.8]
        shape[axis], spacing[axis] = 8, 1.25
        volume = line.view([-1 if a == axis else 1 for a in range(3)]).expand(shape)
        got = resampled(volume, spacing).movedim(axis, -1)
        assert got.shape[-1] == 12
        torch.testing.assert_close(got, torch.tensor(want).expand(got.shape), atol=1e-3, rtol=0)


def test_other_samples(model: CtNet) -> None:
    marked = np.full((40, 50, 60), -500, np.float32)
    marked[35, 45, 50] = 100  # near the head, the back, the left
    marked[0, 0, 0] = -900  # the minimum is the padding value
    made = model.preprocess(Sample("ct", marked, spacing=MM)).view(402, 420, 420)
    corner = (made > made.min()).nonzero().amin(0)
    place = (made == made.max()).nonzero()[0] - corner
    assert place.tolist() == [4, 45, 50]
    thin = model.preprocess(Sample("ct", np.full((1, 1, 900), 20, np.float32), spacing=(5, 0.5, 0.5)))
    assert thin.shape == (134, 3, 420, 420) and thin.isfinite().all()
    with pytest.raises(ConfigError, match="states none"):
        model.preprocess(Sample("ct", marked))
    with pytest.raises(ConfigError, match="takes CT volumes"):
        model.preprocess(Sample("xray", np.zeros((5, 4), np.float32)))
