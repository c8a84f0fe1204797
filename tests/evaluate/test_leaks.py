"""Leaks between splits, near-duplicates and seen data sets."""

from pathlib import Path

import numpy as np
import pytest

from m3bind.data.records import BadRow, Record
from m3bind.evaluate.leaks import near_duplicates, seen_by, split_leaks


def record(path: Path, patient: str, split: str) -> Record:
    return Record(path.name, "xray", path, "normal", (), ("t",), (), patient, split, "s")


def test_shared_patients_and_contents_are_counted(tmp_path: Path) -> None:
    for name, content in {"a": b"1", "b": b"2", "c": b"1", "d": b"3", "e": b"3"}.items():
        (tmp_path / name).write_bytes(content)
    records = [
        record(tmp_path / "a", "p", "train"),
        record(tmp_path / "b", "q", "train"),
        record(tmp_path / "c", "p", "test"),  # the patient and the content of a
        record(tmp_path / "d", "r", "test"),
        record(tmp_path / "e", "s", "test"),  # the content of d
        record(tmp_path / "gone", "t", "test"),
    ]
    found = split_leaks(records, [BadRow(3, "x", kind="that would leak"), BadRow(4, "y")])
    assert (found.test, found.patients, found.contents, found.repeated, found.quarantined) == (4, 1, 1, 2, 1)
    assert str(tmp_path) not in found.report()


def test_near_duplicates_are_those_above_the_usual() -> None:
    rng = np.random.default_rng(0)
    train = rng.normal(size=(300, 32))
    test = np.concatenate([rng.normal(size=(20, 32)), train[[7, 99]] + 1e-4 * rng.normal(size=(2, 32))])
    train, test = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (train, test))
    ids = [f"t{i}" for i in range(22)], [f"r{i}" for i in range(300)]
    pairs, threshold = near_duplicates(test, train, ids)
    assert {(pair.test, pair.train) for pair in pairs} == {("t20", "r7"), ("t21", "r99")}
    assert threshold >= 0.999
    assert [p.cosine for p in pairs] == sorted((p.cosine for p in pairs), reverse=True)
    everything, _ = near_duplicates(test, train, ids, threshold=-1.0)
    best = (test @ train.T).argmax(1)
    assert {(t.test, t.train) for t in everything} == {(f"t{i}", f"r{best[i]}") for i in range(22)}


def test_no_files_no_pairs() -> None:
    assert near_duplicates(np.zeros((0, 4)), np.eye(4), ([], list("abcd")))[0] == []


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
