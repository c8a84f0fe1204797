from collections import Counter
from pathlib import Path

from evaluate.benchmarks.prepared import assert_incomplete, kinds, make, prepared


def test_admissions_with_the_published_split(tmp_path: Path) -> None:
    make("symile_mimic", tmp_path)
    done, manifest = prepared("symile_mimic", tmp_path)
    assert [done.counts[split] for split in ("train", "valid", "test")] == [14, 4, 8]  # two rows an admission
    assert set(Counter(record.visit for record in manifest.records).values()) == {2} and done.faults == []


def test_an_ecg_of_two_admissions_is_in_both(tmp_path: Path) -> None:
    make("symile_mimic", tmp_path)
    _, manifest = prepared("symile_mimic", tmp_path)
    twice = [path for path, n in Counter(record.path for record in manifest.records).items() if n == 2]
    assert len(twice) == 1
    assert len({record.visit for record in manifest.records if record.path == twice[0]}) == 2


def test_tables_in_a_folder_of_their_own_and_an_empty_path(tmp_path: Path) -> None:
    folder = make("symile_mimic", tmp_path) / "symile-mimic" / "1.0.0"
    (folder / "data_csv").mkdir()
    for table in folder.glob("*.csv"):
        table.rename(folder / "data_csv" / table.name)
    table = folder / "data_csv" / "train.csv"
    lines = table.read_text().splitlines()
    lines[2] = ",".join([*lines[2].split(",")[:3], ""])
    table.write_text("\n".join(lines) + "\n")
    done, _ = prepared("symile_mimic", tmp_path)
    assert done.counts["train"] == 12 and kinds(done) == {"without a path": 1}


def test_absent_and_incomplete(tmp_path: Path) -> None:
    make("symile_mimic", tmp_path, n=6)
    assert_incomplete("symile_mimic", tmp_path, ["mimic-cxr-jpg", "mimic-iv-ecg", "symile-mimic"])
