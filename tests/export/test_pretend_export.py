"""Exports of a space on an accelerator: made of copies on the CPU, compared with the space where it is."""

import json

import numpy as np
import pytest
import torch

from export.students import TEXTS
from export.test_export import saved
from m3bind.core.device import device_of
from m3bind.export import FORMATS, export_space
from m3bind.space.bundle import load
from pretend.device import DEVICE, pretend_device

TIMES = ("created", "date")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretend")
    saved(folder)
    return folder / "space"


def contents(folder):
    """The files of an export, without its hashes and times."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "export.json"}


@pytest.mark.parametrize("to", [pytest.param(to, marks=pytest.mark.whole) if to == "onnx" else to for to in FORMATS])
def test_an_export_is_that_of_the_cpu_and_the_space_stays_where_it_is(to, place, tmp_path):
    if to == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    inputs = {name: list(torch.rand(3, 8, 8)) for name in ("grey", "other")}
    options = {"texts": TEXTS[:3], "inputs": inputs} if to == "onnx" else {}
    export_space(load(place, "cpu"), to, tmp_path / "out", **options)
    expected = contents(tmp_path / "out")
    with pretend_device(float64=False):
        space = load(place, DEVICE)
        done = export_space(space, to, tmp_path / "out", **options)
        modules = [space.student, *(space.model(name) for name in space.modalities)]
        assert {device_of(module) for module in modules} == {torch.device(DEVICE)} and not done.refused
    got = contents(tmp_path / "out")
    assert got.keys() == expected.keys()
    for name in expected:
        if to != "onnx":
            assert got[name] == expected[name], name
    if to == "onnx":
        reports = [json.loads(files[next(k for k in files if k.name == "parity.json")]) for files in (got, expected)]
        assert [part["file"] for part in reports[0]] == ["student.onnx", "image_grey.onnx", "image_other.onnx"]
        np.testing.assert_allclose(*[[part["max_abs_difference"] for part in report] for report in reports], atol=1e-6)
