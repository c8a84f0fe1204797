"""The interface of every index of embeddings: upsert, delete, search.

* `Index`: the interface. * `SearchResult`: what a search returns. * `Where`: conditions on metadata, inside the search.

An item is a unit row of d numbers and a line of text columns: `id` (the key), `modality`, and optional ones (`path`,
`date` in ISO form, `label`, `patient`, ...). A missing value is the empty text.

Shapes: q queries, n items, d dimension, k hits.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from m3bind.core.columns import text_columns
from m3bind.errors import ConfigError, UnknownNameError

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]  # (n,) which rows may be found
KEY = "id"
NEEDED = ("id", "modality")
NAMED = ("modality", "label", "patient")  # columns a `Where` compares with values
SEVERAL = "|"  # separates several labels of one item
INCOMPLETE = "incomplete"  # column: why an item may lack a part, e.g. a series received in pieces
DOUBTS = "doubts"  # column: what looks wrong in the readable files of an item
AFTER = "~"  # sorts after every continuation of an ISO date, so that until="2021" includes all of 2021


@dataclass(frozen=True)
class SearchResult:
    """The hits of q queries, best first: cosines (q, m) float32 and the ids, line by line.

    m is the largest number of hits; a query with fewer has shorter `ids` and NaN scores.
    """

    scores: Array
    ids: list[list[str]]

    def __iter__(self) -> Iterator[list[tuple[str, float]]]:
        """(id, cosine) of each hit, query by query."""
        for ids, scores in zip(self.ids, self.scores):
            yield [(name, float(score)) for name, score in zip(ids, scores)]


@dataclass(frozen=True)
class Where:
    """Conditions on the items of a search; all that are set must hold.

    `label` matches any of an item's labels, which are separated by "|". Dates compare as ISO text, both ends included;
    an item without a date matches no condition on dates.

    >>> Where.parse(["modality=ct,xray", "date>=2020-01-01", "label=normal"])
    Where(modality=('ct', 'xray'), label=('normal',), patient=None, since='2020-01-01', until=None, not_ids=())
    """

    modality: tuple[str, ...] | str | None = None
    label: tuple[str, ...] | str | None = None
    patient: tuple[str, ...] | str | None = None
    since: str | None = None
    until: str | None = None
    not_ids: tuple[str, ...] | str = ()

    def __post_init__(self) -> None:
        for name in (*NAMED, "not_ids"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))

    @classmethod
    def parse(cls, conditions: Sequence[str]) -> Self:
        """Parse conditions of a command line: NAME=VALUE[,VALUE...], date>=DAY, date<=DAY, id!=ID[,ID...].

        Raises:
            ConfigError: a text is not a condition, or a column is given twice.
            UnknownNameError: a column without conditions.
        """
        given: dict[str, Any] = {}
        for text in conditions:
            match = re.fullmatch(r"\s*(\w+)\s*(>=|<=|!=|=)\s*(.+?)\s*", text)
            if not match:
                raise ConfigError(f"condition {text!r}: write NAME=VALUE, date>=DAY, date<=DAY or id!=ID")
            name, sign, value = match.groups()
            key = {("date", ">="): "since", ("date", "<="): "until", ("id", "!="): "not_ids"}.get((name, sign), name)
            if key == name and name not in NAMED:
                raise UnknownNameError("column of a condition", name, [*NAMED, "date", "id"])
            if key == name and sign != "=":
                raise ConfigError(f"condition {text!r}: {name} takes = and values separated by commas")
            if key in given:
                raise ConfigError(f"condition {text!r}: {name} is given twice; separate several values by commas")
            given[key] = value if key in ("since", "until") else tuple(part.strip() for part in value.split(","))
        return cls(**given)

    def __bool__(self) -> bool:
        return any(getattr(self, entry.name) != entry.default for entry in fields(self))

    def columns(self) -> list[str]:
        """The metadata columns that the conditions use."""
        named = [name for name in NAMED if getattr(self, name) is not None]
        return named + (["date"] if self.since is not None or self.until is not None else [])

    def check(self, known: Sequence[str]) -> None:
        """Refuse columns that the index does not have.

        Raises:
            UnknownNameError: names the column.
        """
        for name in self.columns():
            if name not in known:
                raise UnknownNameError("column of this index (encode with keep to have it)", name, known)


class Index(ABC):
    """Unit embeddings of items by id, searched by cosine. A context manager; `close` releases the writer's lock.

    The effect of `upsert`, `delete`, `set_metadata` and `commit` is durable when they return. A reader continues to see
    the state that it opened, whatever a writer does meanwhile.
    """

    uri: str
    dim: int
    fingerprint: str  # of the space of the embeddings
    gap_corrected: bool  # embeddings are without their modality's mean

    @abstractmethod
    def __len__(self) -> int:
        """Number of items."""

    @property
    @abstractmethod
    def columns(self) -> list[str]:
        """Names of the metadata columns, `id` first."""

    @property
    @abstractmethod
    def metadata(self) -> Mapping[str, Any]:
        """Small JSON values stored with the index."""

    @property
    def pending(self) -> int:
        """Number of changes that a `commit` would merge into the form that searches fastest."""
        return 0

    @abstractmethod
    def counts(self, column: str = "modality", where: Where | None = None) -> dict[str, int]:
        """Items per value of a column, sorted by value; with `where`, of the matching ones.

        Raises:
            UnknownNameError: no such column.
        """

    @abstractmethod
    def upsert(self, vectors: Array, items: pd.DataFrame) -> None:
        """Add items (n, d), replacing those of the same id; a replaced item is ordered as a new one among ties.

        Raises:
            ConfigError: opened for reading only, an id twice or empty, columns missing, rows that are not finite unit
                rows of this dimension.
            DiskError: the file system refused; the index is unchanged.
        """

    @abstractmethod
    def delete(self, ids: Sequence[str]) -> int:
        """Delete items; returns how many existed.

        Raises:
            ConfigError, DiskError: see `upsert`.
        """

    @abstractmethod
    def commit(self) -> None:
        """Merge all changes into the form that searches fastest; new readers see it at once.

        Raises:
            ConfigError, DiskError: see `upsert`.
        """

    @abstractmethod
    def set_metadata(self, key: str, value: Any) -> None:
        """Store a JSON value with the index; None removes it.

        Raises:
            ConfigError, DiskError: see `upsert`.
        """

    @abstractmethod
    def search(
        self, queries: Array, k: int = 10, where: Where | None = None, exact: bool | None = None
    ) -> SearchResult:
        """The k items of highest cosine for each unit query (q, d), best first, ties in the order of insertion.

        Args:
            queries: (q, d), or (d,) for one.
            k: number of hits; fewer if fewer items match `where`.
            where: conditions; applied before the hits are cut to k.
            exact: True for the true nearest, False for the approximate index if there is one; None: exact below the
                size from which the approximate index is faster.

        Raises:
            ConfigError: k < 1, or queries of another dimension.
            UnknownNameError: a condition on an unknown column.
        """

    @abstractmethod
    def items(self, ids: Sequence[str]) -> pd.DataFrame:
        """The metadata of items, in the order of `ids`.

        Raises:
            UnknownNameError: an unknown id.
        """

    @abstractmethod
    def vectors(self, ids: Sequence[str]) -> Array:
        """The rows (n, d) of items, in the order of `ids`.

        Raises:
            UnknownNameError: an unknown id.
        """

    @abstractmethod
    def sample(self, n: int, where: Where | None = None, seed: int = 0) -> tuple[list[str], Array]:
        """n items drawn without replacement (all if there are fewer): ids and rows (n, d)."""

    @abstractmethod
    def close(self) -> None:
        """Close files and connections, and release the lock."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        counts = ", ".join(f"{name} {n}" for name, n in self.counts().items())
        return f"Index({self.uri}: {len(self)} items ({counts}), {self.dim} numbers each)"


