"""How hits of several modalities are ranked for a question: how much each modality has to say, and each item in it.

The texts T_m that a modality was trained on (`Space.reference_texts`) tell whether a question speaks of what modality m
shows. With the spoken part t of a query q (its texts), and the distance of m to it,

    D_m = 1 - max_{r in T_m} <t, r> + NEAR,    relevance_m = exp(-SLOPE * max(0, log(D_m / min_k D_k) - MARGIN))

so modalities about as near as the nearest are equally relevant. Within modality m, an item x has the score

    s = (<q, x> - CENTRE * mean_{y in R_m} <q, y> - (1 - CENTRE) * <mean(T_m), x>) / sd_m

where R_m is the calibration's sample of items (`index.calibration`), the second term removes what the question has in
common with all items of m, the third what the item has in common with all texts, and sd_m is the usual standard
deviation over items of their cosine to a text of T_m. Hits are merged by s + log relevance_m. Since the order within m
is that of <q - (1 - CENTRE) mean(T_m), x>, any index finds them by a shifted query.

A query without texts, or a space without reference texts: s is the calibration's z, and all modalities are relevant.
docs/search.md compares this with other rankings; the constants were chosen on valid data.

* `Ranking`: of a space and an index.

Shapes: q queries, m modalities, k hits, r items of a sample, t reference texts, d dimension.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from m3bind.index.calibration import Calibration
from m3bind.models.embedding import Array
from m3bind.space.bundle import Space

NEAR = 0.03  # two texts of one meaning are not nearer than this
MARGIN, SLOPE = 0.3, 12.0  # of the logarithm of the distances' ratio
CENTRE = 0.75

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Usual:
    """What is usual in one modality."""

    texts: Array  # (t, d) unit rows
    text: Floats  # (d,) their weighted mean
    item: Floats  # (d,) mean of the sample of items
    spread: float  # sd_m


@dataclass(frozen=True)
class Ranking:
    """Ranks hits of the modalities of an index."""

    calibration: Calibration
    usual: dict[str, _Usual] = field(default_factory=dict)  # empty if the space stores no texts of some modality

    @classmethod
    def of(cls, space: Space, calibration: Calibration) -> "Ranking":
        """With the reference texts of the space, if it has them for every modality of the index."""
        usual: dict[str, _Usual] = {}
        for name in calibration.rows:
            stored = space.reference_texts(name)
            if stored is None:
                return cls(calibration)
            texts, weights = stored[0], stored[1].astype(np.float64) / stored[1].sum()
            sample = calibration.sample(name)
            spread = float((sample @ texts.T).std(axis=0) @ weights)
            usual[name] = _Usual(texts, weights @ texts, sample.mean(axis=0, dtype=np.float64), spread or 1.0)
        return cls(calibration, usual)

    @property
    def modalities(self) -> list[str]:
        """Those of the index."""
        return list(self.calibration.rows)

    def relevance(self, spoken: Array) -> Floats:
        """(q, m) in (0, 1]: how much each modality has to say to texts (q, d); 1 for all where a row is zero."""
        out = np.ones((len(spoken), len(self.modalities)))
        asked = _asked(spoken)
        if self.usual and asked.any():
            near = np.stack([(spoken[asked] @ usual.texts.T).max(axis=1) for usual in self.usual.values()], axis=1)
            distance = np.maximum(1.0 - near, 0.0) + NEAR
            excess = np.log(distance / distance.min(axis=1, keepdims=True)) - MARGIN
            out[asked] = np.exp(-SLOPE * np.maximum(excess, 0.0))
        return np.maximum(out, 1e-30)

    def targets(self, queries: Array, spoken: Array, modality: str) -> Array:
        """Unit vectors (q, d) whose nearest items of a modality have the highest scores."""
        shifted = queries - self._shift(spoken, modality)
        return np.asarray(shifted / np.linalg.norm(shifted, axis=1, keepdims=True), np.float32)

    def scores(self, queries: Array, spoken: Array, modality: str, found: Array) -> tuple[Floats, Floats]:
        """Scores and percentiles (q, k) of hits with cosines `found` (q, k) to the `targets`.

        The percentile is the share of the modality's sample with a lower score, in %.
        """
        scores, percentiles = self.calibration.calibrate_scores(
            self.targets(queries, spoken, modality), modality, found
        )
        asked = _asked(spoken)
        if self.usual and asked.any():
            usual = self.usual[modality]
            length = np.linalg.norm(queries[asked] - self._shift(spoken[asked], modality), axis=1, keepdims=True)
            common = (queries[asked] @ usual.item)[:, None]
            scores[asked] = (length * found[asked] - CENTRE * common) / usual.spread
        return scores, percentiles

    def cosines(self, queries: Array, spoken: Array, modality: str, found: Array, rows: Array) -> Floats:
        """Cosines (q, k) of the hits `rows` (q, k, d) to the queries, of their cosines `found` to the targets."""
        shift = self._shift(spoken, modality)
        length = np.linalg.norm(queries - shift, axis=1, keepdims=True)
        return np.asarray(length * found + np.einsum("qd,qkd->qk", shift, rows))

    def _shift(self, spoken: Array, modality: str) -> Floats:
        """(q, d): what is subtracted from each query; 0 for those without texts."""
        if not self.usual:
            return np.zeros(spoken.shape)
        return (1 - CENTRE) * _asked(spoken)[:, None] * self.usual[modality].text


def _asked(spoken: Array) -> NDArray[np.bool_]:
    """(q,) whether the queries have texts."""
    return np.asarray(spoken.any(axis=1), np.bool_)
