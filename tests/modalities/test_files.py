"""Finding files in folders: one path per item, and low cost for the calling process."""

import tracemalloc
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file

from m3bind.modalities.formats.files import dicom_code, files_below
from modalities.test_hostile import deflated_dicom_bomb, dicom_nested_deeply


def ct_slice(path: Path, series: str, kind: str = "CT") -> Path:
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    dataset.SeriesInstanceUID = f"1.2.3.{series}"
    dataset.add_new("Modality", "CS", kind)
    path.parent.mkdir(exist_ok=True)
    dataset.save_as(path)
    return path


def test_a_series_is_its_folder_and_other_slices_are_files(tmp_path: Path) -> None:
    for number in range(3):
        ct_slice(tmp_path / "series" / f"{number}.dcm", "1")
    lone = ct_slice(tmp_path / "series" / "lone.dcm", "2")
    other = ct_slice(tmp_path / "series" / "xray.dcm", "1", "DX")
    assert list(files_below(tmp_path)) == [tmp_path / "series", lone, other]
    assert list(files_below(tmp_path, ["ct"])) == [tmp_path / "series", lone]
    assert list(files_below(tmp_path, ["xray"])) == [other]


def test_a_record_is_its_header_and_common_endings_need_the_right_content(tmp_path: Path) -> None:
    for name in ("a.hea", "a.dat", "b.dat", "c.npy", "d.npy", "d.json", ".hidden.png", "notes.csv", "list.xml"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "ecg.csv").write_text("time (ms),I,II,III,aVR,aVL,aVF,V1\n")
    (tmp_path / "ecg.xml").write_text("<AnnotatedECG/>")
    assert [path.name for path in files_below(tmp_path)] == ["a.hea", "b.dat", "d.npy", "ecg.csv", "ecg.xml"]


@pytest.mark.parametrize("make", [deflated_dicom_bomb, dicom_nested_deeply], ids=lambda make: make.__name__)
def test_looking_at_a_hostile_header_costs_little_here(make, tmp_path: Path) -> None:
    _, path = make(tmp_path)
    tracemalloc.start()
    dicom_code(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 150_000_000
    assert [found.name for found in files_below(tmp_path)] == [path.name]


def test_a_name_in_place_of_the_kind_is_not_shown(tmp_path: Path, capfd, caplog, recwarn) -> None:
    path = ct_slice(tmp_path / "a" / "1.dcm", "1", "Doe, Jane")
    recwarn.clear()
    caplog.clear()
    capfd.readouterr()
    assert dicom_code(path) == ""
    shown = capfd.readouterr()
    told = shown.out + shown.err + caplog.text + "".join(str(warning.message) for warning in recwarn)
    assert "Doe" not in told
