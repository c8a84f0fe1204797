"""Retrieval across modalities where the right answer is the file of the same visit: an X-ray and the ECG of a stay.

* `visit_retrieval_rows`: image -> image over galleries of several sizes, each with its chance; `pairs_of`: its pairs.
* `through_text`: images replaced by their nearest reports, as queries for images of another modality.

Shapes: n files of one modality, m of another, t texts, d dimension of the space.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from m3bind.data.batching import rng
from m3bind.errors import ConfigError
from m3bind.evaluate.instance_search import Search, search_estimates
from m3bind.evaluate.results import Context, Row
from m3bind.evaluate.zero_shot import unit
from m3bind.models.embedding import correct_gap

Matrix = NDArray[np.float32]
GALLERIES = (0, 128, 72)  # 0: all pairs; the batch size of MedBind; the batch size of the paper
RANKS = (1, 5, 10)


def pairs_of(a: Sequence[str], b: Sequence[str], seed: int) -> NDArray[np.int64]:
    """(k, 2) positions of one file per side and common visit; one of several files is drawn by `seed`."""
    sides: list[dict[str, int]] = []
    for visits in (a, b):
        order = rng(seed, "visit", str(len(sides))).permutation(len(visits))
        sides.append({visits[i]: int(i) for i in order if visits[i]})
    shared = sorted(set(sides[0]) & set(sides[1]))
    return np.array([(sides[0][visit], sides[1][visit]) for visit in shared], dtype=np.int64).reshape(-1, 2)


def visit_retrieval_rows(
    queries: ArrayLike,
    items: ArrayLike,
    visits: tuple[Sequence[str], Sequence[str]],
    patients: tuple[Sequence[str], Sequence[str]],
    context: Context,
    galleries: Sequence[int] = GALLERIES,
    means: tuple[ArrayLike, ArrayLike] | None = None,
    resamples: int = 1000,
) -> list[Row]:
    """R@K, MRR and median rank of the file of the same visit.

    One file per side and visit is used. With a gallery of g the pairs are shuffled into groups of g (the remainder is
    left out), and each query is ranked within its group, so n is a multiple of g.

    Args:
        queries: (n, d) unit rows. items: (m, d) unit rows.
        visits: of the queries and of the items.
        patients: of the queries and of the items, the unit of resampling.
        context: common fields of the rows; `variant` becomes "gallery=g", and "gap-corrected" with `means`.
        galleries: sizes; 0 stands for all pairs. Sizes above the number of pairs give no rows.
        means: (d,) mean training embedding of each side, subtracted before the search.
        resamples: bootstrap draws.

    Raises:
        ConfigError: fewer than two visits have files on both sides.
    """
    pairs = pairs_of(*visits, seed=context.seed)
    if len(pairs) < 2:
        raise ConfigError(f"{context.dataset}: {len(pairs)} visits have both files; at least two are needed")
    left, right = np.asarray(queries)[pairs[:, 0]], np.asarray(items)[pairs[:, 1]]
    if means is not None:
        left, right = correct_gap(left, np.asarray(means[0])), correct_gap(right, np.asarray(means[1]))
    owners, others = (np.asarray(side)[pairs[:, i]] for i, side in enumerate(patients))
    order = rng(context.seed, "gallery").permutation(len(pairs))
    rows: list[Row] = []
    for size in galleries:
        if size > len(pairs):
            continue
        count = len(order) // size if size else 1
        groups = np.split(order[: count * (size or len(order))], count)
        place = replace(context, variant=f"gallery={size or 'all'}")
        place = place if means is None else place.varied("gap-corrected")
        metrics = [*(f"R@{k}" for k in RANKS if k <= len(groups[0])), "mrr", "median_rank"]
        searches = [Search(left[g], right[g], g, g, owners[g], others[g]) for g in groups]
        values = search_estimates(searches, metrics, resamples)
        rows += [place.row("cross_modal", metric, value, gallery=len(groups[0])) for metric, value in values.items()]
    return rows


def through_text(queries: ArrayLike, texts: ArrayLike, k: int = 5, sharpness: float = 20.0) -> Matrix:
    """(n, d) unit rows: for each image the mean of its k nearest texts, weighted by softmax of the cosines.

    Texts of all modalities share a space, so these queries have no modality gap.
    """
    rows, bank = np.asarray(queries, dtype=np.float64), np.asarray(texts, dtype=np.float64)
    k = min(k, len(bank))
    out = np.empty((len(rows), bank.shape[1]))
    for start in range(0, len(rows), 1024):
        cosines = rows[start : start + 1024] @ bank.T
        nearest = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
        near = np.take_along_axis(cosines, nearest, axis=1)
        weights = np.exp(sharpness * (near - near.max(axis=1, keepdims=True)))
        out[start : start + 1024] = np.einsum("nk,nkd->nd", weights / weights.sum(1, keepdims=True), bank[nearest])
    return unit(out).astype(np.float32)
