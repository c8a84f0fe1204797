"""Virtual patients as DICOM: valid, marked synthetic in every file, and with the same content when read back."""

import csv
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import config
from typer.testing import CliRunner

from m3bind import modalities
from m3bind.cli import app
from m3bind.core.files import sha256_file
from m3bind.data import read_manifest
from m3bind.data.phantom import MODALITIES, generate
from m3bind.data.phantom.dicom import MICROVOLTS, XRAY_TOP, write_dicom
from m3bind.errors import ConfigError

PATIENTS = 3


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three patients who have all modalities."""
    folder = tmp_path_factory.mktemp("cohort")
    generate(folder, patients=PATIENTS, seed=5, workers=1, fractions=(0.0, 0.0, 1.0))
    return folder


@pytest.fixture(scope="module")
def written(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as DICOM, every value checked by pydicom while writing."""
    before = config.settings.writing_validation_mode
    config.settings.writing_validation_mode = config.RAISE
    try:
        return write_dicom(cohort, tmp_path_factory.mktemp("dicom")).parent
    finally:
        config.settings.writing_validation_mode = before


def rows(folder: Path, modality: str) -> list[dict[str, str]]:
    with open(folder / "manifest.csv", encoding="utf-8", newline="") as handle:
        return [row for row in csv.DictReader(handle) if row["modality"] == modality]


def pairs(cohort: Path, written: Path, modality: str) -> list[tuple[modalities.Sample, modalities.Sample]]:
    """What is read of the cohort and of its DICOM form."""
    reader = modalities.get(modality)
    both = list(zip(rows(cohort, modality), rows(written, modality), strict=True))
    assert len(both) == PATIENTS and all(a["id"] == b["id"] and a["caption"] == b["caption"] for a, b in both)
    return [(reader.read(cohort / a["path"]), reader.read(written / b["path"])) for a, b in both]


def test_radiographs_come_back_to_their_bit_depth(cohort: Path, written: Path) -> None:
    for source, back in pairs(cohort, written, "xray"):
        assert back.array.shape == source.array.shape
        np.testing.assert_allclose(back.array, source.array, atol=0.5 / XRAY_TOP + 1e-6)
    kinds = {pydicom.dcmread(p, stop_before_pixels=True).PhotometricInterpretation for p in written.rglob("xray.dcm")}
    assert kinds == {"MONOCHROME1", "MONOCHROME2"}


def test_ct_series_come_back_exactly(cohort: Path, written: Path) -> None:
    for source, back in pairs(cohort, written, "ct"):
        np.testing.assert_array_equal(back.array, source.array)
        np.testing.assert_allclose(back.spacing, source.spacing, rtol=1e-6)


@pytest.mark.parametrize("modality", ["retina", "pathology"])
def test_colour_images_are_read_back_exactly(cohort: Path, written: Path, modality: str) -> None:
    for source, back in pairs(cohort, written, modality):
        np.testing.assert_array_equal(back.array, source.array)


def test_ecgs_come_back_to_half_a_step(cohort: Path, written: Path) -> None:
    for source, back in pairs(cohort, written, "ecg"):
        assert back.rate == source.rate and back.array.shape == source.array.shape
        np.testing.assert_allclose(back.array, source.array, atol=MICROVOLTS / 2000 + 1e-6)


def test_stored_values_are_those_of_the_cohort(cohort: Path, written: Path) -> None:
    """By pydicom alone, so that an error in a reader cannot hide one in the writer."""
    for a, b in zip(rows(cohort, "retina"), rows(written, "retina")):
        np.testing.assert_array_equal(pydicom.dcmread(written / b["path"]).pixel_array, Image.open(cohort / a["path"]))
    for row in rows(written, "ct"):
        slices = [pydicom.dcmread(path) for path in sorted((written / row["path"]).iterdir())]
        heights = [float(ds.ImagePositionPatient[2]) for ds in slices]
        assert heights == sorted(heights)  # feet first
        hounsfield = np.stack([ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept) for ds in slices])
        source = modalities.get("ct").read(cohort / "patients" / row["patient"] / "ct.nii.gz")
        np.testing.assert_array_equal(hounsfield, source.array)  # rows to the back, columns to the patient's left
        assert list(slices[0].ImageOrientationPatient) == [1, 0, 0, 0, 1, 0]
    for row in rows(written, "ecg"):
        signal = pydicom.dcmread(written / row["path"]).waveform_array(0).T / 1000  # microvolts
        source = modalities.get("ecg").read(cohort / "patients" / row["patient"] / "ecg")
        np.testing.assert_allclose(signal, source.array, atol=MICROVOLTS / 2000 + 1e-6)


def test_every_file_states_that_it_is_synthetic_and_is_its_own(written: Path) -> None:
    files = sorted(written.rglob("*.dcm"))
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in files]
    assert len(files) > 5 * PATIENTS
    for header in headers:
        assert str(header.PatientName).startswith("SYNTHETIC^") and header.PatientComments.startswith("synthetic")
        assert header.SyntheticData == "YES"
    assert len({header.SOPInstanceUID for header in headers}) == len(files)
    assert len({header.SeriesInstanceUID for header in headers}) == len(MODALITIES) * PATIENTS
    assert len({header.StudyInstanceUID for header in headers}) == PATIENTS


def test_writing_again_gives_the_same_bytes_and_another_seed_other_uids(
    cohort: Path, written: Path, tmp_path: Path
) -> None:
    again = write_dicom(cohort, tmp_path / "again").parent
    for path in sorted(written.rglob("*")):
        if path.is_file():
            assert sha256_file(path) == sha256_file(again / path.relative_to(written)), path
    generate(tmp_path / "other", patients=1, seed=6, workers=1)
    other = write_dicom(tmp_path / "other", tmp_path / "other-dicom").parent
    first, second = (pydicom.dcmread(folder / "patients/p0000/xray.dcm") for folder in (written, other))
    assert first.SOPInstanceUID != second.SOPInstanceUID


def test_the_manifest_takes_folders_of_slices(written: Path) -> None:
    manifest = read_manifest(written / "manifest.csv")
    assert not manifest.bad and {record.modality for record in manifest.records} == set(MODALITIES)


def test_child_processes_read_them_too(written: Path) -> None:
    for modality in ("ct", "pathology"):
        row = rows(written, modality)[0]
        here, there = (
            modalities.get(modality).read(written / row["path"]),
            modalities.read(modality, written / row["path"]),
        )
        assert here.array.tobytes() == there.array.tobytes() and here.warnings == there.warnings


@pytest.mark.parametrize("modality", MODALITIES)
def test_nothing_is_doubted_that_is_not_doubted_in_the_source(cohort: Path, written: Path, modality: str) -> None:
    for source, back in pairs(cohort, written, modality):
        assert back.warnings == source.warnings
        assert "SYNTHETIC" not in " ".join([*back.steps, *back.tags.values()])  # the patient's name and number


def test_no_cohort_and_the_cohorts_own_folder_are_refused(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no finished cohort"):
        write_dicom(tmp_path, tmp_path / "out")
    with pytest.raises(ConfigError, match="own folder"):
        write_dicom(cohort, cohort)


def test_command(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["phantom", str(tmp_path / "c"), "--patients", "1", "--dicom"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "c" / "dicom" / "manifest.csv").is_file()
    assert len(list((tmp_path / "c" / "dicom").rglob("ct*.dcm"))) in (0, 32)
