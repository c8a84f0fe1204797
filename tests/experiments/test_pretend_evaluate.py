"""Models and spaces under evaluation on an accelerator: their embeddings, features, scores and tables are the CPU's."""

from pathlib import Path

import numpy as np
import pytest
import torch

from m3bind.core.device import Compute
from m3bind.data.manifest import read_manifest
from m3bind.experiments.commands import evaluate_space
from m3bind.experiments.evaluated_model import EvaluatedModel, ModelSource, open_evaluated
from m3bind.experiments.leaks import LeakOptions, leak_report
from paper_suite import make_models, make_space
from pretend.device import DEVICE, pretend_device

TEXTS = ["normal", "opacity present", "a photo of the lung"]


@pytest.fixture(scope="module")
def place(tmp_path_factory, make_picture):
    """A folder with models, a space, and a manifest of ten pictures, two of them the same."""
    folder = tmp_path_factory.mktemp("evaluate")
    make_space(folder / "space", make_models(folder / "models"))
    for number in range(10):
        make_picture(folder / f"{number}.png", "xray", seed=number)
    (folder / "9.png").write_bytes((folder / "0.png").read_bytes())
    rows = [f"xray,{i}.png,{['normal', 'opacity'][i % 2]},p{i},{'test' if i > 3 else 'train'}" for i in range(10)]
    (folder / "m.csv").write_text("\n".join(["modality,path,label,patient,split", *rows]) + "\n")
    return folder


def computed(folder: Path, source: ModelSource, cache: Path, compute: Compute) -> dict[str, np.ndarray]:
    (model,) = open_evaluated("model", source, "xray", cache, compute)
    assert model.encoder.workers == compute.workers
    records, bad = model.readable(read_manifest(folder / "m.csv").records)
    assert len(records) == 10 and not bad
    values = {"images": model.images(records), "features": model.features(records), "scale": model.scale("xray")}
    for encoder in dict.fromkeys(("xray", model.text_encoder("xray"))):
        values[f"texts of {encoder}"] = model.texts(TEXTS, encoder)
    model.model("xray").label_logits, model.model("xray").labels = model.model("xray").image_head, ("a", "b")
    return values | {"labels": EvaluatedModel.label_scores(model, records)[1]}


@pytest.mark.parametrize("kind", ["model", "space"])
def test_values_are_those_of_the_cpu(kind, place, tmp_path):
    path = place / "models" / "picture" if kind == "model" else place / "space"
    source = ModelSource(model=str(path), untrained=True) if kind == "model" else ModelSource(space=str(path))
    expected = computed(place, source, tmp_path / "cpu", Compute(workers=2))
    with pretend_device(float64=False):
        got = computed(place, source, tmp_path / "device", Compute(torch.device(DEVICE), workers=2))
    assert got.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], atol=1e-6, err_msg=name)


def test_tables_and_leaks_are_those_of_the_cpu(place, capsys):
    manifest = place / "m.csv"
    table, bad = evaluate_space(place / "space", manifest, None, "test", Compute(workers=2))
    options = LeakOptions(space=place / "space")
    found = leak_report(manifest, options, Compute(workers=2))
    with pretend_device(float64=False):
        compute = Compute(torch.device(DEVICE), workers=2)
        got, worse = evaluate_space(place / "space", manifest, None, "test", compute)
        assert leak_report(manifest, options, compute) == found and found[1]
    assert worse == bad and len(got.rows) == len(table.rows) > 3
    for one, other in zip(got.rows, table.rows):
        assert one.metric == other.metric and one.value == pytest.approx(other.value, abs=1e-6, nan_ok=True)
