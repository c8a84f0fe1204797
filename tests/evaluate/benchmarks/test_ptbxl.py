"""PTB-XL: label groups, folds, literals that are not code, records of several superclasses."""

import csv
from pathlib import Path

import numpy as np
import pytest

from evaluate.benchmarks._checks import assert_few_shot, made, run
from evaluate.benchmarks.prepared import assert_incomplete, kinds, make
from evaluate.benchmarks.trees import ptbxl as tree
from m3bind.errors import ManifestError
from m3bind.evaluate.benchmarks.ptbxl import FORM, RHYTHM, SUB, SUPER, statements
from m3bind.modalities.base import get as modality


def test_groups_folds_and_faults(tmp_path):
    done, records = made("ptbxl", tmp_path)
    assert_few_shot(records, [f"super:{name}" for name in SUPER])
    assert {r.split for r in records.values()} == {"train", "valid", "test"}
    assert kinds(done) == {"with unreadable labels": 1, "without a fold": 1, "with a missing file": 1}
    assert "scp_codes is not a dict" in done.report() and "getcwd" not in done.report()
    both = [r for r in records.values() if "super:MI" in r.labels and "super:HYP" in r.labels]
    assert len(both) == 2 and {r.split for r in both} == {"test"}
    assert both[0].labels == (
        "super:MI", "super:CD", "super:HYP", "sub:AMI", "sub:LVH", "sub:_AVB", "rhythm:SR",
    )  # fmt: skip
    ndt = next(r for r in records.values() if "form:NDT" in r.labels)  # one statement, three groups
    assert set(ndt.labels) == {"super:STTC", "sub:STTC", "form:NDT", "rhythm:AFIB"}
    assert ndt.captions[0] == "t-wellenveränderungen, vorhofflimmern"
    assert "ECG: atrial fibrillation, ST-T changes and non-diagnostic T abnormalities." in ndt.captions
    assert both[0].concepts == ("abnormal", "enlarged heart", "hypertension")


def test_500_hz_is_used_if_available(tmp_path):
    root = make("ptbxl", tmp_path)
    tree.write_record(root / "records500/00000/00001_hr", tree.ecg(np.random.default_rng(0), 0, 500, 10), 500)
    done, records = run("ptbxl", root, tmp_path / "out")
    sample = modality("ecg").read(records["1"].path)
    assert sample.rate == 500 and sample.array.shape == (12, 5000)
    assert set(records) == {"1"} and kinds(done)["with a missing file"] > 30  # no mixture of rates


def test_incomplete(tmp_path):
    make("ptbxl", tmp_path)
    assert_incomplete("ptbxl", tmp_path, ("ptbxl_database.csv", "scp_statements.csv", "records100"))
    (tmp_path / "data" / "scp_statements.csv").write_text(",diagnostic\nNORM,1.0\n")
    with pytest.raises(ManifestError, match="'form', 'rhythm'"):
        run("ptbxl", tmp_path / "data", tmp_path / "out")


def test_published_statements(mini5):
    found = statements(mini5 / "ecg" / "scp_statements.csv")
    assert len(found) == 71
    labels = {label for group in found.values() for label in group}
    wanted = {"super": SUPER, "sub": SUB, "form": FORM, "rhythm": RHYTHM}
    assert labels == {f"{group}:{code}" for group, codes in wanted.items() for code in codes}
    assert [len(codes) for codes in wanted.values()] == [5, 23, 19, 12]


def test_superclasses_of_real_records(mini5, tmp_path):
    """mini5 holds 433 records of PTB-XL with superclasses and statements: the same superclasses come out."""
    with open(mini5 / "manifest.csv", encoding="utf-8") as handle:
        rows = [row for row in csv.DictReader(handle) if row["set"] == "ptbxl100"]
    root = tmp_path / "data"
    root.mkdir()
    (root / "scp_statements.csv").symlink_to(mini5 / "ecg" / "scp_statements.csv")
    (root / "records100").symlink_to(mini5 / "ecg" / "ptbxl100")
    table = []
    for row in rows:
        codes = dict.fromkeys(row["labels"].split("|"), 100.0)
        fold = {"train": 1, "valid": 9, "test": 10}[row["split"]]
        path = f"records100/{Path(row['path']).name}"
        table.append((row["id"], row["patient"], row["caption"], codes, fold, path))
    header = ("ecg_id", "patient_id", "report", "scp_codes", "strat_fold", "filename_lr")
    tree.write_csv(root / "ptbxl_database.csv", header, table)
    done, records = run("ptbxl", root, tmp_path / "out")
    assert done.faults == [] and len(records) == len(rows) == 433
    for row in rows:
        found = {label.removeprefix("super:") for label in records[row["id"]].labels if label.startswith("super:")}
        assert found == set(filter(None, row["label"].split("|")))
