"""A space on an accelerator: every public method gives host values equal to the CPU's, without float64 there."""

import inspect

import numpy as np
import pytest
import torch

from m3bind.models import embedding
from m3bind.space.bundle import Space, load, save_space
from m3bind.space.input_statistics import input_statistics
from pretend.device import DEVICE, DeviceTensor, pretend_device
from space import tiny

TEXTS = ["normal picture of a heart", "abnormal lung", "bright dark grey", "abnormal lung"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder of a saved space, and files."""
    folder = tmp_path_factory.mktemp("pretend")
    save_space(tiny.make_space(prompts={"grey": ["a {} picture"]}), folder / "space")
    return folder / "space", tiny.pictures(folder / "in", 5)


def rows(n, d):
    values = np.random.default_rng(1).normal(size=(n, d)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


CALLS = {
    "bridge": lambda space, paths: space.bridge("grey"),
    "bridge_module": lambda space, paths: space.bridge_module("grey").dim,
    "cards": lambda space, paths: space.cards,
    "class_embeddings": lambda space, paths: space.class_embeddings(["bright", "dark"], "grey"),
    "classify": lambda space, paths: space.classify(paths, "other", ["bright", "dark"]),
    "device": lambda space, paths: 0,
    "dim": lambda space, paths: space.dim,
    "encode_image": lambda space, paths: space.encode_image(paths, "grey", batch=2),
    "encode_inputs": lambda space, paths: space.encode_inputs([space.read(path, "grey") for path in paths], "grey"),
    "encode_text": lambda space, paths: [space.encode_text(TEXTS, name) for name in space.text_encoders],
    "examine": lambda space, paths: space.examine(paths, "grey", batch=2)[0],
    "examine_features": lambda space, paths: space.examine_features(
        space.model("grey").image_features(space.read(paths[0], "grey")[None].to(space.device)).detach(),
        input_statistics(space.read(paths[0], "grey")[None]),
        "grey",
    )[0],
    "examine_inputs": lambda space, paths: space.examine_inputs([space.read(paths[0], "grey")], "grey")[0],
    "fingerprint": lambda space, paths: space.fingerprint,
    "image_mean": lambda space, paths: space.image_mean("grey"),
    "info": lambda space, paths: space.info.prompts,
    "licences": lambda space, paths: space.licences,
    "logit_scale": lambda space, paths: space.logit_scale("grey"),
    "measures": lambda space, paths: sorted(space.measures),
    "modalities": lambda space, paths: space.modalities,
    "model": lambda space, paths: space.model("grey").joint_dim,
    "project": lambda space, paths: [space.project(rows(3, 6), "grey", side) for side in ("image", "text")],
    "read": lambda space, paths: space.read(paths[0], "grey"),
    "reference_texts": lambda space, paths: space.reference_texts("grey"),
    "similarity": lambda space, paths: space.similarity(rows(3, 4), rows(2, 4)),
    "student": lambda space, paths: space.student.max_tokens,
    "synthetic": lambda space, paths: space.synthetic,
    "temperature": lambda space, paths: space.temperature("grey"),
    "text_encoders": lambda space, paths: space.text_encoders,
    "to": lambda space, paths: space.to(space.device).dim,
}


def test_the_calls_are_all_of_a_space():
    assert set(CALLS) == {name for name, _ in inspect.getmembers(Space) if not name.startswith("_")}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("float64", [True, False])
def test_values_are_those_of_the_cpu(name, float64, place, monkeypatch):
    folder, paths = place
    expected = CALLS[name](load(folder, "cpu"), paths)
    with pretend_device(float64=float64):
        space = load(folder, DEVICE)
        assert space.device == torch.device(DEVICE)
        got = CALLS[name](space, paths)
    assert not isinstance(got, DeviceTensor)
    if isinstance(expected, np.ndarray | torch.Tensor | float | list):
        np.testing.assert_allclose(got, expected, atol=1e-6)
    else:
        assert got == expected


def test_half_precision_is_measured_once_and_used_on_the_device(place, monkeypatch):
    folder, _ = place
    monkeypatch.setattr("m3bind.space.bundle.compute_dtype", lambda device: torch.bfloat16)
    expected = load(folder, "cpu").encode_text(TEXTS, "student")
    with pretend_device(float64=False) as log:
        space = load(folder, DEVICE)
        got = space.encode_text(TEXTS, "student")
        log.clear()
        space.encode_text(TEXTS, "student")
        assert sum(log.syncs.values()) == 1, log.syncs  # the rows of one batch
    np.testing.assert_allclose((got * expected).sum(1), 1, atol=1e-3)


@pytest.mark.parametrize("texts", [1, 40])
def test_texts_wait_for_the_device_once_a_batch(texts, place, monkeypatch):
    monkeypatch.setattr(embedding, "TOKEN_BUDGET", 512)
    words = [f"bright picture {number}" for number in range(texts)]
    with pretend_device() as log:
        space = load(place[0], DEVICE)
        space.encode_text(words, "grey")
        log.clear()
        space.encode_text(words, "grey")
        longest = max(map(len, words))
        batches = -(-texts * longest // 512)
        assert sum(log.syncs.values()) <= batches + 1 and all("cpu" in name or "_to_copy" in name for name in log.syncs)


def test_a_space_is_saved_from_a_device(place, tmp_path):
    folder, _ = place
    with pretend_device():
        save_space(load(folder, DEVICE), tmp_path / "again")
    assert load(tmp_path / "again", "cpu").fingerprint == load(folder, "cpu").fingerprint
