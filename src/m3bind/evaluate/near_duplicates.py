"""Near-duplicates among the files of one modality, by their decoded contents; no model is needed.

* `thumbprint`: a file's content reduced to a few kilobytes. * `near_duplicates`: the pairs of files that show the same.
* `NearDuplicate`: such a pair, with the correlation of its contents. * `THRESHOLD`: the minimum correlation.

Two steps, after the "sieve and verify" of copy detection:
1. Sieve: descriptors (the thumbprint at 16 x 16, minus the mean of all files, on its principal axes); for every file,
   and for each of its flips and crops, the `NEIGHBOURS` nearest files by cosine (faiss; inverted lists if many).
2. Verify: the two thumbprints of a candidate are registered by an affine map that maximizes their correlation
   (Evangelidis and Psarakis, "Parametric image alignment using enhanced correlation coefficient maximization", 2008).
   The correlation at the optimum decides, so the sieve costs time but no precision.

Neither step compares a file with what is usual in the data set: duplicates within train do not raise the threshold.
A thumbprint is independent of brightness, contrast and scale: locally normalized values, (x - mean) / deviation in a
Gaussian window.

Shapes: n files, p planes (1: an image; 3: the mean of a volume's slices, without the first, without the last), c
leads, d dimension of the descriptors.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import faiss
import numpy as np
from numpy.typing import NDArray

from m3bind.core.progress import progress
from m3bind.data.prefetch import ahead
from m3bind.modalities.base import Sample

Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]

THRESHOLD = 0.9  # minimum correlation of a near-duplicate
VERSION = 1  # of thumbprints
SIDE = 128  # pixels of a plane
HALF = SIDE // 2
LEADS, SAMPLES, SECONDS = 12, 512, 10.0  # of a signal
FLIPS: dict[str, tuple[int, ...]] = {"": (), "left-right": (-1,), "up-down": (-2,), "both": (-1, -2)}
CROPS: tuple[tuple[float, tuple[float, float]], ...] = (
    (1.0, (0, 0)),
    (0.95, (0, 0)),
    (0.9, (0, 0)),
    (0.95, (-0.025, -0.025)),
    (0.95, (-0.025, 0.025)),
    (0.95, (0.025, -0.025)),
    (0.95, (0.025, 0.025)),
)  # side, and offset of its centre
NEIGHBOURS = 8
NEAR = 0.6  # minimum cosine of candidates
DIM = 64  # of descriptors
EXACT = 20_000  # files up to which all descriptors are compared
FITTED = 20_000  # files whose descriptors determine mean and axes
BLOCK = 1024
AHEAD = 256  # pairs that wait for a thread
FLAT = 1.5  # standard deviation of a tile of a thumbprint, of 255 levels
SHIFTS = (1, 2), (2, 1), (0, 1), (0, 2), (1, 0), (2, 0)  # planes of two volumes that may be equal
ALIKE = 0.5  # correlation of volumes from which shifts are tried
PROMISING = 0.6  # correlation from which a registration is refined
_RULE = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 20, 1e-3)
WINDOW = {SIDE // 4: 2.0, SIDE // 2: 3.0, SIDE: 3.0}  # deviation of the Gaussian window, by the side of a plane


@dataclass(frozen=True)
class NearDuplicate:
    """Positions of two files, the correlation of their registered contents, and the flip between them, if any."""

    first: int
    second: int
    correlation: float
    flip: str = ""


# ---- thumbprints -----------------------------------------------------------------------------------------------------


def thumbprint(sample: Sample) -> Bytes:
    """(p, 128, 128) of an image or volume, (c, 512) of the first 10 s of a signal; from 1 (minimum) to 255 (maximum).

    0 where a plane or lead is constant.
    """
    array = np.nan_to_num(sample.array)
    if sample.rate is not None:
        return np.stack([_stretched(lead) for lead in _signal(array, sample.rate)])
    if sample.modality == "ct" or (array.ndim == 3 and array.shape[-1] not in (3, 4)):
        volume = array.clip(-1000, 1000)
        planes = [volume.mean(0), *(part.mean(0) if len(part) else volume[0] for part in (volume[1:], volume[:-1]))]
    else:
        planes = [array[..., :3].mean(-1) if array.ndim == 3 else array]
    return np.stack([_stretched(_resized(plane, SIDE)) for plane in planes])


def _signal(array: Array, rate: float) -> Array:
    """(c, 512): the first 10 s at 51.2 Hz; zeros where the signal is shorter or has fewer leads."""
    part = array[:LEADS, : round(SECONDS * rate)]
    columns = max(1, round(part.shape[1] / rate / SECONDS * SAMPLES))
    whole = np.zeros((LEADS, SAMPLES), np.float32)
    whole[: len(part), :columns] = cv2.resize(
        np.ascontiguousarray(part, np.float32), (columns, len(part)), interpolation=cv2.INTER_AREA
    )
    return whole


def _resized(plane: NDArray[Any], side: int) -> Array:
    resized = cv2.resize(np.ascontiguousarray(plane, np.float32), (side, side), interpolation=cv2.INTER_AREA)
    return np.asarray(resized, np.float32)


def _stretched(values: Array) -> Bytes:
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-6:
        return np.zeros(values.shape, np.uint8)
    return (1 + 254 * (values - low) / (high - low)).round().astype(np.uint8)


def _normalized(plane: NDArray[Any], sigma: float) -> Array:
    """(x - mean) / deviation in a Gaussian window; the deviation is increased by 5 % of that of the whole plane."""
    centred = plane - cv2.GaussianBlur(plane, (0, 0), sigma)
    variance = cv2.GaussianBlur(centred * centred, (0, 0), sigma)
    return np.asarray(centred / np.sqrt(variance + (0.05 * float(plane.std())) ** 2 + 1e-6), np.float32)


def _values(prints: Bytes) -> Array:
    """Comparable values of thumbprints (n, ...): planes (n, p, 64, 64) locally normalized, leads standardized."""
    if prints.ndim == 3:
        leads = prints - prints.mean(-1, keepdims=True)
        return np.asarray(leads / (leads.std(-1, keepdims=True) + 1e-6), np.float32)
    planes = [_normalized(_resized(plane, HALF), HALF / 16) for plane in prints.reshape(-1, SIDE, SIDE)]
    return np.stack(planes).reshape(*prints.shape[:2], HALF, HALF)


# ---- sieve -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _View:
    """A flip, then a crop of a plane: its side, and the offset (row, column) of its centre, of the plane's side."""

    flip: str = ""
    side: float = 1.0
    offset: tuple[float, float] = (0.0, 0.0)

    def coarse(self, values: Array) -> Array:
        """(n, p, 64, 64) -> (n, p 16 16): means of the cells of the view."""
        rows, columns = (
            _cells(self.side, offset, axis in FLIPS[self.flip])
            for offset, axis in zip(self.offset, (-2, -1), strict=True)
        )
        return np.asarray((rows @ values @ columns.T).reshape(len(values), -1))

    def warp(self) -> Array:
        """(2, 3) map of offsets from the centre, x then y, in sides: from the view to the flipped plane."""
        return np.array([[self.side, 0, self.offset[1]], [0, self.side, self.offset[0]]], np.float32)


