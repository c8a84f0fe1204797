"""NIfTI files: which orientation and size apply, contradictions, number formats, scaling, packing, refusals."""

import gzip
import re
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from m3bind.errors import ReadError
from m3bind.modalities import Sample, get
from modalities.ct_files import body

HU = body(40, 8)  # (D, H, W)
RAS = HU[:, ::-1, ::-1].transpose(2, 1, 0)  # as a file stores it whose axes are right, front, head
DIAGONAL = np.diag([0.8, 0.8, 2.0, 1.0])
SIDES = (2.0, 0.8, 0.8)
Change = Callable[[Any], Any]


def save(path: Path, values: np.ndarray | None = None, change: Change = lambda header: None) -> Path:
    """A file whose sform and qform are the same (codes 1) unless `change` edits the header's fields."""
    values = RAS.astype(np.int16) if values is None else values
    image = nibabel.Nifti1Image(values, DIAGONAL, dtype=values.dtype)
    image.set_sform(DIAGONAL, 1)
    image.set_qform(DIAGONAL, 1)
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(1, 0)
    data = bytearray(image.to_bytes())
    header = nibabel.Nifti1Header(bytes(data[:348]), check=False)
    change(header)
    data[:348] = header.binaryblock
    whole = bytes(data)
    path.write_bytes(gzip.compress(whole) if path.name.endswith(".gz") else whole)
    return path


def read(path: Path) -> Sample:
    return get("ct").read(path)


def doubts(sample: Sample) -> str:
    return " | ".join(sample.warnings)


def sform(matrix: np.ndarray, code: int = 1) -> Change:
    def change(header: Any) -> None:
        for row, name in enumerate(("srow_x", "srow_y", "srow_z")):
            header[name] = matrix[row]
        header["sform_code"] = code

    return change


def fields(**values: Any) -> Change:
    def change(header: Any) -> None:
        for name, value in values.items():
            header[name] = value

    return change


def both(*changes: Change) -> Change:
    def change(header: Any) -> None:
        for one in changes:
            one(header)

    return change


def turned(degrees: float) -> np.ndarray:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ DIAGONAL


def test_a_valid_file_has_no_doubt(tmp_path: Path) -> None:
    for name in ("a.nii", "a.nii.gz"):
        sample = read(save(tmp_path / name))
        np.testing.assert_array_equal(sample.array, HU)
        assert sample.spacing == pytest.approx(SIDES) and sample.warnings == [] and sample.unit == "HU"


# ------------------------------------------------------------------------------------------------ sform and qform

MIRRORED = np.diag([-0.8, 0.8, 2.0, 1.0])
AGAINST: dict[str, tuple[Change, str, np.ndarray, tuple[float, ...]]] = {
    # name: change, expected message, array and spacing
    "left and right": (sform(MIRRORED), "left and right exchanged", HU[:, :, ::-1], SIDES),
    "head and feet": (sform(np.diag([0.8, 0.8, -2.0, 1.0])), "head and feet exchanged", HU[::-1], SIDES),
    "two axes": (
        sform(np.diag([-0.8, -0.8, 2.0, 1.0])),
        "left and right exchanged, front and back exchanged",
        HU[:, ::-1, ::-1],
        SIDES,
    ),
    "spacing": (
        sform(np.diag([0.8, 0.8, 3.0, 1.0])),
        "voxels of 0.8 x 0.8 x 3 against 0.8 x 0.8 x 2",
        HU,
        (3.0, 0.8, 0.8),
    ),
    "a small turn": (sform(turned(5)), "turned by 5 degrees", HU, SIDES),
    "a right angle": (sform(turned(90)), "turned by 90 degrees", HU.transpose(0, 2, 1)[:, ::-1], SIDES),
    "origin": (sform(DIAGONAL + np.array([[0, 0, 0, 90]] + [[0] * 4] * 3)), "origins 90 mm apart", HU, SIDES),
    "mirrored and larger": (
        sform(np.diag([-1.6, 0.8, 2.0, 1.0])),
        "voxels of 1.6 x 0.8 x 2 against 0.8 x 0.8 x 2, left and right exchanged",
        HU[:, :, ::-1],
        (2.0, 0.8, 1.6),
    ),
}


@pytest.mark.parametrize("what", AGAINST)
def test_sform_against_qform_is_reported(tmp_path: Path, what: str) -> None:
    change, said, expected, spacing = AGAINST[what]
    sample = read(save(tmp_path / "a.nii.gz", change=change))
    if what != "a right angle":
        np.testing.assert_array_equal(sample.array, expected)
    assert sample.spacing == pytest.approx(spacing)
    assert f"sform and qform contradict each other ({said}): the sform is taken" in doubts(sample)
    image = nibabel.load(tmp_path / "a.nii.gz")  # an independent reading: the array in LPS order
    lps = nibabel.as_closest_canonical(image).get_fdata()[::-1, ::-1].transpose(2, 1, 0)
    np.testing.assert_array_equal(sample.array, lps)


