"""Binding from Python: from models and texts to a space."""

import numpy as np
import pytest
import torch
from PIL import Image

import m3bind
from known import only
from m3bind.config import AlignConfig, PostConfig
from m3bind.errors import ConfigError, UnknownNameError
from space import tiny

TEXTS = [f"{a} {b} of the {c}" for a in ("small", "large", "old") for b in ("mass", "scar", "fluid", "break")
         for c in ("lung", "heart", "eye", "bone", "skin", "wall", "brain")]  # fmt: skip
NAMES = ("grey", "other", "third")


@pytest.fixture(autouse=True, scope="module")
def _registered():
    with only(tiny.register):
        yield


def models():
    """Text towers that are rotations of one another."""
    made = {name: tiny.Tiny(joint_dim=8, seed=seed).eval() for seed, name in enumerate(NAMES)}
    for model in made.values():
        turn, _ = torch.linalg.qr(model.text_head.weight.detach()[:, :8])
        model.text_head.weight.data = turn @ made["grey"].text_head.weight.detach()
    return made


def pairs(folder, count=12):
    random = np.random.default_rng(0)
    made = {}
    for name in ("grey", "other"):
        made[name] = []
        for n in range(count):
            Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f"{name}{n}.png")
            made[name].append((folder / f"{name}{n}.png", TEXTS[n]))
    return made


def recognised(space):
    """Of all texts, the share that the last modality's tower finds with what the first one's embeds."""
    first, last = (space.encode_text(TEXTS, space.modalities[i]) for i in (0, -1))
    return float(((first @ last.T).argmax(1) == np.arange(len(TEXTS))).mean())


def test_texts_alone_bind_three_models_and_change_no_cosine_within_one():
    own = models()
    space = m3bind.bind(own, TEXTS)
    assert space.modalities == NAMES and space.dim == 8
    unbound = m3bind.Space(own, {name: torch.eye(8) for name in NAMES})
    assert recognised(space) > 0.9 > 0.3 > recognised(unbound)
    before, after = (s.encode_text(TEXTS, "other") for s in (unbound, space))
    np.testing.assert_allclose(after @ after.T, before @ before.T, atol=1e-5)


def test_texts_by_modality():
    space = m3bind.bind(models(), {"grey": TEXTS[:40], "other": TEXTS[40:], "third": TEXTS[20:60]})
    assert recognised(space) > 0.9
    assert all(space.reference_texts(m) is not None for m in space.modalities), "search ranks by them"


def test_training_on_pairs_leaves_the_callers_models_alone_and_repeats_itself(tmp_path):
    own = {name: model for name, model in models().items() if name != "third"}
    states = {name: {k: v.clone() for k, v in model.state_dict().items()} for name, model in own.items()}
    settings = AlignConfig(dim=8, steps=4, batch=8, shared_batch=8, text="head", image="bridge", pool=64)
    made = pairs(tmp_path)
    first, second = (m3bind.bind(own, TEXTS, made, settings=settings, folder=tmp_path / name) for name in "ab")
    for name, model in own.items():
        assert all(torch.equal(states[name][k], v) for k, v in model.state_dict().items())
    np.testing.assert_array_equal(first.encode_text(TEXTS, "grey"), second.encode_text(TEXTS, "grey"))
    assert (tmp_path / "a" / "align" / "final.safetensors").is_file()
    path = made["grey"][0][0]
    images = first.encode_image([path], "grey")
    assert images.shape == (1, 8) and np.isclose(np.linalg.norm(images), 1, atol=1e-5)
    m3bind.save_space(first, tmp_path / "space")
    np.testing.assert_allclose(m3bind.load(tmp_path / "space").encode_image([path], "grey"), images, atol=1e-6)


def test_what_cannot_be_bound_is_reported(tmp_path):
    own = models()
    (tmp_path / "no.png").write_bytes(b"no picture")
    broken = {"grey": [(tmp_path / "no.png", "text")]}
    for arguments, options, reason in (
        (({"grey": own["grey"]}, TEXTS), {}, "at least two models, not 1"),
        ((own, []), {}, "no texts"),
        ((own, {"gray": TEXTS}), {}, "'gray', which is none of the models"),
        ((own, TEXTS), {"settings": AlignConfig(dim=8)}, "m3bind uses image-text pairs: give pairs of grey"),
        ((own, TEXTS), {"settings": AlignConfig(method="procrustes", dim=8, post=PostConfig(gap="rotate"))}, "images"),
        ((own, TEXTS, broken), {}, "1 files of grey cannot be read, first .*not a picture"),
    ):
        with pytest.raises(ConfigError, match=reason):
            m3bind.bind(*arguments, **options)
    with pytest.raises(UnknownNameError):
        m3bind.bind(own, TEXTS, settings=AlignConfig(method="procrust", dim=8))
