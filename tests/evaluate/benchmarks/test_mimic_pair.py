from collections import defaultdict
from datetime import datetime, timedelta
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from evaluate.benchmarks.prepared import assert_incomplete, kinds, make, prepared
from m3bind.data.records import Record
from m3bind.evaluate.benchmarks._mimic import study_time, subject_splits
from m3bind.evaluate.benchmarks._mimic_pairs import MimicFile, belong, match

DAY = datetime(2180, 5, 6)


def by_visit(records: list[Record]) -> dict[str, list[Record]]:
    visits = defaultdict(list)
    for record in records:
        visits[record.visit].append(record)
    return visits


def test_a_visit_has_one_radiograph_and_one_ecg(tmp_path: Path) -> None:
    make("mimic_pair", tmp_path)
    done, manifest = prepared("mimic_pair", tmp_path)
    visits = by_visit(manifest.records)
    assert len(visits) == 12 and done.counts["patients"] == 12
    for records in visits.values():
        assert [record.modality for record in records] == ["xray", "ecg"]
        assert len({(record.patient, record.split) for record in records}) == 1
    assert [done.counts[split] for split in ("train", "valid", "test")] == [12, 4, 8]
    assert kinds(done) == {"without a time": 1}


def test_without_stays_only_the_24_hours_count(tmp_path: Path) -> None:
    root = make("mimic_pair", tmp_path)
    next(root.glob("mimiciv/*/hosp/admissions.csv.gz")).unlink()
    next(root.glob("mimic-iv-ed/*/ed/edstays.csv.gz")).unlink()
    done, _ = prepared("mimic_pair", tmp_path)
    assert done.counts["patients"] == 6 + 1  # the three days apart are lost, the moved one is won


def test_subjects_are_in_the_split_they_have_in_mimic_iv_ecg(tmp_path: Path) -> None:
    make("mimic_pair", tmp_path)
    done, _ = prepared("mimic_pair", tmp_path)
    rows = [line.split(",") for line in done.manifest.read_text().splitlines()]
    subject, split = rows[0].index("patient"), rows[0].index("split")
    stated = {row[subject].removeprefix("mimic-"): row[split] for row in rows[1:]}
    assert stated == subject_splits(stated)


def test_an_incomplete_visit_is_quarantined_as_a_whole(tmp_path: Path) -> None:
    root = make("mimic_pair", tmp_path)
    next(root.glob("mimic-iv-ecg/1.0/files/*/*/s40000000/*.hea")).unlink()
    next(root.glob("mimic-cxr-jpg/2.1.0/files/*/*/s50000001/*-pa.jpg")).unlink()
    table = root / "mimic-iv-ecg" / "1.0" / "machine_measurements.csv"
    table.write_text("\n".join(line for line in table.read_text().splitlines() if ",40000002," not in line) + "\n")
    done, manifest = prepared("mimic_pair", tmp_path)
    assert kinds(done) == {"of an incomplete visit": 3, "without a time": 1}
    assert all(len(records) == 2 for records in by_visit(manifest.records).values()) and len(manifest.records) == 18


def test_absent_and_incomplete(tmp_path: Path) -> None:
    make("mimic_pair", tmp_path, n=2)
    assert_incomplete("mimic_pair", tmp_path, ["mimic-cxr-jpg", "mimic-iv-ecg"])


def test_study_times() -> None:
    assert study_time("21800506", "213014.53100000002") == datetime(2180, 5, 6, 21, 30, 14)
    assert study_time("21800506.0", "93012.0") == datetime(2180, 5, 6, 9, 30, 12)  # without its leading zero
    assert study_time("21800506", "0.5") == DAY
    assert study_time("", "1") is None and study_time("21800506", "996000") is None


recordings = st.lists(
    st.builds(
        lambda hours, stay, subject: (hours, stay, subject),
        st.integers(0, 120), st.sampled_from(["", "", "s1", "s2"]), st.sampled_from(["a", "a", "a", "b"]),
    ),
    max_size=8,
)  # fmt: skip


@given(recordings, recordings)
def test_pairs_never_fit_each_other(first: list[tuple[int, str, str]], second: list[tuple[int, str, str]]) -> None:
    xrays = [MimicFile(f"x{k}", "", s, DAY + timedelta(hours=h), stay) for k, (h, stay, s) in enumerate(first)]
    ecgs = [MimicFile(f"e{k}", "", s, DAY + timedelta(hours=h), stay) for k, (h, stay, s) in enumerate(second)]
    pairs = match(xrays, ecgs)
    assert all(belong(x, e) for x, e in pairs)
    for i, one in enumerate(pairs):
        for other in pairs[i + 1 :]:
            assert not any(belong(a, b) for a in one for b in other)
    for x in xrays:  # and none more could be taken
        for e in ecgs:
            if belong(x, e):
                assert any(belong(a, b) for pair in pairs for a in pair for b in (x, e))


def test_nearest_in_time_is_taken() -> None:
    x = MimicFile("x", "", "a", DAY)
    far, near = (MimicFile(str(h), "", "a", DAY + timedelta(hours=h)) for h in (20, -2))
    assert match([x], [far, near]) == [(x, near)]