def check_rows(vectors: Array, items: pd.DataFrame, dim: int) -> tuple[Array, pd.DataFrame]:
    """`vectors` as float32 (n, d) and `items` as text columns, `id` first, validated.

    Raises:
        ConfigError: names the fault and its row.
    """
    rows = np.ascontiguousarray(vectors, np.float32)
    if rows.ndim != 2 or rows.shape[1] != dim or len(rows) != len(items):
        raise ConfigError(f"rows of shape {rows.shape} for {len(items)} items; this index takes (n, {dim})")
    if absent := [name for name in NEEDED if name not in items.columns]:
        raise ConfigError(f"items have no column {absent[0]!r}")
    ordered = items[[KEY, *(name for name in items.columns if name != KEY)]]
    table = text_columns(ordered.reset_index(drop=True))
    if (table[KEY] == "").any():
        raise ConfigError(f"item {int(np.argmax(table[KEY] == ''))} has no id")
    if (repeated := table[KEY].duplicated()).any():
        raise ConfigError(f"item {int(np.argmax(repeated))} has the id of an earlier one in the same call")
    length = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    wrong = np.flatnonzero(~(np.abs(length - 1) < 1e-3))
    if len(wrong):
        raise ConfigError(f"row {wrong[0]} is not a unit row (length {length[wrong[0]]:.4g})")
    return rows, table


def check_queries(queries: Array, k: int, dim: int) -> Array:
    """Queries as contiguous float32 (q, d).

    Raises:
        ConfigError: k < 1, another dimension, or numbers that are not finite.
    """
    rows = np.atleast_2d(np.ascontiguousarray(queries, np.float32))
    if k < 1:
        raise ConfigError(f"k is {k}; it must be at least 1")
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise ConfigError(f"queries of shape {rows.shape}; this index takes (q, {dim})")
    if not np.isfinite(rows).all():
        raise ConfigError("a query is not finite")
    return rows
