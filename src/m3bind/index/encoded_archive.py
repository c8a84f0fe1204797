"""Searches an encoded archive (a folder of `encode_files`) directly, without building an index.

* `ArchiveIndex`: exact (`flat`), read-only; embeddings stay memory-mapped.

Shapes: n items, q queries, d dimension, k hits.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from m3bind.data.batching import rng
from m3bind.encode.encoded import Encoded
from m3bind.errors import ConfigError, UnknownNameError
from m3bind.index import flat, select
from m3bind.index.base import KEY, Array, Index, Mask, SearchResult, Where, check_queries
from m3bind.index.segment import as_arrow


class ArchiveIndex(Index):
    """See `Index`; changes are refused. Items are in the order of the archive's rows."""

    def __init__(self, archive: Encoded) -> None:
        """Wrap an opened archive."""
        self.archive, self._rows = archive, archive.embeddings.view(np.ndarray)
        self.uri, self.dim = str(archive.folder), archive.embeddings.shape[1]
        self.fingerprint, self.gap_corrected = archive.fingerprint, archive.gap_corrected
        table = archive.items.drop(columns="row")
        self._items = table[[KEY, *(name for name in table.columns if name != KEY)]].set_index(KEY, drop=False)
        self._table = as_arrow(table)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def columns(self) -> list[str]:
        """See `Index`."""
        return list(self._items.columns)

    @property
    def metadata(self) -> Mapping[str, Any]:
        """See `Index`: an archive has none."""
        return {}

    def counts(self, column: str = "modality", where: Where | None = None) -> dict[str, int]:
        """See `Index`."""
        if column not in self.columns:
            raise UnknownNameError("column of this archive", column, self.columns)
        values = self._items[column][self._mask(where)]
        return {str(name): int(n) for name, n in values.value_counts().sort_index().items()}

    def search(
        self, queries: Array, k: int = 10, where: Where | None = None, exact: bool | None = None
    ) -> SearchResult:
        """See `Index`; always exact."""
        rows = check_queries(queries, k, self.dim)
        mask = self._mask(where)
        k = min(k, int(np.count_nonzero(mask)))
        if k == 0:
            return SearchResult(np.empty((len(rows), 0), np.float32), [[] for _ in rows])
        scores, found = flat.nearest([self._rows], rows, k, mask)
        return SearchResult(scores, self._items[KEY].to_numpy(object)[found].tolist())

    def items(self, ids: Sequence[str]) -> pd.DataFrame:
        """See `Index`."""
        return self._items.iloc[self._places(ids)].reset_index(drop=True)

    def vectors(self, ids: Sequence[str]) -> Array:
        """See `Index`."""
        return np.array(self._rows[self._places(ids)], np.float32)

    def sample(self, n: int, where: Where | None = None, seed: int = 0) -> tuple[list[str], Array]:
        """See `Index`."""
        places = rng(seed, "sample").permutation(np.flatnonzero(self._mask(where)))[:n]
        return self._items[KEY].iloc[places].tolist(), np.array(self._rows[places], np.float32)

    def close(self) -> None:
        """See `Index`."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise ConfigError(f"{self.uri} is an encoded archive, which does not change; build an index from it")

    upsert = delete = commit = set_metadata = _refuse

    def _places(self, ids: Iterable[str]) -> NDArray[np.int64]:
        names = list(ids)
        places = self._items.index.get_indexer(pd.Index(names, dtype=object))
        if (places < 0).any():
            raise UnknownNameError("item", names[int(np.argmax(places < 0))], [])
        return places

    def _mask(self, where: Where | None) -> Mask:
        """(n,) which rows match the conditions."""
        if not where:
            return np.ones(len(self), bool)
        where.check(self.columns)
        return select.fits(where, self._table, lambda ids: np.flatnonzero(self._items[KEY].isin(ids)))
