from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluate.benchmarks.prepared import assert_incomplete, kinds, make, prepared
from m3bind.evaluate.benchmarks._chexpert import COMPETITION
from m3bind.evaluate.benchmarks.chexpert import NOTHING_CERTAIN, valid_patients
from m3bind.modalities import get


@pytest.mark.parametrize("folder", ["CheXpert-v1.0", "CheXpert-v1.0-small"])
def test_frontal_rows_without_the_patients_of_5x200(tmp_path: Path, folder: str) -> None:
    make("chexpert", tmp_path, n=12, folder=folder)
    done, manifest = prepared("chexpert", tmp_path)
    assert kinds(done) == {"held out for CheXpert 5x200": 5 * 12 + 5}  # the 5 second studies of such patients, too
    assert [done.counts[split] for split in ("train", "valid", "test")] == [54, 6, 20]
    for task in COMPETITION:
        assert done.counts[f"train/{task}"] >= 3 and done.counts[f"test/{task}"] == 4
    assert not any("lateral" in record.path.name for record in manifest.records)
    assert get("xray").decode(manifest.records[0].path).array.shape == (48, 48)


def test_uncertain_findings_count_as_in_mgca(tmp_path: Path) -> None:
    make("chexpert", tmp_path, n=12)
    _, manifest = prepared("chexpert", tmp_path)
    found = {record.labels for record in manifest.records if record.split != "test"}
    # each patient has one finding, support devices, and the next of the five as uncertain
    assert found == {
        ("Atelectasis", "Support Devices"),
        ("Cardiomegaly", "Support Devices"),
        ("Edema", "Consolidation", "Support Devices"),
        ("Edema", "Pleural Effusion", "Support Devices"),
        ("Atelectasis", "Pleural Effusion", "Support Devices"),
    }


def test_an_image_without_a_certain_finding_is_not_called_normal(tmp_path: Path) -> None:
    root = make("chexpert", tmp_path, n=2) / "CheXpert-v1.0"
    table = root / "valid.csv"
    lines = table.read_text().splitlines()
    lines[1] = lines[1].replace(",1.0", ",0.0")
    table.write_text("\n".join(lines) + "\n")
    _, manifest = prepared("chexpert", tmp_path)
    record = next(record for record in manifest.records if record.split == "test")
    assert record.label == NOTHING_CERTAIN and record.labels == () and record.concepts == ()
    assert not any("normal" in caption.casefold() for caption in record.captions)


def test_the_folder_itself_may_be_given(tmp_path: Path) -> None:
    make("chexpert", tmp_path, n=2)
    (tmp_path / "data").rename(tmp_path / "above")
    (tmp_path / "above" / "CheXpert-v1.0").rename(tmp_path / "data")
    done, _ = prepared("chexpert", tmp_path)
    assert done.counts["test"] == 15


def test_an_unknown_cell_and_a_missing_image_are_quarantined(tmp_path: Path) -> None:
    root = make("chexpert", tmp_path, n=2) / "CheXpert-v1.0"
    table = root / "valid.csv"
    lines = table.read_text().splitlines()
    lines[1] = lines[1].replace("1.0,", "often,")
    table.write_text("\n".join(lines) + "\n")
    next(path for path in sorted((root / "valid").rglob("*.jpg"))[1:2]).unlink()
    done, _ = prepared("chexpert", tmp_path)
    assert kinds(done)["of another form"] == 1 and kinds(done)["with a missing file"] == 1
    assert done.counts["test"] == 13


def test_absent_and_incomplete(tmp_path: Path) -> None:
    make("chexpert", tmp_path, n=2)
    assert_incomplete("chexpert", tmp_path, ["CheXpert-v1.0/train.csv", "CheXpert-v1.0/valid.csv"])


@given(st.lists(st.sampled_from([f"patient{k:02d}" for k in range(30)]), max_size=200), st.integers(0, 5))
def test_valid_patients_are_whole_and_at_most_a_tenth(patients: list[str], seed: int) -> None:
    chosen = valid_patients(patients, seed)
    rows = Counter(patients)
    assert sum(rows[patient] for patient in chosen) <= len(patients) // 10
    assert chosen == valid_patients(sorted(patients), seed)  # the order of rows does not count


def test_five_thousand_rows_are_the_most() -> None:
    assert len(valid_patients([f"p{k}" for k in range(60_000)])) == 5000
