"""Approximate search with a graph (HNSW, faiss) over the 8-bit codes, rescored with true scores.

* `Graph`. * `make`, `read`. Its links are in `graph.faiss`; the codes are those of `flat`.

Conditions: the search collects the nearest of all rows, so the matching ones among them are the nearest matching rows.
It is wider if fewer rows match, and scans all matching rows if it finds too few: no condition reduces recall, even if
the matching rows are far from the query (images of one modality, queried from another).

Shapes: n rows, q queries, d dimension, k hits.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from m3bind.core.progress import progress
from m3bind.index import faiss_files, flat
from m3bind.index.base import Array, Mask
from m3bind.index.segment import Rows

GRAPH = "graph.faiss"
LINKS, BUILD_EF = 32, 120  # links of a row, width of the search that finds them
WIDTHS = (16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 256, 320, 384, 512)
TOWARDS = 0.5  # real queries needed 96, rows moved halfway to another 128, rows 16, midpoints 512
WIDEST = 2048  # maximum width; then all rows are scanned
SPARE = 2  # candidates per hit whose true score is computed


@dataclass
class Graph:
    """The graph of the first n rows; `width`: efSearch, the candidates of a search."""

    index: Any  # faiss.IndexHNSW over the codes
    rows: Array  # (n, d)
    width: int

    def __len__(self) -> int:
        return len(self.rows)

    def nearest(self, queries: Array, k: int, mask: Mask | None) -> tuple[Array, Rows, NDArray[np.int64]]:
        """See `Near`."""
        share = 1.0 if mask is None else max(int(np.count_nonzero(mask)), 1) / len(self)
        wide = min(int(max(self.width, SPARE * k) / share), WIDEST)
        count = SPARE * k if mask is None else wide
        settings = faiss.SearchParametersHNSW(efSearch=max(wide, count))
        found: Rows = self.index.search(queries, count, params=settings)[1]  # nearest first; -1 if there are fewer
        if mask is not None:
            found[(found >= 0) & ~mask[found]] = -1
            at = np.argsort(found < 0, axis=1, kind="stable")[:, : max(self.width, SPARE * k)]
            found = np.take_along_axis(found, at, axis=1)
        enough = np.count_nonzero(found >= 0, axis=1) >= max(k, min(self.width, SPARE * k))
        return *flat.ranked(flat.rescore([self.rows], queries, found), found, k), np.flatnonzero(~enough)

    def write(self, folder: Path) -> None:
        """Write the links."""
        faiss.write_index(self.index, str(folder / GRAPH), faiss.IO_FLAG_SKIP_STORAGE)


def make(codes: Any, rows: Array) -> Graph:
    """A graph over `codes`, to which the rows (n, d) are added; the width is not set."""
    index = faiss.IndexHNSW(codes, LINKS)
    index.is_trained = True
    index.hnsw.efConstruction = BUILD_EF
    with progress("graph of the index", len(rows)) as bar:
        index.add(rows)  # all at once: faiss links the upper levels first, which improves recall
        bar.advance(len(rows))
    return Graph(index, rows, 0)


def read(folder: Path, codes: flat.Codes, rows: Array, width: int) -> Graph:
    """The graph in a folder, mapped into memory."""
    index = faiss_files.read(folder / GRAPH, faiss.IndexHNSW, rows.shape[1], len(rows), faiss.IO_FLAG_SKIP_STORAGE)
    index.storage = codes.index
    return Graph(index, rows, width)
