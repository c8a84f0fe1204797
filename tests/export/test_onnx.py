import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from export.students import TEXTS
from export.test_export import saved
from m3bind.cli.app import app
from m3bind.core.files import sha256_file
from m3bind.errors import ConfigError
from m3bind.export import export_space, onnx
from m3bind.models import registry
from m3bind.space.bundle import Space, save_space
from space import tiny

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def run(path, **inputs):
    return onnxruntime.InferenceSession(str(path)).run(None, {key: value.numpy() for key, value in inputs.items()})[0]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    space = saved(folder)
    inputs = {name: [torch.rand(8, 8) for _ in range(3)] for name in space.modalities}
    return space, export_space(space, "onnx", folder / "out", inputs=inputs, texts=TEXTS)


@pytest.mark.whole
def test_texts_of_any_number_and_length(exported):
    space, done = exported
    for texts in (TEXTS, TEXTS[:1], TEXTS[-1:], ["x"]):
        found = run(done.folder / "student.onnx", **space.student.tokenize(texts))
        np.testing.assert_allclose(found, space.encode_text(texts), atol=1e-5)


@pytest.mark.whole
def test_images_of_any_number(exported):
    space, done = exported
    for count in (1, 2, 5):
        batch = torch.rand(count, 8, 8)
        found = run(done.folder / "image_other.onnx", input=batch)
        np.testing.assert_allclose(found, space.encode_inputs(list(batch), "other"), atol=1e-5)


def test_the_report_states_how_close_each_file_is(exported):
    _, done = exported
    report = {line["name"]: line for line in json.loads((done.folder / "parity.json").read_text())}
    assert list(report) == ["student", "image_grey", "image_other"] and not done.refused
    for line in report.values():
        assert line["sha256"] == sha256_file(done.folder / line["file"]) and line["opset"] >= 18
        assert line["max_abs_difference"] < 1e-5 and line["min_cosine"] > 0.99999 and 1 in line["batches"]
    assert report["student"]["items"] == len(TEXTS) and report["image_grey"]["shape"] == [8, 8]


class Odd(tiny.Tiny):
    """A tower that takes another way for some values, which no graph can."""

    name = "odd"

    def image_features(self, batch):
        features = super().image_features(batch)
        return features if float(batch.sum()) > 0 else -features


def test_a_tower_that_cannot_be_exported_is_named_and_the_rest_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(registry._registry._classes, "odd", Odd)
    tiny.pictures(tmp_path / "in", 2)
    (tmp_path / "list.csv").write_text(
        "modality,path,caption\n" + "".join(f"grey,in/0000{i}.png,grey picture\n" for i in (0, 1))
    )
    plain = tiny.make_space(distilled=False)._contents
    models = plain.models | {"other": Odd(plain.models["other"].joint_dim)}
    save_space(Space(models, plain.bridges), tmp_path / "space")
    arguments = ["export", str(tmp_path / "space"), "--to", "onnx", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*arguments, "--manifest", str(tmp_path / "list.csv")], catch_exceptions=False)
    assert result.exit_code == 1 and "image_other: NOT exported" in result.output
    assert (tmp_path / "out" / "image_grey.onnx").exists() and not list((tmp_path / "out").glob("image_other*"))
    report = {line["name"]: line for line in json.loads((tmp_path / "out" / "parity.json").read_text())}
    assert report["image_other"]["reason"] and report["image_grey"]["items"] == 2


def test_a_file_with_other_results_is_no_export(tmp_path, monkeypatch):
    figures = {"student.onnx": (1e-7, 1.0), "image_grey.onnx": (1e-7, 0.99), "image_other.onnx": (float("nan"), 1.0)}
    monkeypatch.setattr(onnx, "convert", lambda module, batch, path: path.write_bytes(b"x"))
    monkeypatch.setattr(onnx, "compare", lambda module, path, batches: figures[path.name])
    space = saved(tmp_path)
    inputs = {name: [torch.rand(8, 8) for _ in range(2)] for name in space.modalities}
    done = export_space(space, "onnx", tmp_path / "out", inputs=inputs, texts=TEXTS[:2])
    assert set(done.refused) == {"image_grey", "image_other"}
    assert "smallest cosine 0.99" in done.refused["image_grey"]
    assert [path.name for path in done.folder.glob("*.onnx")] == ["student.onnx"]


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    space = saved(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"m3bind\[onnx\]"):
        export_space(space, "onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()
