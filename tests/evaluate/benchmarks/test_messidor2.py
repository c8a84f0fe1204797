from pathlib import Path

from evaluate.benchmarks.prepared import assert_incomplete, kinds, make, prepared
from m3bind.evaluate.benchmarks.messidor2 import EDEMA, GRADES
from m3bind.modalities import get


def test_graded_images_become_test_rows(tmp_path: Path) -> None:
    make("messidor2", tmp_path, n=4)
    done, manifest = prepared("messidor2", tmp_path)
    assert done.counts == {
        "test": 20, **{f"test/{grade}": 4 for grade in GRADES}, f"test/{EDEMA}": 7, "patients": 10,
    }  # fmt: skip
    assert kinds(done) == {"not gradable": 1}
    assert [record.label for record in manifest.records[::4]] == list(GRADES)
    assert manifest.records[0].captions[0] == f"A fundus photograph of {GRADES[0]} and {EDEMA}."
    assert manifest.records[-1].concepts == ("abnormal", "diabetes") and manifest.records[1].concepts == ()
    assert get("retina").decode(manifest.records[0].path).array.shape == (48, 48, 3)


def test_names_that_differ_in_case_are_found(tmp_path: Path) -> None:
    root = make("messidor2", tmp_path, n=4)
    done, manifest = prepared("messidor2", tmp_path)
    assert (root / "IMAGES" / "IM000000.JPG").is_file() and "IM000000.jpg" in (root / "messidor_data.csv").read_text()
    assert manifest.records[0].path.name == "IM000000.JPG"
    assert "with a missing file" not in kinds(done)


def test_eyes_of_an_examination_are_one_patient_only_with_the_list_of_pairs(tmp_path: Path) -> None:
    root = make("messidor2", tmp_path, n=4)
    _, manifest = prepared("messidor2", tmp_path)
    patients = [record.patient for record in manifest.records]
    assert patients[0] == patients[1] != patients[2]
    (root / "messidor-2.csv").unlink()
    done, _ = prepared("messidor2", tmp_path)
    assert done.counts["patients"] == 20


def test_a_missing_image_and_an_unknown_grade_are_quarantined(tmp_path: Path) -> None:
    root = make("messidor2", tmp_path, n=4)
    (root / "IMAGES" / "IM000001.JPG").unlink()
    table = root / "messidor_data.csv"
    table.write_text(table.read_text().replace("IM000004.jpg,1,", "IM000004.jpg,7,"))
    done, _ = prepared("messidor2", tmp_path)
    assert kinds(done) == {"not gradable": 1, "with a missing file": 1, "without a grade": 1}
    assert done.counts["test"] == 18 and "test: 18, published 1,744" in done.differences


def test_absent_and_incomplete(tmp_path: Path) -> None:
    make("messidor2", tmp_path, n=2)
    assert_incomplete("messidor2", tmp_path, ["messidor_data.csv", "IMAGES"])
