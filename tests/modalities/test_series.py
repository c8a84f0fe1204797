"""DICOM slices as one volume: order, spacing, orientation, units, and reports about slices that do not fit."""

import copy
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.processing import apply_modality_lut
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

from m3bind.errors import ReadError
from m3bind.modalities import Sample, get
from m3bind.modalities.formats import limits
from m3bind.modalities.formats.limits import Limits

SIDES = (2.0, 0.7, 0.5)  # mm of D, H, W
SERIES = generate_uid()
Edit = Callable[[Dataset, int], Any]
# (slices, rows, columns) of a plane: the axis of (D, H, W) each runs along, and whether against it
PLANES = {
    "axial": ((0, 1), (1, 1), (2, 1)),
    "coronal": ((1, 1), (0, -1), (2, 1)),
    "sagittal": ((2, 1), (0, -1), (1, 1)),
    "axial prone": ((0, 1), (1, -1), (2, -1)),
    "axial from below": ((0, 1), (1, 1), (2, -1)),
}


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    """A volume (D, H, W) in HU that differs in every voxel's neighbourhood and holds air, lung and tissue."""
    rng = np.random.default_rng(0)
    volume = np.full((10, 14, 12), -1000.0) + rng.integers(0, 12, (10, 14, 12))
    volume[:, 3:11, 2:10] = rng.integers(-20, 90, (10, 8, 8))
    volume[2:8, 5:9, 3:6] = rng.integers(-900, -700, (6, 4, 3))
    volume[0], volume[:, 0, :], volume[:, :, 0] = volume[0] + 3, volume[:, 0, :] + 5, volume[:, :, 0] + 7
    return volume


def header(shape: tuple[int, int], sop_class: str = CTImageStorage) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, generate_uid()
    dataset.file_meta.MediaStorageSOPClassUID = sop_class
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.Modality, dataset.SeriesInstanceUID, dataset.SeriesNumber = "CT", SERIES, 3
    dataset.PatientName, dataset.PatientID = "Secret^Person", "SECRET-1"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Rows, dataset.Columns = shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    return dataset


def geometry(plane: str) -> tuple[np.ndarray, tuple[int, ...], list[tuple[int, int]]]:
    """Directions (3, 3) of slices, rows and columns in LPS, their axes of (D, H, W), and the plane's entries."""
    entries = list(PLANES[plane])
    directions = np.zeros((3, 3))
    for k, (axis, sign) in enumerate(entries):
        directions[k, 2 - axis] = sign  # D is z, H is y, W is x
    return directions, tuple(axis for axis, _ in entries), entries


def write_series(
    folder: Path, volume: np.ndarray, plane: str = "axial", edit: Edit = lambda dataset, k: None, name: str = "slice"
) -> Path:
    """`volume` (D, H, W) in HU as one DICOM file per slice; `edit(dataset, k)` may change one, or drop it."""
    folder.mkdir(parents=True, exist_ok=True)
    directions, axes, entries = geometry(plane)
    stored = volume.transpose(axes)[tuple(slice(None, None, sign) for _, sign in entries)]
    sides = [SIDES[axis] for axis in axes]
    origin = np.array([-30.0, 40.0, -200.0])
    for (axis, sign), direction, side in zip(entries, directions, sides):
        if sign < 0:
            origin = origin - direction * side * (volume.shape[axis] - 1)
    for k, plane_values in enumerate(stored):
        dataset = header(plane_values.shape)
        dataset.InstanceNumber = k + 1
        dataset.ImagePositionPatient = [round(float(v), 4) for v in origin + directions[0] * sides[0] * k]
        dataset.ImageOrientationPatient = [*map(float, directions[2]), *map(float, directions[1])]
        dataset.PixelSpacing, dataset.SliceThickness = [sides[1], sides[2]], 7.5  # thickness is not the distance
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = "1", "-1024", "HU"
        dataset.PixelData = (plane_values + 1024).astype(np.uint16).tobytes()
        if edit(dataset, k) is not False:
            dataset.save_as(folder / f"{name}{k:03d}.dcm", enforce_file_format=True)
    return folder


def read(path: Path) -> Sample:
    return get("ct").read(path)


