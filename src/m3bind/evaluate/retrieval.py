"""Search: images and texts, and images across modalities.

Shapes: n queries, g gallery items, t distinct texts, d dimensions.

* `text_retrieval_rows`: image -> text and text -> image over distinct texts (images that share a text are all right).
* `patient_retrieval_rows`: image -> image for all ordered pairs of modalities; right is the same patient.
* `concept_retrieval_rows`: image -> image by shared concept; `concept_auc` defines the figure.

Scores are cosines rounded to six decimals, so that equal embeddings are ties whatever the order of summation; ties
count with their expected value (see metrics). Queries are resampled, by patient; the gallery is left as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import permutations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from m3bind.evaluate import metrics
from m3bind.evaluate.metrics import DEFAULT, Estimate, Groups, RankStats, Resampling, rank_stats
from m3bind.evaluate.results import Context, Row
from m3bind.models.embedding import correct_gap

_BLOCK = 1024  # queries scored at once
_BINS = 256
Arrays = Mapping[str, ArrayLike]


def cosines(queries: ArrayLike, gallery: ArrayLike) -> NDArray[np.float64]:
    """Cosines of unit rows, rounded to six decimals: (n, d), (g, d) -> (n, g)."""
    return np.round(np.asarray(queries, dtype=np.float64) @ np.asarray(gallery, dtype=np.float64).T, 6)


def distinct_texts(texts: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """Distinct texts in order of appearance and the number of each given text's; case and spacing do not count."""
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
    """Rank statistics where an item with the query's key is right; every key of a query must occur in the gallery."""
    queries, query_keys, gallery_keys = np.asarray(queries), np.asarray(query_keys), np.asarray(gallery_keys)
    starts = range(0, max(1, len(queries)), _BLOCK)
    blocks = ((queries[s : s + _BLOCK], query_keys[s : s + _BLOCK, None] == gallery_keys) for s in starts)
    return RankStats.concatenate([rank_stats(cosines(block, gallery), right) for block, right in blocks])


def _rank_rows(
    protocol: str, stats: RankStats, context: Context, ks: Sequence[int], draw: Resampling
) -> tuple[list[Row], dict[str, Estimate]]:
    found = {f"R@{k}": metrics.recall_at_k(stats, k, draw) for k in ks}
    found["mrr"] = metrics.mrr(stats, draw)
    found["median_rank"] = metrics.median_rank(stats, draw)
    size = int(stats.gallery.max()) if len(stats) else 0
    return [context.row(protocol, name, value, gallery=size) for name, value in found.items()], found


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
    image. A text no image owns is a distractor: searched, never asked. Image queries are resampled by patient, text
    queries one by one.
    """
    owner = np.asarray(owner)
    numbers = np.arange(len(np.asarray(texts)))
    asked = np.unique(owner)
    there = search_stats(images, texts, owner, numbers)
    back = search_stats(np.asarray(texts)[asked], images, asked, owner)
    rows, _ = _rank_rows("image_to_text", there, context, ks, Resampling(patients, resamples, context.seed))
    return rows + _rank_rows("text_to_image", back, context, ks, Resampling(None, resamples, context.seed))[0]


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
    """Image -> image across modalities, right is the same patient: every ordered pair, then the mean over pairs.

    `embeddings`: modality -> (n, d) unit rows, `patients`: modality -> patient of each row. Queries whose patient the
    other modality lacks are left out; the gallery is all of the other modality. `means` (modality -> (d,)) turns the
    gap correction on. Pairs without any common patient give no row.
    """
    embeddings, context = _corrected(embeddings, means, replace(context, text_encoder="", task="patient"))
    rows: list[Row] = []
    all_found: list[dict[str, Estimate]] = []
    sizes: list[int] = []
    for a, b in permutations(embeddings, 2):
        keys, gallery_keys = np.asarray(patients[a]), np.asarray(patients[b])
        asked = np.isin(keys, gallery_keys)
        if not asked.any():
            continue
        stats = search_stats(np.asarray(embeddings[a])[asked], embeddings[b], keys[asked], gallery_keys)
        place = replace(context, modality=f"{a}->{b}")
        pair_rows, found = _rank_rows(
            "image_to_image", stats, place, ks, Resampling(keys[asked], resamples, context.seed)
        )
        rows += pair_rows
        all_found.append(found)
        sizes.append(len(gallery_keys))
    return rows + _mean_rows(all_found, context, sizes)


def _mean_rows(found: list[dict[str, Estimate]], context: Context, sizes: list[int]) -> list[Row]:
    if not found:
        return []
    place = replace(context, modality="mean")
    size = sizes[0] if len(set(sizes)) == 1 else None
    return [
        place.row("image_to_image", name, metrics.average([part[name] for part in found]), gallery=size)
        for name in found[0]
    ]


def concept_auc(
    queries: ArrayLike,
    gallery: ArrayLike,
    query_classes: ArrayLike,
    gallery_classes: ArrayLike,
    draw: Resampling = DEFAULT,
) -> Estimate:
    """Class-balanced AUC of image-to-image search by concept; chance .5 exactly.

    For each class c: P(cosine of a query of c with a gallery item of c > cosine of a query of c with a gallery item of
    another class), ties one half, over all such pairs; then the mean over the classes that both sides have.
    A gallery item that is similar to everything raises one class and lowers the others, so it gains nothing.

    The value is exact; for the interval the cosines are put into 256 bins of equal count.
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

    estimate = metrics.resampled(metric, len(y), 0.5, draw)
    return replace(estimate, value=float(np.mean(exact)))


