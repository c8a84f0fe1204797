from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
from sklearn.model_selection import train_test_split

from evaluate.benchmarks.prepared import assert_incomplete, kinds, make, prepared
from evaluate.benchmarks.trees._small import pixels
from m3bind.evaluate.benchmarks import get as benchmark
from m3bind.evaluate.benchmarks.rsna_pneumonia import split_ids
from m3bind.modalities import get


def test_boxes_are_grouped_and_split(tmp_path: Path) -> None:
    make("rsna_pneumonia", tmp_path)
    done, manifest = prepared("rsna_pneumonia", tmp_path)
    assert done.counts == {
        "train": 16, "train/normal": 8, "train/pneumonia": 8, "valid": 4, "valid/normal": 2, "valid/pneumonia": 2,
        "test": 4, "test/normal": 2, "test/pneumonia": 2, "patients": 24,
    }  # fmt: skip
    assert {record.label: record.concepts for record in manifest.records} == {"normal": (), "pneumonia": ("abnormal",)}
    assert done.faults == [] and len({record.path for record in manifest.records}) == 24


def test_monochrome1_is_read_as_its_inverse(tmp_path: Path) -> None:
    make("rsna_pneumonia", tmp_path, n=4)
    _, manifest = prepared("rsna_pneumonia", tmp_path)
    inverted = [r for r in manifest.records if pydicom.dcmread(r.path).PhotometricInterpretation == "MONOCHROME1"]
    assert len(inverted) == 1
    stored = pydicom.dcmread(inverted[0].path).pixel_array
    np.testing.assert_array_equal(stored, 255 - pixels(0))
    np.testing.assert_allclose(get("xray").decode(inverted[0].path).array, pixels(0) / 255, atol=0.01)


def test_split_is_glorias() -> None:
    """Against GLoRIA's steps on a table, and the published sizes."""
    ids = [f"{k:05d}" for k in range(26684)]
    frame = pd.DataFrame({"patientId": ids[::-1]}).groupby("patientId").agg(list).reset_index()
    train, rest = train_test_split(frame, test_size=0.15 * 2, random_state=0)
    test, valid = train_test_split(rest, test_size=0.5, random_state=0)
    found = split_ids(ids)
    for split, part in (("train", train), ("valid", valid), ("test", test)):
        assert found[split] == part["patientId"].tolist()
        assert len(found[split]) == benchmark("rsna_pneumonia").known[split]


def test_an_unknown_target_and_a_missing_file_are_quarantined(tmp_path: Path) -> None:
    root = make("rsna_pneumonia", tmp_path, n=4)
    sorted((root / "stage_2_train_images").iterdir())[3].unlink()
    with open(root / "stage_2_train_labels.csv", "a") as handle:
        handle.write("extra,,,,,maybe\n")
    done, manifest = prepared("rsna_pneumonia", tmp_path)
    assert kinds(done) == {"of another form": 1, "with a missing file": 1} and len(manifest.records) == 7


def test_absent_and_incomplete(tmp_path: Path) -> None:
    make("rsna_pneumonia", tmp_path, n=2)
    assert_incomplete("rsna_pneumonia", tmp_path, ["stage_2_train_labels.csv", "stage_2_train_images"])
