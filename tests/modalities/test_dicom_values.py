"""How all DICOM readers handle padding, rescaling and units, against pixels computed by hand."""

from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from m3bind.modalities.formats import dicom
from m3bind.modalities.formats.dicom_values import padding, rescaling, unit_of
from modalities.test_dicom import make, save


def entries(vr: str, *values: float, prefix: str = "", **more: int) -> Dataset:
    """A header with a padding value and, where two are given, the other end of its range, of any VR."""
    header = Dataset()
    for name, value in zip(("PixelPaddingValue", "PixelPaddingRangeLimit"), values):
        header.add_new(prefix + name, vr, value)
    for keyword, number in more.items():
        setattr(header, keyword, number)
    return header


def corners(kind: str, value: float, low: int = 100, high: int = 200, width: int = 5) -> np.ndarray:
    stored = np.random.default_rng(0).integers(low, high, (40, 50)).astype(kind)
    stored[:width, :width] = value
    return stored


@pytest.mark.parametrize(
    ("kind", "value", "vr", "limits", "bits"),
    [
        ("<u2", 65535, "US", [65535], 16),
        ("<i2", -2000, "SS", [-2000], 16),
        ("<i2", -2000, "US", [63536], 16),  # signed, written into an unsigned entry
        ("<u2", 63536, "SS", [-2000], 16),  # the reverse
        ("<i2", -2048, "US", [2048], 12),  # as 12 bits
        ("<i2", -2000, "SS", [-1024, -3000], 16),  # a range, its ends in either order
        ("<i2", -2000, "US", [62536, 64512], 16),
        ("<u2", 10, "US", [0, 50], 16),
        ("|i1", -100, "SS", [-100], 8),
    ],
)
def test_padding_is_found_however_it_is_written(kind: str, value: int, vr: str, limits: list[int], bits: int) -> None:
    high = 120 if kind == "|i1" else 200
    stored = corners(kind, value, high=high)
    found = padding(entries(vr, *limits, BitsStored=bits), stored)
    expected = np.zeros(stored.shape, bool)
    expected[:5, :5] = True
    assert found is not None
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("kind", "prefix"), [("<f4", "Float"), ("<f8", "DoubleFloat")])
def test_padding_of_floats_has_entries_of_its_own(kind: str, prefix: str) -> None:
    stored = corners(kind, -5000)
    found = padding(entries("FD", -5000.0, prefix=prefix), stored)
    assert found is not None and found.sum() == 25 and found[:5, :5].all()
    assert padding(entries("SS", -5000), stored) is None


@pytest.mark.parametrize("width", [3, 5, 9])
def test_a_value_that_is_measured_inside_is_padding_only_from_the_border_on(width: int) -> None:
    stored = corners("<i2", 0, -900, 900, width)
    stored[20:30, 20:30] = 0
    found = padding(entries("SS", 0), stored)
    assert found is not None and found[:width, :width].all() and not found[20:30, 20:30].any()
    stored[:width, :width] = -1000  # below all others: wherever it is
    stored[20:30, 20:30] = -1000
    found = padding(entries("SS", -1000), stored)
    assert found is not None and found[20:30, 20:30].all()


def test_no_padding_is_none() -> None:
    stored = corners("<u2", 0)
    assert padding(entries("US"), stored) is None
    assert padding(entries("US", 7), stored) is None
    found = padding(entries("US", 3), np.full((4, 4), 3, "<u2"))
    assert found is not None and found.all()


@pytest.mark.parametrize(
    ("slope", "intercept", "expected", "doubt"),
    [
        (None, None, (1, 0, False), ""),
        ([2.0], [-3.0], (2, -3, True), ""),
        ([0.0], [-1024.0], (1, -1024, True), "slope is 0: taken as 1"),
        ([], [-1024.0], (1, -1024, True), "slope is not a number: taken as 1"),
        (None, [-1024.0], (1, -1024, True), "slope is missing: taken as 1"),
        ([2.0], None, (2, 0, True), "intercept is missing: taken as 0"),
        ([2.0], [], (2, 0, True), "intercept is not a number: taken as 0"),
    ],
)
def test_an_unusable_rescaling_is_reported(
    slope: list[float] | None, intercept: list[float] | None, expected: tuple[float, float, bool], doubt: str
) -> None:
    found = rescaling(slope, intercept)
    assert (found.slope, found.intercept, found.stated) == expected
    assert doubt in found.doubt and bool(doubt) == bool(found.doubt)


@pytest.mark.parametrize(
    ("value", "unit"), [(None, ""), ("", ""), ("hu ", "HU"), (["HU"], "HU"), ([], ""), ("US", "US")]
)
def test_units(value: object, unit: str) -> None:
    assert unit_of(value) == unit


@pytest.mark.parametrize(("slope", "word"), [("0", "slope is 0"), ("nan", "slope is not a number")])
def test_a_radiograph_with_such_a_slope_is_shown_with_a_doubt(tmp_path: Path, slope: str, word: str) -> None:
    stored = np.arange(64 * 64, dtype="<u2").reshape(64, 64)
    header = make(stored, RescaleIntercept="5", WindowCenter="2053.5", WindowWidth="4096")
    header.add_new("RescaleSlope", "LO", slope)
    path = save(header, tmp_path / "a.dcm")
    array, _, doubts = dicom.grey(dicom.open_dicom(path), path)
    np.testing.assert_allclose(array, stored / 4095, atol=1e-3)
    assert any(word in text for text in doubts)
