"""Fundus photographs as DICOM and as images: the field, the eye, and doubts about them."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID
from scipy.ndimage import gaussian_filter

from m3bind.errors import ReadError
from m3bind.modalities import get, retina
from m3bind.modalities.retina import Field

Make = Callable[..., Path]
STORAGE = "1.2.840.10008.5.1.4.1.1."


def fundus(side: int = 400, disc: float = 0.5, light: float = 1.0, blur: float = 0.0, seed: int = 0) -> np.ndarray:
    """(side, side, 3) in 0..1: a field with vessels and an optic disc at `disc` (part of the radius to the right)."""
    rng = np.random.default_rng(seed)
    y, x = (np.mgrid[:side, :side] + 0.5) / side * 2 - 1
    vessels = np.zeros((side, side))
    for _ in range(14):
        angle, bend = rng.uniform(0, 2 * np.pi), rng.uniform(-1, 1)
        for t in np.linspace(0, 1.6, 3 * side):
            px, py = disc + t * np.cos(angle + bend * t), t * np.sin(angle + bend * t)
            i, j = int((py + 1) / 2 * side), int((px + 1) / 2 * side)
            if 0 <= i < side and 0 <= j < side:
                vessels[i, j] = 1
    vessels = np.clip(gaussian_filter(vessels, side / 400) * 2, 0, 1)
    spot = np.exp(-(((x - disc) ** 2 + y**2) / 0.012))
    base = np.array([0.72, 0.4, 0.2]) * (1 - 0.5 * vessels[..., None]) * (1 - 0.25 * np.hypot(x, y)[..., None])
    picture = np.clip(base + spot[..., None] * np.array([0.3, 0.45, 0.3]), 0, 1) * light
    if blur:
        picture = gaussian_filter(picture, (blur, blur, 0))
    return np.clip(picture * (np.hypot(x, y) < 0.98)[..., None], 0, 1).astype(np.float32)


def save(path: Path, picture: np.ndarray) -> Path:
    Image.fromarray(np.rint(picture * 255).astype(np.uint8)).save(path)
    return path


def dicom(path: Path, picture: np.ndarray, sop: str = "77.1.5.1", **entries: Any) -> Path:
    """An 8-bit ophthalmic photograph of a picture (H, W, 3) in 0..1."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.1")
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality, ds.PatientName = UID(STORAGE + sop), UID("1.2.3"), "OP", "DOE^JANE"
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.Rows, ds.Columns = picture.shape[:2]
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    ds.PixelData = np.rint(picture * 255).astype(np.uint8).tobytes()
    ds["PixelData"].VR = "OB"
    for keyword, value in entries.items():
        setattr(ds, keyword, value)
    ds.save_as(path, enforce_file_format=True)
    return path


def test_a_dicom_photograph_is_the_picture(tmp_path: Path) -> None:
    picture = fundus()
    sample = get("retina").read(dicom(tmp_path / "a.dcm", picture))
    np.testing.assert_allclose(sample.array, np.rint(picture * 255) / 255, atol=1e-6)
    assert sample.warnings == [] and sample.tags["Modality"] == "OP" and "DOE" not in str(sample)
    same = get("retina").read(save(tmp_path / "a.png", picture))
    np.testing.assert_array_equal(same.array, sample.array)
    assert same.steps == sample.steps


@pytest.mark.parametrize(("code", "eye"), [("L", "left"), ("R", "right")])
@pytest.mark.parametrize("keyword", ["ImageLaterality", "Laterality"])
def test_the_header_knows_the_eye(tmp_path: Path, code: str, eye: str, keyword: str) -> None:
    wrong = fundus(disc=0.5 if eye == "left" else -0.5)  # as in a mirrored image: the header wins
    steps = get("retina").read(dicom(tmp_path / "a.dcm", wrong, **{keyword: code})).steps
    assert [step for step in steps if "eye" in step] == [f"{eye} eye ({keyword})"]


@pytest.mark.parametrize(("disc", "eye"), [(0.5, "right"), (-0.5, "left")])
def test_the_disc_identifies_the_eye(tmp_path: Path, disc: float, eye: str) -> None:
    for seed in range(3):
        steps = get("retina").read(save(tmp_path / "a.png", fundus(disc=disc, seed=seed))).steps
        assert sum(f"probably the {eye} eye" in step and "confidence 0.9" in step for step in steps) == 1
    assert retina.eye_of(fundus(disc=0.0)) is None  # an image centred on the disc
    assert retina.eye_of(np.zeros((100, 100, 3), np.float32)) is None


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("CT_small.dcm", "a CT slice, not a fundus photograph"),
        ("examples_rgb_color.dcm", "an ultrasound image, not"),
        ("image_dfl.dcm", "a grey image, not a fundus photograph in colour"),
        ("test-SR.dcm", "a report"),
    ],
)
def test_other_modalities_are_refused_by_name(name: str, what: str) -> None:
    with pytest.raises(ReadError, match=f"{what}.*check the modality"):
        get("retina").read(get_testdata_file(name))


