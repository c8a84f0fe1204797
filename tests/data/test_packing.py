"""Packed inputs give the float32 inputs back: bit by bit where there are levels, within the stated error elsewhere."""

import numpy as np
import pytest
import torch

from m3bind.data import packing
from m3bind.data.packing import LARGE, STEP_ERROR, expand, pack, together

RANDOM = np.random.default_rng(0)


def pictures(channels, levels=256):
    """A table of levels as preprocessing gives it, and pictures of them."""
    mean, std = RANDOM.uniform(0, 1, (2, channels, 1)).astype(np.float32)
    ramp = np.arange(levels, dtype=np.float32) / np.float32(levels - 1)
    table = (ramp - mean) / (std + np.float32(0.1))
    numbers = RANDOM.integers(0, levels, (3, channels, 40, 30))
    return table, np.stack([[table[c][n] for c, n in enumerate(row)] for row in numbers])


@pytest.mark.parametrize(("channels", "levels", "dtype"), [(1, 256, np.uint8), (3, 256, np.uint8), (1, 2001, np.int16)])
def test_levels_are_exact_and_small(channels, levels, dtype):
    table, rows = pictures(channels, levels)
    packed = [pack(row, table) for row in rows]
    assert {row.form for row in packed} == {"level"} and {row.array.dtype for row in packed} == {np.dtype(dtype)}
    assert packed[0].nbytes * (4 // np.dtype(dtype).itemsize) == rows[0].nbytes
    np.testing.assert_array_equal(expand(together(packed, table)).numpy().view(np.int32), rows.view(np.int32))


def test_one_table_serves_all_channels():
    table, _ = pictures(1)
    row = table[0][RANDOM.integers(0, 256, (5, 3, 8, 8))]
    packed = pack(row, table)
    assert packed.form == "level"
    np.testing.assert_array_equal(expand(together([packed], table)).numpy()[0], row)


@pytest.mark.parametrize("change", ["a bit", "between", "above", "negative zero"])
def test_a_value_that_is_no_level_is_noticed(change):
    table, rows = pictures(3)
    row = rows[0].copy()
    if change == "negative zero":
        table = np.repeat(np.arange(256, dtype=np.float32)[None], 3, 0)
        row = np.zeros((3, 40, 30), np.float32)
        row[2, 39, 29] = -0.0
    elif change == "a bit":
        row[2, 39, 29] = np.nextafter(row[2, 39, 29], np.float32(9))
    else:
        row[2, 39, 29] = row[2].max() + 9 if change == "above" else table[2, 100:102].mean()
    packed = pack(row, table)
    assert packed.form == "value"
    np.testing.assert_array_equal(expand(together([packed], table)).numpy()[0].view(np.int32), row.view(np.int32))


@pytest.mark.parametrize("spread", [1e-20, 1.0, 2000.0, 1e30])
@pytest.mark.parametrize("offset", [0.0, -0.5, 3.0])
def test_large_inputs_without_levels_stay_within_the_stated_error(spread, offset):
    row = ((RANDOM.random((2, 512, 300)) + offset) * spread).astype(np.float32)
    assert row.nbytes >= LARGE
    packed = pack(row, None)
    assert packed.form == "step" and 2 * packed.nbytes == row.nbytes
    back = expand(together([packed, packed], None)).numpy()[1]
    assert np.abs(back.astype(float) - row).max() <= STEP_ERROR * np.ptp(row.astype(float))
    assert back[row == row.min()] == row.min()  # padding with air stays air


@pytest.mark.parametrize("row", [np.ones(LARGE // 4), np.linspace(1e8, 1e8 + 64, LARGE // 4), np.array([-3e38, 3e38])])
def test_what_steps_cannot_hold_stays_float32(row):
    row = np.resize(row, LARGE // 4).astype(np.float32)
    packed = pack(row, None)
    assert packed.form == "value" or np.ptp(row) > 0
    back = expand(together([packed], None)).numpy()[0]
    np.testing.assert_allclose(back, row, rtol=0, atol=STEP_ERROR * min(float(row.max()) - float(row.min()), 3e38))


def test_small_inputs_without_levels_stay_exact():
    row = RANDOM.random((12, 500)).astype(np.float32)
    assert pack(row, None).form == "value"
    np.testing.assert_array_equal(expand(together([pack(row, None)], None)).numpy()[0], row)


def test_inputs_of_different_forms_come_together():
    table, rows = pictures(3)
    rows[1, 0, 0, 0] += 1e-3
    batch = together([pack(row, table) for row in rows], table)
    np.testing.assert_array_equal(expand(batch).numpy(), rows)


@pytest.mark.parametrize("table", [np.zeros((3, 256)), np.ones((2, 256)), np.arange(3)[:, None], np.ones((0, 0))])
def test_levels_that_are_none_are_disregarded(table):
    row = RANDOM.random((3, 4, 4)).astype(np.float32)
    assert pack(row, table.astype(np.float32)).form == "value"


def test_expand_keeps_the_device():
    table, rows = pictures(3)
    batch = {name: tensor.to("meta") for name, tensor in together([pack(rows[0], table)], table).items()}
    assert expand(batch).device.type == "meta" and expand(batch).shape == (1, 3, 40, 30)
    assert torch.is_tensor(packing.expand(batch))
