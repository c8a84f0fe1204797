"""A map of the archive: a sample of its items in two dimensions, near each other where they are about the same.

* `Layout`: computed in the background, once per state of the index; `place`: where a question lies.

Embeddings of one modality lie together, whatever they show. So each modality's mean is taken out first; then principal
components (at most 50) and t-SNE on cosines. What the map shows is likeness within and across modalities by content.

Shapes: n items of the sample, d dimension.
"""

import logging
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3bind.space.compute import Array
from m3bind.space.serve.archive import Archive, State
from m3bind.space.serve.problems import Refusal

log = logging.getLogger("m3bind.serve")
COMPONENTS = 50
PERPLEXITY = 30.0
LEAST = 8  # items for t-SNE; fewer are drawn by their principal components
NEAREST = 10  # points a question is placed among
STEEP = 3.0  # how much nearer points count more
METHOD = "t-SNE of {n} items, each modality's mean taken out, so that near means alike in content"


@dataclass(frozen=True)
class Points:
    """The map of one state of the index."""

    mark: str
    ids: list[str]
    modality: list[str]
    rows: Array  # (n, d) as in the index
    xy: NDArray[np.float64]  # (n, 2)

    def place(self, row: Array, alone: str | None) -> tuple[float, float]:
        """Where a unit vector (d,) lies: among the points that are nearest to it for their modality.

        `alone`: the item that it is, if it is one; where that is a point itself, that is the place.
        """
        if alone in self.ids:
            x, y = self.xy[self.ids.index(alone)]
            return float(x), float(y)
        near = (self.rows @ row).astype(np.float64)
        names = np.array(self.modality)
        for name in set(self.modality):
            own = names == name
            near[own] = (near[own] - near[own].mean()) / max(float(near[own].std()), 1e-4)
        best = np.argsort(-near, kind="stable")[:NEAREST]
        weights = np.exp(STEEP * (near[best] - near[best[0]]))
        x, y = weights @ self.xy[best] / weights.sum()
        return float(x), float(y)


class Layout:
    """The map of the archive as it is now."""

    def __init__(self, archive: Archive, most: int) -> None:
        """A sample of at most `most` items."""
        self._archive, self._most = archive, most
        self._points: Points | None = None
        self._working = False
        self._lock = threading.Lock()

    def begin(self, state: State) -> Points | None:
        """The map of the last state there is one of; another one is begun where that is not this state."""
        with self._lock:
            points = self._points
            if (points is None or points.mark != state.mark) and not self._working:
                self._working = True
                threading.Thread(target=self._work, name="map", daemon=True).start()
        return points

    def _work(self) -> None:
        try:
            with self._archive.lease() as state:
                self._points = draw(state, self._most)
        except Exception as error:
            log.error("the map cannot be computed (%s)", type(error).__name__)
        finally:
            self._working = False

    def answer(self, state: State) -> dict[str, Any]:
        """The values of `MapAnswer`."""
        points = self.begin(state)
        if points is None:
            empty: dict[str, list[Any]] = {"id": [], "modality": [], "x": [], "y": []}
            return {"state": "computing", "method": "", "points": empty}
        x, y = np.round(points.xy.T, 4).tolist() if len(points.ids) else ([], [])
        listed = {"id": points.ids, "modality": points.modality, "x": x, "y": y}
        return {"state": "ready", "method": METHOD.format(n=len(points.ids)), "points": listed}

    def place(self, state: State, row: Array, alone: str | None) -> dict[str, float]:
        """The values of `PlaceAnswer`.

        Raises:
            Refusal: there is no map yet, or nothing on it.
        """
        points = self.begin(state)
        if points is None:
            raise Refusal(503, "computing", "The map is being computed; ask again in a few seconds.", 3)
        if not points.ids:
            raise Refusal(404, "empty", "The map is empty: the archive holds no items.")
        x, y = points.place(row, alone)
        return {"x": round(x, 4), "y": round(y, 4)}


def draw(state: State, most: int) -> Points:
    """The map of a state; the same sample for the same index."""
    ids, rows = state.index.sample(most, seed=0)
    names = state.index.items(ids)["modality"].tolist() if ids else []
    return Points(state.mark, ids, names, rows, flat(rows, names))


def flat(rows: Array, modality: list[str]) -> NDArray[np.float64]:
    """(n, 2) places of unit rows (n, d), within -1..1."""
    if len(rows) < 2:
        return np.zeros((len(rows), 2))
    from sklearn.decomposition import PCA

    centred = rows.astype(np.float64)
    names = np.array(modality)
    for name in set(modality):
        centred[names == name] -= centred[names == name].mean(axis=0)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    centred /= np.where(length > 1e-9, length, 1.0)
    few = len(rows) < LEAST
    components = min(2 if few else COMPONENTS, *centred.shape)
    xy = PCA(components, random_state=0).fit_transform(centred)
    if few:
        xy = np.pad(xy, ((0, 0), (0, max(0, 2 - xy.shape[1]))))[:, :2]
    else:
        from sklearn.manifold import TSNE

        perplexity = min(PERPLEXITY, (len(rows) - 1) / 3)
        xy = TSNE(2, perplexity=perplexity, init="pca", random_state=0, n_jobs=1).fit_transform(xy.astype(np.float32))
    xy = xy.astype(np.float64) - xy.mean(axis=0)
    return np.asarray(xy / max(float(np.abs(xy).max()), 1e-9))
