"""MedMNIST: images and volumes from npz files, sizes, several findings."""

import numpy as np
import pytest
from PIL import Image

from evaluate.benchmarks._checks import assert_few_shot, run
from evaluate.benchmarks.prepared import assert_incomplete, kinds, make
from evaluate.benchmarks.trees.medmnist import make_set
from m3bind.errors import ManifestError
from m3bind.evaluate.benchmarks import get, names
from m3bind.modalities.base import get as modality

SETS = [name for name in names() if name.startswith("medmnist_")]


def test_the_sets_of_our_modalities():
    found = {get(name).modalities[0] for name in SETS}
    assert len(SETS) == 7 and found == {"pathology", "xray", "retina", "ct"}


@pytest.mark.parametrize("name", SETS)
def test_images_and_labels(name, tmp_path):
    root = make(name, tmp_path)
    done, records = run(name, root, tmp_path / "out")
    bench = get(name)
    assert done.faults == [] and {r.split for r in records.values()} == {"train", "valid", "test"}
    assert_few_shot(records, bench.classes)
    stored = np.load(root / f"{name.removeprefix('medmnist_')}.npz")
    record = next(r for r in records.values() if r.split == "valid")
    sample = modality(record.modality).read(record.path)
    pixels = stored["val_images"][0].astype(float)  # the first row of the split
    if record.modality == "ct":
        low, high = bench.window
        assert np.abs(sample.array - (low + pixels * (high - low) / 255)).max() <= 0.5  # whole HU
        assert sample.spacing == pytest.approx((bench.side / 28,) * 3)
    else:
        with Image.open(record.path) as image:
            assert (np.asarray(image) == pixels).all()


def test_several_findings(tmp_path):
    _, records = run("medmnist_chestmnist", make("medmnist_chestmnist", tmp_path), tmp_path / "out")
    nothing = records["28/train/000/000000.png"]
    assert nothing.labels == () and nothing.label == "no finding"
    last = [r for r in records.values() if r.split == "test"][-1]
    assert last.labels == ("atelectasis", "cardiomegaly", "hernia")


def test_grades_are_named_as_in_messidor(tmp_path):
    assert get("medmnist_retinamnist").classes[3] == "severe diabetic retinopathy"


def test_the_largest_size_is_used(tmp_path):
    root = make("medmnist_pneumoniamnist", tmp_path)
    make_set("pneumoniamnist", root, size=64)
    _, records = run("medmnist_pneumoniamnist", root, tmp_path / "out")
    assert all(name.startswith("64/") for name in records)
    with Image.open(next(iter(records.values())).path) as image:
        assert image.size == (64, 64) and image.mode == "L"


def test_odd_files(tmp_path):
    root = make("medmnist_pneumoniamnist", tmp_path)
    assert_incomplete("medmnist_pneumoniamnist", tmp_path, ("pneumoniamnist.npz",))
    path = root / "pneumoniamnist.npz"
    arrays = dict(np.load(path))
    arrays["train_labels"][0] = 7
    arrays["test_labels"] = arrays["test_labels"][:-1]
    np.savez_compressed(path, **arrays)
    done, _ = run("medmnist_pneumoniamnist", root, tmp_path / "out")
    assert kinds(done) == {"of unknown label": 1, "of unequal length": 1}
    del arrays["val_labels"]
    np.savez_compressed(path, **arrays)
    with pytest.raises(ManifestError, match="val_labels"):
        run("medmnist_pneumoniamnist", root, tmp_path / "out2")
    np.savez(path, train_images=np.array([{}]), train_labels=np.zeros((1, 1)))
    with pytest.raises(ManifestError, match="train_images is not a plain list"):
        run("medmnist_pneumoniamnist", root, tmp_path / "out3")
    path.write_bytes(b"no zip")
    with pytest.raises(ManifestError, match="cannot be read"):
        run("medmnist_pneumoniamnist", root, tmp_path / "out4")
    path.rename(root / "pneumoniamnist_small.npz")
    with pytest.raises(ManifestError, match="published file names"):
        run("medmnist_pneumoniamnist", root, tmp_path / "out5")
