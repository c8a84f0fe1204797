"""Zero-shot classification of embeddings, calibrated on an index, with detection of unusual ones.

* `ZeroShotClassifier`: classifies rows. * `Predictions`: its result. * `labels_of`: the labels of an index.

Probabilities are the softmax of logit scale x cosine, as in `Space.classify`. If the index has labelled items of every
label, a temperature fitted on them (`evaluate.calibration`) calibrates the probabilities. A row is unlike the index if
its mean cosine to the `NEIGHBOURS` nearest of the calibration's items of its modality is below that of 99 % of these
items.

Shapes: n rows, c labels, r items of the reference, d dimension.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m3bind.index.base import SEVERAL, Index, Where
from m3bind.index.calibration import FEW, Calibration
from m3bind.models.embedding import Array, similarity, softmax
from m3bind.space.bundle import Space
from m3bind.space.prompts import Labels

NEIGHBOURS = 5
UNUSUAL = 0.01  # quantile of the reference below which a row is unlike it
LABELLED, PER_LABEL = 500, 5  # maximum items to fit a temperature on, minimum items of each label
SAME = 1 - 1e-5  # cosine from which two rows are the same item
DISTINCT = 200  # maximum labels of a modality


@dataclass(frozen=True)
class Predictions:
    """The classification of n rows."""

    probabilities: NDArray[np.float64]  # (n, c)
    calibrated: bool  # fitted on labelled items of the index
    unlike: NDArray[np.bool_]  # (n,) unlike what the index holds of the modality


def labels_of(index: Index) -> dict[str, list[str]]:
    """The most frequent labels of each modality, sorted; empty if the index stores no labels."""
    if "label" not in index.columns:
        return {name: [] for name in index.counts()}
    labels = {}
    for name in index.counts():
        parts: Counter[str] = Counter()
        for value, n in index.counts("label", Where(modality=name)).items():
            parts.update({part: n for part in value.split(SEVERAL) if part})
        labels[name] = sorted(value for value, _ in parts.most_common(DISTINCT))
    return labels


@dataclass(frozen=True)
class ZeroShotClassifier:
    """Classifies rows of a space, calibrated on an index of that space."""

    space: Space
    index: Index
    reference: Calibration
    known: Mapping[str, Sequence[str]]  # `labels_of` the index

    def classify(self, rows: Array, modality: str, labels: Labels) -> Predictions:
        """Probabilities of `labels`, or of the keys of a mapping from label to prompts, for rows (n, d).

        Raises:
            UnknownNameError: the space does not hold the modality.
        """
        classes = self.space.class_embeddings(labels, modality)
        scale = self.space.logit_scale(modality)
        logits = scale * similarity(rows, classes).astype(np.float64)
        temperature = self._temperature(modality, list(labels), classes, scale)
        chances = softmax(logits / (temperature or 1.0))
        return Predictions(chances, temperature is not None, self._unlike(modality, rows))

    def _temperature(self, modality: str, labels: Sequence[str], classes: Array, scale: float) -> float | None:
        """Fitted on labelled items of the index; None if any label has too few."""
        plain = {_plain(value): value for value in self.known.get(modality, ())}
        own = [plain.get(_plain(label), "") for label in labels]
        if not all(own):
            return None
        ids, rows = self.index.sample(LABELLED, Where(modality=modality, label=tuple(own)))
        number = {value: at for at, value in enumerate(own)}
        single: dict[int, int] = {}  # row -> its label, of rows with exactly one of the labels
        for row, value in enumerate(self.index.items(ids)["label"].tolist()):
            matches = [number[part] for part in value.split(SEVERAL) if part in number]
            if len(matches) == 1:
                single[row] = matches[0]
        truth = np.array(list(single.values()), np.int64)
        if len(single) < FEW or np.bincount(truth, minlength=len(labels)).min() < PER_LABEL:
            return None
        from m3bind.evaluate.calibration import fit_temperature

        return fit_temperature(truth, scale * similarity(rows[list(single)], classes))

    def _unlike(self, modality: str, rows: Array) -> NDArray[np.bool_]:
        """Which rows are unlike the reference of their modality."""
        usual = self.reference.rows.get(modality)
        if usual is None or len(usual) < FEW:
            return np.zeros(len(rows), np.bool_)
        among = similarity(usual, usual)
        np.fill_diagonal(among, -1)
        threshold = np.quantile(np.sort(among, axis=1)[:, -NEIGHBOURS:].mean(axis=1), UNUSUAL)
        others = (line[line < SAME] for line in similarity(rows, usual))
        return np.array([len(near) > 0 and np.sort(near)[-NEIGHBOURS:].mean() < threshold for near in others], np.bool_)


def _plain(text: str) -> str:
    """A label without case, underscores and extra spaces."""
    return " ".join(text.lower().replace("_", " ").split())