ZERO = np.zeros((4, 4))
SINGULAR = DIAGONAL * np.array([[1], [1], [0], [1]])
NOT_FINITE = np.where(np.eye(4) > 0, np.nan, DIAGONAL)


@pytest.mark.parametrize("matrix", [ZERO, SINGULAR, NOT_FINITE, DIAGONAL * 0 + 1, np.full((4, 4), np.inf)])
def test_an_sform_that_is_none_gives_way_to_the_qform(tmp_path: Path, matrix: np.ndarray) -> None:
    sample = read(save(tmp_path / "a.nii", change=sform(matrix)))
    np.testing.assert_array_equal(sample.array, HU)
    assert sample.spacing == pytest.approx(SIDES)
    assert "the header's sform states no size or no direction of voxels; the qform taken" in doubts(sample)
    bare = read(save(tmp_path / "b.nii", change=both(sform(matrix), fields(qform_code=0))))
    assert bare.spacing == pytest.approx(SIDES) and "no orientation" in doubts(bare)


@pytest.mark.parametrize(
    "change",
    [fields(quatern_b=np.nan), fields(quatern_b=3.0, quatern_c=3.0), fields(qoffset_x=np.inf)],
)
def test_a_qform_that_is_none_gives_way_to_the_sform(tmp_path: Path, change: Change) -> None:
    sample = read(save(tmp_path / "a.nii", change=change))
    np.testing.assert_array_equal(sample.array, HU)
    assert "the header's qform states no size or no direction of voxels; the sform taken" in doubts(sample)
    bare = read(save(tmp_path / "b.nii", change=both(change, fields(sform_code=0))))
    assert "no orientation" in doubts(bare) and bare.spacing == pytest.approx(SIDES)


def test_codes_decide(tmp_path: Path) -> None:
    only_q = read(save(tmp_path / "q.nii", change=sform(MIRRORED, 0)))
    np.testing.assert_array_equal(only_q.array, HU)
    assert only_q.warnings == []
    only_s = read(save(tmp_path / "s.nii", change=both(sform(MIRRORED), fields(qform_code=0))))
    np.testing.assert_array_equal(only_s.array, HU[:, :, ::-1])
    assert only_s.warnings == []
    none = read(save(tmp_path / "n.nii", change=fields(qform_code=0, sform_code=0)))
    assert "no orientation" in doubts(none)
    unknown = read(save(tmp_path / "u.nii", change=fields(sform_code=99)))  # no code of the format
    np.testing.assert_array_equal(unknown.array, HU)


def test_pixdim_against_the_sform_is_reported(tmp_path: Path) -> None:
    for number, pixdim in enumerate(([0.8, 0.8, 5.0], [0.7, 0.8, 2.0], [1.0, 1.0, 1.0])):
        change = both(
            fields(qform_code=0), lambda header, sides=pixdim: header["pixdim"].__setitem__(slice(1, 4), sides)
        )
        sample = read(save(tmp_path / f"{number}.nii", change=change))
        assert sample.spacing == pytest.approx(SIDES)
        assert "sform and pixdim contradict each other (voxels of 0.8 x 0.8 x 2 against" in doubts(sample)


def test_shear_is_reported(tmp_path: Path) -> None:
    for number, slope in enumerate((0.1, 0.3, -0.2)):
        matrix = DIAGONAL.copy()
        matrix[1, 2] = 2.0 * slope
        sample = read(save(tmp_path / f"{number}.nii", change=both(sform(matrix), fields(qform_code=0))))
        assert f"sheared by {np.degrees(np.arctan(abs(slope))):.1f} degrees" in doubts(sample)


@pytest.mark.parametrize("sides", [0, np.nan, np.inf])
def test_voxels_without_size_are_refused(tmp_path: Path, sides: float) -> None:
    def change(header: Any) -> None:
        header["pixdim"][1:4] = sides
        header["sform_code"] = header["qform_code"] = 0

    with pytest.raises(ReadError, match="no size of voxels"):
        read(save(tmp_path / "a.nii", change=change))


# ----------------------------------------------------------------------------------------------- units and scaling


@pytest.mark.parametrize("code", [4, 5, 6, 7, 7 + 8, 255])
def test_unknown_units_of_length_are_millimetres_with_a_doubt(tmp_path: Path, code: int) -> None:
    sample = read(save(tmp_path / "a.nii.gz", change=fields(xyzt_units=code)))
    np.testing.assert_array_equal(sample.array, HU)
    assert sample.spacing == pytest.approx(SIDES)
    assert f"unknown unit of length in the header (code {code & 7}); millimetres assumed" in doubts(sample)


