"""Lists in two arrays, against lists."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from m3bind.data.ragged import Ragged

LISTS = st.lists(st.lists(st.integers(-5, 2**40), max_size=5), max_size=8)


@settings(deadline=None)
@given(LISTS, st.lists(st.integers(0, 7), max_size=9), LISTS)
def test_as_lists(lists, rows, more):
    ragged = Ragged.of(lists)
    assert len(ragged) == len(lists) and [list(entry) for entry in ragged] == lists
    assert [list(entry) for entry in ragged[1:4]] == lists[1:4]
    assert [list(entry) for entry in Ragged.concatenate([ragged, Ragged.of(more)])] == lists + more
    rows = [row for row in rows if row < len(lists)]
    assert [list(entry) for entry in ragged.take(np.array(rows, np.int64))] == [lists[row] for row in rows]
    full = Ragged.of([[*entry, 7] for entry in lists])
    assert full.first().tolist() == [[*entry, 7][0] for entry in lists]
    uniform = np.linspace(0, 1, len(rows), endpoint=False)
    expected = [[*lists[row], 7][int(u * (len(lists[row]) + 1))] for row, u in zip(rows, uniform)]
    assert full.draw(np.array(rows, np.int64), uniform).tolist() == expected
