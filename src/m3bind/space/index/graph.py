"""Approximate search in a published part: a navigable graph (HNSW, faiss) over the 8-bit codes, true scores at the end.

    graph.faiss    the links
    graph.json     how wide the search must be (`ef`) for a recall of `RECALL`, measured on this part

* `derive`: what a publish writes beside the rows: codes from `CODES_FROM` rows, the graph from `GRAPH_FROM`.
* `open_graph`, `Graph.nearest`.

Conditions: the search collects the ef nearest of all rows, so those of them that fit are the nearest that fit. As long
as they are too few, ef grows, and at last all that fit are scanned: no condition costs recall, also where the rows that
fit lie far from the query (images of one modality, seen from another).

Shapes: n rows, q queries, d dimension, k hits.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from m3bind.files import read_json, write_json
from m3bind.progress import progress
from m3bind.space.index import scan
from m3bind.space.index.base import Array
from m3bind.space.index.part import VECTORS, Part, Rows
from m3bind.space.index.scan import Mask

GRAPH, GRAPH_INFO = "graph.faiss", "graph.json"
CODES_FROM = 4096  # rows from which codes are kept
GRAPH_FROM = 20_000  # rows from which the graph pays: there 1.2 times a scan's batch, 10 times its single queries
LINKS, BUILD_EF = 32, 120  # of the graph: links of a row, width of the search that finds them
WIDTHS = (16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 256, 320, 384, 512)
RECALL, PROBES, DEPTH = 0.99, 256, 10  # aimed at, with so many points asking for so many neighbours
WIDEST = 2048  # a search that would have to be wider scans
SPARE = 2  # candidates per hit whose true score is taken


@dataclass
class Graph:
    """The graph of the first n rows."""

    index: Any  # faiss.IndexHNSW over the codes
    rows: Array  # (n, d)
    ef: int

    def __len__(self) -> int:
        return len(self.rows)

    def nearest(self, queries: Array, k: int, mask: Mask | None) -> tuple[Array, Rows, NDArray[np.int64]]:
        """Scores and rows (q, k), best first, and the queries for which too few near rows fit: these need a scan."""
        share = 1.0 if mask is None else max(int(np.count_nonzero(mask)), 1) / len(self)
        ef = min(int(max(self.ef, SPARE * k) / share), WIDEST)
        found = self.search(queries, SPARE * k if mask is None else ef, ef)
        if mask is not None:
            found[(found >= 0) & ~mask[found]] = -1
            at = np.argsort(found < 0, axis=1, kind="stable")[:, : max(self.ef, SPARE * k)]
            found = np.take_along_axis(found, at, axis=1)
        enough = np.count_nonzero(found >= 0, axis=1) >= max(k, min(self.ef, SPARE * k))
        return *scan.ranked(scan.rescore([self.rows], queries, found), found, k), np.flatnonzero(~enough)

    def search(self, queries: Array, wide: int, ef: int) -> Rows:
        """Rows (q, wide) of a search of width ef, nearest first by their codes; -1 where there are fewer."""
        found: Rows = self.index.search(queries, wide, params=faiss.SearchParametersHNSW(efSearch=max(ef, wide)))[1]
        return found


def derive(folder: Path, n: int, dim: int) -> None:
    """Write codes and graph beside the n rows in `folder`, where n is large enough."""
    if n < CODES_FROM:
        return
    rows = np.memmap(folder / VECTORS, "<f4", mode="r", shape=(n, dim)).view(np.ndarray)
    codes = scan.new_codes(rows)
    if n < GRAPH_FROM:
        codes.add(rows)
        scan.write_codes(folder, codes, rows)
        return
    index = faiss.IndexHNSW(codes, LINKS)
    index.is_trained = True
    index.hnsw.efConstruction = BUILD_EF
    with progress("graph of the index", n) as bar:
        index.add(rows)  # all at once: faiss links the upper levels first, which recall gains by
        bar.advance(n)
    scan.write_codes(folder, codes, rows)
    faiss.write_index(index, str(folder / GRAPH), faiss.IO_FLAG_SKIP_STORAGE)
    write_json(folder / GRAPH_INFO, {"ef": _needed(Graph(index, rows, WIDTHS[0]))})


def _needed(graph: Graph) -> int:
    """The narrowest search that finds `RECALL` of the true neighbours of rows moved towards others (unit(a + b / 2)).

    Rows of the part are too easy to ask for: real queries lie apart from them. With real texts, those that no row was
    made of needed a width of 96, rows moved so 128, rows themselves 16, points midway between two rows 512.
    """
    rng = np.random.default_rng(0)
    one, other = (graph.rows[rng.integers(0, len(graph), PROBES)] for _ in range(2))
    queries = one + 0.5 * other
    queries /= np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-6)
    true = scan.nearest([graph.rows], queries, DEPTH)[1].tolist()
    for ef in WIDTHS:
        graph.ef = ef
        found = graph.nearest(queries, DEPTH, None)[1].tolist()
        if np.mean([len(set(near) & set(line)) / DEPTH for near, line in zip(true, found)]) >= RECALL:
            break
    return graph.ef


def is_derived(part: Part) -> bool:
    """Whether a part has all that `derive` would write for it."""
    wanted = ([scan.CODES] if part.rows >= CODES_FROM else []) + ([GRAPH] if part.rows >= GRAPH_FROM else [])
    return all(name in part.entry["files"] for name in wanted)


def open_graph(part: Part, codes: scan.Codes | None) -> Graph | None:
    """The graph of a part, or None where it has none."""
    if codes is None or GRAPH not in part.entry["files"]:
        return None
    index = faiss.read_index(str(part.folder / GRAPH), faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_SKIP_STORAGE)
    index.storage = codes.index
    return Graph(index, part.vectors, read_json(part.folder / GRAPH_INFO)["ef"])
