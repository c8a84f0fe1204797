"""Retrieval: between images and texts, and between images of different modalities.

Shapes: n queries, g gallery items, t distinct texts, d dimensions.

* `text_retrieval_rows`: image -> text and text -> image over distinct texts (all images of a text are right answers).
* `patient_retrieval_rows`: image -> image for all ordered pairs of modalities; files of the same patient are right.
* `concept_retrieval_rows`: image -> image by shared concept; `concept_auc`, `concept_precision` define the metrics,
  `add_concept_pair` computes both.
* `PairMean`: mean of metrics over ordered pairs of modalities.

Ties count with their expected value (see ranking.py). Queries and gallery are resampled by patient, a patient with
files on both sides jointly (see gallery_effect.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import permutations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from m3bind.evaluate.confidence import DEFAULT, Estimate, Groups, Resampling, average, ratio, resampled, row_means
from m3bind.evaluate.gallery_effect import crossed_estimate, resample_gallery
from m3bind.evaluate.instance_search import Search, cosines, search_estimates
from m3bind.evaluate.ranking import precision_effects, precision_values
from m3bind.evaluate.results import Context, Row
from m3bind.models.embedding import correct_gap

Arrays = Mapping[str, ArrayLike]


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


def _search_rows(
    protocol: str, search: Search, context: Context, ks: Sequence[int], resamples: int
) -> tuple[list[Row], dict[str, Estimate]]:
    metrics = [*(f"R@{k}" for k in ks), "mrr", "median_rank"]
    values = search_estimates([search], metrics, resamples)
    size = len(np.asarray(search.gallery))
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
    image. A text without images is a distractor: in the gallery, but not a query. Images are resampled by patient, a
    text with the patient if no other patient's images have it; other texts are units of their own.
    """
    owner, texts = np.asarray(owner), np.asarray(texts)
    people = np.arange(len(owner)) if patients is None else np.asarray(patients)
    numbers, queries, writers = np.arange(len(texts)), np.unique(owner), _writers(owner, people.astype(str), len(texts))
    to_text = Search(images, texts, owner, numbers, people, writers)
    to_image = Search(texts[queries], images, queries, owner, writers[queries], people)
    rows, _ = _search_rows("image_to_text", to_text, context, ks, resamples)
    return rows + _search_rows("text_to_image", to_image, context, ks, resamples)[0]


def _writers(owner: NDArray[np.int64], people: NDArray[np.str_], count: int) -> NDArray[np.str_]:
    """The only patient with each text (t,), or a name of the text's own."""
    sets: list[set[str]] = [set() for _ in range(count)]
    for text, person in zip(owner, people):
        sets[text].add(person)
    return np.array([next(iter(known)) if len(known) == 1 else f"text {i}" for i, known in enumerate(sets)])


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
    pairs = PairMean()
    for a, b in permutations(embeddings, 2):
        keys, gallery_keys = np.asarray(patients[a]), np.asarray(patients[b])
        shared = np.isin(keys, gallery_keys)
        if not shared.any():
            continue
        search = Search(
            np.asarray(embeddings[a])[shared], embeddings[b], keys[shared], gallery_keys, keys[shared], gallery_keys
        )
        place = replace(context, modality=f"{a}->{b}")
        pair_rows, found = _search_rows("image_to_image", search, place, ks, resamples)
        rows += pair_rows
        pairs.add(found, a, shared, keys[shared], len(gallery_keys))
    return rows + pairs.rows(context)


class PairMean:
    """Mean over ordered pairs of modalities; a file that is a query in several pairs counts once in n."""

    def __init__(self) -> None:
        self.found: list[dict[str, Estimate]] = []
        self.sizes: list[int] = []
        self._files: dict[str, NDArray[np.bool_]] = {}
        self._patients: set[str] = set()

    def add(
        self, found: dict[str, Estimate], modality: str, queries: NDArray[np.bool_], people: ArrayLike, size: int
    ) -> None:
        """Add a pair: its metrics, queries as a mask of the modality's files, patients, size of the gallery."""
        self.found.append(found)
        self.sizes.append(size)
        self._files[modality] = self._files.get(modality, np.zeros_like(queries)) | queries
        self._patients |= set(np.asarray(people).astype(str))

    def means(self) -> dict[str, Estimate]:
        """The mean of each metric."""
        files = int(sum(mask.sum() for mask in self._files.values()))
        names = self.found[0] if self.found else {}
        return {name: average([part[name] for part in self.found], files, len(self._patients)) for name in names}

    def rows(self, context: Context) -> list[Row]:
        """The means as rows; `gallery` is the galleries' size if they are equally large."""
        place, size = replace(context, modality="mean"), self.sizes[0] if len(set(self.sizes)) == 1 else None
        return [place.row("image_to_image", name, value, gallery=size) for name, value in self.means().items()]


