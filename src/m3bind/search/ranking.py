"""How hits of several modalities are ranked for a query: how much each modality has to say, and each item in it.

The texts T_m that a modality was trained on (`Space.reference_texts`) tell what modality m shows. With the texts t of a
query, the distance of m to it is D_m, and

    D_m = 1 - max_{r in T_m} <t, r> + NEAR,    relevance_m = exp(-SLOPE * max(0, log(D_m / min_k D_k) - MARGIN))

so modalities about as near as the nearest are equally relevant. A query x of modality a without texts stands for texts
of T_a, those that it resembles more than other items of a do, and m has less to say if they are farther from T_m than
texts of T_a usually are; a itself has relevance 1:

    p_r ∝ exp(SHARP * <x - mean(R_a), r>) over r in T_a,    n_m(r) = max_{s in T_m} <r, s>
    relevance_m = exp(FALL * min(0, sum_r p_r n_m(r) - mean_{r in T_a} n_m(r)))

Within modality m, an item y has, for the query q,

    s = (<q, y> - CENTRE * mean_{z in R_m} <q, z> - (1 - CENTRE) * <mean(T_m), y>) / u_m

where R_m is the calibration's sample of items (`index.calibration`), the second term removes what the query has in
common with all items of m, the third what the item has in common with all texts. The unit u_m is the standard deviation
sd_m(q) of <q, z> over R_m, between `UNIT` times the usual one for texts of T_m, usual_m. Cosines of an image to its own
modality a have a larger spread than to others: there u_a = sd_a(q), elsewhere u_m = usual_m * max_{k != a} sd_k(q) /
usual_k, over modalities k of `FEW` items or more. Hits are merged by s + log relevance_m. Since the order within m is
that of <q - (1 - CENTRE) mean(T_m), y>, any index finds them by a shifted query.

A space without reference texts, or vectors of which no parts are known: s is the calibration's z, and all modalities
are relevant. docs/search.md compares this with other rankings; the constants were chosen on valid data.

* `QueryVectors`: queries and their parts as vectors.
* `Ranking`: of a space and an index. * `RankedQueries`: it, for some queries.

Shapes: q queries, m modalities, k hits, r items of a sample, t reference texts, d dimension.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from m3bind.index.calibration import FEW, FLAT, Calibration
from m3bind.models.embedding import Array, softmax
from m3bind.search.query import TEXT
from m3bind.space.bundle import Space

NEAR = 0.03  # two texts of one meaning are not nearer than this
MARGIN, SLOPE = 0.3, 12.0  # of the logarithm of the distances' ratio
SHARP, FALL = 60.0, 10.0
CENTRE = 0.5
UNIT = (0.6, 0.9)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class QueryVectors:
    """Queries (q, d), and per kind of their parts (`Query.by_kind`) unit vectors (q, d), 0 for queries without."""

    rows: Array
    parts: Mapping[str, Array] = field(default_factory=dict)

    @classmethod
    def stack(cls, rows: Sequence[Array], parts: Sequence[Mapping[str, Array]]) -> Self:
        """Of queries (d,) one by one."""
        kinds = dict.fromkeys(kind for own in parts for kind in own)
        empty = np.zeros_like(rows[0])
        return cls(np.stack(rows), {kind: np.stack([own.get(kind, empty) for own in parts]) for kind in kinds})

    def has(self, kind: str) -> NDArray[np.bool_]:
        """(q,) whether the queries have parts of a kind."""
        part = self.parts.get(kind)
        return np.zeros(len(self.rows), np.bool_) if part is None else np.asarray(part.any(axis=1), np.bool_)


@dataclass(frozen=True)
class _Usual:
    """What is usual in one modality."""

    text: Floats  # (d,) weighted mean of its texts
    item: Floats  # (d,) mean of the sample of items
    spread: float  # usual_m


class Ranking:
    """Ranks hits of the modalities of an index."""

    def __init__(self, calibration: Calibration, texts: Mapping[str, tuple[Array, Array]] | None = None) -> None:
        """`texts`: reference texts (t, d) per modality and their weights (t,), if known for all of the index."""
        self.calibration, self._texts = calibration, dict(texts or {})
        self.modalities = list(calibration.rows)
        self.usual: dict[str, _Usual] = {}
        self._nearness: dict[str, Floats] = {}
        if set(self.modalities) <= set(self._texts):
            self.usual = {name: self._usual_of(name) for name in self.modalities}

    @classmethod
    def of(cls, space: Space, calibration: Calibration) -> Self:
        """With the reference texts of the space."""
        stored = {name: space.reference_texts(name) for name in space.modalities}
        return cls(calibration, {name: texts for name, texts in stored.items() if texts is not None})

    def of_queries(self, queries: QueryVectors) -> "RankedQueries":
        """The ranking for some queries."""
        return RankedQueries(self, queries)

    def relevance(self, queries: QueryVectors) -> Floats:
        """(q, m) in (0, 1]: how much each modality has to say to each query."""
        logs = np.zeros((len(queries.rows), len(self.modalities)))
        if self.usual:
            asked = queries.has(TEXT)
            if asked.any():
                logs[asked] = self._of_texts(queries.parts[TEXT][asked])
            self._add_images(logs, queries, ~asked)
        return np.maximum(np.exp(logs), 1e-30)

    def _usual_of(self, name: str) -> _Usual:
        texts, weights = self._weighted(name)
        sample = self.calibration.sample(name)
        spread = float((sample @ texts.T).std(axis=0) @ weights)
        return _Usual(weights @ texts, sample.mean(axis=0, dtype=np.float64), max(spread, FLAT))

    def _weighted(self, name: str) -> tuple[Array, Floats]:
        """The texts (t, d) of a modality and their weights (t,), of sum 1."""
        texts, weights = self._texts[name]
        return texts, weights.astype(np.float64) / weights.sum()

    def _of_texts(self, texts: Array) -> Floats:
        """Logarithm (q, m) of the relevance to texts (q, d)."""
        near = np.stack([(texts @ self._texts[name][0].T).max(axis=1) for name in self.modalities], axis=1)
        distance = np.maximum(1.0 - near, 0.0) + NEAR
        excess = np.log(distance / distance.min(axis=1, keepdims=True)) - MARGIN
        return np.asarray(-SLOPE * np.maximum(excess, 0.0))

    def _add_images(self, logs: Floats, queries: QueryVectors, at: NDArray[np.bool_]) -> None:
        """Set the logarithms (q, m) of queries `at` (q,) to the mean over the modalities of their files and items."""
        kinds = [name for name in self._texts if (queries.has(name) & at).any()]
        count = np.maximum(sum((queries.has(name) for name in kinds), np.zeros(len(at))), 1)
        for name in kinds:
            own = queries.has(name) & at
            mean = self.usual[name].item if name in self.usual else 0.0
            resembled = softmax(SHARP * (queries.parts[name][own] - mean) @ self._texts[name][0].T)
            logs[own] += FALL * np.minimum(resembled @ self._near_texts(name), 0.0) / count[own, None]
        for number, name in enumerate(self.modalities):
            logs[queries.has(name) & at, number] = 0.0

    def _near_texts(self, name: str) -> Floats:
        """(t, m): how near the texts of a modality are to those of each modality, minus what is usual."""
        if name not in self._nearness:
            texts, weights = self._weighted(name)
            near = np.stack([(texts @ self._texts[other][0].T).max(axis=1) for other in self.modalities], axis=1)
            self._nearness[name] = near - weights @ near
        return self._nearness[name]


class RankedQueries:
    """Scores of hits for some queries."""

    def __init__(self, ranking: Ranking, queries: QueryVectors) -> None:
        self._ranking, self._queries = ranking, queries
        kinds = [queries.has(kind) for kind in queries.parts] if ranking.usual else []
        self._known = np.any(kinds, axis=0) if kinds else np.zeros(len(queries.rows), np.bool_)  # (q,)
        self._units = self._all_units() if self._known.any() else {}

    def targets(self, modality: str) -> Array:
        """Unit vectors (q, d) whose nearest items of a modality have the highest scores."""
        shifted = self._queries.rows - self._shift(modality)
        return np.asarray(shifted / np.linalg.norm(shifted, axis=1, keepdims=True), np.float32)

    def scores(self, modality: str, found: Array) -> tuple[Floats, Floats]:
        """Scores and percentiles (q, k) of hits with cosines `found` (q, k) to the `targets`.

        The percentile is the share of the modality's sample with a lower score, in %.
        """
        scores, percentiles = self._ranking.calibration.calibrate_scores(self.targets(modality), modality, found)
        known = self._known
        if known.any():
            rows, usual = self._queries.rows[known], self._ranking.usual[modality]
            length = np.linalg.norm(rows - self._shift(modality)[known], axis=1, keepdims=True)
            common = (rows @ usual.item)[:, None]
            scores[known] = (length * found[known] - CENTRE * common) / self._units[modality][known, None]
        return scores, percentiles

    def cosines(self, modality: str, found: Array, rows: Array) -> Floats:
        """Cosines (q, k) of the hits `rows` (q, k, d) to the queries, of their cosines `found` to the targets."""
        shift = self._shift(modality)
        length = np.linalg.norm(self._queries.rows - shift, axis=1, keepdims=True)
        return np.asarray(length * found + np.einsum("qd,qkd->qk", shift, rows))

    @property
    def shifted(self) -> bool:
        """Whether targets differ from the queries."""
        return bool(self._known.any())

    def _shift(self, modality: str) -> Floats:
        """(q, d): what is subtracted from each query."""
        if not self.shifted:
            return np.zeros(self._queries.rows.shape)
        return (1 - CENTRE) * self._known[:, None] * self._ranking.usual[modality].text

    def _all_units(self) -> dict[str, Floats]:
        """u_m (q,) of every modality m."""
        queries, ranking = self._queries, self._ranking
        samples = [ranking.calibration.sample(name) for name in ranking.modalities]
        spread = np.stack([(queries.rows @ sample.T).std(axis=1) for sample in samples], axis=1, dtype=np.float64)
        usual = np.array([ranking.usual[name].spread for name in ranking.modalities])
        own = np.stack([queries.has(name) for name in ranking.modalities], axis=1)
        images = np.any([queries.has(kind) for kind in queries.parts if kind != TEXT], axis=0)
        units = np.clip(spread, UNIT[0] * usual, UNIT[1] * usual)
        if images.any():
            few = np.array([len(ranking.calibration.rows[name]) < FEW for name in ranking.modalities])
            strength = np.where(own | few, 0.0, spread / usual).max(axis=1, keepdims=True)
            others = usual * np.where(strength > 0, strength, 1.0)
            units[images] = np.where(own, spread, others)[images]
        return dict(zip(ranking.modalities, np.maximum(units, FLAT).T))
