"""Leaks between splits, pairs of files with the same content, and seen data sets."""

from pathlib import Path

import pytest

from m3bind.data.records import BadRow, Record
from m3bind.evaluate.leaks import LeakReport, copies_of, seen_by, split_leaks
from m3bind.evaluate.near_duplicates import NearDuplicate


def record(path: Path, patient: str, split: str) -> Record:
    return Record(path.name, "xray", path, "normal", (), ("t",), (), patient, split, "s")


def test_shared_patients_and_contents_are_counted(tmp_path: Path) -> None:
    records = [
        record(tmp_path / "a", "p", "train"),
        record(tmp_path / "b", "q", "train"),
        record(tmp_path / "c", "p", "test"),  # the patient and the content of a
        record(tmp_path / "d", "r", "test"),
        record(tmp_path / "e", "s", "test"),  # the content of d
        record(tmp_path / "gone", "t", "test"),
    ]
    keys = ["1", "2", "1", "3", "3", None]
    found = split_leaks(records, keys, [BadRow(3, "x", kind="that would leak"), BadRow(4, "y")])
    assert (found.test, found.patients, found.contents, found.repeated, found.quarantined) == (4, 1, 1, 2, 1)
    assert str(tmp_path) not in found.report()


def test_pairs_of_files_are_those_of_their_contents(tmp_path: Path) -> None:
    splits = ["test", "train", "train", "train", "valid", "train"]
    records = [record(tmp_path / str(i), f"p{i % 4}", split) for i, split in enumerate(splits)]
    contents = [[0, 1, 2], [3], [4], [5]]  # distinct contents; the first has three files
    pairs = [NearDuplicate(0, 1, 0.95, "left-right"), NearDuplicate(2, 3, 0.97)]
    found = copies_of(records, contents, pairs)
    assert [(copy.places, copy.splits, copy.correlation, copy.same_bytes) for copy in found] == [
        ((1, 0), ("train", "test"), 1.0, True),
        ((5, 4), ("train", "valid"), 0.97, False),
        ((3, 0), ("train", "test"), 0.95, False),
        ((1, 2), ("train", "train"), 1.0, True),
        ((1, 3), ("train", "train"), 0.95, False),
    ]
    assert [copy.flip for copy in found] == ["", "", "left-right", "", "left-right"]
    report = LeakReport(1, copies=found)
    assert report.pairs() == {"train and test": 2, "train and valid": 1, "within train": 2}
    assert report.leaked and not LeakReport(1, copies=found[3:]).leaked
    assert "within train: 2" in report.report()


def test_a_pair_states_whether_it_is_of_one_patient(tmp_path: Path) -> None:
    records = [record(tmp_path / str(i), patient, "train") for i, patient in enumerate(["p", "p", "", ""])]
    found = copies_of(records, [[0], [1], [2], [3]], [NearDuplicate(0, 1, 0.9), NearDuplicate(2, 3, 0.9)])
    assert [copy.same_patient for copy in found] == [True, False]


@pytest.mark.parametrize(
    ("data", "names", "expected"),
    [
        (("CheXpert (reports)", "MIMIC-CXR"), ("chexpert", "CheXpert"), ("CheXpert (reports)",)),
        (("MIMIC-CXR 2.0.0",), ("mimic_cxr", "MIMIC-CXR-JPG"), ("MIMIC-CXR 2.0.0",)),
        (("Quilt-1M",), ("skin", "Skin"), ()),
        ((), ("pcam",), ()),
    ],
)
def test_seen_data_sets_are_found_whatever_their_spelling(
    data: tuple[str, ...], names: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    assert seen_by(data, names) == expected
