"""CT volumes: orientation, spacing, units, doubts; NIfTI, npz and slices as images; resampling."""

import gzip
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom.data import get_testdata_file
from scipy import ndimage

from m3bind.errors import ConfigError, ReadError
from m3bind.modalities import Sample, get
from m3bind.modalities.ct import resample
from m3bind.modalities.formats import limits
from m3bind.modalities.formats.limits import Limits
from m3bind.modalities.formats.volumes import double_rescale_doubt

Make = Callable[..., Path]


def save(path: Path, values: np.ndarray, affine: np.ndarray | None = None, unit: str = "mm") -> Path:
    image = nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, path)
    return path


def landmarks() -> np.ndarray:
    """RAS volume: 100 at the right, 200 at the front, 300 at the feet, noise below zero elsewhere."""
    values = np.random.default_rng(0).integers(-900, -500, (10, 12, 8)).astype(np.int16)
    values[-1], values[:, -1], values[:, :, 0] = 100, 200, 300
    return values


@pytest.mark.parametrize("axes", list(permutations(range(3))))
def test_any_storage_order_gives_the_same_volume(tmp_path: Path, axes: tuple[int, ...]) -> None:
    base = save(tmp_path / "ras.nii", landmarks(), np.diag([0.5, 0.6, 2.0, 1]))
    expected = get("ct").read(base)
    assert expected.array.shape == (8, 12, 10) and expected.spacing == pytest.approx((2.0, 0.6, 0.5))
    assert (expected.array[0] == 300).all()  # first slice at the feet
    assert (expected.array[1:, 0, 1:] == 200).all()  # first row at the front
    assert (expected.array[1:, 1:, 0] == 100).all()  # first column at the patient's right
    for flips in product((0, 1), repeat=3):
        order = tuple((axis, -1 if flip else 1) for axis, flip in zip(axes, flips))
        image = nibabel.load(base).as_reoriented(np.array(order))
        nibabel.save(image, tmp_path / "turned.nii.gz")
        sample = get("ct").read(tmp_path / "turned.nii.gz")
        np.testing.assert_array_equal(sample.array, expected.array)
        assert sample.spacing == pytest.approx(expected.spacing)


def test_units_of_length_and_rescaling(tmp_path: Path) -> None:
    path = save(tmp_path / "m.nii", landmarks(), np.diag([5e-4, 5e-4, 2e-3, 1]), "meter")
    assert get("ct").read(path).spacing == pytest.approx((2.0, 0.5, 0.5))
    image = nibabel.Nifti1Image((landmarks() + 1024).astype(np.int16), np.eye(4))
    image.header.set_slope_inter(1, -1024)
    nibabel.save(image, tmp_path / "raw.nii.gz")
    assert get("ct").read(tmp_path / "raw.nii.gz").array.max() == 300
    assert any("millimetres assumed" in step for step in get("ct").read(tmp_path / "raw.nii.gz").steps)


def test_padding_and_broken_voxels_become_air(tmp_path: Path) -> None:
    values = landmarks().astype(np.float32)
    values[5, 5, 5], values[6, 6, 6] = -3024, np.nan
    sample = get("ct").read(save(tmp_path / "a.nii.gz", values))
    assert np.isfinite(sample.array).all() and (sample.array == -1024).sum() == 2
    assert any("padding" in step for step in sample.steps) and any("NaN" in text for text in sample.warnings)


@pytest.mark.parametrize(
    ("change", "doubt"),
    [
        (lambda v: v * 0 + 40, "nearly blank"),
        (lambda v: (v + 900) / 1200, "nearly blank"),
        (lambda v: (v + 900) / 1200 * 255, "window level"),
        (lambda v: v + 1024, "intercept"),
        (lambda v: np.where(v > 0, 40000, -200), "out of the range"),
    ],
)
def test_values_that_are_no_hounsfield_units(tmp_path: Path, change: object, doubt: str) -> None:
    path = save(tmp_path / "a.nii.gz", change(landmarks().astype(np.float32)).astype(np.float32))
    assert doubt in " ".join(get("ct").read(path).warnings)


def test_good_volume_has_no_doubts(tmp_path: Path, make_volume: Make) -> None:
    assert get("ct").read(make_volume(tmp_path / "a.nii.gz")).warnings == []


