"""Parsing of cells of published tables.

* `literal`: a Python list or dict written as text, parsed without execution.
* `whole`: an integer that a table may have turned into "12.0".
* `is_one`: whether a label cell is 1.
"""

import ast
from typing import TypeVar

T = TypeVar("T")
MAX_CELL = 20_000  # characters; a longer cell is not a list or dict of labels


def literal(text: str, kind: type[T]) -> T | None:
    """The value of a literal such as "{'NORM': 100.0}" or "[0.7, 0.7]"; None if it is not a literal of that type."""
    if len(text) > MAX_CELL:
        return None
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, kind) else None


def whole(text: str) -> int | None:
    """12 for "12" and "12.0"; None for anything else."""
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if value.is_integer() else None


def is_one(text: str) -> bool:
    """Whether a 0/1 cell ("1", "1.0") is 1."""
    return whole(text) == 1
