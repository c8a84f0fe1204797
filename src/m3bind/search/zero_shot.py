"""Which of some labels fits an embedding of an index, how sure that is, and whether it is like anything there.

* `ZeroShotClassifier`: judges rows among labels. * `Predictions`: what it says. * `labels_of`: an index's labels.

Probabilities are the softmax of logit scale x cosine, as in `Space.classify`. Where the index has labelled items of all
the labels asked for, a temperature fitted on them (`evaluate.calibration`) makes them mean what they say. A row is
unlike the index where its mean cosine to the `NEIGHBOURS` nearest of the calibration's items of its modality is below
that of 99 % of these items.

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

NEIGHBOURS = 5
UNUSUAL = 0.01  # share of items that are less like the others
LABELLED = 500  # items a temperature is fitted on, at most
PER_LABEL = 5  # of each label, at least
SAME = 1 - 1e-5  # cosine from which an item is the thing itself
DISTINCT = 200  # labels of a modality that are known


@dataclass(frozen=True)
class Predictions:
    """Of n rows."""

    probabilities: NDArray[np.float64]  # (n, c)
    calibrated: bool  # fitted on labelled items of the index
    unlike: NDArray[np.bool_]  # (n,) unlike what the index holds of the modality


def labels_of(index: Index) -> dict[str, list[str]]:
    """The most frequent labels of each modality, sorted; none where the index keeps no labels."""
    if "label" not in index.columns:
        return {name: [] for name in index.counts()}
    found = {}
    for name in index.counts():
        parts: Counter[str] = Counter()
        for value, n in index.counts("label", Where(modality=name)).items():
            parts.update({part: n for part in value.split(SEVERAL) if part})
        found[name] = sorted(value for value, _ in parts.most_common(DISTINCT))
    return found


@dataclass(frozen=True)
class ZeroShotClassifier:
    """Judges rows of a space by what an index made with it holds."""

    space: Space
    index: Index
    reference: Calibration
    known: Mapping[str, Sequence[str]]  # `labels_of` the index

    def classify(self, rows: Array, modality: str, labels: Sequence[str], template: str | None = None) -> Predictions:
        """Probabilities of `labels` for rows (n, d); `template`: words with {} for the label, else the modality's own.

        Raises:
            UnknownNameError: the space does not hold the modality.
        """
        said = None if template is None else {label: [template.replace("{}", label)] for label in labels}
        classes = self.space.class_embeddings(labels, modality, said)
        scale = self.space.logit_scale(modality)
        logits = scale * similarity(rows, classes).astype(np.float64)
        temperature = self._temperature(modality, labels, classes, scale)
        chances = softmax(logits / (temperature or 1.0))
        return Predictions(chances, temperature is not None, self._unlike(modality, rows))

    def _temperature(self, modality: str, labels: Sequence[str], classes: Array, scale: float) -> float | None:
        """Fitted on labelled items of the index; None where there are too few of any label."""
        plain = {_plain(value): value for value in self.known.get(modality, ())}
        own = [plain.get(_plain(label), "") for label in labels]
        if not all(own):
            return None
        ids, rows = self.index.sample(LABELLED, Where(modality=modality, label=tuple(own)))
        number = {value: at for at, value in enumerate(own)}
        fits = [
            [number[part] for part in value.split(SEVERAL) if part in number]
            for value in self.index.items(ids)["label"].tolist()
        ]
        one = [at for at, found in enumerate(fits) if len(found) == 1]
        truth = np.array([fits[at][0] for at in one], np.int64)
        if len(one) < FEW or np.bincount(truth, minlength=len(labels)).min() < PER_LABEL:
            return None
        from m3bind.evaluate.calibration import fit_temperature

        return fit_temperature(truth, scale * similarity(rows[one], classes))

    def _unlike(self, modality: str, rows: Array) -> NDArray[np.bool_]:
        """Which rows are not like what the index holds of their modality."""
        usual = self.reference.rows.get(modality)
        if usual is None or len(usual) < FEW:
            return np.zeros(len(rows), np.bool_)
        among = similarity(usual, usual)
        np.fill_diagonal(among, -1)
        least = np.quantile(np.sort(among, axis=1)[:, -NEIGHBOURS:].mean(axis=1), UNUSUAL)
        others = (line[line < SAME] for line in similarity(rows, usual))
        return np.array([len(near) > 0 and np.sort(near)[-NEIGHBOURS:].mean() < least for near in others], np.bool_)


def _plain(text: str) -> str:
    """Labels as people type them."""
    return " ".join(text.lower().replace("_", " ").split())
