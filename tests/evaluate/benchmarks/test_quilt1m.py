"""Quilt-1M: captions, list literals that are not code, videos within one split."""

import csv

from evaluate.benchmarks._checks import made, run
from evaluate.benchmarks.prepared import assert_incomplete, kinds, make


def test_captions_and_faults(tmp_path):
    done, records = made("quilt1m", tmp_path)
    assert kinds(done) == {"not of histology": 1, "without a caption": 1, "with a missing file": 1}
    assert (done.counts["train"], done.counts["valid"]) == (13, 2)
    twice = [r for r in records.values() if r.id.startswith("quilt_1m/video") and r.id.endswith("#2")]
    assert len(twice) == 1
    first = records[twice[0].id.removesuffix("#2")]
    assert first.path == twice[0].path and first.patient == twice[0].patient and first.split == twice[0].split
    assert first.captions[0] != twice[0].captions[0]
    assert len(first.captions) == 1 and first.captions[0].startswith("Case 0 shows")
    assert first.labels == ("Dermatopathology", "Soft tissue")


def test_the_tables_own_split_wins(tmp_path):
    root = make("quilt1m", tmp_path)
    with open(root / "quilt_1M_lookup.csv", encoding="utf-8") as handle:
        rows = list(csv.reader(handle))
    for row in rows[1:]:
        row[4] = "val" if row[2] == rows[1][2] else "train"
    with open(root / "quilt_1M_lookup.csv", "w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows(rows)
    _, records = run("quilt1m", root, tmp_path / "out")
    assert {r.id.removesuffix("#2") for r in records.values() if r.split == "valid"} == {f"quilt_1m/{rows[1][2]}"}


def test_incomplete(tmp_path):
    make("quilt1m", tmp_path)
    assert_incomplete("quilt1m", tmp_path, ("quilt_1M_lookup.csv",))