def concept_auc(
    queries: ArrayLike,
    gallery: ArrayLike,
    query_classes: ArrayLike,
    gallery_classes: ArrayLike,
    draw: Resampling = DEFAULT,
    gallery_draw: Resampling = DEFAULT,
) -> Estimate:
    """Class-balanced AUC of image-to-image retrieval by concept; chance .5 exactly.

    For each class c: P(cosine of a query of c with a gallery item of c > cosine of a query of c with a gallery item of
    another class), ties one half, over all such pairs; then the mean over the classes that both sides have.
    A gallery item that is similar to everything raises one class and lowers the others, so it gains nothing.

    Replicates follow from the derivative by the weight of each pair, the placement of its cosine among the pairs of the
    other kind (DeLong et al. 1988, doi:10.2307/2531595). `draw` and `gallery_draw` have the patients of the queries and
    of the gallery items.
    """
    y, z = np.asarray(query_classes), np.asarray(gallery_classes)
    scores = cosines(queries, gallery)
    classes = [c for c in np.unique(y) if (z == c).any() and (z != c).any()]
    if not classes:
        return Estimate(np.nan, np.nan, np.nan, len(y), 0.5)
    areas, changes = [], np.zeros(scores.shape)
    for c in classes:
        rows, same = y == c, z == c
        mine = scores[rows]
        won = np.empty(mine.shape)
        won[:, same] = _placement(mine[:, same], mine[:, ~same])
        won[:, ~same] = 1 - _placement(mine[:, ~same], mine[:, same])
        areas.append(float(won[:, same].mean()))
        changes[rows] = (won - areas[-1]) / (rows.sum() * np.where(same, same.sum(), (~same).sum()) * len(classes))
    sides = replace(draw, classes=y), replace(gallery_draw, classes=z)
    return crossed_estimate(float(np.mean(areas)), 0.5, changes, *sides)


def _placement(values: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of all `others` that are lower than each of `values`, ties one half."""
    ordered = np.sort(others, axis=None)
    below, upto = np.searchsorted(ordered, values, "left"), np.searchsorted(ordered, values, "right")
    return np.asarray((below + upto) / (2 * len(ordered)))


def concept_precision(
    queries: ArrayLike,
    gallery: ArrayLike,
    query_classes: ArrayLike,
    gallery_classes: ArrayLike,
    k: int = 5,
    draw: Resampling = DEFAULT,
    gallery_draw: Resampling = DEFAULT,
) -> Estimate:
    """Share of the first k hits that have the query's class, averaged over the classes of the queries.

    Chance exactly: the mean over those classes of their share in the gallery. `draw` and `gallery_draw` as in
    `concept_auc`; a gallery item's effect is its own answer minus that of the hit that would replace it.
    """
    y, z = np.asarray(query_classes), np.asarray(gallery_classes)
    scores, right = cosines(queries, gallery), y[:, None] == z
    values = precision_values(scores, right, k)
    members = (y[:, None] == np.unique(y)).astype(np.float64)
    chance = float(np.mean([(z == c).mean() for c in np.unique(y)]))

    def metric(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return row_means(ratio((weights * values) @ members, weights @ members))

    found = resampled(metric, len(y), chance, replace(draw, classes=y))
    share = (members / members.sum(0)).sum(1, keepdims=True) / members.shape[1]
    return resample_gallery(found, precision_effects(scores, right, k) * share, draw, replace(gallery_draw, classes=z))


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
    rows: list[Row] = []
    pairs = PairMean()
    for a, b in permutations([m for m in embeddings if m in classes], 2):
        found, size = add_concept_pair(pairs, embeddings, classes, patients, (a, b), k, resamples)
        place = replace(context, modality=f"{a}->{b}")
        rows += [place.row("image_to_image", name, value, gallery=size) for name, value in found.items()]
    return rows + pairs.rows(context)


def add_concept_pair(
    pairs: PairMean,
    embeddings: Arrays,
    classes: Mapping[str, ArrayLike],
    patients: Mapping[str, Sequence[str]] | None,
    modalities: tuple[str, str],
    k: int,
    resamples: int,
) -> tuple[dict[str, Estimate], int]:
    """AUC and precision@k of an ordered pair of modalities, added to `pairs`, and the size of the gallery.

    The other arguments as in `concept_retrieval_rows`. Without a file of any class on a side there are no metrics.
    """
    known = [np.asarray(classes[m]) >= 0 for m in modalities]
    if not all(mask.any() for mask in known):
        return {}, 0
    x, z = (np.asarray(embeddings[m])[mask] for m, mask in zip(modalities, known))
    y, v = (np.asarray(classes[m])[mask] for m, mask in zip(modalities, known))
    people = [
        np.asarray(patients[m])[mask] if patients else np.char.add(f"{m} ", np.flatnonzero(mask).astype(str))
        for m, mask in zip(modalities, known)
    ]
    draws = Resampling(people[0], resamples), Resampling(people[1], resamples)
    found = {"auc": concept_auc(x, z, y, v, *draws), f"precision@{k}": concept_precision(x, z, y, v, k, *draws)}
    pairs.add(found, modalities[0], known[0], people[0], len(z))
    return found, len(z)