def _pair_auc(right: NDArray[np.float64], wrong: NDArray[np.float64]) -> float:
    ordered = np.sort(wrong)
    below, upto = np.searchsorted(ordered, right, "left"), np.searchsorted(ordered, right, "right")
    return float((below + upto).mean() / (2 * len(wrong)))


def _histograms(
    scores: NDArray[np.float64], same: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Per query, counts of same-class and of other items in bins of equal overall count: two (n_c, bins)."""
    some = scores.ravel()[:: max(1, scores.size // 20_000)]
    edges = np.unique(np.quantile(some, np.linspace(0, 1, _BINS + 1)[1:-1]))
    bins = np.searchsorted(edges, scores, "right") + np.arange(len(scores))[:, None] * (len(edges) + 1)
    shape = (len(scores), len(edges) + 1)
    counts = [
        np.bincount(bins[:, cols].ravel(), minlength=shape[0] * shape[1]).reshape(shape) for cols in (same, ~same)
    ]
    return counts[0].astype(np.float64), counts[1].astype(np.float64)


def concept_precision(
    queries: ArrayLike,
    gallery: ArrayLike,
    query_classes: ArrayLike,
    gallery_classes: ArrayLike,
    k: int = 5,
    draw: Resampling = DEFAULT,
) -> Estimate:
    """Share of the first k hits that have the query's class, the classes of queries counting equally.

    Chance exactly: the mean over those classes of their share in the gallery.
    """
    y, z = np.asarray(query_classes), np.asarray(gallery_classes)
    values = metrics.precision_values(cosines(queries, gallery), y[:, None] == z, k)
    members = (y[:, None] == np.unique(y)).astype(np.float64)
    chance = float(np.mean([(z == c).mean() for c in np.unique(y)]))

    def metric(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.nanmean((weights * values) @ members / (weights @ members), axis=1))

    return metrics.resampled(metric, len(y), chance, draw)


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

    `classes`: modality -> concept class of each row of `embeddings` (-1: left out), from `Concept.labels`; `means`
    turns the gap correction on. Give the concept's name, data sets and prompts hash in `context`.
    """
    embeddings, context = _corrected(embeddings, means, replace(context, text_encoder=""))
    kept = {m: np.asarray(classes[m]) >= 0 for m in embeddings if m in classes and (np.asarray(classes[m]) >= 0).any()}
    rows: list[Row] = []
    all_found: list[dict[str, Estimate]] = []
    for a, b in permutations(kept, 2):
        x, z = (np.asarray(embeddings[m])[kept[m]] for m in (a, b))
        y, v = (np.asarray(classes[m])[kept[m]] for m in (a, b))
        draw = Resampling(None if patients is None else patients[a], resamples, context.seed).subset(kept[a])
        found = {"auc": concept_auc(x, z, y, v, draw), f"precision@{k}": concept_precision(x, z, y, v, k, draw)}
        place = replace(context, modality=f"{a}->{b}")
        rows += [place.row("image_to_image", name, value, gallery=len(z)) for name, value in found.items()]
        all_found.append(found)
    return rows + _mean_rows(all_found, context, [int(kept[m].sum()) for m in kept])
