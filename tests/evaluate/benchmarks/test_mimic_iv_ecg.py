from pathlib import Path

import numpy as np
import pytest
import wfdb

from evaluate.benchmarks.prepared import assert_incomplete, kinds, make, prepared
from m3bind.evaluate.benchmarks._mimic import medbind_report, merl_report
from m3bind.modalities import get
from m3bind.modalities.ecg import LEADS


def test_records_are_split_by_subject(tmp_path: Path) -> None:
    make("mimic_iv_ecg", tmp_path)
    done, manifest = prepared("mimic_iv_ecg", tmp_path)
    assert [done.counts[split] for split in ("train", "valid", "test")] == [12, 4, 8]
    assert kinds(done) == {"without a report": 1}
    splits: dict[str, set[str]] = {}
    for record in manifest.records:
        splits.setdefault(record.patient, set()).add(record.split)
    assert len(splits) == 12 and all(len(found) == 1 for found in splits.values())


def test_avf_before_avl_is_put_in_order_by_name(tmp_path: Path) -> None:
    make("mimic_iv_ecg", tmp_path, n=6)
    _, manifest = prepared("mimic_iv_ecg", tmp_path)
    stored = wfdb.rdrecord(str(manifest.records[0].path))
    assert stored.sig_name[4:6] == ["aVF", "aVL"]
    array = get("ecg").decode(manifest.records[0].path).array
    avl, avf = array[LEADS.index("aVL")], array[LEADS.index("aVF")]
    np.testing.assert_allclose(avl, array[0] - array[1] / 2, atol=1e-3)
    np.testing.assert_allclose(avf, array[1] - array[0] / 2, atol=1e-3)
    assert float(np.abs(avl - avf).max()) > 0.1


@pytest.mark.parametrize(("name", "text"), [
    ("mimic_iv_ecg", "sinus rhythm. left axis deviation. rate 60 per minute."),
    ("mimic_iv_ecg_medbind",
     "ECG presents Sinus rhythm. Additional findings include the following: Left axis deviation, rate 60 per minute."),
])  # fmt: skip
def test_both_wordings(tmp_path: Path, name: str, text: str) -> None:
    make(name, tmp_path, n=6)
    _, manifest = prepared(name, tmp_path)
    assert manifest.records[0].captions == (text,)


def test_report_rules() -> None:
    lines = ["==== Abnormal EKG ***", "Sinus\nrhythm", "AV block"]
    assert merl_report(lines) == "abnormal ecg ***. sinus rhythm. av block."
    assert merl_report(["Borderline EKG", "noted"]) == "" and merl_report([]) == ""
    assert medbind_report(["Sinus rhythm"]) == "ECG presents Sinus rhythm." and medbind_report([]) == ""


def test_a_missing_record_is_quarantined(tmp_path: Path) -> None:
    root = make("mimic_iv_ecg", tmp_path, n=6)
    next(root.glob("files/*/*/*/*.hea")).unlink()
    done, _ = prepared("mimic_iv_ecg", tmp_path)
    assert kinds(done)["with a missing file"] == 1


def test_absent_and_incomplete(tmp_path: Path) -> None:
    make("mimic_iv_ecg", tmp_path, n=6)
    assert_incomplete("mimic_iv_ecg", tmp_path, ["record_list.csv", "machine_measurements.csv", "files"])
