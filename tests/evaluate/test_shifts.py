"""Shifts of decoded files: what each does to generated images, volumes and signals."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from m3bind.evaluate import shifts
from m3bind.modalities.base import Sample

RNG = np.random.default_rng(0)


def smooth(*shape):
    values = gaussian_filter(RNG.normal(size=shape), [2 if length > 3 else 0 for length in shape])
    return ((values - values.min()) / np.ptp(values)).astype(np.float32)


SAMPLES = {
    "grey": Sample("xray", smooth(60, 45)),
    "colour": Sample("retina", smooth(50, 64, 3)),
    "tissue": Sample("pathology", smooth(32, 32, 3)),
    "volume": Sample("ct", 1000 * smooth(9, 20, 24), spacing=(2.5, 0.7, 0.8), unit="HU"),
    "thin": Sample("ct", 1000 * smooth(2, 5, 5), spacing=(2.5, 0.7, 0.8), unit="HU"),
    "without spacing": Sample("ct", 1000 * smooth(9, 20, 24)),
    "signal": Sample("ecg", smooth(12, 500), rate=100.0),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_every_shift_gives_another_valid_sample_and_leaves_the_first_alone(name):
    sample = SAMPLES[name]
    before = sample.array.copy()
    found = shifts.shifts_of(sample)
    assert next(iter(found)) == shifts.SHIPPED and found[shifts.SHIPPED](sample) is sample
    for shift, change in list(found.items())[1:]:
        shifted = change(sample)
        assert shifted.array.dtype == np.float32 and np.isfinite(shifted.array).all(), shift
        assert shifted.array.ndim == sample.array.ndim and shifts.kind_of(shifted) == shifts.kind_of(sample), shift
        same = shifted.array.shape == before.shape and np.array_equal(shifted.array, before)
        if shift == "2x magnification" and shifts.kind_of(sample) == "volume":  # only the header changes
            assert same and (shifted.spacing is None or shifted.spacing[0] == 2 * sample.spacing[0])
        else:
            assert not same or len(sample.array) == 2, shift
        assert np.array_equal(sample.array, before), shift
        if shifts.kind_of(sample) == "image":
            assert shifted.array.min() >= 0 and shifted.array.max() <= 1, shift


@pytest.mark.parametrize("name", ["volume", "thin"])
def test_a_volume_keeps_its_extent_in_mm(name):
    sample = SAMPLES[name]
    for shift in ("half resolution", "quarter resolution", "slices twice as thick"):
        shifted = shifts.shifts_of(sample)[shift](sample)
        extents = (np.multiply(given.array.shape, given.spacing) for given in (sample, shifted))
        np.testing.assert_allclose(*extents, err_msg=shift)
    doubled = shifts.shifts_of(sample)["2x magnification"](sample)
    assert doubled.spacing == pytest.approx(2 * np.array(sample.spacing))


def test_a_slower_signal_lasts_as_long():
    sample = SAMPLES["signal"]
    slower = shifts.shifts_of(sample)["half sampling rate"](sample)
    assert slower.rate == 50 and slower.array.shape == (12, 250)
    flat = shifts.shifts_of(sample)["V3 flat"](sample).array
    assert [lead for lead in range(12) if not flat[lead].any()] == [8]


def test_stains_are_those_of_pathology_and_white_stays_white():
    assert "stain" in shifts.shifts_of(SAMPLES["tissue"]) and "stain" not in shifts.shifts_of(SAMPLES["colour"])
    white = Sample("pathology", np.ones((8, 8, 3), np.float32))
    assert shifts.STAIN(white).array == pytest.approx(1)
    stained = shifts.stained((1.0, 1.0))(SAMPLES["tissue"].array)
    np.testing.assert_allclose(stained, SAMPLES["tissue"].array.clip(1 / 255, 1), atol=1e-5)
    grey = Sample("pathology", smooth(32, 32))
    assert np.array_equal(shifts.STAIN(grey).array, grey.array)
