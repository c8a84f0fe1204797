"""Retrieval: between images and texts, and between images of different modalities.

Shapes: n queries, g gallery items, t distinct texts, d dimensions.

* `text_retrieval_rows`: image -> text and text -> image over distinct texts (all images of a text are right answers).
* `patient_retrieval_rows`: image -> image for all ordered pairs of modalities; files of the same patient are right.
* `concept_retrieval_rows`: image -> image by shared concept; `concept_auc` defines the metric.

Scores are cosines rounded to six decimals, so that equal embeddings are ties whatever the order of summation; ties
count with their expected value (see ranking.py). Queries are resampled, by patient; the gallery is fixed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import permutations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from m3bind.evaluate.confidence import DEFAULT, Estimate, Groups, Resampling, average, resampled
from m3bind.evaluate.ranking import RankStats, median_rank, mrr, precision_values, rank_stats, recall_at_k
from m3bind.evaluate.results import Context, Row
from m3bind.models.embedding import correct_gap

_BLOCK = 1024  # queries scored at once
_BINS = 256
Arrays = Mapping[str, ArrayLike]


def cosines(queries: ArrayLike, gallery: ArrayLike) -> NDArray[np.float64]:
    """Cosines of unit rows, rounded to six decimals: (n, d), (g, d) -> (n, g)."""
    return np.round(np.asarray(queries, dtype=np.float64) @ np.asarray(gallery, dtype=np.float64).T, 6)


def distinct_texts(texts: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """Distinct texts in order of appearance, and the number of each given text; case and spacing are ignored."""
    numbers: dict[str, int] = {}
    first: list[str] = []
    index = np.empty(len(texts), dtype=np.int64)
    for i, text in enumerate(texts):
        key = " ".join(text.casefold().split())
        if key not in numbers:
            numbers[key] = len(first)
            first.append(text)
        index[i] = numbers[key]
    return first, index


def search_stats(queries: ArrayLike, gallery: ArrayLike, query_keys: ArrayLike, gallery_keys: ArrayLike) -> RankStats:
    """Rank statistics; items with the query's key are right. Every key of a query must occur in the gallery."""
    queries, query_keys, gallery_keys = np.asarray(queries), np.asarray(query_keys), np.asarray(gallery_keys)
    parts = []
    for start in range(0, max(1, len(queries)), _BLOCK):
        block = slice(start, start + _BLOCK)
        parts.append(rank_stats(cosines(queries[block], gallery), query_keys[block, None] == gallery_keys))
    return RankStats.concatenate(parts)


def _rank_rows(
    protocol: str, stats: RankStats, context: Context, ks: Sequence[int], draw: Resampling
) -> tuple[list[Row], dict[str, Estimate]]:
    values = {f"R@{k}": recall_at_k(stats, k, draw) for k in ks}
    values |= {"mrr": mrr(stats, draw), "median_rank": median_rank(stats, draw)}
    size = int(stats.gallery.max()) if len(stats) else 0
    return [context.row(protocol, name, value, gallery=size) for name, value in values.items()], values


def text_retrieval_rows(
    images: ArrayLike,
    texts: ArrayLike,
    owner: ArrayLike,
    context: Context,
    patients: Groups = None,
    ks: Sequence[int] = (1, 5, 10),
    resamples: int = 1000,
) -> list[Row]:
    """Image -> text and text -> image.

    `images` (n, d) and `texts` (t, d) unit rows, the texts distinct (`distinct_texts`); `owner` (n,) the text of each
    image. A text without images is a distractor: in the gallery, but not a query. Image queries are resampled by
    patient, text queries one by one.
    """
    owner, texts = np.asarray(owner), np.asarray(texts)
    queries = np.unique(owner)
    to_text = search_stats(images, texts, owner, np.arange(len(texts)))
    to_image = search_stats(texts[queries], images, queries, owner)
    rows, _ = _rank_rows("image_to_text", to_text, context, ks, Resampling(patients, resamples, context.seed))
    return rows + _rank_rows("text_to_image", to_image, context, ks, Resampling(None, resamples, context.seed))[0]


