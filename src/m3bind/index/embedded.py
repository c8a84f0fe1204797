"""The index in one folder.

* `EmbeddedIndex`: items in parts (`segment`), switched atomically (`store`), searched exactly (`flat`) or through a
  graph or lists of the committed segment (`ann`), with conditions applied during the search (`select`).

Rows are numbered through all parts in the order of insertion. A replaced or deleted row is only marked until `commit`.
Small parts are merged as they are written, so a thousand single upserts do not leave a thousand parts.

Shapes: n rows, q queries, d dimension, k hits.
"""

import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from m3bind.core.columns import text_columns
from m3bind.core.stored import StoredFileError
from m3bind.errors import SpaceError, UnknownNameError
from m3bind.index import ann, flat, select
from m3bind.index.base import KEY, NEEDED, Array, Index, Mask, SearchResult, Where, check_queries, check_rows
from m3bind.index.segment import IndexDamageError, Rows, Segment, as_arrow, hash_ids, write_part
from m3bind.index.store import PARTS, IndexStore, repair_command
from m3bind.privacy import redact_path

SMALL, RUN = ann.CODES_FROM, 32  # RUN parts of fewer than SMALL rows at the end are merged
COPY_ROWS = 16384  # rows copied at once
MASKS = 16  # conditions whose matching rows are cached


