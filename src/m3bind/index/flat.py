"""Exact search: the true nearest rows, with proof, also from 8-bit codes.

* `nearest`: rough scores of all rows, then true scores of the best, until a bound proves that no other row is among the
  k best. * `rescore`: the true scores, by one kernel, so that equal rows have equal scores everywhere.
* `Codes`: 8-bit copies of the rows of a committed segment, a quarter of the bytes to read. `new_codes`, `write_codes`,
  `open_codes`.

Rough scores come from the float32 rows by blocked matrix products (faster for many queries), or from the codes (faster
for few, which are limited by memory bandwidth). The first searches of each size measure which is faster.

The bound: a row x and its code c differ by |x - c| <= e, so the score of a unit query is wrong by at most e; the
largest e of all rows is measured when the codes are written. If the worst candidate's rough score plus e is below
the k-th true score, no row outside the candidates belongs to the k best.

Shapes: n rows, q queries, d dimension, k hits, c candidates.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import faiss
import numpy as np
from pydantic import Field
from typing_extensions import TypedDict

from m3bind.core.files import write_json
from m3bind.core.stored import checked, read_json
from m3bind.index import faiss_files
from m3bind.index.base import Array, Mask
from m3bind.index.segment import Rows, Segment

CODES, CODES_INFO = "codes.faiss", "codes.json"
SPARE = 16  # candidates beyond k
FLOAT_ERROR = 4e-6  # of a float32 product of unit rows, whatever the order of its sum
MAX_CODED = 16  # queries for which codes may be faster
GATHER = 16384  # rows copied at once
COPIED = 1 << 23  # values copied at once for true scores
TRAINED = 65536  # rows from which the range of the codes is computed


class _CodesInfo(TypedDict):
    """The schema of `codes.json`."""

    error: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]


@dataclass
class Codes:
    """The 8-bit copy of the first n rows, mapped into memory."""

    index: Any  # faiss.IndexScalarQuantizer
    error: float  # the largest |x - c|
    seconds: dict[tuple[str, int], float] = field(default_factory=dict)  # (form, queries): of the last search

    def pays(self, q: int) -> bool:
        """Whether q queries are faster with the codes; each form is measured once."""
        codes, rows = self.seconds.get(("codes", q)), self.seconds.get(("rows", q))
        return q <= MAX_CODED and (codes is None or (rows is not None and codes <= rows))


def nearest(
    arrays: Sequence[Array], queries: Array, k: int, mask: Mask | None = None, codes: Codes | None = None
) -> tuple[Array, Rows]:
    """True scores and rows, both (q, k), best first, equal scores in the order of the rows.

    Args:
        arrays: the rows, in pieces (n_1, d), (n_2, d), ...
        queries: (q, d) float32 unit rows.
        k: at most the number of rows in `mask`.
        mask: (n,) rows that may be found; None for all.
        codes: of `arrays[0]`.
    """
    fits = sum(map(len, arrays)) if mask is None else int(np.count_nonzero(mask))
    scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    open_ = np.arange(len(queries))  # queries without a proven answer
    wide = min(k + SPARE, fits)
    while len(open_):
        form = "codes" if codes is not None and codes.pays(len(open_)) else "rows"
        start = time.perf_counter()
        rough, found = _rough(arrays, queries[open_], wide, mask, codes if form == "codes" else None)
        if codes is not None:
            codes.seconds[form, len(open_)] = time.perf_counter() - start
        best, order = ranked(rescore(arrays, queries[open_], found), found, k)
        scores[open_], rows[open_] = best, order
        error = FLOAT_ERROR + (codes.error if codes is not None and form == "codes" else 0.0)
        if wide >= fits:
            break
        open_ = open_[rough.min(axis=1) + error >= best[:, -1]]
        wide = min(4 * wide, fits)
    return scores, rows


def rescore(arrays: Sequence[Array], queries: Array, rows: Rows) -> Array:
    """True scores (q, c) of the candidate rows (q, c) of each query; -inf for row -1."""
    scores = np.empty(rows.shape, np.float32)
    lines = max(1, COPIED // max(1, rows.shape[1] * queries.shape[1]))
    for start in range(0, len(rows), lines):
        some = slice(start, start + lines)
        near = arrays[0][rows[some]] if len(arrays) == 1 else _gathered(arrays, rows[some])
        np.einsum("qcd,qd->qc", near, queries[some], out=scores[some])
    scores[rows < 0] = -np.inf
    return scores


def ranked(scores: Array, rows: Rows, k: int) -> tuple[Array, Rows]:
    """The k best of each line (q, c), best first, equal scores in the order of the rows."""
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def _gathered(arrays: Sequence[Array], rows: Rows) -> Array:
    """Copies (q, c, d) of rows (q, c) in several pieces."""
    starts = np.cumsum([0, *map(len, arrays)])
    out = np.zeros((*rows.shape, arrays[0].shape[1]), np.float32)
    for start, array in zip(starts, arrays):
        here = (rows >= start) & (rows < start + len(array))
        out[here] = array[rows[here] - start]
    return out


def _rough(
    arrays: Sequence[Array], queries: Array, wide: int, mask: Mask | None, codes: Codes | None
) -> tuple[Array, Rows]:
    """Rough scores and rows (q, wide) of the best."""
    pieces, start = [], 0
    for number, array in enumerate(arrays):
        part = None if mask is None else mask[start : start + len(array)]
        if len(array) and (part is None or part.any()):
            scan = _scan_codes(codes, queries, wide, part) if codes and not number else None
            scores, rows = scan or _scan_rows(array, queries, wide, part)
            pieces.append((scores, np.where(rows < 0, -1, rows + start)))
        start += len(array)
    scores, rows = (np.concatenate(values, axis=1) for values in zip(*pieces))
    return _top(scores, rows, wide)


def _scan_rows(array: Array, queries: Array, wide: int, mask: Mask | None) -> tuple[Array, Rows]:
    """By matrix products, which faiss blocks and distributes over the cores."""
    metric = faiss.METRIC_INNER_PRODUCT
    if mask is None or mask.all():
        found: tuple[Array, Rows] = faiss.knn(queries, array, min(wide, len(array)), metric=metric)
        return found
    chosen = np.flatnonzero(mask)
    scores, rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for start in range(0, len(chosen), GATHER):
        at = chosen[start : start + GATHER]
        near, place = faiss.knn(queries, array[at], min(wide, len(at)), metric=metric)
        scores, rows = np.concatenate([scores, near], axis=1), np.concatenate([rows, at[place]], axis=1)
        scores, rows = _top(scores, rows, wide)
    return scores, rows


def _scan_codes(codes: Codes, queries: Array, wide: int, mask: Mask | None) -> tuple[Array, Rows]:
    """By the codes: one query on all cores, each a range of the rows; several queries on one core each."""
    n = codes.index.ntotal
    pieces = faiss.omp_get_max_threads() if len(queries) == 1 else 1
    edges = np.linspace(0, n, pieces + 1).astype(int)

    def scan(low: int, high: int) -> tuple[Array, Rows]:
        if mask is None:
            selector: Any = faiss.IDSelectorRange(int(low), int(high))
        else:
            bits = np.zeros(n, bool)
            bits[low:high] = mask[low:high]
            selector = faiss.IDSelectorBitmap(np.packbits(bits, bitorder="little"))
        near: tuple[Array, Rows] = codes.index.search(queries, wide, params=faiss.SearchParameters(sel=selector))
        return near

    if pieces == 1:
        scores, rows = scan(0, n)
    else:
        with ThreadPoolExecutor(pieces) as pool:
            scores, rows = (np.concatenate(values, axis=1) for values in zip(*pool.map(scan, edges, edges[1:])))
    scores[rows < 0] = -np.inf
    return scores, rows


def _top(scores: Array, rows: Rows, wide: int) -> tuple[Array, Rows]:
    """The `wide` best of each line, in any order."""
    if scores.shape[1] <= wide:
        return scores, rows
    at = np.argpartition(-scores, wide - 1, axis=1)[:, :wide]
    return np.take_along_axis(scores, at, axis=1), np.take_along_axis(rows, at, axis=1)


def new_codes(rows: Array) -> Any:
    """An empty faiss index of codes whose range fits the rows (n, d)."""
    index = faiss.IndexScalarQuantizer(rows.shape[1], faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    chosen = np.random.default_rng(0).choice(len(rows), min(len(rows), TRAINED), replace=False)
    index.train(np.ascontiguousarray(rows[np.sort(chosen)]))
    return index


def write_codes(folder: Path, index: Any, rows: Array) -> None:
    """Write the codes of rows (n, d), and their largest error."""
    error = 0.0
    for start in range(0, len(rows), GATHER):
        block = rows[start : start + GATHER]
        lost = block - index.reconstruct_n(start, len(block))
        error = max(error, float(np.sqrt(np.einsum("nd,nd->n", lost, lost).max())))
    faiss.write_index(index, str(folder / CODES))
    write_json(folder / CODES_INFO, {"error": error})


def open_codes(part: Segment) -> Codes | None:
    """The codes of a part, or None if it has none."""
    if CODES not in part.entry["files"]:
        return None
    index = faiss_files.read(part.folder / CODES, faiss.IndexScalarQuantizer, part.dim, part.rows)
    path = part.folder / CODES_INFO
    return Codes(index, checked(_CodesInfo, read_json(path), path)["error"])
