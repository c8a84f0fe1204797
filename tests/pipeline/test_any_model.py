"""Models of other libraries and of a user's own, bound from a settings file by the commands that a user types."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml

from m3bind.cli import app
from m3bind.errors import ConfigError, M3BindError
from m3bind.models import registry
from m3bind.models.compact import Compact2d
from m3bind.space.bundle import load
from models.generated_models import _hf_clip, _open_clip
from pipeline.projects import write_project
from pipeline.test_run import MODEL, SETTINGS

pytestmark = pytest.mark.whole


def run(*arguments):
    return app([*map(str, arguments)], standalone_mode=False)


@pytest.fixture
def project(tmp_path, make_picture, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {key: dict(value) if isinstance(value, dict) else value for key, value in SETTINGS.items()}
    for stage, steps in (("pretrain", ("steps",)), ("align", ("steps",)), ("distill", ("steps", "steps_b"))):
        settings[stage] |= dict.fromkeys(steps, 2)
    settings["align"] |= {"dim": 16}
    write_project(tmp_path, make_picture, 48, settings)
    return tmp_path, settings


def bound(folder, settings, modalities):
    """Every command that reads the settings, then the space of `fit`."""
    settings["modalities"] = modalities
    (folder / "mine.yaml").write_text(yaml.safe_dump(settings))
    for command in ("plan", "prepare", "align", "fit"):
        assert not run(command, "mine.yaml"), command
    return load(folder / "runs" / settings["name"] / "space")


@pytest.mark.parametrize("trained", [False, True])
def test_the_block_of_the_docs_binds(project, trained):
    """`xray: {model: hf_clip_any, checkpoint: my_clip/, pretrain: false}`, and the same with stage 0."""
    folder, settings = project
    for name, make in (("my_clip", _hf_clip), ("my_open_clip", _open_clip)):
        (folder / name).mkdir()
        make(folder / name)
    modalities = {
        "xray": {"model": "hf_clip_any", "checkpoint": "my_clip/", "pretrain": trained},
        "retina": {"model": "open_clip_any", "checkpoint": "my_open_clip/", "pretrain": trained},
    }
    settings["align"] |= {"text": "lora", "image": "lora"} if trained else {}
    space = bound(folder, settings, modalities)
    if not trained:
        for modality, given in modalities.items():
            own = registry.load(given["model"], given["checkpoint"])
            path = next(folder.glob(f"{modality}*.png"))
            with torch.no_grad():
                image = own.encode_image(space.read(path, modality)[None])
                expected = space.project(image.numpy(), modality, "image")
            np.testing.assert_allclose(space.encode_image([path], modality), expected, atol=1e-5)
    assert space.encode_text(["large opacity"]).shape == (1, 16)


class Own(Compact2d):
    """A model of a user's distribution: no setting for the modality, weights under names of its own."""

    name = "own_model"

    def __init__(self, assets=None):
        super().__init__("xray", assets=assets, **MODEL["settings"])

    def settings(self):
        return {}

    migrations = (lambda state, keys: {key.removeprefix("net."): value for key, value in state.items()},)


def test_an_own_class_binds_with_weights_under_its_own_names(project, monkeypatch):
    folder, settings = project
    monkeypatch.setitem(registry._registry.classes(), "own_model", Own)
    modalities = {"xray": {"model": "own_model"}, "retina": MODEL}
    space = bound(folder, settings, modalities)
    weights = {f"net.{key}": value.clone() for key, value in space.model("xray").state_dict().items()}
    torch.save(weights, folder / "own.pt")
    settings["name"] = "again"
    modalities["xray"] = {"model": "own_model", "checkpoint": "own.pt", "pretrain": False}
    again = bound(folder, settings, modalities)
    own, before = again.model("xray").image_trunk.state_dict(), space.model("xray").image_trunk.state_dict()
    assert all(torch.equal(own[key], before[key]) for key in own)


class Forgetful(Compact2d):
    """Inherits settings() that its own constructor does not take."""

    name = "forgetful_model"

    def __init__(self, assets=None):
        super().__init__("xray", assets=assets, **MODEL["settings"])


def test_a_model_that_no_space_could_open_is_refused_before_training(project, monkeypatch):
    folder, settings = project
    monkeypatch.setitem(registry._registry.classes(), "forgetful_model", Forgetful)
    with pytest.raises(ConfigError, match=r"modality xray: settings\(\) of Forgetful names .*image_size"):
        bound(folder, settings, {"xray": {"model": "forgetful_model"}, "retina": MODEL})


def test_the_environment_of_a_user_binds_too(project):
    """Products of float32 that a processor may round, as the command line sets them; other tests forbid it."""
    folder, settings = project
    (folder / "my_clip").mkdir()
    _hf_clip(folder / "my_clip")
    model = {"model": "hf_clip_any", "checkpoint": "my_clip/", "pretrain": False}
    settings["modalities"] = {"xray": model, "retina": model}
    (folder / "mine.yaml").write_text(yaml.safe_dump(settings))
    environment = {key: value for key, value in os.environ.items() if key != "M3BIND_BFLOAT16"}
    command = [sys.executable, "-m", "m3bind", "prepare", "mine.yaml"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]


def _without(*names):
    def change(folder, model):
        for name in names:
            for file in folder.glob(name):
                file.unlink()

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("tokenizer*", "vocab*", "merges*", "special*", "added*"), "modality xray:.*no tokenizer"),
        (_without("model.safetensors"), "without weights"),
        (lambda folder, model: model.update(checkpoint="my_clip/model.safetensors"), "needs the folder around it"),
        (lambda folder, model: model.update(settings={"source": "other"}), "give one of them"),
        (lambda folder, model: model.pop("checkpoint"), "modality xray: hf_clip_any needs.*checkpoint in settings"),
        (lambda folder, model: model.update(checkpoint="elsewhere/"), "elsewhere"),
    ],
)
def test_a_folder_that_cannot_be_bound_says_what_is_missing(project, change, message):
    folder, settings = project
    (folder / "my_clip").mkdir()
    _hf_clip(folder / "my_clip")
    model = {"model": "hf_clip_any", "checkpoint": "my_clip/", "pretrain": False}
    change(folder / "my_clip", model)
    settings["modalities"] = {"xray": model, "retina": MODEL}
    (folder / "mine.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(M3BindError, match=message):
        run("prepare", "mine.yaml")
