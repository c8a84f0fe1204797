"""Approximate search with inverted lists (IVF, faiss): the lists nearest to a query are scanned.

* `Lists`. * `make`, `read`. Lists and 8-bit codes are in `lists.faiss`.

A graph search walks from row to row and misses rows that few others link to; with many rows in dense clusters these are
too many at any width. Among a million rows from 3,600 texts the graph found .961 of the true neighbours with a width of
512 and .980 with 2,048; the 24 nearest of 4,000 lists held .993, in the time of the former.

Shapes: n rows, q queries, d dimension, k hits.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from m3bind.core.progress import progress
from m3bind.index import faiss_files, flat
from m3bind.index.base import Array, Mask
from m3bind.index.segment import IndexDamageError, Rows

LISTS = "lists.faiss"
PER_ROOT = 4  # lists per square root of the number of rows
POINTS, ROUNDS = 32, 6  # of k-means: rows per list, iterations
WIDTHS = (4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 192, 256, 384, 512)
TOWARDS = 1.0  # real queries needed 24, midpoints of two rows 24, rows moved halfway 4
MAX_SHARE = 0.25  # of the lists; a search that needs more scans all rows
SPARE = 2  # candidates per hit whose true score is computed
BLOCK = 16384  # rows added at once


@dataclass
class Lists:
    """The lists of the first n rows; `width`: how many a search scans (nprobe)."""

    index: Any  # faiss.IndexIVFScalarQuantizer
    rows: Array  # (n, d)
    width: int

    def __len__(self) -> int:
        return len(self.rows)

    def nearest(self, queries: Array, k: int, mask: Mask | None) -> tuple[Array, Rows, NDArray[np.int64]]:
        """See `Near`; with conditions, `width` is divided by the share of matching rows."""
        share = 1.0 if mask is None else max(int(np.count_nonzero(mask)), 1) / len(self)
        limit, wide = max(1, int(MAX_SHARE * self.index.nlist)), math.ceil(self.width / share)
        if wide > limit and mask is not None:
            nothing = np.full((len(queries), k), -1, np.int64)
            return np.full(nothing.shape, -np.inf, np.float32), nothing, np.arange(len(queries))
        chosen = None if mask is None else faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
        settings = faiss.SearchParametersIVF(nprobe=min(wide, self.index.nlist), sel=chosen)
        found: Rows = self.index.search(queries, SPARE * k, params=settings)[1]
        enough = np.count_nonzero(found >= 0, axis=1) >= k
        return *flat.ranked(flat.rescore([self.rows], queries, found), found, k), np.flatnonzero(~enough)

    def write(self, folder: Path) -> None:
        """Write lists and codes."""
        faiss.write_index(self.index, str(folder / LISTS))


def make(codes: Any, rows: Array) -> Lists:
    """Lists of the rows (n, d), with codes of their own; the width is not set."""
    n, dim = rows.shape
    count = max(1, int(PER_ROOT * math.sqrt(n)))
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(dim), dim, count, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    )
    index.cp.niter, index.cp.max_points_per_centroid, index.cp.min_points_per_centroid = ROUNDS, POINTS, 1
    index.cp.spherical = True
    chosen = np.random.default_rng(0).choice(n, min(n, POINTS * count), replace=False)
    with progress("lists of the index", n) as bar:
        index.train(rows[np.sort(chosen)])
        for start in range(0, n, BLOCK):
            index.add(rows[start : start + BLOCK])
            bar.advance(len(rows[start : start + BLOCK]))
    return Lists(index, rows, 0)


def read(folder: Path, codes: flat.Codes, rows: Array, width: int) -> Lists:
    """The lists in a folder, mapped into memory; they include codes."""
    path = folder / LISTS
    index = faiss_files.read(path, faiss.IndexIVFScalarQuantizer, rows.shape[1], len(rows))
    lists = index.invlists
    for number in range(index.nlist):
        size = lists.list_size(number)
        ids = faiss.rev_swig_ptr(lists.get_ids(number), size) if size else np.empty(0, np.int64)
        if size and not 0 <= int(ids.min()) <= int(ids.max()) < len(rows):
            raise IndexDamageError(path, f"list {number} holds rows that the index does not have")
    return Lists(index, rows, width)