def _corrected(embeddings: Arrays, means: Arrays | None, context: Context) -> tuple[Arrays, Context]:
    if means is None:
        return embeddings, context
    moved = {name: correct_gap(np.asarray(rows), np.asarray(means[name])) for name, rows in embeddings.items()}
    return moved, replace(context, variant="gap-corrected")


def patient_retrieval_rows(
    embeddings: Arrays,
    patients: Mapping[str, Sequence[str]],
    context: Context,
    means: Arrays | None = None,
    ks: Sequence[int] = (1, 5, 10),
    resamples: int = 1000,
) -> list[Row]:
    """Image -> image across modalities, files of the same patient are right: every ordered pair, then their mean.

    `embeddings`: modality -> (n, d) unit rows, `patients`: modality -> patient of each row. Queries whose patient the
    other modality lacks are excluded; the gallery is the whole other modality. `means` (modality -> (d,)) enables the
    gap correction. Pairs without a common patient give no row.
    """
    embeddings, context = _corrected(embeddings, means, replace(context, text_encoder="", task="patient"))
    rows: list[Row] = []
    all_found: list[dict[str, Estimate]] = []
    sizes: list[int] = []
    for a, b in permutations(embeddings, 2):
        keys, gallery_keys = np.asarray(patients[a]), np.asarray(patients[b])
        shared = np.isin(keys, gallery_keys)
        if not shared.any():
            continue
        stats = search_stats(np.asarray(embeddings[a])[shared], embeddings[b], keys[shared], gallery_keys)
        place, draw = replace(context, modality=f"{a}->{b}"), Resampling(keys[shared], resamples, context.seed)
        pair_rows, found = _rank_rows("image_to_image", stats, place, ks, draw)
        rows += pair_rows
        all_found.append(found)
        sizes.append(len(gallery_keys))
    return rows + _mean_rows(all_found, context, sizes)


def _mean_rows(found: list[dict[str, Estimate]], context: Context, sizes: list[int]) -> list[Row]:
    if not found:
        return []
    place = replace(context, modality="mean")
    size = sizes[0] if len(set(sizes)) == 1 else None
    means = {name: average([part[name] for part in found]) for name in found[0]}
    return [place.row("image_to_image", name, value, gallery=size) for name, value in means.items()]


