"""CT volumes: orientation, spacing, units, doubts; slices as pictures."""

from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest

from m3bind.errors import ReadError
from m3bind.modalities import get

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
    with pytest.raises(ReadError, match="voxels, outside"):
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
