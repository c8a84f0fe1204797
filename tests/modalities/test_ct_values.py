"""From stored values to Hounsfield units: padding, rescaling, number formats, units; contradicting headers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from m3bind.errors import ReadError
from m3bind.modalities import Sample, get
from m3bind.modalities.formats import volumes
from modalities.ct_files import body, each, enhanced, group, slices, write

HU = body(40)


def read(path: Path) -> Sample:
    return get("ct").read(path)


def doubts(sample: Sample) -> str:
    return " | ".join(sample.warnings)


def stored(volume: np.ndarray, dtype: str = "<u2", **entries: Any) -> list[pydicom.Dataset]:
    """A series whose stored values are `volume` as `dtype`; slope 1, intercept 0 unless `entries` say otherwise."""
    kind = np.dtype(dtype)
    series = each(slices(HU), RescaleSlope=1, RescaleIntercept=0)
    each(series, BitsAllocated=8 * kind.itemsize, BitsStored=8 * kind.itemsize, HighBit=8 * kind.itemsize - 1)
    each(series, PixelRepresentation=int(kind.kind == "i"), PixelData=lambda k: volume[k].astype(kind).tobytes())
    return each(series, **entries)


def padded(value: float, corner: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """HU with `value` outside of a circle that leaves the corners, and where that is, (D, H, W)."""
    rows, columns = np.indices(HU.shape[1:]) - (HU.shape[1] - 1) / 2
    outside = np.broadcast_to(np.hypot(rows, columns) > HU.shape[1] / 2 + corner / 4, HU.shape)
    return np.where(outside, value, HU), outside


# --------------------------------------------------------------------------------------------------------- padding


@pytest.mark.parametrize("value", [0, -2000, -1024, 100, -32768, 3071])
def test_padding_becomes_air(tmp_path: Path, value: int) -> None:
    volume, outside = padded(value)
    if value == 0:
        volume[3, 8:16, 8:16] = value  # measured, inside the body
    sample = read(write(tmp_path / "s", stored(volume, "<i2", PixelPaddingValue=value)))
    expected = np.where(outside, -1024, volume)
    np.testing.assert_array_equal(sample.array, expected)
    assert sample.unit == "HU" and sample.warnings == []


@pytest.mark.parametrize(("first", "last"), [(-2000, -1990), (-1990, -2000), (60000, 65535), (1, 8)])
def test_a_range_of_padding(tmp_path: Path, first: int, last: int) -> None:
    signed = first < 0
    values, outside = padded(0)
    rng = np.random.default_rng(0)
    noise = rng.integers(min(first, last), max(first, last) + 1, HU.shape)
    raw = np.where(outside, noise, values + (0 if signed else 1024))
    series = stored(raw, "<i2" if signed else "<u2", RescaleIntercept=0 if signed else -1024)
    sample = read(write(tmp_path / "s", each(series, PixelPaddingValue=first, PixelPaddingRangeLimit=last)))
    np.testing.assert_array_equal(sample.array, np.where(outside, -1024, HU))


def test_padding_written_as_unsigned_and_absent_padding(tmp_path: Path) -> None:
    volume, outside = padded(-2000)
    series = stored(volume, "<i2")
    for dataset in series:
        dataset.add_new(0x00280120, "US", 65536 - 2000)
    np.testing.assert_array_equal(read(write(tmp_path / "a", series)).array, np.where(outside, -1024, HU))
    unused = read(write(tmp_path / "b", stored(HU, "<i2", PixelPaddingValue=-3000)))
    np.testing.assert_array_equal(unused.array, HU)


def test_padding_of_an_enhanced_file(tmp_path: Path) -> None:
    volume, outside = padded(0)
    frames = [(volume[k], 2.0 * k, {}) for k in range(12)]
    sample = read(enhanced(tmp_path / "a.dcm", frames, PixelPaddingValue=1024))
    np.testing.assert_array_equal(sample.array, np.where(outside, -1024, HU))


# ------------------------------------------------------------------------------------------------------- rescaling


@pytest.mark.parametrize(
    ("entries", "doubt"),
    [
        ({"RescaleSlope": 0}, "12 of 12 slices: its rescale slope is 0: taken as 1"),
        ({"RescaleSlope": None}, "rescale slope is not a number: taken as 1"),
        ({"RescaleSlope": lambda k: 0 if k == 4 else 1}, "1 of 12 slices: its rescale slope is 0"),
    ],
)
def test_slopes_that_cannot_be_used(tmp_path: Path, entries: dict[str, Any], doubt: str) -> None:
    sample = read(write(tmp_path / "s", each(slices(HU), **entries)))
    np.testing.assert_array_equal(sample.array, HU)
    assert doubt in doubts(sample)


def test_a_slope_or_intercept_that_is_missing(tmp_path: Path) -> None:
    series = slices(HU)
    for dataset in series:
        del dataset.RescaleSlope
    sample = read(write(tmp_path / "a", series))
    np.testing.assert_array_equal(sample.array, HU)
    assert "rescale slope is missing: taken as 1" in doubts(sample)
    series = stored(HU, "<i2")
    for dataset in series:
        del dataset.RescaleIntercept
    sample = read(write(tmp_path / "b", series))
    np.testing.assert_array_equal(sample.array, HU)
    assert "rescale intercept is missing: taken as 0" in doubts(sample)


def test_a_slope_of_zero_in_an_enhanced_file(tmp_path: Path) -> None:
    scale = {"PixelValueTransformationSequence": group(RescaleSlope=0, RescaleIntercept=-1024, RescaleType="HU")}
    sample = read(enhanced(tmp_path / "a.dcm", [(HU[k], 2.0 * k, scale) for k in range(12)]))
    np.testing.assert_array_equal(sample.array, HU)
    assert "rescale slope is 0" in doubts(sample)


@pytest.mark.parametrize("unit", ["", None, "HU", " hu ", "HU\0"])
def test_rescale_types_that_say_nothing_else(tmp_path: Path, unit: str | None) -> None:
    sample = read(write(tmp_path / "s", each(slices(HU), RescaleType=unit)))
    assert sample.warnings == [] and sample.unit == "HU"


@pytest.mark.parametrize("unit", ["US", "OD", "HU_MOD", "Z_EFF", "ED", "SECRET NAME"])
def test_other_units_are_reported(tmp_path: Path, unit: str) -> None:
    sample = read(write(tmp_path / "s", each(slices(HU), RescaleType=unit)))
    assert "not Hounsfield units but" in doubts(sample) and sample.unit == "" and "SECRET" not in doubts(sample)
    assert unit == "SECRET NAME" or unit in doubts(sample)


# -------------------------------------------------------------------------------------------------- number formats


@pytest.mark.parametrize("dtype", ["<u2", "<i2", "<u4", "<i4"])
@pytest.mark.parametrize("slope", [1.0, 0.5, 2.25])
def test_whole_numbers_of_any_kind(tmp_path: Path, dtype: str, slope: float) -> None:
    raw = np.rint((HU + 1024) / slope)
    series = stored(raw, dtype, RescaleSlope=slope, RescaleIntercept=-1024)
    np.testing.assert_array_equal(read(write(tmp_path / "s", series)).array, (raw * slope - 1024).astype(np.float32))


@pytest.mark.parametrize(("keyword", "dtype"), [("FloatPixelData", "<f4"), ("DoubleFloatPixelData", "<f8")])
def test_floating_point_pixels(tmp_path: Path, keyword: str, dtype: str) -> None:
    series = each(slices(HU + 0.25), RescaleIntercept=0, BitsAllocated=32 if dtype == "<f4" else 64)
    for k, dataset in enumerate(series):
        del dataset.PixelData, dataset.BitsStored, dataset.HighBit
        setattr(dataset, keyword, (HU[k] + 0.25).astype(dtype).tobytes())
    sample = read(write(tmp_path / "s", series))
    np.testing.assert_array_equal(sample.array, (HU + 0.25).astype(np.float32))


@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("bits", [12, 13, 14])
def test_bits_above_the_stored_ones_are_no_values(tmp_path: Path, signed: int, bits: int) -> None:
    """Garbage, as old overlays are, in the bits above HighBit."""
    raw = (HU + (0 if signed else 1024)).astype(np.int64) & ((1 << bits) - 1)
    rubbish = np.random.default_rng(0).integers(0, 1 << (16 - bits), HU.shape) << bits
    series = stored(raw | rubbish, "<u2", BitsStored=bits, HighBit=bits - 1, PixelRepresentation=signed)
    sample = read(write(tmp_path / "s", each(series, RescaleIntercept=0 if signed else -1024)))
    np.testing.assert_array_equal(sample.array, HU)


# --------------------------------------------------------------------------------- header facts against each other


def located(k: int) -> str:
    return str(-100 + 2 * k)


@pytest.mark.parametrize(
    ("entries", "doubt"),
    [
        ({"SpacingBetweenSlices": 5.0}, "positions are 2 mm apart, SpacingBetweenSlices 5 mm: positions taken"),
        ({"SpacingBetweenSlices": -2.0}, ""),
        ({"SpacingBetweenSlices": 2.05}, ""),
        ({"SliceThickness": 5.0}, ""),  # slices may overlap
        ({"SliceLocation": located}, ""),
        ({"SliceLocation": lambda k: str(100 - 2 * k)}, ""),  # counted the other way
        ({"SliceLocation": lambda k: str(0.5 * k)}, "positions are 2 mm apart, slice locations 0.5 mm"),
        ({"SliceLocation": lambda k: str([5, 3, 9, 1, 0, 7, 2, 8, 4, 6, 11, 10][k])}, "another order of slices"),
        ({"SliceLocation": "0"}, "slice locations 0 mm"),
        ({"ImagerPixelSpacing": [0.8, 0.8]}, ""),
        ({"ImagerPixelSpacing": [0.5, 0.5]}, "PixelSpacing is 0.8 x 0.8 mm, ImagerPixelSpacing 0.5 x 0.5 mm"),
        ({"ImageOrientationPatient": [2.0, 0, 0, 0, 2.0, 0]}, "directions of length 2 and 2 instead of 1"),
        ({"ImageOrientationPatient": [0.99, 0, 0, 0, 1, 0]}, ""),
        ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, "no orientation but two directions that are not at a right"),
        ({"ImageOrientationPatient": [1, 0, 0, 0.7, 0.7, 0]}, "no orientation but two directions"),
    ],
)
def test_contradicting_geometry_is_reported(tmp_path: Path, entries: dict[str, Any], doubt: str) -> None:
    sample = read(write(tmp_path / "s", each(slices(HU), **entries)))
    np.testing.assert_array_equal(sample.array, HU)
    assert sample.spacing == pytest.approx((2.0, 0.8, 0.8))
    assert doubt in doubts(sample) if doubt else sample.warnings == []


# ------------------------------------------------------------------------------------ values of another meaning


def natural(side: int, seed: int = 0) -> np.ndarray:
    """0..1, smooth, with a background of 0: an MR of a head, say."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(12, side, side)), (1, 4, 4))
    noise = (noise - noise.min()) / np.ptp(noise)
    rows, columns = np.indices((side, side)) - side / 2
    return noise * (np.hypot(rows, columns) < side / 2.5)