def test_unstated_or_tilted_orientation_is_doubted(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(landmarks(), None)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "a.nii")
    assert "no orientation" in " ".join(get("ct").read(tmp_path / "a.nii").warnings)
    c, s = np.cos(0.3), np.sin(0.3)
    tilted = np.array([[1, 0, 0, 0], [0, c, -s, 0], [0, s, c, 0], [0, 0, 0, 1]])
    assert "tilted" in " ".join(get("ct").read(save(tmp_path / "b.nii", landmarks(), tilted)).warnings)


def test_unlikely_spacing_is_doubted(tmp_path: Path) -> None:
    assert "voxel size" in " ".join(get("ct").read(save(tmp_path / "a.nii", landmarks(), np.eye(4) * 50)).warnings)


def test_four_dimensions_and_colour_are_refused(tmp_path: Path) -> None:
    single = get("ct").read(save(tmp_path / "one.nii", landmarks()[..., None]))
    assert single.array.shape == (8, 12, 10)
    with pytest.raises(ReadError, match="4 dimensions"):
        get("ct").read(save(tmp_path / "four.nii", np.stack([landmarks()] * 2, axis=3)))
    colour = np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(ReadError, match="colour"):
        get("ct").read(save(tmp_path / "rgb.nii", colour))


def test_a_header_that_promises_terabytes_is_refused_before_reading(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4))
    data = bytearray(image.to_bytes())
    data[40:48] = np.array([3, 30000, 30000, 30000], "<i2").tobytes()
    (tmp_path / "bomb.nii").write_bytes(bytes(data))
    with pytest.raises(ReadError, match="voxels, more than"):
        get("ct").read(tmp_path / "bomb.nii")


