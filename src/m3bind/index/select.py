"""Which rows of a table of items match a condition, column by column.

* `fits`: a `Where` on a table. * `count`: values of a column.

Shapes: m rows of a table.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m3bind.index.base import AFTER, NAMED, SEVERAL, Mask, Where


def fits(where: Where, table: pa.Table, rows_of: Callable[[Sequence[str]], Iterable[int]]) -> Mask:
    """(m,) whether each row matches; a column that the table lacks is empty in all rows.

    `rows_of`: ids -> rows of those that exist.
    """
    keep = np.ones(len(table), bool)
    for name in NAMED:
        values = getattr(where, name)
        if values is not None:
            keep &= _among(_column(table, name), values, several=name == "label")
    if where.since is not None or where.until is not None:
        date = _column(table, "date")
        keep &= _array(pc.not_equal(date, ""))
        if where.since is not None:
            keep &= _array(pc.greater_equal(date, where.since))
        if where.until is not None:
            keep &= _array(pc.less(date, where.until + AFTER))
    if where.not_ids:
        keep[list(rows_of(where.not_ids))] = False
    return keep


def count(table: pa.Table, column: str, keep: Mask) -> dict[str, int]:
    """Number of rows per value of a column, among the rows in `keep`."""
    values = pc.value_counts(_column(table, column).filter(pa.array(keep)))
    return {entry["values"]: entry["counts"] for entry in values.to_pylist()}


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    if name in table.column_names:
        return table.column(name)
    return pa.chunked_array([pa.repeat(pa.scalar("", pa.large_string()), len(table))])


def _among(column: pa.ChunkedArray, values: tuple[str, ...], several: bool) -> Mask:
    """Whether a row equals one of the values or (with `several`) contains it, separated by "|"."""
    keep = _array(pc.is_in(column, value_set=pa.array(values, pa.large_string())))
    if several:
        edge, nothing = (pa.scalar(text, pa.large_string()) for text in (SEVERAL, ""))
        wrapped = pc.binary_join_element_wise(edge, column, edge, nothing)
        for value in values:
            keep |= _array(pc.match_substring(wrapped, f"{SEVERAL}{value}{SEVERAL}"))
    return keep


def _array(values: pa.ChunkedArray) -> Mask:
    return np.array(values.to_numpy(zero_copy_only=False), bool)