def without_picture(dataset: Dataset) -> None:
    del dataset.Rows, dataset.Columns, dataset.PixelData


def said(sample: Sample) -> str:
    return " | ".join(sample.warnings + sample.steps)


@pytest.mark.parametrize("plane", PLANES)
def test_every_plane_gives_the_same_volume(tmp_path: Path, truth: np.ndarray, plane: str) -> None:
    sample = read(write_series(tmp_path / "s", truth, plane))
    np.testing.assert_array_equal(sample.array, truth)
    assert sample.spacing == pytest.approx(SIDES) and sample.warnings == []
    assert sample.array.flags.c_contiguous and sample.array.dtype == np.float32
    assert "rescaled by slope 1 and intercept -1024 (once)" in sample.steps
    assert sample.tags["RescaleIntercept"] == "-1024" and "PatientName" not in sample.tags


def test_names_and_numbers_do_not_matter(tmp_path: Path, truth: np.ndarray) -> None:
    numbers = np.random.default_rng(1).permutation(len(truth))

    def shuffle(dataset: Dataset, k: int) -> None:
        dataset.InstanceNumber = int(numbers[k])

    folder = write_series(tmp_path / "s", truth, edit=shuffle)
    for k, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"IM{numbers[-1 - k]}")  # neither order nor ending
    np.testing.assert_array_equal(read(folder).array, truth)


def test_a_single_file_and_nested_folders(tmp_path: Path, truth: np.ndarray) -> None:
    folder = write_series(tmp_path / "s", truth)
    one = read(folder / "slice004.dcm")
    np.testing.assert_array_equal(one.array, truth[4:5])
    assert one.spacing == pytest.approx((7.5, 0.7, 0.5)) and "a single slice" in said(one)
    bare = shutil.copy(folder / "slice004.dcm", tmp_path / "IM_0004")
    np.testing.assert_array_equal(read(Path(bare)).array, one.array)
    for k, path in enumerate(sorted(folder.iterdir())):
        (folder / str(k % 3)).mkdir(exist_ok=True)
        path.rename(folder / str(k % 3) / path.name)
    (folder / "readme.txt").write_text("not DICOM")
    nested = read(folder)
    np.testing.assert_array_equal(nested.array, truth)
    assert "skipped: 1 not a DICOM file" in said(nested)


def test_duplicated_slice_is_dropped(tmp_path: Path, truth: np.ndarray) -> None:
    folder = write_series(tmp_path / "s", truth)
    twice = pydicom.dcmread(folder / "slice003.dcm")
    twice.InstanceNumber, twice.PixelData = 500, bytes(len(twice.PixelData))
    twice.save_as(folder / "again.dcm")
    sample = read(folder)
    np.testing.assert_array_equal(sample.array, truth)  # the one with the lower number stays
    assert "1 of 11 slices repeat a position" in said(sample) and sample.spacing == pytest.approx(SIDES)


def test_missing_slices_are_counted(tmp_path: Path, truth: np.ndarray) -> None:
    folder = write_series(tmp_path / "s", truth, edit=lambda dataset, k: k not in (4, 5))
    sample = read(folder)
    np.testing.assert_array_equal(sample.array, np.delete(truth, [4, 5], axis=0))
    assert "2 slices missing in 1 place (up to 6 mm apart, 2 mm is usual)" in said(sample)
    assert sample.spacing == pytest.approx(SIDES)


def test_mixed_spacing_is_reported(tmp_path: Path, truth: np.ndarray) -> None:
    def stretch(dataset: Dataset, k: int) -> None:
        dataset.ImagePositionPatient[2] = -200 + 2.0 * k + max(0, k - 6) * 1.0

    sample = read(write_series(tmp_path / "s", truth, edit=stretch))
    assert "vary from 2 to 3 mm; 2 mm taken" in said(sample)
    np.testing.assert_array_equal(sample.array, truth)


def test_rounded_positions_are_not_mixed_spacing(tmp_path: Path, truth: np.ndarray) -> None:
    def rounded(dataset: Dataset, k: int) -> None:
        dataset.ImagePositionPatient[2] = round(-200 + 0.625 * k, 1)

    sample = read(write_series(tmp_path / "s", truth, edit=rounded))
    assert sample.warnings == [] and sample.spacing is not None
    assert sample.spacing[0] == pytest.approx(0.625, abs=0.01)


