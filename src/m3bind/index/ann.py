"""Chooses the form and width of approximate search of a committed segment, both measured on its rows.

    codes.*        8-bit copies of the rows (`flat`), from `CODES_FROM` rows
    graph.faiss    a graph over them (`hnsw`), from `NEAR_FROM` rows, if it reaches the target recall
    lists.faiss    inverted lists (`ivf`), if the graph does not: many rows in dense clusters
    near.json      form, width and its measured recall

* `derive`: writes these files of a commit. * `open_near`: opens them. * `Near`: the interface of every form.

Shapes: n rows, q queries, d dimension, k hits.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import TypedDict

from m3bind.core.files import write_json
from m3bind.core.stored import checked, read_json
from m3bind.index import flat, hnsw, ivf
from m3bind.index.base import Array, Mask
from m3bind.index.segment import VECTORS, Rows, Segment

NEAR = "near.json"
CODES_FROM = 4096  # rows from which codes are stored
NEAR_FROM = 20_000  # rows from which the graph is faster: there 1.2 times a scan's batch, 10 times its single queries
RECALL, PROBES, DEPTH = 0.99, 256, 10  # target recall, measured with 256 queries of 10 neighbours

FORMS: dict[str, Any] = {"graph": hnsw, "lists": ivf}  # the first that reaches `RECALL` is used

log = logging.getLogger(__name__)


class _Info(TypedDict):
    """The schema of `near.json`; it also has `recall`."""

    form: Literal["graph", "lists"]
    width: Annotated[int, Field(ge=1, le=1 << 20)]


class Near(Protocol):
    """An approximate search of the first n rows."""

    width: int  # of the search: a wider one has higher recall and is slower

    def __len__(self) -> int:
        """The number of rows."""

    def nearest(self, queries: Array, k: int, mask: Mask | None) -> tuple[Array, Rows, NDArray[np.int64]]:
        """Scores and rows (q, k), best first, and the queries with too few matching rows nearby: these need a scan."""

    def write(self, folder: Path) -> None:
        """Write the files, without the codes."""


def derive(folder: Path, n: int, dim: int) -> None:
    """Write codes and an approximate search beside the n rows in `folder`, if n is large enough."""
    if n < CODES_FROM:
        return
    rows = np.memmap(folder / VECTORS, "<f4", mode="r", shape=(n, dim)).view(np.ndarray)
    codes = flat.new_codes(rows)
    if n < NEAR_FROM:
        codes.add(rows)
        flat.write_codes(folder, codes, rows)
        return
    for form in FORMS:
        module = FORMS[form]
        near = module.make(codes, rows)
        recall = widen(near, rows, module.WIDTHS, module.TOWARDS)
        if recall >= RECALL:
            break
    else:
        log.warning("approximate search finds %.1f %% of the true neighbours; exact=True finds all", 100 * recall)
    near.write(folder)
    if not codes.ntotal:  # a graph has added the rows
        codes.add(rows)
    flat.write_codes(folder, codes, rows)
    write_json(folder / NEAR, {"form": form, "width": near.width, "recall": round(recall, 4)})


def widen(near: Near, rows: Array, widths: Sequence[int], towards: float) -> float:
    """Set the smallest width with `RECALL` for queries unit(a + towards b), a and b random rows; returns its recall.

    Rows of the part are too easy queries: real ones lie apart from them. How far a row a must be moved towards another
    row b to be as hard depends on the form (`TOWARDS` of each, measured with queries that are not in the index).
    """
    rng = np.random.default_rng(0)
    a, b = (rows[rng.integers(0, len(rows), PROBES)] for _ in range(2))
    queries = a + towards * b
    queries /= np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-6)
    true = flat.nearest([rows], queries, DEPTH)[1].tolist()
    recall = 0.0
    for width in widths:
        near.width = width
        found = near.nearest(queries, DEPTH, None)[1].tolist()
        recall = float(np.mean([len(set(line) & set(best)) / DEPTH for line, best in zip(found, true)]))
        if recall >= RECALL:
            break
    return recall


def is_derived(part: Segment) -> bool:
    """Whether a part has all files that `derive` writes for it."""
    expected = ([flat.CODES] if part.rows >= CODES_FROM else []) + ([NEAR] if part.rows >= NEAR_FROM else [])
    return all(name in part.entry["files"] for name in expected)


def open_near(part: Segment, codes: flat.Codes | None) -> Near | None:
    """The approximate search of a part, or None if it has none."""
    if codes is None or NEAR not in part.entry["files"]:
        return None
    path = part.folder / NEAR
    info = checked(_Info, read_json(path), path)
    near: Near = FORMS[info["form"]].read(part.folder, codes, part.vectors, info["width"])
    return near
