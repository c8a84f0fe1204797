"""Cells of published tables: literals are parsed, never run; files are written atomically."""

import ast

import numpy as np
import wfdb
from hypothesis import given
from hypothesis import strategies as st

from m3bind.evaluate.benchmarks._cells import is_one, literal, whole
from m3bind.evaluate.benchmarks._extract import npz_rows, save_ecg

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(values)
def test_literals_come_back(value):
    assert literal(repr(value), type(value)) == value
    assert literal(f"  {value!r} ", type(value)) == ast.literal_eval(repr(value))


def test_cells_that_are_not_literals():
    for text in ("", "nan", "{'a'", "__import__('os').system('true')", "[x for x in (1,)]", "(" * 9000, "[1," * 9000):
        assert literal(text, list) is None and literal(text, dict) is None
    assert literal("[1, 2]", dict) is None


def test_numbers_in_cells():
    assert [whole(text) for text in ("12", "12.0", " 12 ", "", "x", "1.5", "nan", "inf")] == [12, 12, 12, *[None] * 5]
    assert [is_one(text) for text in ("1", "1.0", "0", "0.0", "", "2", "True")] == [True, True, *[False] * 5]


def test_records_come_back_as_wfdb_reads_them(tmp_path):
    signal = np.random.default_rng(0).normal(0, 1, (12, 900))
    signal[3, 10] = np.nan
    save_ecg(tmp_path / "A1", signal, 500)
    record = wfdb.rdrecord(str(tmp_path / "A1"))
    assert record.fs == 500 and record.sig_name[4] == "aVL" and record.units == ["mV"] * 12
    assert np.isnan(record.p_signal[10, 3]) and np.nanmax(np.abs(record.p_signal.T - signal)) <= 5e-4 + 1e-9
    stored = wfdb.rdrecord(str(tmp_path / "A1"), physical=False)
    assert [sum(column) % 65536 for column in stored.d_signal.T.tolist()] == [c % 65536 for c in stored.checksum]


def test_rows_of_an_npz_one_by_one(tmp_path):
    array = np.arange(24, dtype=np.int16).reshape(4, 3, 2)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", images=array, other=array[:1])
        assert (np.stack(list(npz_rows(tmp_path / "a.npz", "images"))) == array).all()