@pytest.mark.parametrize(("sop", "what"), [("77.1.5.4", "an OCT image"), ("77.1.6", "a whole slide")])
def test_other_eye_and_light_pictures_are_refused(tmp_path: Path, sop: str, what: str) -> None:
    with pytest.raises(ReadError, match=what):
        get("retina").read(dicom(tmp_path / "a.dcm", fundus(64), sop))


@pytest.mark.parametrize(("rows", "columns"), [(400, 400), (300, 400), (400, 640), (700, 900)])
def test_the_field_is_found_where_it_is(rows: int, columns: int) -> None:
    """A disc of diameter 0.98 x 400 in frames that cut it, fit it or leave a margin."""
    canvas = np.zeros((max(rows, 400), columns, 3), np.float32)
    top, left = (canvas.shape[0] - 400) // 2, (columns - 400) // 2
    canvas[top : top + 400, left : left + 400] = fundus()
    cut = (canvas.shape[0] - rows) // 2
    picture = canvas[cut : cut + rows]
    field = retina.field_of_view(picture)
    assert field is not None
    assert field.diameter == pytest.approx(392, abs=8)
    assert (field.row, field.column) == (pytest.approx(rows / 2, abs=5), pytest.approx(columns / 2, abs=5))
    square = retina.crop_to_field(picture)
    assert square.shape == (field.diameter, field.diameter, 3) and square.dtype == np.float32
    middle = square[field.diameter // 2 - 50 : field.diameter // 2 + 50, field.diameter // 2 - 50 :][:, :100]
    true = fundus()[150:250, 150:250]
    best = min(
        float(np.abs(np.roll(true, (dy, dx), (0, 1))[8:-8, 8:-8] - middle[8:-8, 8:-8]).mean())
        for dy in range(-4, 5)
        for dx in range(-4, 5)
    )
    assert best < 1e-6  # pixels are moved, never changed


def test_crop_pads_with_black_and_keeps_what_is_framed() -> None:
    picture = fundus()
    assert retina.crop_to_field(picture, Field(200, 200, 400)) is picture
    square = retina.crop_to_field(picture[50:350], Field(150, 200, 400))
    assert (square[:50] == 0).all() and (square[350:] == 0).all()
    np.testing.assert_array_equal(square[50:350], picture[50:350])
    flat = np.full((100, 120, 3), 0.5, np.float32)
    assert retina.field_of_view(flat) is None and retina.crop_to_field(flat) is flat
    assert retina.field_of_view(np.zeros((100, 120, 3), np.float32)) is None


def test_reading_names_the_field_and_does_not_crop(tmp_path: Path) -> None:
    canvas = np.zeros((500, 700, 3), np.float32)
    canvas[50:450, 150:550] = fundus()
    sample = get("retina").read(save(tmp_path / "a.png", canvas))
    assert sample.array.shape == (500, 700, 3)
    assert sum("circular field of" in step and "not cropped" in step for step in sample.steps) == 1


@pytest.mark.parametrize(
    ("changes", "doubt"),
    [({"light": 0.15}, "dark"), ({"light": 3.5}, "over-exposed"), ({"blur": 8.0}, "blurred"), ({}, None)],
)
@pytest.mark.parametrize("side", [256, 400, 1100])
def test_quality(tmp_path: Path, changes: dict[str, float], doubt: str | None, side: int) -> None:
    if "blur" in changes:
        changes = {"blur": changes["blur"] * side / 400}
    found = get("retina").read(save(tmp_path / "a.png", fundus(side, **changes))).warnings
    assert [text.startswith(str(doubt)) for text in found] == ([True] if doubt else [])


def photographs(mini5: Path) -> list[Path]:
    with open(mini5 / "manifest.csv", newline="") as handle:
        return [mini5 / row["path"] for row in csv.DictReader(handle) if row["modality"] == "retina"]


def test_real_photographs(mini5: Path) -> None:
    """Unchanged arrays, the eye as the file names say, few doubts, and most copies made worse are doubted."""
    paths = photographs(mini5)[::12]
    known = right = doubted = fields = blurred = dark = 0
    for path in paths:
        sample = get("retina").read(path)
        assert np.array_equal(sample.array, np.asarray(Image.open(path)).astype(np.float32) * np.float32(1 / 255))
        eye = [step for step in sample.steps if "eye" in step]
        known += bool(eye)
        right += bool(eye) and ("left" if "_left_" in path.name else "right") in eye[0]
        doubted += any(text.startswith(("dark", "over", "blurred")) for text in sample.warnings)
        fields += any("circular field" in step for step in sample.steps)
        blurred += retina.quality(gaussian_filter(sample.array, (3, 3, 0))) != []
        dark += retina.quality(sample.array * np.float32(0.25)) != []
    count = len(paths)
    assert known / count > 0.6 and right / known > 0.95
    assert fields / count > 0.8 and doubted / count < 0.1
    assert blurred / count > 0.85 and dark / count > 0.9
