"""Radiographs as DICOM and as images, and doubts about them."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import UID

from m3bind import modalities
from m3bind.errors import ReadError
from m3bind.modalities import get, xray

Make = Callable[..., Path]
STORAGE = "1.2.840.10008.5.1.4.1.1."


def chest(side: int = 128) -> np.ndarray:
    """(side, side) in 0..1, bright = dense: a body with dark lungs, a spine and air above the shoulders."""
    y, x = np.mgrid[:side, :side] / side - 0.5
    picture = 0.55 + 0.25 * np.exp(-((x / 0.08) ** 2)) + 0.3 * (y > 0.25) - 0.5 * ((np.abs(x) > 0.35) & (y < -0.2))
    for centre in (-0.22, 0.22):
        picture -= 0.35 * np.exp(-(((x - centre) / 0.12) ** 2) - ((y + 0.05) / 0.25) ** 2)
    noise = np.random.default_rng(0).normal(0, 0.02, (side, side))
    return np.clip(picture + noise, 0.04, 0.98)


def dicom(path: Path, picture: np.ndarray, sop: str = "1.1", **entries: Any) -> Path:
    """A 12-bit radiograph of a picture (H, W) in 0..1."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.1")
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality, ds.PatientName = UID(STORAGE + sop), UID("1.2.3"), "DX", "DOE^JANE"
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.Rows, ds.Columns = picture.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.WindowCenter, ds.WindowWidth, ds.VOILUTFunction = "2047.5", "4095", "LINEAR_EXACT"
    ds.PixelData = np.rint(picture * 4095).astype("<u2").tobytes()
    ds["PixelData"].VR = "OW"
    for keyword, value in entries.items():
        setattr(ds, keyword, value)
    ds.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("name", ["a.dcm", "a.dicom", "IM000001"])
def test_a_dicom_radiograph_is_the_picture(tmp_path: Path, name: str) -> None:
    sample = get("xray").read(dicom(tmp_path / name, chest(), KVP="110", BodyPartExamined="CHEST"))
    np.testing.assert_allclose(sample.array, chest(), atol=1e-3)
    assert sample.warnings == [] and sample.steps == ["window 2047.5/4095 (exact) applied"]
    assert sample.tags["Modality"] == "DX" and sample.tags["BodyPartExamined"] == "CHEST"
    assert "DOE" not in str(sample.tags) + str(sample.steps)


def test_both_photometric_interpretations_show_the_same_patient(tmp_path: Path) -> None:
    plain = get("xray").read(dicom(tmp_path / "a.dcm", chest()))
    turned = get("xray").read(
        dicom(tmp_path / "b.dcm", 1 - chest(), PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE")
    )
    np.testing.assert_allclose(turned.array, plain.array, atol=1e-3)
    assert turned.warnings == [] and sum("inverted (once)" in step for step in turned.steps) == 1


def test_the_real_radiograph(native: Path) -> None:
    path = native / "dicom" / "RG3_J2KI.dcm"
    ds = pydicom.dcmread(path)
    theirs = apply_voi_lut(apply_modality_lut(ds.pixel_array, ds), ds) / (2**ds.BitsStored - 1)
    sample = modalities.read("xray", path)
    assert ds.PhotometricInterpretation == "MONOCHROME1"
    np.testing.assert_allclose(sample.array, 1 - theirs, atol=2e-6)
    assert sample.tags["Rows"] == "1760" and any("inverted (once)" in step for step in sample.steps)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("CT_small.dcm", "a CT slice, not a radiograph"),
        ("MR_small_jp2klossless.dcm", "an MR slice"),
        ("examples_palette.dcm", "an ultrasound image"),
        ("JPEG2000.dcm", "a nuclear medicine image"),
        ("liver_1frame.dcm", "a segmentation or registration"),
        ("rtdose.dcm", "a radiotherapy object"),
        ("test-SR.dcm", "a report"),
        ("waveform_ecg.dcm", "a waveform"),
    ],
)
def test_other_modalities_are_refused_by_name(name: str, what: str) -> None:
    with pytest.raises(ReadError, match=f"{what}.*check the modality"):
        get("xray").read(get_testdata_file(name))


@pytest.mark.parametrize("sop", ["1", "1.1", "1.1.1", "1.2", "1.3", "12.1", "12.2", "12.1.1", "7"])
def test_kinds_of_radiographs(tmp_path: Path, sop: str) -> None:
    assert get("xray").read(dicom(tmp_path / "a.dcm", chest(), sop)).array.shape == (128, 128)


