"""Temperatures of a space: of a modality's tasks together, weighted by their samples, and never below 1."""

from types import SimpleNamespace

import numpy as np
import pytest

from m3bind.evaluate.calibration import fit_temperature
from m3bind.pipeline import calibration as module

RNG = np.random.default_rng(0)


def scores(n, strength, scale):
    """Truth and logits of a two-class task: the more `strength`, the fewer errors; `scale`: confidence."""
    y = RNG.integers(0, 2, n)
    signal = strength * (2 * y - 1) + RNG.normal(size=n)
    return y, scale * np.stack([-signal, signal], axis=1)


def temperatures(monkeypatch, *tasks):
    listed = [(SimpleNamespace(modality=m), {"valid": valid} if valid else {}) for m, valid in tasks]
    monkeypatch.setattr(module, "task_scores", lambda run: iter(listed))
    return module.temperatures(None)


def test_a_modality_with_two_tasks(monkeypatch):
    large, small = scores(300, 0.5, 9.0), scores(100, 0.5, 30.0)
    found = temperatures(monkeypatch, ("ct", large), ("ct", small), ("xray", None))
    expected = np.exp((300 * np.log(fit_temperature(*large)) + 100 * np.log(fit_temperature(*small))) / 400)
    assert found == {"ct": pytest.approx(expected)} and expected > 1


def test_a_split_without_errors_does_not_make_every_answer_certain(monkeypatch):
    y = np.arange(40) % 2
    right = y, np.stack([1.0 - y, y], axis=1) * 3
    assert fit_temperature(*right) < 0.5
    assert temperatures(monkeypatch, ("ecg", right)) == {"ecg": 1.0}