def test_damaged_volumes_are_refused(tmp_path: Path, make_volume: Make) -> None:
    whole = make_volume(tmp_path / "a.nii.gz").read_bytes()
    for length in (1, 30, len(whole) // 2, len(whole) - 12):
        (tmp_path / "cut.nii.gz").write_bytes(whole[:length])
        with pytest.raises(ReadError, match="not a readable NIfTI"):
            get("ct").read(tmp_path / "cut.nii.gz")


def test_slice_from_a_picture(tmp_path: Path, make_picture: Make) -> None:
    sample = get("ct").read(make_picture(tmp_path / "s.png", "xray"))
    assert sample.array.shape == (1, 64, 64) and sample.spacing is None
    assert -1000 <= sample.array.min() < sample.array.max() <= 1000
    assert any("not Hounsfield units" in text for text in sample.warnings)


def test_real_volume(native: Path) -> None:
    sample = get("ct").read(native / "nifti" / "example_ct_sm.nii.gz")
    assert sample.array.shape == (30, 101, 122) and sample.spacing == (3.0, 3.0, 3.0) and sample.warnings == []
    bone = sample.array > 400
    assert np.argwhere(bone)[:, 1].mean() > 55  # the spine is at the back: large row numbers


# --- NIfTI ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_nibabel_agrees_on_the_canonical_order(tmp_path: Path, seed: int) -> None:
    """Random axes and flips, with a slight tilt and unequal sides, against nibabel's own reordering."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(np.eye(3) + rng.normal(0, 0.05, (3, 3)))[0]
    turn *= np.sign(np.diag(turn))
    affine = np.eye(4)
    affine[:3, :3] = turn[:, rng.permutation(3)] * rng.choice([-1, 1], 3) * (0.6, 0.9, 2.5)
    affine[:3, 3] = rng.normal(0, 100, 3)
    path = save(tmp_path / "a.nii.gz", landmarks(), affine)
    nearest = nibabel.as_closest_canonical(nibabel.load(path))
    sample = get("ct").read(path)
    np.testing.assert_array_equal(sample.array, nearest.get_fdata()[::-1, ::-1].transpose(2, 1, 0))
    sides = nibabel.affines.voxel_sizes(nearest.affine)
    assert sample.spacing == pytest.approx(tuple(sides[::-1]))


def nifti_bytes(**changes: object) -> bytes:
    image = nibabel.Nifti1Image(landmarks(), np.eye(4))
    data = bytearray(image.to_bytes())
    for place, value in changes.items():
        packed = value if isinstance(value, bytes) else struct.pack("<f", value)
        start = {"dim": 40, "datatype": 70, "vox_offset": 108}[place]
        data[start : start + len(packed)] = packed
    return bytes(data)


def test_an_endless_gzip_costs_only_its_header(tmp_path: Path) -> None:
    """Half a gigabyte of zeros behind a sound volume is not unpacked, and before its data it is refused."""
    zeros = bytes(1 << 20)

    def endless(head: bytes) -> bytes:
        packer = zlib.compressobj(1, wbits=31)
        return packer.compress(head) + b"".join(packer.compress(zeros) for _ in range(512)) + packer.flush()

    sound, late = tmp_path / "sound.nii.gz", tmp_path / "late.nii.gz"
    sound.write_bytes(endless(nifti_bytes()))
    late.write_bytes(endless(nifti_bytes(vox_offset=1.0e9)))
    start = time.process_time()
    assert get("ct").read(sound).array.shape == (8, 12, 10)
    with pytest.raises(ReadError, match="begin too far after the header"):
        get("ct").read(late)
    assert time.process_time() - start < 0.5  # unpacking all takes longer


@pytest.mark.parametrize("offset", [-1.0, float("nan"), float("inf"), 1e30])
def test_impossible_data_offsets_are_refused(tmp_path: Path, offset: float) -> None:
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(nifti_bytes(vox_offset=offset)))
    with pytest.raises(ReadError):
        get("ct").read(tmp_path / "a.nii.gz")


def test_a_small_gzip_that_promises_much_is_refused_before_unpacking(tmp_path: Path) -> None:
    head = nifti_bytes(dim=np.array([3, 700, 700, 700], "<i2").tobytes())
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(head))
    with pytest.raises(ReadError, match="declares 686,000,000 bytes of content"):
        get("ct").read(tmp_path / "a.nii.gz")
    (tmp_path / "a.nii").write_bytes(head[:352] + bytes(10_000_000))
    with pytest.raises(ReadError, match="cut short"):
        get("ct").read(tmp_path / "a.nii")


def test_nifti_2_is_read(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti2Image(landmarks(), np.diag([0.5, 0.6, 2.0, 1])), tmp_path / "a.nii.gz")
    one = get("ct").read(save(tmp_path / "b.nii.gz", landmarks(), np.diag([0.5, 0.6, 2.0, 1])))
    np.testing.assert_array_equal(get("ct").read(tmp_path / "a.nii.gz").array, one.array)


# --- npz --------------------------------------------------------------------------------------------------------------


def chest(shape: tuple[int, int, int] = (20, 40, 36)) -> np.ndarray:
    """A body with lungs in air, (D, H, W) in HU, with noise; values as a CT has them."""
    rng = np.random.default_rng(5)
    _, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    volume = np.full(shape, -1000.0)
    volume[(x / 0.8) ** 2 + (y / 0.7) ** 2 < 1] = 40
    volume[((np.abs(x) - 0.35) / 0.25) ** 2 + (y / 0.45) ** 2 < 1] = -850
    volume[(x / 0.1) ** 2 + ((y - 0.5) / 0.1) ** 2 < 1] = 700
    return np.asarray(ndimage.gaussian_filter(volume, 0.5) + rng.normal(0, 15, shape))


def test_rad_chest_ct(tmp_path: Path) -> None:
    values = np.clip(np.rint(chest()), -1000, 1000).astype(np.int16)
    np.savez_compressed(tmp_path / "trn00001.npz", ct=values[::-1])  # that set runs from the head down
    sample = get("ct").read(tmp_path / "trn00001.npz")
    np.testing.assert_array_equal(sample.array, values)
    assert sample.spacing == (0.8, 0.8, 0.8)
    assert any("RAD-ChestCT" in step for step in sample.steps) and len(sample.warnings) == 1


def test_other_npz(tmp_path: Path) -> None:
    values = chest().astype(np.float32)
    np.savez(tmp_path / "a.npz", volume=values, spacing=np.array([2.0, 0.7, 0.6]), names=np.array(["x"]))
    sample = get("ct").read(tmp_path / "a.npz")
    np.testing.assert_array_equal(sample.array, values)
    assert sample.spacing == (2.0, 0.7, 0.6) and "no orientation: taken as D, H, W" in sample.warnings[0]
    np.savez(tmp_path / "b.npz", ct=values, other=values)
    assert get("ct").read(tmp_path / "b.npz").spacing is None


def test_npz_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = chest()
    cases = {
        "no array of 3": ({"a": values[0]}, "0 arrays of 3 dimensions"),
        "two of them": ({"a": values, "b": values}, "2 arrays of 3 dimensions"),
        "a flat ct": ({"ct": values[0], "b": values}, "2 dimensions, not a volume"),
        "objects": ({"ct": np.full((2, 2, 2), None)}, "not of plain numbers"),
        "complex": ({"ct": values * 1j}, "not of plain numbers"),
        "nothing inside": ({"ct": values[:0]}, "declares 0 voxels"),
    }
    for name, (arrays, reason) in cases.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
        with pytest.raises(ReadError, match=reason):
            get("ct").read(tmp_path / f"{name}.npz")
    np.savez_compressed(tmp_path / "c.npz", ct=np.zeros((90, 100, 300), np.int16))
    with monkeypatch.context() as patch:
        patch.setattr(limits, "LIMITS", Limits(ratio=100))
        with pytest.raises(ReadError, match="bytes of content"):
            get("ct").read(tmp_path / "c.npz")
        patch.setattr(limits, "LIMITS", Limits(voxels=1000))
        with pytest.raises(ReadError, match="2,700,000 voxels, more than 1,000"):
            get("ct").read(tmp_path / "c.npz")
    np.savez(tmp_path / "d.npz", ct=values)
    whole = (tmp_path / "d.npz").read_bytes()
    for damaged in (b"PK", whole[:5000], whole[:2000] + b"\xff" * 64 + whole[2064:], b"\x93NUMPY" + whole[:300]):
        (tmp_path / "d.npz").write_bytes(damaged)
        with pytest.raises(ReadError, match="not a readable npz"):
            get("ct").read(tmp_path / "d.npz")


def test_an_npz_header_that_lies_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    head = b"{'descr': '<i2', 'fortran_order': False, 'shape': (9000, 9000, 9000), }"
    member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head) + 1) + head + b"\n"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("ct.npy", member)
    with pytest.raises(ReadError, match="729,000,000,000 voxels, more than"):
        get("ct").read(tmp_path / "a.npz")


def test_a_volume_inside_a_zip(tmp_path: Path) -> None:
    expected = get("ct").read(save(tmp_path / "a.nii.gz", landmarks()))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.nii.gz", "study/Secret Person.nii.gz")
    np.testing.assert_array_equal(get("ct").read(tmp_path / "a.zip").array, expected.array)


# --- units and voxel size ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("padding", [None, -2000, -3024])
def test_volumes_rescaled_twice_or_never_are_distinguished_from_valid_ones(clipped: bool, padding: int | None) -> None:
    volume = chest().astype(np.float32)
    if clipped:
        volume = volume.clip(-1024, 1000)
    if padding is not None:
        volume[:, :6, :6] = padding
    assert double_rescale_doubt(volume) is None
    twice, never = double_rescale_doubt(volume - 1024), double_rescale_doubt(volume + 1024)
    assert twice is not None and "twice" in twice and "too low" in twice
    assert never is not None and "never" in never and "too high" in never
    for text in (twice, never):
        amount = float(text.rsplit("may be ", 1)[1].split()[0])
        assert amount == pytest.approx(1024, abs=30)


def test_valid_parts_of_a_body_are_not_doubted() -> None:
    rng = np.random.default_rng(0)
    for mean in (-1000, -850, -80, 40, 300, 1000):
        assert double_rescale_doubt(rng.normal(mean, 40, (8, 40, 40)).astype(np.float32)) is None


def test_ct_rate_v2_with_its_intercept_applied_again(tmp_path: Path) -> None:
    """The volumes hold HU; the header's intercept is still -1024."""
    path = save(tmp_path / "a.nii.gz", np.rint(chest()).astype(np.int16).transpose(2, 1, 0)[::-1, ::-1])
    assert get("ct").read(path).warnings == []
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[112:120] = struct.pack("<ff", 1, -1024)  # scl_slope, scl_inter
    path.write_bytes(gzip.compress(bytes(data)))
    sample = get("ct").read(path)
    assert any("applied twice" in text for text in sample.warnings)
    np.testing.assert_array_equal(sample.array, np.rint(chest()) - 1024)  # air is not taken for padding


def smooth(shape: tuple[int, int, int]) -> np.ndarray:
    z, y, x = np.meshgrid(*(np.linspace(0, 3, n) for n in shape), indexing="ij")
    return np.asarray(500 * np.sin(z) * np.cos(y) + 100 * x, dtype=np.float32)


@pytest.mark.parametrize("spacing", [(1.5, 0.75, 0.75), (4.0, 2.0, 0.3), (2.0, 0.7, 0.6), (0.9, 0.31, 5.0)])
def test_resampling_agrees_with_scipy(spacing: tuple[float, float, float]) -> None:
    old = (2.0, 0.7, 0.6)
    sample = Sample("ct", smooth((20, 30, 26)), spacing=old, steps=["read"])
    result = resample(sample, spacing)
    shape = tuple(max(1, round(n * s / t)) for n, s, t in zip(sample.array.shape, old, spacing))
    assert result.array.shape == shape and result.spacing == spacing and result.array.dtype == np.float32
    centres = [
        ((np.arange(m) - (m - 1) / 2) * t / s + (n - 1) / 2)
        for m, n, s, t in zip(shape, sample.array.shape, old, spacing)
    ]
    grid = np.meshgrid(*centres, indexing="ij")
    expected = ndimage.map_coordinates(sample.array.astype(np.float64), grid, order=1, mode="nearest")
    np.testing.assert_allclose(result.array, expected, atol=2e-3)
    assert "resampled from 2 x 0.7 x 0.6 mm" in result.steps[-1] and sample.steps == ["read"]


def test_resampling_keeps_places_in_millimetres() -> None:
    """A straight ramp in mm is the same ramp in mm at any spacing, away from the edges."""
    depth = (np.arange(40) - 19.5) * 2.0
    sample = Sample("ct", np.tile(depth[:, None, None], (1, 8, 8)).astype(np.float32), spacing=(2.0, 1.0, 1.0))
    result = resample(sample, (0.7, 1.0, 1.0))
    places = (np.arange(len(result.array)) - (len(result.array) - 1) / 2) * 0.7
    inside = np.abs(places) < 38
    np.testing.assert_allclose(result.array[inside, 4, 4], places[inside], atol=1e-4)


def test_resampling_of_what_has_no_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    volume = Sample("ct", smooth((4, 5, 6)), spacing=(2.0, 1.0, 1.0))
    with pytest.raises(ConfigError, match="known spacing"):
        resample(Sample("ct", smooth((4, 5, 6))), (1.0, 1.0, 1.0))
    for wrong in ((1.0, 1.0), (0.0, 1.0, 1.0), (1.0, float("nan"), 1.0), (-1.0, 1.0, 1.0)):
        with pytest.raises(ConfigError, match="positive numbers"):
            resample(volume, wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="voxels, more than"):
        resample(volume, (1e-4, 1e-4, 1e-4))


@pytest.mark.parametrize("where", ["checksum", "length", "data"])
@pytest.mark.parametrize("behind", [0, 600])
def test_a_gzip_stream_that_does_not_fit_its_checksum_is_refused(tmp_path: Path, where: str, behind: int) -> None:
    values = np.random.default_rng(0).integers(-1000, 1000, (16, 15, 14)).astype(np.int16)
    plain = save(tmp_path / "plain.nii", values).read_bytes() + bytes(behind)
    path = tmp_path / "ct.nii.gz"
    data = bytearray(gzip.compress(plain))
    path.write_bytes(data)
    np.testing.assert_array_equal(get("ct").read(path).array, get("ct").read(tmp_path / "plain.nii").array)
    data[{"checksum": -6, "length": -2, "data": len(data) // 2}[where]] ^= 0x55
    path.write_bytes(data)
    with pytest.raises(ReadError, match=r"damaged|ends early|cut short"):
        get("ct").read(path)


def test_other_contents_of_an_archive_are_reported(tmp_path: Path) -> None:
    volume = save(tmp_path / "ct.nii", np.zeros((9, 9, 9)))
    both, nested = tmp_path / "both.zip", tmp_path / "nested.zip"
    with zipfile.ZipFile(both, "w") as archive:
        archive.write(volume, "ct.nii")
        archive.write(get_testdata_file("CT_small.dcm"), "ct.dcm")
    assert any("1 other volumes (NIfTI, npz) in it skipped" in said for said in get("ct").read(both).warnings)
    with zipfile.ZipFile(nested, "w") as archive:
        archive.write(both, "both.zip")
    with pytest.raises(ReadError, match="1 archives inside the archive, and no CT"):
        get("ct").read(nested)