@cache
def _cells(side: float, offset: float, reverse: bool) -> Array:
    """(16, 64) weights of pixels in the 16 cells of a part of a line of pixels, which may be reversed before."""
    edges = HALF * (0.5 + offset + side * (np.arange(17) / 16 - 0.5))
    pixels = np.arange(HALF)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights = (overlap.clip(0) / overlap.clip(0).sum(1, keepdims=True)).astype(np.float32)
    return np.asarray(weights[:, ::-1] if reverse else weights, np.float32)


def _views(shape: tuple[int, ...]) -> list[_View]:
    """The views of thumbprints of this shape: one of signals."""
    return [_View(flip, *crop) for flip in FLIPS for crop in CROPS] if len(shape) == 3 else [_View()]


def _coarse(values: Array, view: _View) -> Array:
    """(n, p 16 16) means of cells of a view of planes, or (n, c 128) means of 4 samples of signals."""
    if values.ndim == 4:
        return view.coarse(values)
    return np.asarray(values.reshape(len(values), LEADS, -1, 4).mean(-1).reshape(len(values), -1))


class _Descriptor:
    """Centred descriptors on principal axes, each divided by the square root of its standard deviation."""

    def __init__(self, prints: Any) -> None:
        """Fitted on at most `FITTED` thumbprints (n, ...), evenly spaced."""
        some = np.linspace(0, len(prints) - 1, min(len(prints), FITTED)).astype(np.int64)
        rows = np.concatenate([_coarse(_values(prints[part]), _View()) for part in _parts(some)])
        self.mean = rows.mean(0)
        rows -= self.mean
        variances, axes = np.linalg.eigh(rows.T @ rows / len(rows))
        best = np.argsort(-variances)[:DIM]
        self.axes = axes[:, best] / np.maximum(variances[best], 1e-4 * variances[best[0]] + 1e-9) ** 0.25

    def __call__(self, values: Array, view: _View) -> Array:
        """(n, d) unit rows of a view of the values of thumbprints."""
        rows = (_coarse(values, view) - self.mean) @ self.axes
        return np.ascontiguousarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9), np.float32)


