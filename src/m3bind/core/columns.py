"""Text columns in pandas' own type for them, which is `object` before pandas 3 and `str` since.

* `text_columns`: any table as text columns, equal after a round trip through a file with any version of pandas.
"""

from collections.abc import Mapping, Sequence

import pandas as pd


def text_columns(table: pd.DataFrame | Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Every column of `table` as texts, a missing value of any type (None, NaN, NaT, NA) as an empty text."""
    if not isinstance(table, pd.DataFrame):
        return pd.DataFrame(table, dtype=str)  # dtype str, not object: pandas does not infer types
    return table.astype(str).where(table.notna(), "")
