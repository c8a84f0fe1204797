"""Encoding on an accelerator: the rows of the CPU, batches of 64, folded convolutions, a precision chosen there."""

import logging

import numpy as np
import pytest
import torch

from encode.test_towers import Trunk
from m3bind.encode import job, towers
from m3bind.encode.job import encode_files, encode_share, merge
from m3bind.encode.towers import TowerRunner, batch_size, choose, fuse_conv_bn
from m3bind.errors import DeviceMemoryError
from m3bind.space.bundle import load, save_space
from pretend.device import DEVICE, pretend_device
from space import tiny


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The folder of a saved space, and files."""
    monkeypatch.setattr(job, "SHARD", 8)
    save_space(tiny.make_space(distilled=False), tmp_path / "space")
    return tmp_path / "space", tiny.pictures(tmp_path / "in", 21)


@pytest.mark.parametrize("options", [{}, {"gap_correct": True, "batch": 5}, {"precision": "float32", "workers": 2}])
def test_rows_are_those_of_the_cpu(place, tmp_path, options):
    folder, paths = place
    paths[3].write_bytes(b"not a picture")
    expected = encode_files(load(folder, "cpu"), paths, tmp_path / "cpu", "grey", **options)
    with pretend_device(float64=False):
        got = encode_files(load(folder, DEVICE), paths, tmp_path / "device", "grey", **options)
    np.testing.assert_allclose(got.embeddings, expected.embeddings, atol=1e-6)
    assert (len(got), got.bad) == (20, 1) and got.items["path"].tolist() == expected.items["path"].tolist()


def test_a_job_stopped_on_a_device_resumes_there_with_the_same_bytes(place, tmp_path, monkeypatch):
    folder, paths = place
    with pretend_device():
        space = load(folder, DEVICE)
        encode_share(space, paths, tmp_path / "out", (2, 3), "grey")
        encode_files(space, paths, tmp_path / "out", "grey")
        encode_files(space, paths, tmp_path / "whole", "grey")
        for share in (1, 2):
            encode_share(space, paths, tmp_path / f"machine{share}", (share, 2), "grey")
    merge([tmp_path / "machine1.parts", tmp_path / "machine2.parts"], tmp_path / "merged")
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    for name in ("out", "merged"):
        assert {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} == whole


def test_the_host_waits_once_a_batch(place, tmp_path):
    folder, paths = place
    with pretend_device() as log:
        space = load(folder, DEVICE)
        encode_files(space, paths, tmp_path / "first", "grey", batch=4, precision="float32")
        before = sum(log.syncs.values())
        log.clear()
        encode_files(space, paths, tmp_path / "second", "grey", batch=2, precision="float32")
        more = sum(log.syncs.values()) - before
    assert more == 11 - 6, (before, log.syncs)  # batches of 8, 8 and 5 items by 2 and by 4


def test_batches_are_larger_than_on_a_cpu():
    space = tiny.make_space(distilled=False)
    assert batch_size(space, "grey") == towers.BATCH
    with pretend_device():
        assert batch_size(space.to(DEVICE), "grey") == towers.BATCH_ON_DEVICE == 64


def convolutional():
    space = tiny.make_space(distilled=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        space.model("grey").image_trunk = Trunk().eval()
    return space


def test_convolutions_are_folded_on_the_device():
    inputs = [torch.rand(8, 8, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    plain = {"dtype": "float32", "folded": False}
    expected = TowerRunner(convolutional(), "grey", plain, inputs[0]).encode(inputs)
    with pretend_device(float64=False):
        space = convolutional().to(DEVICE)
        fused = fuse_conv_bn(space.model("grey"), inputs[0][None].to(DEVICE))
        assert not list(fused.image_trunk.one.children())  # an empty rest
        decision, _ = choose(space, "grey", inputs, "auto")
        assert decision["folded"]
        got = TowerRunner(space, "grey", decision, inputs[0]).encode(inputs)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_bfloat16_is_chosen_by_its_cosine_on_the_device(monkeypatch):
    monkeypatch.setattr(towers, "compute_dtype", lambda device: torch.bfloat16)
    seconds = iter([2.0, 1.0, 2.0, 1.0])
    monkeypatch.setattr(towers, "_seconds", lambda *_: next(seconds))
    inputs = [torch.rand(8, 8, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    with pretend_device():
        space = tiny.make_space(distilled=False).to(DEVICE)
        decision, why = choose(space, "grey", inputs, "auto")
        assert decision["dtype"] == "bfloat16" and "smallest cosine 0.99" in why
        rows = TowerRunner(space, "grey", decision, inputs[0]).encode(inputs)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
        monkeypatch.setattr(towers, "MIN_COSINE", 1.1)
        assert choose(space, "grey", inputs, "auto")[0]["dtype"] == "float32"


@pytest.mark.parametrize("fits", [8, 3, 1, 0])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1.00 GB"),
    ],
)
def test_a_batch_beyond_the_memory_of_the_device_is_no_fault_of_its_files(fits, error, monkeypatch):
    space = tiny.make_space(distilled=False)
    tower = TowerRunner(space, "grey", {"dtype": "float32", "folded": False}, None)
    model, inputs = space.model("grey"), list(torch.rand(8, 8, 8, generator=torch.Generator().manual_seed(0)))
    expected, encode = tower.encode(inputs), type(model).image_features

    def limited(self, batch):
        if len(batch) > fits:
            raise error
        return encode(self, batch)

    monkeypatch.setattr(type(model), "image_features", limited)
    if not fits:
        with pytest.raises(DeviceMemoryError, match="too small for one input of grey"):
            towers._embed(tower, list(range(8)), inputs)
        return
    found = towers._embed(tower, list(range(8)), inputs)
    assert [place for place, _ in found] == list(range(8))
    np.testing.assert_allclose([value.row for _, value in found], expected, atol=1e-6)


def test_products_are_exact_where_it_was_asked_for(place, tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("M3BIND_BFLOAT16", raising=False)
    folder, paths = place
    seen, encode = set(), TowerRunner.examine

    def watched(self, inputs):
        seen.add((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        return encode(self, inputs)

    monkeypatch.setattr(TowerRunner, "examine", watched)
    with pretend_device(), caplog.at_level(logging.WARNING):
        for precision, expected in (("auto", ("high", True)), ("float32", ("highest", False))):
            encode_files(load(folder, DEVICE), paths, tmp_path / precision, "grey", precision=precision)
            assert seen == {expected}
            seen.clear()
