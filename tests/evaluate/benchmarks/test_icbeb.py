"""ICBEB / CPSC2018: both file forms, three ways to split, wrongly named headers."""

import shutil
from collections import Counter

import numpy as np
import pytest

from evaluate.benchmarks._checks import assert_few_shot, made, run
from evaluate.benchmarks.prepared import assert_incomplete, kinds
from evaluate.benchmarks.trees import icbeb as tree
from m3bind.errors import ManifestError
from m3bind.evaluate.benchmarks.icbeb import CLASSES, SNOMED, random_split
from m3bind.modalities.base import get as modality


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A tree in a folder, prepared; tests that change it copy it."""
    folder = tmp_path_factory.mktemp("icbeb")
    return folder, *made("icbeb", folder)


def test_structures_labels_and_faults(ready):
    _, done, records = ready
    assert_few_shot(records, CLASSES)
    assert kinds(done) == {"without a label": 1, "unreadable": 1, "with a missing file": 1}
    assert records["A0001"].label == "NORM" and records["A0001"].labels == ("NORM",)
    second = next(r for r in records.values() if r.label == "AFIB" and r.split == "test")
    assert second.labels == ("AFIB", "CRBBB")
    assert second.captions[0] == "ECG: atrial fibrillation and complete right bundle branch block."
    sample = modality("ecg").read(records["A0001"].path)
    wanted = tree.ecg(np.random.default_rng(0), 0, 500, 6)
    assert sample.rate == 500 and np.abs(sample.array - wanted).max() <= 6e-4  # stored in steps of 1 µV


def test_header_that_names_the_record_with_an_ending(ready):
    record = ready[2][tree.ODD]
    assert record.label == "PAC"  # of two SNOMED codes the one that is a class
    sample = modality("ecg").read(record.path)
    assert sample.array.shape == (12, 5000) and sample.rate == 500


def test_real_header_of_that_kind(native, tmp_path):
    root = tmp_path / "data"
    for name in ("E07938.hea", "E07938.mat"):
        (root / "WFDB").mkdir(parents=True, exist_ok=True)
        shutil.copy(native / "ecg" / name, root / "WFDB" / name)
    for word in ("train", "val", "test"):
        names = [(1, "E07938", "{}")] if word == "test" else []
        tree.write_csv(root / f"icbeb_{word}.csv", ("patient_id", "filename", "scp_codes"), names)
    _, records = run("icbeb", root, tmp_path / "out")
    assert records["E07938"].label == "PAC" and records["E07938"].split == "test"
    assert modality("ecg").read(records["E07938"].path).array.shape == (12, 5000)


def test_split_without_lists(ready, tmp_path):
    root = shutil.copytree(ready[0] / "data", tmp_path / "data", ignore=shutil.ignore_patterns("icbeb_*.csv"))
    _, records = run("icbeb", root, tmp_path / "out")
    names = sorted(path.stem for path in root.rglob("*.mat"))
    assert {name: r.split for name, r in records.items()}.items() <= random_split(names).items()
    folds = [(name, 9 if k == 0 else 10 if k == 1 else 3) for k, name in enumerate(names)]
    tree.write_csv(root / "icbeb_database.csv", ("filename", "strat_fold"), folds)
    _, records = run("icbeb", root, tmp_path / "folds")
    assert [records[name].split for name in names[:3]] == ["valid", "test", "train"]


def test_random_split_is_that_of_the_published_lists():
    """MERL's lists number the records in the order their disk had them: the rule draws the same numbers."""
    found = random_split([str(number) for number in range(1, 6878)])
    assert Counter(found.values()) == {"train": 4950, "valid": 551, "test": 1376}
    valid = [number for number, split in found.items() if split == "valid"]
    assert valid[:8] == ["4176", "3553", "5631", "4144", "1265", "6301", "2005", "4732"]


def test_second_run_rewrites_nothing(ready):
    folder, done, _ = ready
    before = {path: path.stat().st_mtime_ns for path in (folder / "out" / "files").iterdir()}
    again, _ = run("icbeb", folder / "data", folder / "out")
    after = {path: path.stat().st_mtime_ns for path in (folder / "out" / "files").iterdir()}
    assert before == after and again.hash == done.hash


def test_incomplete(ready, tmp_path):
    root = shutil.copytree(ready[0] / "data", tmp_path / "data")
    assert_incomplete("icbeb", tmp_path, ())
    without = shutil.copytree(root, tmp_path / "without", ignore=shutil.ignore_patterns("*.mat"))
    with pytest.raises(ManifestError, match="not complete, missing:"):
        run("icbeb", without, tmp_path / "out")
    for path in [*root.rglob("REFERENCE.csv"), *root.rglob("*.hea")]:
        path.unlink()
    with pytest.raises(ManifestError, match="no labels"):
        run("icbeb", root, tmp_path / "out")
    assert set(SNOMED.values()) == set(CLASSES)
