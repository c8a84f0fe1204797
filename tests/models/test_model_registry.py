import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import m3bind.models as models
from m3bind.errors import CheckpointError, ConfigError, UnknownNameError
from m3bind.models import registry

THIRD_PARTY = '''
import torch
from torch import nn
from m3bind.models import DualEncoder, ModelCard

class Thermometer(DualEncoder):
    """A model of someone else: a few lines, and nothing of m3bind edited."""

    name = "thermometer"
    card = ModelCard(source="here", licence_code="MIT", licence_weights="none", joint_dim=4, input="1 number")

    def __init__(self, scale: float = 5.0):
        super().__init__()
        self.scale, self.joint_dim, self.max_tokens = scale, 4, 8
        self.image_trunk, self.image_head = nn.Linear(1, 6), nn.Linear(6, 4)
        self.text_trunk, self.text_head = nn.EmbeddingBag(256, 6, mode="sum"), nn.Linear(6, 4)

    @property
    def logit_scale(self):
        return torch.tensor(self.scale)

    def settings(self):
        return {"scale": self.scale}

    def preprocess(self, sample):
        return torch.tensor([float(sample.array.mean())])

    def tokenize(self, texts):
        rows = [list(text.encode()[:8]) or [0] for text in texts]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": mask}

    def text_features(self, tokens):
        return self.text_trunk(tokens["input_ids"], per_sample_weights=tokens["attention_mask"].float())
'''


def test_a_model_doubts_volumes_in_another_unit_than_its_card_states() -> None:
    import numpy as np

    from m3bind.modalities import Sample

    volume = np.zeros((4, 5, 6), np.float32)
    kind = registry.get("compact_3d")
    model = kind.__new__(kind)  # no weights are needed
    torch.nn.Module.__init__(model)
    assert model.doubts(Sample("ct", volume, unit="HU")) == []
    assert model.doubts(Sample("ct", volume)) == [
        "the model expects volumes in HU, which these values do not seem to be"
    ]
    for other in (Sample("xray", volume[0]), Sample("retina", volume[..., :3]), Sample("ecg", volume[0], rate=500.0)):
        assert model.doubts(other) == []
    model.card = dataclasses.replace(model.card, volumes="")
    assert model.doubts(Sample("mr", volume)) == []


def test_names_come_without_heavy_libraries():
    code = (
        "import sys, m3bind.models as m; assert 'compact_2d' in m.names();"
        "bad = {'transformers', 'timm', 'open_clip', 'peft'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_model_has_a_card_with_licences():
    assert {"compact_1d", "compact_2d", "compact_3d", "compact_effnet", "ecg_clip"} <= set(models.names())
    for name in models.names():
        card = models.card(name)
        assert card.source and card.licence_code and card.licence_weights and card.input


def test_did_you_mean():
    with pytest.raises(UnknownNameError, match="did you mean 'compact_2d'"):
        models.build("compact2d")
    with pytest.raises(UnknownNameError, match="did you mean 'image_size'"):
        models.build("compact_2d", modality="xray", imagesize=3)
    with pytest.raises(UnknownNameError, match="did you mean 'text_head'"):
        models.build("compact_2d", modality="xray", text_hed="linear")
    with pytest.raises(ConfigError, match=r"needs the setting.* modality"):
        models.build("compact_2d")


@pytest.fixture
def third_party(tmp_path, monkeypatch):
    """The file dropped into a folder that is part of the package."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "thermometer_model.py").write_text(THIRD_PARTY)
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path / "package")])
    registry.refresh()
    yield
    registry.refresh()
    sys.modules.pop("m3bind.models.thermometer_model", None)


def test_a_dropped_file_is_found_built_saved_and_loaded(third_party, tmp_path, samples):
    assert models.card("thermometer").licence_code == "MIT"
    model = models.build("thermometer", scale=7.0, assets=tmp_path)  # a class without assets ignores them
    models.save(model, tmp_path / "saved")
    again = models.load(tmp_path / "saved")
    assert again.settings() == {"scale": 7.0} and not again.training
    assert torch.equal(again.encode_text(again.tokenize(["ab"])), model.encode_text(model.tokenize(["ab"])))
    batch = model.preprocess(samples["xray"])[None]
    assert torch.equal(again.encode_image(batch), model.encode_image(batch))


def test_published_weights_load_strictly_by_name(third_party, tmp_path):
    model = models.build("thermometer")
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "a.ckpt")
    loaded = models.load("thermometer", tmp_path / "a.ckpt", scale=2.0)
    assert torch.equal(loaded.image_trunk.weight, model.image_trunk.weight) and float(loaded.logit_scale) == 2.0
    torch.save({"image_trunk.weight": torch.zeros(6, 1)}, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match=r"b\.pt does not fit Thermometer: 6 missing"):
        models.load("thermometer", tmp_path / "b.pt")


def offer(folder, monkeypatch, points):
    """A distribution in `folder` with entry points for models."""
    info = folder / "their-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[m3bind.models]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()))
    monkeypatch.syspath_prepend(str(folder))
    registry.refresh()


@pytest.fixture
def forgotten():
    """What a test offered is unknown afterwards."""
    yield
    registry.refresh()


def test_an_entry_point_names_a_class(tmp_path, monkeypatch, forgotten):
    (tmp_path / "their_models.py").write_text(THIRD_PARTY)
    offer(tmp_path, monkeypatch, {"theirs": "their_models:Thermometer"})
    assert "thermometer" in models.names()


def test_broken_entry_points_are_named_and_skipped(tmp_path, monkeypatch, caplog, forgotten):
    (tmp_path / "their_models.py").write_text(THIRD_PARTY)
    (tmp_path / "stops.py").write_text("raise RuntimeError('no licence found')\n")
    points = {
        "theirs": "their_models:Thermometer", "module": "their_models", "gone": "their_models:Gone",
        "none": "nowhere:A",
        "stops": "stops:Model", "function": "json:dumps", "twice": "their_models:Thermometer",
    }  # fmt: skip
    offer(tmp_path, monkeypatch, points)
    assert "thermometer" in models.names() and "clip" in models.names()
    assert set(registry._registry.broken) == set(points) - {"theirs"}
    assert "no licence found" in caplog.text and "package.module:Class" in registry._registry.broken["module"]
    assert "the name 'thermometer' is already used by their_models.Thermometer" in registry._registry.broken["twice"]


def test_a_damaged_folder(third_party, tmp_path):
    folder: Path = tmp_path / "saved"
    models.save(models.build("thermometer"), folder)
    (folder / "model.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        models.load(folder)
    with pytest.raises(UnknownNameError):
        models.load(tmp_path / "absent")


def test_saving_over_a_folder_replaces_it_whole(third_party, tmp_path):
    folder = tmp_path / "saved"
    for scale in (1.0, 2.0):
        models.save(models.build("thermometer", scale=scale), folder)
    assert models.load(folder).settings() == {"scale": 2.0}
    assert sorted(p.name for p in folder.iterdir()) == ["assets", "model.json", "weights.safetensors"]
