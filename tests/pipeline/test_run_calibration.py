"""Temperatures of a space: of a modality's tasks together, weighted by their samples, and never below 1."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from m3bind.data.records import Record, Records
from m3bind.evaluate.calibration import fit_temperature
from m3bind.pipeline import calibration as module

RNG = np.random.default_rng(0)


def scores(n, strength, scale):
    """Truth and logits of a two-class task: the more `strength`, the fewer errors; `scale`: confidence."""
    y = RNG.integers(0, 2, n)
    signal = strength * (2 * y - 1) + RNG.normal(size=n)
    return y, scale * np.stack([-signal, signal], axis=1)


def temperatures(monkeypatch, *tasks, pretrain=True):
    """`tasks`: modality and scores by split; those of training patients left out are of split "held out"."""
    listed = [SimpleNamespace(modality=m, found=scores) for m, scores in tasks]
    repeated = []

    def without_some(run, names):
        repeated.extend(names)
        return "without", "setup"

    monkeypatch.setattr(module, "_tasks", lambda run: listed)
    monkeypatch.setattr(module, "_without_some", without_some)
    monkeypatch.setattr(
        module, "_scores", lambda task, state, *_, split: task.found.get("held out" if state == "without" else split)
    )
    models = {m: SimpleNamespace(pretrain=pretrain) for m, _ in tasks}
    run = SimpleNamespace(state="whole", setup="setup", config=SimpleNamespace(modalities=models))
    return module.temperatures(run), repeated


def test_a_modality_with_two_tasks(monkeypatch):
    large, small = scores(300, 0.5, 9.0), scores(100, 0.5, 30.0)
    found, repeated = temperatures(monkeypatch, ("ct", {"valid": large}), ("ct", {"valid": small}), ("ecg", {}))
    expected = np.exp((300 * np.log(fit_temperature(*large)) + 100 * np.log(fit_temperature(*small))) / 400)
    assert found == {"ct": pytest.approx(expected)} and expected > 1 and repeated == ["ecg"]


def test_a_split_without_errors_does_not_make_every_answer_certain(monkeypatch):
    y = np.arange(40) % 2
    right = y, np.stack([1.0 - y, y], axis=1) * 3
    assert fit_temperature(*right) < 0.5
    assert temperatures(monkeypatch, ("ecg", {"valid": right})) == ({"ecg": 1.0}, [])


@pytest.mark.parametrize("pretrain", [True, False])
def test_without_a_valid_split_unseen_patients_are_used(monkeypatch, pretrain):
    """Training samples of a model that was trained on them are no measure of its confidence."""
    valid, held, seen = scores(90, 0.5, 9.0), scores(80, 0.4, 12.0), scores(70, 0.6, 20.0)
    tasks = ("ct", {"valid": valid, "train": seen}), ("ecg", {"held out": held, "train": seen})
    found, repeated = temperatures(monkeypatch, *tasks, pretrain=pretrain)
    own = fit_temperature(*(held if pretrain else seen))
    assert found == {"ct": pytest.approx(fit_temperature(*valid)), "ecg": pytest.approx(own)}
    assert repeated == (["ecg"] if pretrain else [])


@pytest.mark.parametrize(("patients", "left_out"), [(1, 0), (2, 0), (3, 1), (10, 2)])
def test_a_fifth_of_the_patients_is_left_out_and_never_all(patients, left_out):
    records = Records.of(
        [Record(str(n), "ecg", Path(str(n)), "", (), (), (), str(n // 2), "train", "") for n in range(2 * patients)]
    )
    splits = module._splits(records, 0)
    assert len(splits["valid"]) == 2 * left_out and len(splits["train"]) == 2 * (patients - left_out)
    assert not set(splits["valid"].patient.strings()) & set(splits["train"].patient.strings())
