"""SICAPv2: Excel partitions, patches of several grades."""

import pytest

from evaluate.benchmarks._checks import assert_few_shot, made, run
from evaluate.benchmarks.prepared import assert_incomplete, kinds, make
from m3bind.errors import ManifestError
from m3bind.evaluate.benchmarks.sicapv2 import GRADES, VALID


def test_grades_partitions_and_faults(tmp_path):
    done, records = made("sicapv2", tmp_path)
    assert_few_shot(records, GRADES)
    assert kinds(done) == {"without a label": 1, "with a missing file": 1}
    assert [done.counts[split] for split in ("train", "valid", "test")] == [12, 4, 8]
    cribriform = next(r for r in records.values() if r.label == "G4")
    assert cribriform.labels == ("G4", "G4C")
    assert cribriform.captions[0] == ("Prostate histology showing cribriform ill-formed fused papillary patterns.")
    several = next(r for r in records.values() if len(r.labels) == 2 and "G5" in r.labels)
    assert several.label == "G3"
    assert done.counts["patients"] == len(records)  # one biopsy each


def test_without_the_validation_folds(tmp_path):
    root = make("sicapv2", tmp_path)
    (root / VALID).unlink()
    done, _ = run("sicapv2", root, tmp_path / "out")
    assert done.counts["train"] == 16 and "valid" not in done.counts


def test_incomplete(tmp_path):
    root = make("sicapv2", tmp_path)
    assert_incomplete("sicapv2", tmp_path, ("images", "partition/Test/Train.xlsx", "partition/Test/Test.xlsx"))
    (root / "partition" / "Test" / "Test.xlsx").write_text("no sheet")
    with pytest.raises(ManifestError, match=r"Test\.xlsx"):
        run("sicapv2", root, tmp_path / "out")