@pytest.mark.parametrize(("code", "factor"), [(0, 1), (2, 1), (2 + 8, 1), (3, 0.001), (1, 1000)])
def test_known_units_of_length(tmp_path: Path, code: int, factor: float) -> None:
    sample = read(save(tmp_path / "a.nii", change=fields(xyzt_units=code)))
    assert sample.spacing == pytest.approx([side * factor for side in SIDES])
    assert "unit of length" not in doubts(sample) and (factor == 1) == ("voxel size" not in doubts(sample))


@pytest.mark.parametrize(
    ("slope", "intercept", "factor", "offset", "said"),
    [
        (0, 0, 1, 0, ""),
        (np.nan, np.nan, 1, 0, ""),
        (0, -1024, 1, 0, "scl_slope is 0 and scl_inter -1024: taken as no scaling"),
        (np.inf, 0, 1, 0, "scl_slope is inf"),
        (1, np.nan, 1, 0, "scl_inter is not a number: taken as 0"),
        (2, np.inf, 2, 0, "scl_inter is not a number: taken as 0"),
        (0.5, 3, 0.5, 3, ""),
    ],
)
def test_scaling(tmp_path: Path, slope: float, intercept: float, factor: float, offset: float, said: str) -> None:
    sample = read(save(tmp_path / "a.nii.gz", change=fields(scl_slope=slope, scl_inter=intercept)))
    expected = HU * factor + offset
    np.testing.assert_array_equal(sample.array, np.where(expected < -1500, -1024, expected))
    assert said in doubts(sample) and (said or sample.warnings == [])


# ------------------------------------------------------------------------------------------------- number formats


@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64"]
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_number_formats_and_byte_orders(tmp_path: Path, dtype: str, order: str) -> None:
    values = np.rint(RAS / 8) if dtype == "int8" else np.rint((RAS + 1040) / 16) if dtype == "uint8" else RAS
    values = values + 1024 if dtype in ("uint16", "uint32") else values
    image = nibabel.Nifti1Image(values.astype(dtype), DIAGONAL, dtype=dtype)
    header = image.header.as_byteswapped(order)
    path = tmp_path / "a.nii.gz"
    nibabel.Nifti1Image(values.astype(np.dtype(dtype).newbyteorder(order)), DIAGONAL, header).to_filename(path)
    expected = nibabel.as_closest_canonical(nibabel.load(path)).get_fdata()[::-1, ::-1].transpose(2, 1, 0)
    np.testing.assert_array_equal(read(path).array, expected.astype(np.float32))


def test_values_that_are_no_numbers_become_air(tmp_path: Path) -> None:
    values = RAS.astype(np.float64)
    values[0, 0, 0], values[1, 1, 1], values[2, 2, 2] = np.nan, np.inf, -np.inf
    sample = read(save(tmp_path / "a.nii", values))
    lps = values[::-1, ::-1].transpose(2, 1, 0)
    np.testing.assert_array_equal(sample.array, np.where(np.isfinite(lps), lps, -1024))
    assert "NaN or infinite; taken as air" in doubts(sample)


def test_the_second_version(tmp_path: Path) -> None:
    image = nibabel.Nifti2Image(RAS.astype(np.int16), DIAGONAL)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "a.nii.gz")
    sample = read(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(sample.array, HU)
    assert sample.warnings == []


# --------------------------------------------------------------------------------------------- packing and archives


@pytest.mark.parametrize(("name", "packed"), [("a.nii.gz", False), ("a.nii", True), ("A.NII.GZ", False)])
def test_packing_is_found_by_content(tmp_path: Path, name: str, packed: bool) -> None:
    whole = save(tmp_path / "b.nii").read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(whole) if packed else whole)
    sample = read(tmp_path / name)
    np.testing.assert_array_equal(sample.array, HU)
    assert sample.warnings == [] and "compressed by gzip, contrary to its extension" in " ".join(sample.steps)