def test_two_series_in_one_folder(tmp_path: Path, truth: np.ndarray) -> None:
    other = generate_uid()

    def second(dataset: Dataset, k: int) -> bool:
        dataset.SeriesInstanceUID, dataset.SeriesNumber = other, 1
        return k < 4

    folder = write_series(tmp_path / "s", truth)
    write_series(folder, truth + 50, edit=second, name="b")
    sample = read(folder)
    np.testing.assert_array_equal(sample.array, truth)
    assert "2 series; took the one with 10 of 14 slices" in sample.steps
    assert SERIES not in said(sample) and str(other) not in said(sample)


def test_localizers_captures_and_other_objects_are_excluded(tmp_path: Path, truth: np.ndarray) -> None:
    folder = write_series(tmp_path / "s", truth)
    base = pydicom.dcmread(folder / "slice000.dcm")
    changes: dict[str, Callable[[Dataset], None]] = {
        "scout": lambda d: setattr(d, "ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]),
        "capture": lambda d: setattr(d, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.7"),
        "pet": lambda d: setattr(d, "Modality", "PT"),
        "odd": lambda d: setattr(d, "Modality", "SECRET PERSON"),
        "report": without_picture,
    }
    for name, change in changes.items():
        dataset = copy.deepcopy(base)
        change(dataset)
        dataset.save_as(folder / f"{name}.dcm")
    (folder / "broken.dcm").write_bytes(b"<html>no such page</html>")
    sample = read(folder)
    np.testing.assert_array_equal(sample.array, truth)
    assert "1 of the DICOM files not readable" in said(sample)
    for what in ("1 localizer", "1 screen capture", "1 of modality PT", "1 of another modality", "1 without an image"):
        assert what in said(sample)
    assert "SECRET" not in said(sample)
    for name in changes:
        with pytest.raises(ReadError, match="no CT slice"):
            read(folder / f"{name}.dcm")


def test_mixed_sizes_and_orientations(tmp_path: Path, truth: np.ndarray) -> None:
    folder = write_series(tmp_path / "s", truth)
    write_series(folder, truth, "coronal", lambda dataset, k: k < 3, "coronal")
    sample = read(folder)
    np.testing.assert_array_equal(sample.array, truth)
    assert "3 of 13 slices of another size, orientation or pixel spacing excluded" in said(sample)
    write_series(folder, truth, "sagittal", name="sagittal")  # 12 slices, more than any other plane has
    sample = read(folder)
    np.testing.assert_array_equal(sample.array, truth)
    assert "13 of 25 slices of another size, orientation or pixel spacing excluded" in said(sample)
    for k, path in enumerate(sorted(folder.glob("sagittal*"))[:2]):
        (tmp_path / "two").mkdir(exist_ok=True)
        shutil.copy(folder / f"{('slice', 'coronal')[k]}001.dcm", tmp_path / "two" / path.name)
    with pytest.raises(ReadError, match="2 slices of 2 sizes, orientations or pixel spacings, all different"):
        read(tmp_path / "two")


def test_gantry_tilt_is_reported(tmp_path: Path, truth: np.ndarray) -> None:
    """The table moves along z while the slices are tilted by 15 degrees about the left-right axis."""
    c, s = np.cos(np.deg2rad(15)), np.sin(np.deg2rad(15))

    def tilt(dataset: Dataset, k: int) -> None:
        dataset.ImageOrientationPatient = [1, 0, 0, 0, round(c, 6), round(-s, 6)]
        dataset.GantryDetectorTilt = -15

    sample = read(write_series(tmp_path / "s", truth, edit=tilt))
    assert "sheared by 15.0 degrees (gantry tilt -15 degrees in the header)" in said(sample)
    assert f"each slice is shifted by {2 * s:.2f} mm" in said(sample)
    assert "tilted by 15 degrees" in said(sample)
    assert sample.spacing is not None and sample.spacing[0] == pytest.approx(2 * c, abs=1e-3)
    straight = read(write_series(tmp_path / "t", truth, edit=lambda d, k: setattr(d, "GantryDetectorTilt", 12)))
    assert "gantry tilt 12 degrees in the header), but the slices are not sheared" in said(straight)


def test_slices_that_jump_sideways(tmp_path: Path, truth: np.ndarray) -> None:
    def jump(dataset: Dataset, k: int) -> None:
        dataset.ImagePositionPatient[0] += 12.0 * (k == 5)

    assert "up to 12.0 mm off the line" in said(read(write_series(tmp_path / "s", truth, edit=jump)))


def test_missing_positions(tmp_path: Path, truth: np.ndarray) -> None:
    def by_location(dataset: Dataset, k: int) -> None:
        del dataset.ImagePositionPatient
        dataset.SliceLocation, dataset.InstanceNumber = 2.0 * k, 100 - 3 * k

    sample = read(write_series(tmp_path / "a", truth, edit=by_location))
    np.testing.assert_array_equal(sample.array, truth)
    assert "sorted by slice location" in said(sample) and sample.spacing == pytest.approx(SIDES)

    def by_number(dataset: Dataset, k: int) -> None:
        del dataset.ImagePositionPatient
        dataset.InstanceNumber = 50 - k  # from the head down

    sample = read(write_series(tmp_path / "b", truth, edit=by_number))
    np.testing.assert_array_equal(sample.array, truth)
    assert "sorted by number" in said(sample) and sample.spacing == pytest.approx((7.5, 0.7, 0.5))

    def nothing(dataset: Dataset, k: int) -> None:
        del dataset.ImagePositionPatient
        dataset.InstanceNumber = 1

    with pytest.raises(ReadError, match="neither positions nor distinct numbers"):
        read(write_series(tmp_path / "c", truth, edit=nothing))

    def some(dataset: Dataset, k: int) -> None:
        if k == 9:
            del dataset.ImagePositionPatient

    sample = read(write_series(tmp_path / "d", truth, edit=some))
    assert len(sample.array) == 9 and "1 of 10 slices of another size" in said(sample)


def test_missing_orientation_and_pixel_spacing(tmp_path: Path, truth: np.ndarray) -> None:
    def poor(dataset: Dataset, k: int) -> None:
        del dataset.ImageOrientationPatient, dataset.PixelSpacing

    sample = read(write_series(tmp_path / "s", truth, edit=poor))
    np.testing.assert_array_equal(sample.array, truth)
    assert sample.spacing is None and "no orientation" in said(sample) and "no pixel spacing" in said(sample)

    def skewed(dataset: Dataset, k: int) -> None:
        dataset.ImageOrientationPatient = [1, 0, 0, 1, 0, 0]

    assert "no orientation" in said(read(write_series(tmp_path / "t", truth, edit=skewed)))


@pytest.mark.parametrize("signed", [False, True])
def test_values_equal_pydicoms_modality_lut(tmp_path: Path, truth: np.ndarray, signed: bool) -> None:
    """Each slice has its own slope and intercept, of which none is 1 or -1024."""

    def own(dataset: Dataset, k: int) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = str(0.5 + k / 8), str(-1000.25 + k)
        if signed:
            dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit = 1, 16, 15
            values = np.frombuffer(dataset.PixelData, np.uint16).astype(np.int32) - 300
            dataset.PixelData = values.astype(np.int16).tobytes()

    folder = write_series(tmp_path / "s", truth, edit=own)
    sample = read(folder)
    for k in range(len(truth)):
        dataset = pydicom.dcmread(folder / f"slice{k:03d}.dcm")
        expected = apply_modality_lut(dataset.pixel_array, dataset).astype(np.float32)
        np.testing.assert_array_equal(sample.array[k], np.where(expected < -1500, -1024, expected))
    assert "each slice's own slope and intercept (once): 10 different pairs" in said(sample)


def test_units_that_are_not_hounsfield(tmp_path: Path, truth: np.ndarray) -> None:
    def bare(dataset: Dataset, k: int) -> None:
        del dataset.RescaleSlope, dataset.RescaleIntercept

    sample = read(write_series(tmp_path / "a", truth, edit=bare))
    assert "10 of 10 slices without slope and intercept" in said(sample)
    assert "never applied" in said(sample) and sample.array.max() == truth.max() + 1024
    other = read(write_series(tmp_path / "b", truth, edit=lambda d, k: setattr(d, "RescaleType", "US")))
    assert "not Hounsfield units" in said(other)

    def lut(dataset: Dataset, k: int) -> None:
        dataset.ModalityLUTSequence = Sequence([Dataset()])

    with pytest.raises(ReadError, match="lookup table"):
        read(write_series(tmp_path / "c", truth, edit=lut))


def test_values_that_were_hounsfield_units_already(tmp_path: Path, truth: np.ndarray) -> None:
    def twice(dataset: Dataset, k: int) -> None:
        dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit = 1, 16, 15
        values = np.frombuffer(dataset.PixelData, np.uint16).astype(np.int32) - 1024
        dataset.PixelData = values.astype(np.int16).tobytes()

    sample = read(write_series(tmp_path / "s", truth, edit=twice))
    assert "applied twice" in said(sample) and sample.array.min() < -1900  # left as they are, to be undone


def enhanced(path: Path, volume: np.ndarray, order: np.ndarray, per_frame_scale: bool = False) -> Path:
    """`volume` as one multi-frame object whose frames come in `order`."""
    dataset = header(volume.shape[1:], EnhancedCTImageStorage)
    dataset.NumberOfFrames = len(volume)
    shared, measures, plane, scale = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [SIDES[1], SIDES[2]], 7.5
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    scale.RescaleSlope, scale.RescaleIntercept, scale.RescaleType = 1, -1024, "HU"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([plane])
    if not per_frame_scale:
        shared.PixelValueTransformationSequence = Sequence([scale])
    frames = []
    for k in order:
        frame, place = Dataset(), Dataset()
        place.ImagePositionPatient = [-30, 40, -200 + SIDES[0] * float(k)]
        frame.PlanePositionSequence = Sequence([place])
        if per_frame_scale:
            own = copy.deepcopy(scale)
            own.RescaleIntercept = -1024 - int(k)
            frame.PixelValueTransformationSequence = Sequence([own])
        frames.append(frame)
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    dataset.PerFrameFunctionalGroupsSequence = Sequence(frames)
    dataset.PixelData = (volume[order] + 1024).astype(np.uint16).tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return path


def test_enhanced_ct_with_many_frames(tmp_path: Path, truth: np.ndarray) -> None:
    order = np.random.default_rng(2).permutation(len(truth))
    sample = read(enhanced(tmp_path / "a.dcm", truth, order))
    np.testing.assert_array_equal(sample.array, truth)
    assert sample.spacing == pytest.approx(SIDES) and sample.warnings == []
    own = read(enhanced(tmp_path / "b.dcm", truth, order, per_frame_scale=True))
    np.testing.assert_array_equal(own.array, truth - np.arange(len(truth))[:, None, None])
    short = pydicom.dcmread(tmp_path / "a.dcm")
    short.PerFrameFunctionalGroupsSequence = short.PerFrameFunctionalGroupsSequence[:-1]
    short.save_as(tmp_path / "c.dcm")
    with pytest.raises(ReadError, match="10 frames declared, 9 described"):
        read(tmp_path / "c.dcm")
    del short.PerFrameFunctionalGroupsSequence, short.SharedFunctionalGroupsSequence
    short.RescaleSlope, short.RescaleIntercept = 1, -1024
    short.save_as(tmp_path / "d.dcm")
    plain = read(tmp_path / "d.dcm")
    np.testing.assert_array_equal(plain.array, truth[order][::-1])
    assert "sorted by number" in said(plain)


def test_a_zip_is_read_as_the_folder_is(tmp_path: Path, truth: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_series(tmp_path / "Secret Person", truth)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.iterdir(), reverse=True):
            archive.write(path, f"Secret Person/{path.name}")
        archive.writestr("inner.zip", b"PK")
    sample = read(tmp_path / "a.zip")
    np.testing.assert_array_equal(sample.array, truth)
    assert sample.spacing == pytest.approx(SIDES) and "1 archives inside" in said(sample)
    with zipfile.ZipFile(tmp_path / "text.zip", "w") as archive:
        archive.writestr("Secret.txt", "nothing")
    with pytest.raises(ReadError, match=r"no CT slice in it \(1 not a DICOM file\)") as caught:
        read(tmp_path / "text.zip")
    assert caught.value.path == str(tmp_path / "text.zip")


def test_folders_that_hold_nothing_or_too_much(
    tmp_path: Path, truth: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReadError, match="an empty folder"):
        read(tmp_path / "empty")
    folder = write_series(tmp_path / "s", truth)
    with monkeypatch.context() as patch:
        patch.setattr(limits, "LIMITS", Limits(files=9))
        with pytest.raises(ReadError, match="files, more than 9"):
            read(folder)
        patch.setattr(limits, "LIMITS", Limits(voxels=truth.size - 1))
        with pytest.raises(ReadError, match="voxels, more than"):
            read(folder)


def test_damaged_slices_are_named_by_place(tmp_path: Path, truth: np.ndarray) -> None:
    folder = write_series(tmp_path / "s", truth)
    broken = pydicom.dcmread(folder / "slice003.dcm")
    broken.PixelData = broken.PixelData[:100]
    broken.save_as(folder / "slice003.dcm")
    with pytest.raises(ReadError, match="slice 4 of 10") as caught:
        read(folder)
    assert "Secret" not in str(caught.value) and caught.value.path == str(folder)


def test_headers_that_promise_too_much_are_refused_before_decoding(tmp_path: Path, truth: np.ndarray) -> None:
    def large(dataset: Dataset, k: int) -> None:
        dataset.Rows = dataset.Columns = 60_000

    with pytest.raises(ReadError, match="voxels, more than"):
        read(write_series(tmp_path / "a", truth, edit=large))

    def lying(dataset: Dataset, k: int) -> None:
        dataset.Rows = dataset.Columns = 6_000

    with pytest.raises(ReadError, match="bytes of content"):
        read(write_series(tmp_path / "b", truth, edit=lying))


def test_headers_full_of_nonsense_are_read_or_refused(tmp_path: Path, truth: np.ndarray) -> None:
    """Values that are not numbers, not finite or of another count never end in another error than ReadError."""
    words = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "SliceThickness")
    for number, value in enumerate((b"nan\\nan\\nan", b"JOHN DOE", b"1e999", b"\\\\", b"0\\0\\0\\0\\0\\0", b"")):
        for word in words:
            folder = write_series(tmp_path / f"{word}{number}", truth[:3])
            for path in folder.iterdir():
                raw = path.read_bytes()
                dataset = pydicom.dcmread(path)
                element = dataset.get_item(word)
                old = element.value if isinstance(element.value, bytes) else str(element.value).encode()
                place = raw.index(bytes.fromhex(f"{element.tag.group:04x}")[::-1]
                                  + bytes.fromhex(f"{element.tag.element:04x}")[::-1] + b"DS")  # fmt: skip
                length = int.from_bytes(raw[place + 6 : place + 8], "little")
                assert len(old) <= length + 1
                path.write_bytes(raw[: place + 8] + value[:length].ljust(length) + raw[place + 8 + length :])
            try:
                sample = read(folder)
            except ReadError as error:
                assert "JOHN" not in str(error)
            else:
                assert np.isfinite(sample.array).all() and "JOHN" not in said(sample)


def test_real_series(native: Path) -> None:
    """36 slices of a chest, of which 117 in between were never published; checked with plain pydicom."""
    folder = native / "dicom" / "ct_series"
    slices = sorted(map(pydicom.dcmread, folder.glob("*.dcm")), key=lambda d: float(d.ImagePositionPatient[2]))
    sample = read(folder)
    assert sample.array.shape == (36, 512, 512) and sample.spacing == pytest.approx((2.0, 0.634765625, 0.634765625))
    for plane, dataset in zip(sample.array, slices):
        np.testing.assert_array_equal(plane, apply_modality_lut(dataset.pixel_array, dataset))
    assert len(sample.warnings) == 1 and "117 slices missing in 2 places (up to 214 mm apart" in sample.warnings[0]
    assert -1024 <= sample.array.min() < -1000 and 1000 < sample.array.max() < 3072
    bone, body = (np.argwhere(sample.array[:, :420] > level)[:, 1].mean() for level in (300, -300))
    assert bone > body + 10  # the spine is at the back: large row numbers
