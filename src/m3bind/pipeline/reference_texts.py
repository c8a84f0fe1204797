"""Reference texts of a space: what the training texts of each modality speak of, stored for search (search/ranking.py).

* `reference_texts`: embeddings of them, per modality.

A text that a patient's report could be recognised by is not stored: only embeddings of concept names, and of captions
that at least `SHARED` patients have, are stored one by one; all other texts as means of at least `SHARED` of them.

Shapes: t reference texts, d dimension of the space.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from m3bind.data.batching import IntArray, distinct_ids, rng
from m3bind.pipeline.dataset import Dataset
from m3bind.pipeline.features import captions_of, phrases_of

SHARED = 3  # minimum patients of a caption, and minimum texts of a mean
SINGLE, GROUPED, PER_GROUP = 512, 1500, 6  # maximum texts of both kinds; texts of a mean, on average

Matrix = NDArray[np.float32]
Embed = Callable[[str, list[str]], Matrix]
_NONE: Matrix = np.zeros((0, 1), np.float32)


def reference_texts(data: Dataset, embed: Embed, seed: int = 0) -> dict[str, tuple[Matrix, Matrix]]:
    """Modality -> (t, d) unit rows of its training texts, and (t,) how many texts each stands for; t <= 762.

    Modalities without texts are left out.

    Args:
        data: the data of a run.
        embed: modality, texts -> (n, d) unit rows, in one space.
        seed: of the choice among more texts than are stored.
    """
    found = {m: _of_modality(data, m, partial(embed, m), seed) for m in data.modalities}
    return {m: stored for m, stored in found.items() if len(stored[0])}


def _of_modality(
    data: Dataset, modality: str, embed: Callable[[list[str]], Matrix], seed: int
) -> tuple[Matrix, Matrix]:
    pool, table = data.pool[modality], data.table
    single = _common(data, modality)
    rest = pool[~np.isin(pool, single)]
    drawn = np.sort(rest[rng(seed, "reference texts", modality).permutation(len(rest))[:GROUPED]])
    rows, counts = (embed(table.take(single)), np.ones(len(single))) if len(single) else (_NONE, np.zeros(0))
    if len(drawn) >= SHARED:
        means, sizes = _means(embed(table.take(drawn)))
        rows = np.concatenate([rows, means]) if len(rows) else means
        counts = np.concatenate([counts, sizes * (len(rest) / sizes.sum())])
    return rows, counts.astype(np.float32)


def _common(data: Dataset, modality: str) -> IntArray:
    """Concept names, then the captions of most patients, as indices in the table."""
    records = data.records[modality]["train"]
    names = distinct_ids(phrases_of(records, data.table).values)
    captions = captions_of(records, data.table)
    patients = np.repeat(records.patient.codes.astype(np.int64), captions.lengths)
    pairs = np.unique(np.stack([captions.values, patients]), axis=1)
    used, count = np.unique(pairs[0], return_counts=True)
    order = np.argsort(-count, kind="stable")
    shared = used[order][count[order] >= SHARED]
    return np.concatenate([names, shared[~np.isin(shared, names)]])[:SINGLE]


def _means(rows: Matrix) -> tuple[Matrix, NDArray[np.float64]]:
    """Unit means (g, d) of groups of similar rows (n, d), each of at least `SHARED`, and their sizes (g,)."""
    from sklearn.cluster import KMeans

    groups = max(1, len(rows) // PER_GROUP)
    labels = KMeans(groups, n_init=1, random_state=0).fit(rows).labels_
    sizes = np.bincount(labels, minlength=groups)
    large = np.flatnonzero(sizes >= SHARED)
    means = np.stack([rows[labels == group].mean(axis=0) for group in large])
    return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True), np.float32), sizes[large].astype(np.float64)