def test_several_gzip_streams_and_rubbish_behind_them(tmp_path: Path) -> None:
    whole = save(tmp_path / "b.nii").read_bytes()
    packed = gzip.compress(whole[:500]) + gzip.compress(whole[500:])
    for name, data in (("two", packed), ("zeros", packed + bytes(64)), ("rubbish", gzip.compress(whole) + b"rubbish")):
        (tmp_path / f"{name}.nii.gz").write_bytes(data)
        np.testing.assert_array_equal(read(tmp_path / f"{name}.nii.gz").array, HU)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_volumes_in_a_zip(tmp_path: Path, count: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(count):
            archive.write(save(tmp_path / "scan.nii.gz"), f"{number}/scan.nii.gz")
        archive.writestr("notes.txt", "nothing")
    if count == 1:
        np.testing.assert_array_equal(read(tmp_path / "a.zip").array, HU)
    else:
        with pytest.raises(ReadError, match=rf"{count} volumes \(NIfTI, npz\) in it; pack one volume per archive"):
            read(tmp_path / "a.zip")


# ------------------------------------------------------------------------------------------------ what is refused

_NAME_OF_AN_EXCEPTION = re.compile(r"[A-Z][a-z]+[A-Z]?\w*(Error|Exception|File|Warning)\b|KeyError|EOFError|OSError")
REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "4-D": (lambda p: save(p, np.stack([RAS] * 3, 3).astype(np.int16)), "4 dimensions .*, 3 volumes in one file"),
    "5-D": (lambda p: save(p, np.stack([RAS] * 3, 3)[:, :, :, None].astype(np.int16)), "5 dimensions .* 3 volumes"),
    "2-D": (lambda p: save(p, RAS[:, :, 0].astype(np.int16)), "2 dimensions"),
    "complex": (lambda p: save(p, RAS.astype(np.complex64)), "complex"),
    "colour": (lambda p: save(p, np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])), "colour"),
    "data type": (lambda p: save(p, change=fields(datatype=77)), "unknown data type code 77"),
    "bits": (lambda p: save(p, change=fields(datatype=1)), "plain numbers|cut short"),
    "no dimensions": (lambda p: save(p, change=fields(dim=[0] * 8)), "declares|dimensions"),
    "negative": (lambda p: save(p, change=fields(dim=[3, -4, 4, 4, 1, 1, 1, 1])), "declares"),
    "too many dimensions": (lambda p: save(p, change=fields(dim=[9, 4, 4, 4, 1, 1, 1, 1])), "NIfTI|declares|dimens"),
    "pair": (lambda p: save(p, change=fields(magic=b"ni1")), "another file"),
    "no magic": (lambda p: save(p, change=fields(magic=b"")), "another header"),
    "inside the header": (lambda p: save(p, change=fields(vox_offset=100)), "inside it"),
    "cut": (lambda p: p.write_bytes(save(p).read_bytes()[:-700]), "cut short|ends early|damaged"),
    "a few bytes": (lambda p: p.write_bytes(b"\x5c\1\0\0"), "bytes|header|NIfTI"),
    "gzip of nothing": (lambda p: p.write_bytes(gzip.compress(b"")), "bytes"),
    "damaged gzip": (lambda p: p.write_bytes(b"\x1f\x8b\x08\0" + bytes(50)), "NIfTI"),
    "web page": (lambda p: p.write_bytes(b"<html>" + b" " * 400), "NIfTI"),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("kind", ["nii", "nii.gz"])
def test_refused_with_a_reason_in_words(tmp_path: Path, what: str, kind: str) -> None:
    make, reason = REFUSED[what]
    make(tmp_path / f"a.{kind}")
    with pytest.raises(ReadError, match=reason) as caught:
        read(tmp_path / f"a.{kind}")
    assert not _NAME_OF_AN_EXCEPTION.search(caught.value.reason), caught.value.reason
    assert caught.value.hint


def test_one_volume_in_more_dimensions(tmp_path: Path) -> None:
    for number, shape in enumerate(((1,), (1, 1), (1, 1, 1))):
        values = RAS.astype(np.int16).reshape(*RAS.shape, *shape)
        np.testing.assert_array_equal(read(save(tmp_path / f"{number}.nii", values)).array, HU)


EMPTY = gzip.compress(b"", mtime=0)
BOMBS: dict[str, Callable[[bytes], bytes]] = {
    "empty streams": lambda whole: EMPTY * 200_000,
    "empty streams behind the header": lambda whole: gzip.compress(whole[:352]) + EMPTY * 200_000,
    "streams of one byte": lambda whole: gzip.compress(whole[:352]) + gzip.compress(b"x", mtime=0) * 200_000,
    "a long name": lambda whole: b"\x1f\x8b\x08\x08" + bytes(6) + b"a" * 20_000_000,
}


@pytest.mark.parametrize("what", BOMBS)
def test_gzip_files_made_to_harm_end_soon(tmp_path: Path, what: str) -> None:
    whole = save(tmp_path / "a.nii").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(BOMBS[what](whole))
    start = time.process_time()
    with pytest.raises(ReadError):
        read(tmp_path / "b.nii.gz")
    assert time.process_time() - start < 3  # of work, not of waiting; it was 30


def test_gzip_in_small_blocks_is_read(tmp_path: Path) -> None:
    whole = save(tmp_path / "a.nii").read_bytes()
    blocks = [gzip.compress(whole[at : at + 300], mtime=0) for at in range(0, len(whole), 300)]
    (tmp_path / "b.nii.gz").write_bytes(b"".join(blocks) + EMPTY + gzip.compress(bytes(1 << 25)))
    np.testing.assert_array_equal(read(tmp_path / "b.nii.gz").array, HU)
