"""An encoded archive (a folder of `encode_files`) searched as it lies there, without building an index.

* `ArchiveIndex`: exact, read-only; embeddings stay memory-mapped and are looked at in blocks.

Shapes: n items, q queries, d dimension, k hits.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from m3bind.data.batching import rng
from m3bind.errors import ConfigError, UnknownNameError
from m3bind.space.encoded import Encoded
from m3bind.space.index.base import AFTER, KEY, NAMED, Array, Found, Index, Where, check_queries

BLOCK = 16384  # items compared at once


class ArchiveIndex(Index):
    """See `Index`; what would change it is refused. Items are searched in the order of the archive's rows."""

    def __init__(self, archive: Encoded) -> None:
        """View an opened archive."""
        self.archive, self._rows = archive, archive.embeddings
        self.uri, self.dim = str(archive.folder), archive.embeddings.shape[1]
        self.fingerprint, self.gap_corrected = archive.fingerprint, archive.gap_corrected
        table = archive.items.drop(columns="row")
        self._items = table[[KEY, *(name for name in table.columns if name != KEY)]].set_index(KEY, drop=False)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def columns(self) -> list[str]:
        """See `Index`."""
        return list(self._items.columns)

    @property
    def notes(self) -> Mapping[str, Any]:
        """See `Index`: an archive keeps none."""
        return {}

    @property
    def pending(self) -> int:
        """See `Index`: none."""
        return 0

    def counts(self, column: str = "modality") -> dict[str, int]:
        """See `Index`."""
        if column not in self.columns:
            raise UnknownNameError("column of this archive", column, self.columns)
        return {str(name): int(n) for name, n in self._items[column].value_counts().sort_index().items()}

    def search(self, queries: Array, k: int = 10, where: Where | None = None, exact: bool | None = None) -> Found:
        """See `Index`; always exact."""
        rows = check_queries(queries, k, self.dim)
        scores, found = nearest(self._rows, rows, k, self._allowed(where))
        ids = self._items[KEY].to_numpy()
        return Found(scores, [[str(name) for name in ids[line]] for line in found])

    def items(self, ids: Sequence[str]) -> pd.DataFrame:
        """See `Index`."""
        return self._items.iloc[self._places(ids)].reset_index(drop=True)

    def vectors(self, ids: Sequence[str]) -> Array:
        """See `Index`."""
        return np.array(self._rows[self._places(ids)], np.float32)

    def sample(self, n: int, where: Where | None = None, seed: int = 0) -> tuple[list[str], Array]:
        """See `Index`."""
        places = rng(seed, "sample").permutation(self._allowed(where))[:n]
        return self._items[KEY].iloc[places].tolist(), np.array(self._rows[places], np.float32)

    def close(self) -> None:
        """See `Index`."""

    def upsert(self, vectors: Array, items: pd.DataFrame) -> None:
        """Refused."""
        self._refuse()

    def delete(self, ids: Sequence[str]) -> int:
        """Refused."""
        self._refuse()
        return 0

    def publish(self) -> None:
        """Refused."""
        self._refuse()

    def set_note(self, key: str, value: Any) -> None:
        """Refused."""
        self._refuse()

    def _refuse(self) -> None:
        raise ConfigError(f"{self.uri} is an encoded archive, which does not change; build an index from it")

    def _places(self, ids: Iterable[str]) -> NDArray[np.int64]:
        names = list(ids)
        places = self._items.index.get_indexer(pd.Index(names, dtype=object))
        if (places < 0).any():
            raise UnknownNameError("item", names[int(np.argmax(places < 0))], [])
        return places

    def _allowed(self, where: Where | None) -> NDArray[np.int64]:
        """Rows that fit the conditions, rising."""
        fits = np.ones(len(self), bool)
        if where:
            where.check(self.columns)
            for name in NAMED:
                if (values := getattr(where, name)) is not None:
                    fits &= self._fits(name, set(values))
            if where.since is not None or where.until is not None:
                dates = self._items["date"].to_numpy(str)
                fits &= (dates != "") & (dates >= (where.since or "")) & (dates <= (where.until or "") + AFTER)
            fits &= ~self._items[KEY].isin(where.not_ids).to_numpy()
        return np.flatnonzero(fits)

    def _fits(self, name: str, values: set[str]) -> NDArray[np.bool_]:
        """Which items have one of the values; a label is one of several parted by "|"."""
        column = self._items[name]
        if name != "label":
            return np.asarray(column.isin(values))
        known = {text: not values.isdisjoint(text.split("|")) or text in values for text in column.unique()}
        return np.asarray(column.map(known), bool)


def nearest(rows: Array, queries: Array, k: int, allowed: NDArray[np.int64]) -> tuple[Array, NDArray[np.int64]]:
    """Scores and rows, both (q, min(k, allowed)), of the nearest rows, best first, equal ones in order."""
    best = np.empty((len(queries), 0), np.float32)
    found = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(allowed), BLOCK):
        at = allowed[start : start + BLOCK]
        scores = queries @ rows[at].T
        best = np.concatenate([best, scores], axis=1)
        found = np.concatenate([found, np.broadcast_to(at, scores.shape)], axis=1)
        best, found = _best(best, found, k)
    return best, found


def _best(scores: Array, rows: NDArray[np.int64], k: int) -> tuple[Array, NDArray[np.int64]]:
    """The k best of each line, sorted by falling score, then by row."""
    k = min(k, scores.shape[1])
    order = np.empty((len(scores), k), np.int64)
    for line, (score, row) in enumerate(zip(scores, rows)):
        enough = np.partition(score, -k)[-k] if k else 0  # the k-th best; all that equal it are looked at
        near = np.flatnonzero(score >= enough)
        order[line] = near[np.lexsort((row[near], -score[near]))[:k]]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