def concept_auc(
    queries: ArrayLike,
    gallery: ArrayLike,
    query_classes: ArrayLike,
    gallery_classes: ArrayLike,
    draw: Resampling = DEFAULT,
) -> Estimate:
    """Class-balanced AUC of image-to-image retrieval by concept; chance .5 exactly.

    For each class c: P(cosine of a query of c with a gallery item of c > cosine of a query of c with a gallery item of
    another class), ties one half, over all such pairs; then the mean over the classes that both sides have.
    A gallery item that is similar to everything raises one class and lowers the others, so it gains nothing.

    The value is exact; for the interval the cosines are binned into 256 bins of equal count.
    """
    scores = cosines(queries, gallery)
    y, z = np.asarray(query_classes), np.asarray(gallery_classes)
    classes = [c for c in np.unique(y) if (z == c).any() and (z != c).any()]
    if not classes:
        return Estimate(np.nan, np.nan, np.nan, len(y), 0.5)
    exact, tables = [], []
    for c in classes:
        mine = scores[y == c]
        exact.append(_pair_auc(mine[:, z == c].ravel(), mine[:, z != c].ravel()))
        tables.append((y == c, *_histograms(mine, z == c)))

    def metric(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        values = []
        for member, right, wrong in tables:
            p, q = weights[:, member] @ right, weights[:, member] @ wrong
            total = p.sum(1) * q.sum(1)
            wins = (p * (np.cumsum(q, axis=1) - q / 2)).sum(1)
            values.append(np.where(total > 0, wins / np.where(total > 0, total, 1), np.nan))
        return np.asarray(np.mean(values, axis=0))

    estimate = resampled(metric, len(y), 0.5, draw)
    return replace(estimate, value=float(np.mean(exact)))


def _pair_auc(right: NDArray[np.float64], wrong: NDArray[np.float64]) -> float:
    ordered = np.sort(wrong)
    below, upto = np.searchsorted(ordered, right, "left"), np.searchsorted(ordered, right, "right")
    return float((below + upto).mean() / (2 * len(wrong)))


def _histograms(
    scores: NDArray[np.float64], same: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Per query, counts of same-class and of other items in bins of equal overall count: two (n_c, bins)."""
    sample = scores.ravel()[:: max(1, scores.size // 20_000)]
    edges = np.unique(np.quantile(sample, np.linspace(0, 1, _BINS + 1)[1:-1]))
    bins = np.searchsorted(edges, scores, "right") + np.arange(len(scores))[:, None] * (len(edges) + 1)
    shape = (len(scores), len(edges) + 1)
    right, wrong = (np.bincount(bins[:, c].ravel(), minlength=shape[0] * shape[1]) for c in (same, ~same))
    return right.reshape(shape).astype(np.float64), wrong.reshape(shape).astype(np.float64)


def concept_precision(
    queries: ArrayLike,
    gallery: ArrayLike,
    query_classes: ArrayLike,
    gallery_classes: ArrayLike,
    k: int = 5,
    draw: Resampling = DEFAULT,
) -> Estimate:
    """Share of the first k hits that have the query's class, averaged over the classes of the queries.

    Chance exactly: the mean over those classes of their share in the gallery.
    """
    y, z = np.asarray(query_classes), np.asarray(gallery_classes)
    values = precision_values(cosines(queries, gallery), y[:, None] == z, k)
    members = (y[:, None] == np.unique(y)).astype(np.float64)
    chance = float(np.mean([(z == c).mean() for c in np.unique(y)]))

    def metric(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.nanmean((weights * values) @ members / (weights @ members), axis=1))

    return resampled(metric, len(y), chance, draw)


def concept_retrieval_rows(
    embeddings: Arrays,
    classes: Mapping[str, ArrayLike],
    context: Context,
    patients: Mapping[str, Sequence[str]] | None = None,
    means: Arrays | None = None,
    k: int = 5,
    resamples: int = 1000,
) -> list[Row]:
    """Image -> image by shared concept: AUC and precision@k of every ordered pair of modalities, then their mean.

    `classes`: modality -> concept class of each row of `embeddings` (-1: excluded), from `Concept.labels`; `means`
    enables the gap correction. `context` needs the concept's name, data sets and prompts hash.
    """
    embeddings, context = _corrected(embeddings, means, replace(context, text_encoder=""))
    known = {m: np.asarray(classes[m]) >= 0 for m in embeddings if m in classes}
    known = {m: mask for m, mask in known.items() if mask.any()}
    rows: list[Row] = []
    all_found: list[dict[str, Estimate]] = []
    for a, b in permutations(known, 2):
        x, z = (np.asarray(embeddings[m])[known[m]] for m in (a, b))
        y, v = (np.asarray(classes[m])[known[m]] for m in (a, b))
        draw = Resampling(None if patients is None else patients[a], resamples, context.seed).subset(known[a])
        found = {"auc": concept_auc(x, z, y, v, draw), f"precision@{k}": concept_precision(x, z, y, v, k, draw)}
        place = replace(context, modality=f"{a}->{b}")
        rows += [place.row("image_to_image", name, value, gallery=len(z)) for name, value in found.items()]
        all_found.append(found)
    return rows + _mean_rows(all_found, context, [int(mask.sum()) for mask in known.values()])
