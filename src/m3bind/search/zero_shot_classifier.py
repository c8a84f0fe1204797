"""Zero-shot classification of embeddings, calibrated on an index.

* `ZeroShotClassifier`: classifies rows. * `Predictions`: its result. * `labels_of`: the labels of an index.
* `unlike_items`: which items of an index are unlike the training data.

Probabilities are the softmax of logit scale x cosine / temperature, as in `Space.classify`. The temperature is fitted
on labelled items of the index (`evaluate.calibration`) if it has some of every label, else it is the space's.

Shapes: n rows, c labels, d dimension.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from m3bind.index.base import SEVERAL, Index, Where
from m3bind.index.calibration import FEW
from m3bind.models.embedding import Array, similarity, softmax
from m3bind.space.bundle import Space
from m3bind.space.prompts import Labels
from m3bind.space.unlike import UNLIKE

LABELLED, PER_LABEL = 500, 5  # maximum items to fit a temperature on, minimum items of each label
DISTINCT = 200  # maximum labels of a modality


@dataclass(frozen=True)
class Predictions:
    """The classification of n rows."""

    probabilities: NDArray[np.float64]  # (n, c)
    calibrated: bool  # divided by a temperature, of labelled items of the index or of the space


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


def unlike_items(items: pd.DataFrame) -> list[str]:
    """Why items, given by their columns, are unlike the training data of their space; "" if they are not."""
    return [str(reason) for reason in items[UNLIKE]] if UNLIKE in items else [""] * len(items)


@dataclass(frozen=True)
class ZeroShotClassifier:
    """Classifies rows of a space, calibrated on an index of that space."""

    space: Space
    index: Index
    known: Mapping[str, Sequence[str]]  # `labels_of` the index

    def classify(self, rows: Array, modality: str, labels: Labels) -> Predictions:
        """Probabilities of `labels`, or of the keys of a mapping from label to prompts, for rows (n, d).

        Raises:
            UnknownNameError: the space does not hold the modality.
        """
        classes = self.space.class_embeddings(labels, modality)
        scale = self.space.logit_scale(modality)
        logits = scale * similarity(rows, classes).astype(np.float64)
        temperature = self._temperature(modality, list(labels), classes, scale) or self.space.temperature(modality)
        return Predictions(softmax(logits / (temperature or 1.0)), temperature is not None)

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


def _plain(text: str) -> str:
    """A label without case, underscores and extra spaces."""
    return " ".join(text.lower().replace("_", " ").split())
