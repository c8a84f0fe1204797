"""FLAIR's lists of retina images: one row per image, with texts written as Python lists (parsed without execution).

* `literal_list`: such a cell as a tuple.
* `Listed`, `read_list`: the rows of one list.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from m3bind.evaluate.benchmarks._cells import literal
from m3bind.evaluate.benchmarks.base import Fault, read_table


@dataclass(frozen=True)
class Listed:
    """One row of a list."""

    row: int
    image: str
    categories: tuple[str, ...]


def literal_list(text: str) -> tuple[str, ...] | None:
    """ "['normal', 'drusens']" -> ("normal", "drusens"); None if it is not a list of texts."""
    value = literal(text or "[]", list)
    if value is None or not all(isinstance(item, str) for item in value):
        return None
    return tuple(item.strip() for item in value if item.strip())


def read_list(path: Path) -> Iterator[Listed | Fault]:
    """The rows of a list with the columns image, atributes (sic) and categories.

    Raises:
        ManifestError: the list is missing or lacks a column.
    """
    for row, cells in read_table(path, ("image", "atributes", "categories")):
        categories = literal_list(cells["categories"])
        if categories is None:
            yield Fault(row, "its categories are not a list of texts", cells["image"], "with a bad list")
        else:
            yield Listed(row, cells["image"], categories)
