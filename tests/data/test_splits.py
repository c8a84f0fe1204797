"""Splits by patient: stable, disjoint, stratified; leaks are found."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3bind.data import Record, carve_valid, leak_check, patient_splits, read_manifest
from m3bind.errors import ConfigError


def record(
    i: int, patient: str, split: str = "train", label: str = "a", modality: str = "xray", of: str = "s"
) -> Record:
    return Record(str(i), modality, Path(f"/f{i}"), label, (), ("t",), (), patient, split, of)


@given(st.sets(st.text(max_size=8), max_size=40), st.sets(st.text(max_size=8), max_size=40), st.integers(0, 3))
def test_adding_patients_moves_no_patient(some: set[str], more: set[str], seed: int) -> None:
    before, after = patient_splits(some, seed=seed), patient_splits(some | more, seed=seed)
    assert set(before) == some and all(after[patient] == split for patient, split in before.items())


def test_fractions_are_met_and_seeds_differ() -> None:
    patients = [str(i) for i in range(5000)]
    fractions = {"train": 0.6, "valid": 0.1, "test": 0.3}
    first = patient_splits(patients, fractions, 0)
    counts = Counter(first.values())
    for split, fraction in fractions.items():
        assert counts[split] / 5000 == pytest.approx(fraction, abs=0.03)
    assert first != patient_splits(patients, fractions, 1)
    assert set(patient_splits(patients, {"train": 1.0, "test": 0.0}).values()) == {"train"}


@pytest.mark.parametrize(
    "fractions", [{"train": 0.5}, {"train": 1.5, "test": -0.5}, {"train": 0.5, "holdout": 0.5}, {}]
)
def test_wrong_fractions(fractions: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="fractions"):
        patient_splits(["a"], fractions)


def test_carving_leaves_patients_whole_and_labels_mixed() -> None:
    records = [record(i, f"p{i // 2}", label="rare" if i % 20 < 2 else "common") for i in range(400)]
    records += [record(1000 + i, f"q{i}", "test") for i in range(50)]
    carved = carve_valid(records, 0.2, seed=3)
    assert [r.id for r in carved] == [r.id for r in records] and leak_check(carved) == []
    counts = Counter((r.split, r.label) for r in carved if r.split != "test")
    assert counts["valid", "rare"] == 8 and counts["valid", "common"] == 72
    assert [r for r in carved if r.split == "test"] == [r for r in records if r.split == "test"]
    assert carve_valid(records, 0.2, seed=3) == carved != carve_valid(records, 0.2, seed=4)
    assert carve_valid(list(reversed(records)), 0.2, seed=3) == carved[::-1]
    assert carve_valid(records, 0.0) == records


def test_carving_leaves_sets_that_have_a_valid_split() -> None:
    records = [record(i, f"p{i}", of="done") for i in range(20)] + [record(20, "v", "valid", of="done")]
    records += [record(100 + i, f"p{i}" if i < 10 else f"n{i}", of="open") for i in range(40)]
    carved = carve_valid(records, 0.25)
    assert leak_check(carved) == []
    assert sum(r.split == "valid" for r in carved if r.set == "done") == 1
    assert 5 <= sum(r.split == "valid" for r in carved if r.set == "open") <= 10


def test_carving_many_small_groups_still_meets_the_total() -> None:
    records = [record(i, f"p{i}", label=f"l{i // 3}") for i in range(90)]
    assert sum(r.split == "valid" for r in carve_valid(records, 0.1)) == 9
    with pytest.raises(ConfigError, match="valid fraction"):
        carve_valid(records, 1.0)


def test_leaks_are_counted_without_names() -> None:
    records = [
        record(0, "secret", "train"),
        record(1, "secret", "test"),
        record(2, "b", "valid"),
        record(3, "c", "test"),
    ]
    assert leak_check(records) == ["1 patient is in both train and test (2 records)"]
    twin = Record("9", "xray", Path("/f2"), "", (), ("t",), (), "z", "test", "s")
    assert leak_check([*records[1:], twin]) == ["1 file is in both valid and test (2 records)"]


def test_mini5(mini5: Path) -> None:
    records = read_manifest(mini5 / "manifest.csv").records
    assert leak_check(records) == []
    carved = carve_valid(records, 0.15)
    assert leak_check(carved) == []
    counts = Counter((r.set, r.split) for r in carved)
    for name in {r.set for r in records} - {"medpix224"}:
        train, valid = counts[name, "train"], counts[name, "valid"]
        assert 0.1 < valid / (train + valid) < 0.2, name
    assert counts["medpix224", "valid"] == 84
