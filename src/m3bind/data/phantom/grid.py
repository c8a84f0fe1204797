"""The voxel grid of the chest and the shapes painted into it.

Axes of every volume: Z (superior), Y (posterior), X (patient's left), millimetres about the middle of the chest.
* `X`, `Y`, `Z`: coordinates; `ellipsoid`, `tube`, `blobs`: paint; `smooth_noise`: a smooth random field.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom

F32 = NDArray[np.float32]

STEP = 2.5  # mm, all axes
SHAPE = (128, 96, 144)  # Z Y X
Point = tuple[float, float, float]  # x, y, z in mm


def axis(length: int) -> F32:
    """Coordinates (mm) of `length` voxels around 0."""
    return ((np.arange(length) - (length - 1) / 2) * STEP).astype(np.float32)


Z, Y, X = (axis(length) for length in SHAPE)


def _box(centre: Point, radius: Point) -> tuple[slice, slice, slice]:
    slices = []
    for middle, half, length in zip(centre[::-1], radius[::-1], SHAPE):
        low = int(np.floor((middle - half) / STEP + (length - 1) / 2))
        high = int(np.ceil((middle + half) / STEP + (length - 1) / 2)) + 1
        slices.append(slice(min(max(low, 0), length), min(max(high, 0), length)))
    return slices[0], slices[1], slices[2]


def ellipsoid(
    volume: F32,
    centre: Point,
    radius: Point,
    value: float,
    only: NDArray[np.bool_] | None = None,
    tilt: float = 0.0,
    lumps: float = 0.0,
) -> None:
    """Set `value` inside an ellipsoid (mm). `tilt` (degrees) turns it in the frontal plane, left end down.

    `only` restricts it to a mask of the whole grid; `lumps` (0..1) makes the surface uneven.
    """
    reach = max(radius[0], radius[2]) if tilt else 0.0
    half = tuple((max(r, reach) if i != 1 else r) * (1 + lumps) for i, r in enumerate(radius))
    box = _box(centre, (half[0], half[1], half[2]))
    z, y, x = Z[box[0], None, None] - centre[2], Y[None, box[1], None] - centre[1], X[None, None, box[2]] - centre[0]
    cos, sin = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
    long, across = x * cos - z * sin, x * sin + z * cos
    distance = (long / radius[0]) ** 2 + (across / radius[2]) ** 2 + (y / radius[1]) ** 2
    if lumps:
        angle, height = np.arctan2(y, x), np.arctan2(z, np.hypot(x, y) + 1e-3)
        distance = distance / (1 + lumps * np.sin(3 * angle + 1) * np.cos(2 * height)) ** 2
    inside = distance < 1
    if only is not None:
        inside &= only[box]
    volume[box][inside] = value


def blobs(volume: F32, points: F32, radius: float, value: float, only: NDArray[np.bool_] | None = None) -> None:
    """Raise the volume to at least `value` within `radius` mm of each of `points` (n, 3) = x, y, z."""
    reach = int(np.ceil(radius / STEP))
    side = np.arange(-reach, reach + 1)
    offsets = np.stack(np.meshgrid(side, side, side, indexing="ij"), -1).reshape(-1, 3)
    offsets = offsets[np.linalg.norm(offsets, axis=1) * STEP <= max(radius, 0.5 * STEP)]
    middle = (np.array(SHAPE) - 1) / 2
    index = np.rint(points[:, ::-1] / STEP + middle).astype(np.int64)[:, None, :] + offsets[None]
    index = index.reshape(-1, 3)
    index = index[((index >= 0) & (index < np.array(SHAPE))).all(1)]
    flat = np.ravel_multi_index((index[:, 0], index[:, 1], index[:, 2]), SHAPE)
    if only is not None:
        flat = flat[only.reshape(-1)[flat]]
    values = volume.reshape(-1)
    values[flat] = np.maximum(values[flat], value)


def tube(volume: F32, path: list[Point], radius: float, value: float, only: NDArray[np.bool_] | None = None) -> None:
    """Paint a polyline of `radius` mm through the points of `path`."""
    blobs(volume, polyline(path), radius, value, only)


def polyline(path: list[Point], step: float = STEP * 0.8) -> F32:
    """Points (n, 3) every `step` mm along a polyline."""
    parts = []
    for start, end in pairwise(path):
        a, b = np.array(start), np.array(end)
        count = max(2, int(np.linalg.norm(b - a) / step) + 1)
        parts.append(a + (b - a) * np.linspace(0, 1, count)[:, None])
    return np.concatenate(parts).astype(np.float32)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], cells: int) -> F32:
    """A smooth random field of about unit variance: coarse normal noise, `cells` per axis, interpolated linearly."""
    coarse = rng.standard_normal([cells] * len(shape)).astype(np.float32)
    field: F32 = zoom(coarse, [length / cells for length in shape], order=1, grid_mode=True, mode="nearest")
    return field