def test_secondary_captures(tmp_path: Path) -> None:
    grey = get("xray").read(get_testdata_file("image_dfl.dcm"))
    assert grey.array.shape == (512, 512) and grey.tags["Modality"] == "OT"
    with pytest.raises(ReadError, match="a colour image, not an X-ray"):
        get("xray").read(get_testdata_file("SC_rgb_rle.dcm"))
    path = dicom(tmp_path / "a.dcm", chest(), "7", Modality="OT")
    ds = pydicom.dcmread(path)
    rgb = np.repeat(np.rint(chest() * 255).astype(np.uint8)[..., None], 3, axis=2)
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelData = 8, 8, 7, rgb.tobytes()
    ds["PixelData"].VR = "OB"
    ds.save_as(path)
    sample = get("xray").read(path)
    np.testing.assert_allclose(sample.array, chest(), atol=3e-3)
    assert sample.steps == ["RGB averaged to grey"]


def test_damaged_and_tiny_dicom(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a.dcm", chest())
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ReadError, match=r"bytes|DICOM"):
        get("xray").read(path)
    with pytest.raises(ReadError, match="only 12 x 40 pixels"):
        get("xray").read(dicom(tmp_path / "b.dcm", chest()[:40, :12]))
    (tmp_path / "c.dcm").write_bytes(b"GIF89a" + bytes(500))
    with pytest.raises(ReadError, match="not a DICOM file"):
        get("xray").read(tmp_path / "c.dcm")


@pytest.mark.parametrize(
    ("entries", "doubt"),
    [
        ({"ViewPosition": "LL"}, "a lateral view"),
        ({"PatientOrientation": ["A", "F"]}, "a lateral view"),
        ({"PatientOrientation": ["R", "F"]}, "mirrored"),
        ({"PatientOrientation": ["L", "H"]}, "upside down"),
        ({"BodyPartExamined": "HAND"}, "body part HAND, not the chest"),
        ({"PresentationIntentType": "FOR PROCESSING"}, "raw detector values"),
        ({"BurnedInAnnotation": "YES"}, "burned-in text"),
        ({"ViewPosition": "PA", "PatientOrientation": ["L", "F"], "BurnedInAnnotation": "NO"}, None),
        ({"BodyPartExamined": "DOE JANE", "ViewPosition": "DOE"}, None),
    ],
)
def test_doubts_from_the_header(tmp_path: Path, entries: dict[str, Any], doubt: str | None) -> None:
    found = get("xray").read(dicom(tmp_path / "a.dcm", chest(), **entries)).warnings
    assert [doubt in text for text in found] == [True] if doubt else found == []


def test_doubts_from_the_picture(tmp_path: Path) -> None:
    assert xray.doubts(chest()) == []
    assert xray.doubts(1 - chest()) == ["looks inverted: dark where a chest is dense"]
    framed = chest(200)
    framed[:, :40] = 0.5
    assert xray.doubts(framed) == ["a flat border covers 20% of the image at the left: crop it"]
    assert xray.doubts(framed, background=True) == []
    coarse = np.rint(chest() * 31) / 31
    assert any("grey levels" in text for text in xray.doubts(coarse))
    Image.fromarray(np.full((128, 128), 90, np.uint8)).save(tmp_path / "blank.png")
    assert "nearly blank" in " ".join(get("xray").read(tmp_path / "blank.png").warnings)


@pytest.mark.parametrize(("side", "lines"), [("top", 25), ("bottom", 31), ("left", 22), ("right", 60)])
def test_the_flat_border_is_measured(side: str, lines: int) -> None:
    picture = chest(200)
    view = {"top": picture, "bottom": picture[::-1], "left": picture.T, "right": picture.T[::-1]}[side]
    view[:lines] = 0.3
    assert xray.flat_border(picture) == (side, lines / 200)


def radiographs(mini5: Path) -> list[Path]:
    with open(mini5 / "manifest.csv", newline="") as handle:
        return [mini5 / row["path"] for row in csv.DictReader(handle) if row["modality"] == "xray"]


def test_real_radiographs_are_unchanged_and_seldom_doubted(mini5: Path) -> None:
    paths = radiographs(mini5)[::4]
    doubted = inverted = 0
    for path in paths:
        sample = get("xray").read(path)
        true = np.asarray(Image.open(path)).astype(np.float32) * np.float32(1 / 255)
        assert np.array_equal(sample.array, true)
        assert not any("inverted" in text for text in sample.warnings)
        doubted += bool(sample.warnings)
        inverted += any("inverted" in text for text in xray.doubts(1 - sample.array))
    assert doubted / len(paths) < 0.03 and inverted / len(paths) > 0.95


def test_isolated_reading_gives_the_same(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a.dcm", chest(), BurnedInAnnotation="YES")
    here, there = get("xray").read(path), modalities.read("xray", path)
    assert np.array_equal(here.array, there.array)
    assert (here.steps, here.warnings, here.tags) == (there.steps, there.warnings, there.tags)