class EmbeddedIndex(Index):
    """See `Index`."""

    def __init__(self, store: IndexStore, parts: Sequence[Segment]) -> None:
        self.store, self.parts = store, list(parts)
        self.uri = str(store.folder)
        self.dim, self.fingerprint = store.state.dim, store.state.fingerprint
        self.gap_corrected = store.state.gap_corrected
        self._adopt()

    @classmethod
    def create(cls, folder: Path | str, dim: int, fingerprint: str, gap_corrected: bool) -> Self:
        """See `create_index`."""
        return cls(IndexStore.create(Path(folder), dim, fingerprint, gap_corrected), [])

    @classmethod
    def exists(cls, folder: Path | str) -> bool:
        """Whether the folder holds any files."""
        return Path(folder).is_dir() and any(Path(folder).iterdir())

    @classmethod
    def open(cls, folder: Path | str, writable: bool) -> Self:
        """See `open_index`."""
        store, parts = IndexStore.open(Path(folder), writable)
        try:
            return cls(store, parts)
        except (IndexDamageError, StoredFileError, OSError) as error:  # in derived files: the parts are verified
            for part in parts:
                part.close()
            store.close()
            raise SpaceError(f"{error}; repair with: {repair_command(store.folder)}") from error

    def _adopt(self) -> None:
        """Set the attributes that depend on the list of parts."""
        self._starts = np.cumsum([0, *(part.rows for part in self.parts)])
        self._alive = np.ones(self._starts[-1], bool)
        for part in self.parts:
            self._alive[part.gone] = False
        self._count = int(self._alive.sum())
        self._masks: OrderedDict[Where, Mask] = OrderedDict()
        self._lock = threading.Lock()  # several threads may search
        self._codes = flat.open_codes(self.parts[0]) if self.parts else None
        self._near = ann.open_near(self.parts[0], self._codes) if self._codes else None

    def __len__(self) -> int:
        return self._count

    @property
    def columns(self) -> list[str]:
        """See `Index`."""
        names = dict.fromkeys(NEEDED)
        for part in self.parts:
            names |= dict.fromkeys(part.columns)
        return list(names)

    @property
    def metadata(self) -> Mapping[str, Any]:
        """See `Index`."""
        return self.store.state.notes

    @property
    def pending(self) -> int:
        """See `Index`."""
        first = self.parts[0] if self.parts else None
        if first is not None and ann.is_derived(first):
            return len(self._alive) - first.rows + len(self._alive) - self._count
        return self._count

    def counts(self, column: str = "modality", where: Where | None = None) -> dict[str, int]:
        """See `Index`."""
        if column not in self.columns:
            raise UnknownNameError("column of this index", column, self.columns)
        mask = self._mask(where)
        keep = self._alive if mask is None else mask
        counts: Counter[str] = Counter()
        for start, part in zip(self._starts, self.parts):
            if part.table is not None:
                counts.update(select.count(part.table, column, keep[start : start + part.rows]))
        return dict(sorted(counts.items()))

    # -- changing ------------------------------------------------------------------------------------------------------

    def upsert(self, vectors: Array, items: pd.DataFrame) -> None:
        """See `Index`."""
        self.store.need_lock()
        rows, table = check_rows(vectors, items, self.dim)
        if len(rows):
            self._append(rows, table, self._rows(table[KEY].tolist(), missing=False))

    def delete(self, ids: Sequence[str]) -> int:
        """See `Index`."""
        self.store.need_lock()
        gone = self._rows(list(dict.fromkeys(ids)), missing=False)
        if len(gone):
            self._append(np.empty((0, self.dim), np.float32), _NOTHING, gone)
        return len(gone)

    def set_metadata(self, key: str, value: Any) -> None:
        """See `Index`."""
        self.store.need_lock()
        notes = {**self.store.state.notes, key: value}
        self.store.commit(notes={name: entry for name, entry in notes.items() if entry is not None})

    def commit(self) -> None:
        """See `Index`."""
        self.store.need_lock()
        if self.pending:
            self.rewrite()

    def rewrite(self) -> None:
        """Write all live rows, in order, as the only part of a new state."""
        if not self._count:
            self._switch([], None)
            return
        every = range(len(self.parts))
        entry = write_part(
            self.store.part_folder(),
            self._blocks(every),
            self._items(every),
            np.empty(0, np.int64),
            lambda folder: ann.derive(folder, self._count, self.dim),
        )
        self._switch([], entry)

    def forget(self, rows: Mask) -> int:
        """Mark rows (n,) as gone, in memory only; returns how many of them were live."""
        lost = int(np.count_nonzero(rows & self._alive))
        self._alive &= ~rows
        self._count -= lost
        return lost

    def _append(self, rows: Array, table: pd.DataFrame, gone: Rows) -> None:
        """Write a part of new rows, merged with the small parts at the end if there are many."""
        small = 0
        while small < len(self.parts) and self.parts[-1 - small].rows < SMALL:
            small += 1
        kept = len(self.parts) - (small if small >= RUN else 0)
        tail, start = range(kept, len(self.parts)), int(self._starts[kept])
        self._alive[gone] = False  # so that the merge skips rows that this change replaces
        gone = np.union1d(gone, np.concatenate([np.empty(0, np.int64), *(self.parts[i].gone for i in tail)]))
        items = pa.concat_tables([*([self._items(tail)] if tail else []), as_arrow(table)], promote_options="default")
        try:
            entry = write_part(
                self.store.part_folder(), chain(self._blocks(tail), [rows]), _filled(items), gone[gone < start]
            )
            self._switch(self.parts[:kept], entry)
        except BaseException:
            self._adopt()
            raise

    def _switch(self, kept: Sequence[Segment], entry: dict[str, Any] | None) -> None:
        """Replace the parts by `kept` and the new one, and close the others."""
        entries = [part.entry for part in kept] + ([entry] if entry else [])
        self.store.commit(parts=entries)
        old = self.parts[len(kept) :]
        new = [Segment(self.store.folder / PARTS / entry["name"], entry, self.dim, check=False)] if entry else []
        self.parts = [*kept, *new]
        self._adopt()
        for part in old:
            part.close()
        if old:
            self.store.sweep()

    def _blocks(self, parts: Sequence[int]) -> Iterator[Array]:
        """The live rows of some parts, in order."""
        for number in parts:
            part, first = self.parts[number], self._starts[number]
            for start in range(0, part.rows, COPY_ROWS):
                block = part.vectors[start : start + COPY_ROWS]
                yield block[self._alive[first + start : first + start + len(block)]]

    def _items(self, parts: Sequence[int]) -> pa.Table:
        """The metadata of the live rows of some parts, in order."""
        tables = []
        for number in parts:
            part, first = self.parts[number], self._starts[number]
            if part.table is not None:
                tables.append(part.table.filter(pa.array(self._alive[first : first + part.rows])))
        return _filled(pa.concat_tables(tables, promote_options="default")) if tables else as_arrow(_NOTHING)

    # -- reading -------------------------------------------------------------------------------------------------------

    def search(
        self, queries: Array, k: int = 10, where: Where | None = None, exact: bool | None = None
    ) -> SearchResult:
        """See `Index`."""
        rows = check_queries(queries, k, self.dim)
        mask = self._mask(where)
        fits = self._count if mask is None else int(np.count_nonzero(mask))
        k = min(k, fits)
        if k == 0:
            return SearchResult(np.empty((len(rows), 0), np.float32), [[] for _ in rows])
        scores, found = self._nearest(rows, k, mask, fits, exact)
        return SearchResult(scores, self._ids(found))

    def _nearest(self, queries: Array, k: int, mask: Mask | None, fits: int, exact: bool | None) -> tuple[Array, Rows]:
        """Scores and rows (q, k) of the best; k <= fits, the number of matching rows."""
        arrays = [part.vectors for part in self.parts]
        if self._near is None or exact or (exact is None and fits < ann.NEAR_FROM):
            return flat.nearest(arrays, queries, k, mask, self._codes)
        first = len(self._near)
        head = None if mask is None else mask[:first]
        scores, rows, unsure = self._near.nearest(queries, k, head)
        if len(arrays) > 1 and (mask is None or mask[first:].any()):
            later = len(self._alive) - first if mask is None else int(np.count_nonzero(mask[first:]))
            tail = None if mask is None else mask[first:]
            more, at = flat.nearest(arrays[1:], queries, min(k, later), tail)
            scores, rows = np.concatenate([scores, more], axis=1), np.concatenate([rows, at + first], axis=1)
            scores, rows = flat.ranked(scores, rows, k)
        if len(unsure):
            scores[unsure], rows[unsure] = flat.nearest(arrays, queries[unsure], k, mask, self._codes)
        return scores, rows

    def _mask(self, where: Where | None) -> Mask | None:
        """Which rows may be found; None for all."""
        if not where:
            return None if self._count == len(self._alive) else self._alive
        if self._count:
            where.check(self.columns)
        mask = self._masks.get(where)
        if mask is None:
            parts = [select.fits(where, part.table, part.rows_of) for part in self.parts if part.table is not None]
            mask = np.concatenate([np.empty(0, bool), *parts]) & self._alive
            with self._lock:
                self._masks[where] = mask
                if len(self._masks) > MASKS:
                    self._masks.popitem(last=False)
        return mask

    def _ids(self, rows: Rows) -> list[list[str]]:
        """The ids of rows (q, k)."""
        if len(self.parts) == 1:
            return [self.parts[0].texts(KEY, line) for line in rows.tolist()]
        return [self._texts(KEY, line) for line in rows]

    def _texts(self, column: str, rows: Rows) -> list[str]:
        """Values of a column at some rows."""
        out = np.empty(len(rows), object)
        for number, at, inside in self._by_part(rows):
            out[at] = self.parts[number].texts(column, inside.tolist())
        return list(out)

    def _by_part(self, rows: Rows) -> Iterator[tuple[int, Rows, Rows]]:
        """(number of the part, positions in `rows`, rows within the part) of each part with any of the rows."""
        numbers = np.searchsorted(self._starts, rows, "right") - 1
        for number in np.unique(numbers):
            at = np.flatnonzero(numbers == number)
            yield int(number), at, rows[at] - self._starts[number]

    def _rows(self, ids: Sequence[str], *, missing: bool = True) -> Rows:
        """Live rows of ids, in the order of `ids`; with missing=False, unknown ids are skipped.

        Raises:
            UnknownNameError: with `missing`, an unknown id.
        """
        hashes, found = hash_ids(ids), dict[int, int]()
        for start, part in zip(self._starts, self.parts):
            for position, row in part.find(ids, hashes).items():
                if self._alive[start + row]:
                    found[position] = int(start + row)
        if missing and len(found) < len(ids):
            absent = next(name for position, name in enumerate(ids) if position not in found)
            raise UnknownNameError("id in this index", redact_path(absent), [])
        return np.array([found[position] for position in sorted(found)], np.int64)

    def items(self, ids: Sequence[str]) -> pd.DataFrame:
        """See `Index`."""
        rows = self._rows(ids)
        return text_columns({name: self._texts(name, rows) for name in self.columns})

    def vectors(self, ids: Sequence[str]) -> Array:
        """See `Index`."""
        return self._vectors(self._rows(ids))

    def _vectors(self, rows: Rows) -> Array:
        out = np.empty((len(rows), self.dim), np.float32)
        for number, at, inside in self._by_part(rows):
            out[at] = self.parts[number].vectors[inside]
        return out

    def sample(self, n: int, where: Where | None = None, seed: int = 0) -> tuple[list[str], Array]:
        """See `Index`."""
        mask = self._mask(where)
        rows = np.arange(len(self._alive)) if mask is None else np.flatnonzero(mask)
        rows = np.sort(np.random.default_rng(seed).choice(rows, min(n, len(rows)), replace=False))
        return self._texts(KEY, rows), self._vectors(rows)

    def close(self) -> None:
        """See `Index`."""
        for part in self.parts:
            part.close()
        self.parts = []
        self.store.close()


_NOTHING = text_columns({name: [] for name in NEEDED})


def _filled(table: pa.Table) -> pa.Table:
    """The table with empty texts instead of nulls."""
    return pa.table({name: pc.fill_null(table.column(name), "") for name in table.column_names})
