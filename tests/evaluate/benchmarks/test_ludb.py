"""LUDB: cells of several lines, a fixed split by rhythm."""

from evaluate.benchmarks._checks import assert_few_shot, made
from evaluate.benchmarks.prepared import assert_incomplete, kinds
from evaluate.benchmarks.trees.ludb import RHYTHMS
from m3bind.evaluate.benchmarks.ludb import _deal
from m3bind.modalities.base import get as modality


def test_findings_and_faults(tmp_path):
    done, records = made("ludb", tmp_path)
    assert_incomplete("ludb", tmp_path, ("ludb.csv", "data"))
    assert_few_shot(records, RHYTHMS)
    assert kinds(done) == {"without a label": 1, "with a missing file": 1}
    first = records["data/1"]
    assert first.label == "Sinus rhythm"
    assert first.labels == ("Sinus rhythm", "Sinus arrhythmia", "Electric axis of the heart: normal")
    thick = next(r for r in records.values() if r.label == "Sinus bradycardia")
    assert thick.labels[2:] == ("Left atrial hypertrophy", "Left ventricular hypertrophy")
    sample = modality("ecg").read(first.path)
    assert sample.array.shape == (12, 5000) and sample.rate == 500


def test_split_deals_each_rhythm_in_turn():
    split = _deal({f"a{k}": "a" for k in range(20)} | {f"b{k}": "b" for k in range(2)})
    assert sorted(split[f"b{k}"] for k in range(2)) == ["test", "train"]
    counts = [sum(split[f"a{k}"] == name for k in range(20)) for name in ("train", "valid", "test")]
    assert counts == [12, 4, 4]
