"""PatchCamelyon: HDF5, packed or not; resuming after a stop; the swapped copies."""

import gzip

import numpy as np
import pytest
from PIL import Image

from evaluate.benchmarks._checks import assert_few_shot, made, run
from evaluate.benchmarks.prepared import assert_incomplete, kinds, make
from evaluate.benchmarks.trees.pcam import STEM, tile
from m3bind.errors import ManifestError
from m3bind.evaluate.benchmarks import pcam


def test_patches_labels_and_slides(tmp_path):
    done, records = made("pcam", tmp_path)
    assert done.faults == [] and [done.counts[split] for split in ("train", "valid", "test")] == [12, 4, 6]
    assert_few_shot(records, pcam.CLASSES)
    first = records["train/000/000000.png"]
    assert first.label == "lymph node" and first.patient == records["train/000/000001.png"].patient
    with Image.open(first.path) as image:
        assert (np.asarray(image) == tile(np.random.default_rng(0), 0, 96)).all()
    assert sorted(path.name for path in (tmp_path / "out" / "files").iterdir()) == ["test", "train", "valid"]


def test_a_second_run_resumes(tmp_path, monkeypatch):
    done, records = made("pcam", tmp_path)
    lost = records["train/000/000003.png"].path
    kept = records["train/000/000004.png"].path.stat().st_mtime_ns
    pixels = lost.read_bytes()
    lost.unlink()
    again, records = run("pcam", tmp_path / "data", tmp_path / "out")
    assert lost.read_bytes() == pixels and records["train/000/000004.png"].path.stat().st_mtime_ns == kept
    assert again.hash == done.hash
    for path in (tmp_path / "data").glob(f"{STEM}*_x.*"):
        path.write_bytes(b"not opened again once all patches are there")
    run("pcam", tmp_path / "data", tmp_path / "out")


def test_swapped_files_keep_the_published_split(tmp_path, monkeypatch):
    root = make("pcam", tmp_path)
    sums = {pcam._md5(root / f"{STEM}{name}_meta.csv"): split
            for name, split in (("valid", "test"), ("test", "valid"))}  # fmt: skip
    monkeypatch.setattr(pcam, "OFFICIAL", sums)
    done, records = run("pcam", root, tmp_path / "out")
    assert (done.counts["test"], done.counts["valid"]) == (4, 6)
    assert records["valid/000/000000.png"].split == "test"


def test_half_present_and_damaged(tmp_path):
    root = make("pcam", tmp_path)
    assert_incomplete("pcam", tmp_path, (f"{STEM}test_x.h5", f"{STEM}test_y.h5"))
    (root / f"{STEM}train_y.h5.gz").unlink()
    for meta in root.glob("*meta.csv"):
        meta.unlink()
    done, records = run("pcam", root, tmp_path / "out")
    assert kinds(done) == {"without a file": 1} and "the train split is left out" in done.report()
    assert len({r.patient for r in records.values()}) == len(records) == 10
    packed = root / f"{STEM}test_x.h5"
    for data in (gzip.compress(packed.read_bytes())[:-2000], b"no gzip"):
        (root / f"{STEM}test_x.h5.gz").write_bytes(data)
        packed.unlink(missing_ok=True)
        with pytest.raises(ManifestError, match="not a whole gzip file"):
            run("pcam", root, tmp_path / "new")
    packed.write_bytes(b"no HDF5")
    with pytest.raises(ManifestError, match="not a readable HDF5 file"):
        run("pcam", root, tmp_path / "new")
    assert not list((tmp_path / "new").rglob("*.h5"))