WIDE, SMALL = (3.0, 0.9, 0.9), (1.0, 0.7, 0.7)
FOREIGN: dict[str, Callable[[], np.ndarray]] = {
    "0..1": lambda: natural(200),
    "0..4095": lambda: natural(200) * 4095,
    "0..255": lambda: np.rint(natural(200) * 255),
    "-1..1": lambda: natural(200) * 2 - 1,
    "z-scores": lambda: (natural(200) - 0.2) * 9,
    "slightly negative MR": lambda: natural(200) * 1500 - 12,
    "MR of a patch": lambda: natural(40) * 4000 - 12,
    "cut to a window": lambda: np.clip(natural(200) * 1400 - 700, -160, 240),
    "phases of MR": lambda: np.random.default_rng(0).integers(-4096, 4096, (12, 200, 200)),
    "hu and 1024": lambda: np.where(natural(200) > 0.4, 1064 + 30 * natural(200, 1), 24),
    "16 bits": lambda: natural(200) * 60000,
    "nothing": lambda: np.zeros((4, 200, 200)),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_values_that_are_no_hounsfield_units(what: str) -> None:
    """They are left as they are, with a doubt that says what they are and what is expected."""
    volume = FOREIGN[what]().astype(np.float32)
    before, warnings = volume.copy(), list[str]()
    assert not volumes.finish(volume, SMALL if "patch" in what else WIDE, [], warnings)
    np.testing.assert_array_equal(volume, before)
    assert len(warnings) == 1 and ("-1000" in warnings[0])


def crop(low: float, high: float, side: int = 48) -> np.ndarray:
    values = natural(4 * side, 5)[:, side : 2 * side, side : 2 * side]
    return low + (high - low) * (values - values.min()) / np.ptp(values)


CTS: dict[str, tuple[Callable[[], np.ndarray], tuple[float, ...]]] = {
    "body in air": (lambda: np.where(natural(200) > 0, 40 + 60 * natural(200, 1), -1000), WIDE),
    "padded": (lambda: np.where(natural(200) > 0, -900 + 1000 * natural(200, 1), -3024), WIDE),
    "liver": (lambda: crop(-20, 160), SMALL),
    "fat": (lambda: crop(-130, -60), SMALL),
    "bone": (lambda: crop(-100, 1700), SMALL),
    "contrast agent": (lambda: crop(-50, 900), SMALL),
    "lung": (lambda: crop(-980, -600), SMALL),
    "metal": (lambda: np.where(natural(200, 2) > 0.9, 3071, np.where(natural(200) > 0, 40, -1000)), WIDE),
}


@pytest.mark.parametrize("what", CTS)
def test_crops_of_all_tissues_are_hounsfield_units(what: str) -> None:
    make, spacing = CTS[what]
    warnings: list[str] = []
    assert volumes.finish(make().astype(np.float32), spacing, [], warnings) and warnings == []


def test_virtual_patients_are_hounsfield_units() -> None:
    from m3bind.data.phantom import thorax
    from m3bind.data.phantom.state import sample_state

    for seed in range(3):
        rng = np.random.default_rng(seed)
        volume = thorax.ct(sample_state(rng), rng).astype(np.float32)
        warnings: list[str] = []
        assert volumes.finish(volume, (8.0, 4.0, 4.0), [], warnings) and warnings == []


def test_real_cts_are_hounsfield_units(mini5: Path) -> None:
    for path in sorted((mini5 / "ct" / "lidc_voi").glob("*.nii.gz"))[::40]:
        sample = read(path)
        assert sample.unit == "HU" and sample.warnings == []


def test_another_modality_in_a_ct_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="12 of modality MR"):
        read(write(tmp_path / "s", each(slices(HU), Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4")))