def _parts(positions: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(positions), BLOCK):
        yield positions[start : start + BLOCK]


def nearest_lists(rows: Array) -> "faiss.Index":
    """An index of unit rows (n, d) by cosine: exact, or of inverted lists (about 4 sqrt(n), 16 searched) if many."""
    n, d = rows.shape
    if n <= EXACT:
        index = faiss.IndexFlatIP(d)
    else:
        lists = 1 << int(np.log2(4 * np.sqrt(n)))
        index = faiss.index_factory(d, f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
        index.cp.max_points_per_centroid = 64
        index.train(rows)
        index.nprobe = 16
    index.add(rows)
    return index


def candidates(prints: Any) -> tuple[NDArray[np.int64], list[_View]]:
    """(m, 3) candidates among thumbprints (n, ...) and the views: positions i, j, and the view of i that is nearest j.

    Each pair occurs once, with its view of the highest cosine.
    """
    describe = _Descriptor(prints)
    everything = np.arange(len(prints))
    rows = np.concatenate([describe(_values(prints[part]), _View()) for part in _parts(everything)])
    index = nearest_lists(rows)
    views, k = _views(prints.shape[1:]), min(NEIGHBOURS, len(prints) - 1)
    few = k < NEIGHBOURS  # all are compared
    found, near = [np.zeros((0, 3), np.int64)], [np.zeros(0, np.float32)]
    with progress("compare", len(prints)) as bar:
        for part in _parts(everything):
            values = _values(prints[part])
            searched = [index.search(describe(values, view), k + 1) for view in views]
            cosines, places = (np.concatenate(sides, axis=1) for sides in zip(*searched, strict=True))
            cosines[(places < 0) | (places == part[:, None]) | ((cosines < NEAR) & (not few))] = -2
            best = np.argsort(-cosines, axis=1, kind="stable")[:, : None if few else k]
            row, column = np.repeat(np.arange(len(part)), best.shape[1]), best.ravel()
            row, column = (side[cosines[row, column] > -2] for side in (row, column))
            found.append(np.column_stack([part[row], places[row, column], column // (k + 1)]))
            near.append(cosines[row, column])
            bar.advance(len(part))
    pairs = np.concatenate(found)[np.argsort(-np.concatenate(near), kind="stable")]
    _, first = np.unique(pairs[:, :2].min(1) * len(prints) + pairs[:, :2].max(1), return_index=True)
    return pairs[np.sort(first)], views


# ---- verify ----------------------------------------------------------------------------------------------------------


def registered_correlation(first: Bytes, second: Bytes, view: _View = _View()) -> float:
    """Correlation of two planes (128, 128) after an affine map of `first`, flipped; at first that of `view`.

    Registered at a quarter of the size, then at larger ones while the correlation is promising. -1 if the map does not
    converge or leaves less than 40 % of the plane.
    """
    warp, correlation = view.warp(), -1.0
    warp[:, 2] *= SIDE // 4
    first = np.flip(first, FLIPS[view.flip])
    for side in (SIDE // 4, SIDE // 2, SIDE):
        a, b = (_resized(plane, side) for plane in (first, second))
        warp, correlation = _registered(a, b, warp, WINDOW[side])
        if correlation < PROMISING:
            break
        warp[:, 2] *= 2
    return correlation


def _registered(first: Array, second: Array, warp: Array, sigma: float) -> tuple[Array, float]:
    """One step of `registered_correlation`: the improved map of offsets from the centre, and the correlation."""
    side = len(first)
    centre = np.full(2, (side - 1) / 2, np.float32)
    start = np.column_stack([warp[:, :2], warp[:, 2] + centre - warp[:, :2] @ centre]).astype(np.float32)
    a, b = _normalized(first, side / 16), _normalized(second, side / 16)
    try:
        found = np.asarray(cv2.findTransformECC(b, a, start, cv2.MOTION_AFFINE, _RULE)[1])
    except cv2.error:  # it did not converge
        return warp, -1.0
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    covered = cv2.warpAffine(np.ones_like(first), found, (side, side), flags=how) > 0.99
    kernel = np.ones((3, 3), np.uint8)
    eroded = cv2.erode(np.pad(covered.astype(np.uint8), 1), kernel, iterations=round(1.5 * sigma))
    inside = np.asarray(eroded[1:-1, 1:-1] > 0)
    if inside.mean() < 0.4:
        return warp, -1.0
    moved = cv2.warpAffine(first, found, (side, side), flags=how, borderMode=cv2.BORDER_REPLICATE)
    warp = np.column_stack([found[:, :2], found[:, 2] - centre + found[:, :2] @ centre]).astype(np.float32)
    x, y = (np.asarray(cv2.GaussianBlur(plane, (0, 0), sigma / 3), np.float32) for plane in (moved, second))
    fine = _correlation(_normalized(x, sigma)[inside], _normalized(y, sigma)[inside])
    return warp, min(fine, _tile_correlation(x, y, inside))


def _tile_correlation(first: Array, second: Array, inside: NDArray[np.bool_]) -> float:
    """Mean correlation of the tiles (1/8 of the side) that are not flat: a common outline alone is not enough."""
    a, b, whole = _tiles(first), _tiles(second), _tiles(inside).all(1)
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    used = whole & (np.maximum(a.std(1), b.std(1)) >= FLAT)
    if not used.any():
        return 1.0
    norms = np.linalg.norm(a[used], axis=1) * np.linalg.norm(b[used], axis=1)
    return float(((a * b).sum(1)[used] / np.maximum(norms, 1e-6)).mean())


def _tiles(plane: NDArray[Any]) -> NDArray[Any]:
    """(side, side) -> (64, pixels of a tile)."""
    size = len(plane) // 8
    return plane.reshape(8, size, 8, size).swapaxes(1, 2).reshape(64, -1)


def _correlation(first: Array, second: Array) -> float:
    a, b = first.ravel() - first.mean(), second.ravel() - second.mean()
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-9))


def _verified(first: Bytes, second: Bytes, view: _View) -> float:
    """Correlation of two thumbprints: of volumes, the highest under a shift by a slice if they are alike without."""
    if first.ndim == 2:
        a, b = _values(np.stack([first, second]))
        return _correlation(a, b)
    best = registered_correlation(first[0], second[0], view)
    several = len(first) == 3 and (first[1] != first[2]).any() and (second[1] != second[2]).any()  # slices
    for i, j in SHIFTS if several else ():
        if not ALIKE <= best < THRESHOLD:
            break
        best = max(best, registered_correlation(first[i], second[j], view))
    return best


def near_duplicates(prints: Any, threshold: float = THRESHOLD, workers: int = 1) -> list[NearDuplicate]:
    """The pairs of files with a correlation of at least `threshold`, most similar first.

    `prints`: (n, ...) thumbprints, an array or `m3bind.data.cache.Rows`; only a part is in memory at a time.
    `workers`: threads that verify.
    """
    if len(prints) < 2:
        return []
    pairs, views = candidates(prints)

    def verify(pair: NDArray[np.int64]) -> float:
        i, j, view = pair.tolist()
        return _verified(prints[i], prints[j], views[view])

    found = []
    with progress("verify", len(pairs)) as bar:
        for (i, j, view), correlation in zip(pairs, ahead(verify, pairs, workers, AHEAD, lambda _: 0), strict=True):
            bar.advance(1)
            if correlation >= threshold:
                found.append(NearDuplicate(int(min(i, j)), int(max(i, j)), correlation, views[view].flip))
    return sorted(found, key=lambda pair: (-pair.correlation, pair.first, pair.second))
