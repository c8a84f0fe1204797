"""LoRA fine-tuning as a few-shot method: learns what a probe cannot, leaves the model unchanged, is loaded after."""

import numpy as np
import pytest
import torch

from m3bind.config import LoraConfig, TrainConfig
from m3bind.evaluate import adapters
from m3bind.evaluate.adapters import FewShotProblem, Samples
from m3bind.evaluate.few_shot import FewShotSettings, few_shot_rows
from m3bind.evaluate.results import Context
from m3bind.experiments.lora_finetune import LoraFinetune
from m3bind.models.weights.checkpoint import hash_state
from pretend.device import DEVICE, pretend_device
from pretend.steps import assert_same_losses, counted_steps
from toys import ToyEncoder

SETTINGS = TrainConfig(lr=0.02, batch=16, precision="fp32")


@pytest.fixture
def model():
    torch.manual_seed(0)
    found = ToyEncoder(inputs=4, width=12).eval()
    with torch.no_grad():
        found.image_trunk[0].weight[:, 2:] = 0  # the tower is blind to what tells the classes apart
    return found


def files(model, n, seed, several=False):
    """Vectors whose class is in entries the tower cannot see; and the function from ids to vectors."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, 4)).astype(np.float32)
    truth = (rows[:, 2:] > 0).astype(int)
    with torch.no_grad():
        features = model.image_features(torch.from_numpy(rows)).numpy()
        embedded = model.encode_image(torch.from_numpy(rows)).numpy()
    names = [f"{seed}-{i}" for i in range(n)]
    return Samples(features, embedded, truth if several else truth[:, 0], names, names), dict(zip(names, rows))


@pytest.mark.parametrize("several", [False, True])
def test_it_learns_what_the_frozen_tower_hides(model, tmp_path, several):
    (train, first), (test, second) = files(model, 48, 0, several), files(model, 200, 1, several)
    table = first | second
    before = hash_state(model.state_dict())
    calls = []

    def inputs(ids):
        calls.append(len(ids))
        return np.stack([table[i] for i in ids])

    method = LoraFinetune(model, inputs, tmp_path, SETTINGS, LoraConfig(r=4, alpha=8, dropout=0.0), epochs=60)
    options = FewShotSettings(amounts=(100,), unit="percent", seeds=(0,), resamples=5, names=("auroc",))
    classes = np.zeros((2, model.joint_dim))
    tuned = few_shot_rows(method, train, None, test, classes, Context(modality="ecg"), options)
    frozen = few_shot_rows("linear_probe", train, None, test, classes, Context(modality="ecg"), options)
    assert tuned[0].variant == "lora_finetune, 100 %"
    assert tuned[0].value > 0.8 > 0.65 > frozen[0].value
    assert hash_state(model.state_dict()) == before and not model.image_trunk.training
    assert not any("lora" in name for name, _ in model.named_parameters())
    trained = len(calls)
    again = few_shot_rows(method, train, None, test, classes, Context(modality="ecg"), options)
    assert again[0].value == pytest.approx(tuned[0].value, abs=1e-6)
    assert len(calls) - trained < trained / 4  # loaded, only the test files pass the tower


def test_steps_follow_from_the_samples(model, tmp_path, monkeypatch):
    train, table = files(model, 40, 0)
    asked = []
    monkeypatch.setattr(
        "m3bind.experiments.lora_finetune.loop.train",
        lambda stage, settings, *more: asked.append(settings.steps),
    )
    for epochs, most in ((5, 2000), (50, 30)):
        method = LoraFinetune(
            model, lambda ids: np.stack([table[i] for i in ids]), tmp_path, SETTINGS, None, epochs, most
        )
        method.fit(train, None, FewShotProblem(np.zeros((2, 6))))
    assert asked == [10, 30]
    assert "lora_finetune" not in adapters.names()  # it needs a tower, so it is handed over, not named


@pytest.mark.parametrize("several", [False, True])
def test_a_model_on_a_device_is_adapted_there(model, tmp_path, several):
    (train, first), (test, second) = files(model, 32, 0, several), files(model, 20, 1, several)
    table = first | second

    def scores(name):
        method = LoraFinetune(
            model, lambda ids: np.stack([table[i] for i in ids]), tmp_path / name, SETTINGS, LoraConfig(dropout=0), 2
        )
        return method.fit(train, None, FewShotProblem(np.zeros((2, 6))))(test)

    theirs = scores("cpu")
    with pretend_device(float64=False) as log, counted_steps(log) as waits:
        model.to(DEVICE)
        ours = scores("device")
    assert waits and max(waits) <= 2
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    (one,), (two,) = (list((tmp_path / name).rglob("log.jsonl")) for name in ("device", "cpu"))
    assert_same_losses(one, two)
