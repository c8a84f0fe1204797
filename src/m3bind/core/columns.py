"""Columns of texts in pandas' own type for them, which is `object` before pandas 3 and `str` since.

* `text_columns`: any table as such columns.

What is written here once is the same table again when it is read, whichever pandas reads it.
"""

from collections.abc import Mapping, Sequence

import pandas as pd


def text_columns(table: pd.DataFrame | Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Every column of `table` as texts, a missing value of any type (None, NaN, NaT, NA) as an empty text."""
    if not isinstance(table, pd.DataFrame):
        return pd.DataFrame(table, dtype=str)  # type str, not object: no column is looked at to guess its type
    return table.astype(str).where(table.notna(), "")
