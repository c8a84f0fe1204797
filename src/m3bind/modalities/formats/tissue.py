"""Detection of tissue on a whole slide, and its tiles.

* `tissue_map`: tissue and pen marks of a slide. `find_tissue`: the same of an image.
* `tissue_places`, `tissue_tiles`: the tiles of a grid, most tissue first.

Tissue rule, on the slide at 8 micrometres per pixel: a pixel is tissue if its HSV saturation is above Otsu's threshold
of the slide (clipped to 0.06..0.20, so that an empty slide has no tissue and pale parts of a full one count), its
brightest channel is above 0.15 (not ink, not missing tiles) and it is not a pen mark. Pen marks are greens and cyans
(hue 70..200 degrees, saturation above 0.25), and saturations above 0.75 of a blue (200..255) or a red (345..15).

Shapes: H rows, W columns.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m3bind.modalities.formats import limits
from m3bind.modalities.formats.slide import Array, Slide, averages

MAP_MPP = 8.0  # micrometres per pixel at which tissue is detected
MAP_STEP = 16  # level-0 pixels per pixel of that map if the scan's pixel size is unknown
MIN_TISSUE = 0.5  # fraction of a tile


@dataclass(frozen=True)
class Tile:
    """A square of a slide: top left corner in level-0 pixels, (H, W, 3) array in 0..1, fraction of tissue in 0..1."""

    x: int
    y: int
    array: Array
    tissue: float


@dataclass(frozen=True)
class TissueMap:
    """Masks `tissue` and `pen` (H, W) bool; a pixel covers `step_x` x `step_y` level-0 pixels."""

    tissue: NDArray[np.bool_]
    pen: NDArray[np.bool_]
    step_x: float
    step_y: float


def tissue_map(slide: Slide) -> TissueMap:
    """Tissue and pen marks of a slide by the rule of this module, at about 8 micrometres per pixel.

    Raises:
        ReadError: damaged, or too large without smaller levels.
    """
    width, height = slide.size
    sides = slide.pixel or (MAP_MPP / MAP_STEP,) * 2
    columns, rows = (max(1, int(side / max(1.0, MAP_MPP / mpp))) for side, mpp in zip((width, height), sides))
    step_x, step_y = width / columns, height / rows  # rounded up, so that no finer level is needed
    limits.check_count(slide.path, columns * rows, "pixels")
    image = slide.read_steps(0, 0, columns, rows, step_x, step_y)
    return TissueMap(*find_tissue(image), step_x, step_y)


def find_tissue(image: Array) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Tissue and pen marks, each (H, W), of a slide's overview (H, W, 3) in 0..1."""
    hue, saturation, value = _hsv(image)
    pen = (hue > 70) & (hue < 200) & (saturation > 0.25)
    pen |= (((hue >= 200) & (hue < 255)) | (hue > 345) | (hue < 15)) & (saturation > 0.75)
    pen &= value > 0.15
    usable = (value > 0.15) & ~pen
    if not usable.any():
        return usable, pen
    threshold = min(max(_otsu(saturation[usable]), 0.06), 0.20)
    return usable & (saturation > threshold), pen


def _hsv(image: Array) -> tuple[Array, Array, Array]:
    """Hue in degrees, saturation and value in 0..1 of (H, W, 3)."""
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    value = image.max(axis=2)
    spread = value - image.min(axis=2)
    safe = np.where(spread > 0, spread, 1)
    hue = np.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4)
    hue = np.where(value == red, (green - blue) / safe % 6, hue)
    return hue * 60, spread / np.where(value > 0, value, 1), value


def _otsu(values: Array) -> float:
    """The threshold of 0..1 values that splits them into the two groups of minimum variance (256 bins)."""
    counts, edges = np.histogram(values, 256, (0, 1))
    centres = (edges[:-1] + edges[1:]) / 2
    weight = np.cumsum(counts)
    mass = np.cumsum(counts * centres)
    below, above = weight[:-1], weight[-1] - weight[:-1]
    apart = mass[:-1] / np.maximum(below, 1) - (mass[-1] - mass[:-1]) / np.maximum(above, 1)
    return float(edges[1 + int(np.argmax(1.0 * below * above * apart**2))])


def tissue_places(
    slide: Slide, found: TissueMap, size: int = 224, mpp: float | None = 0.5
) -> list[tuple[float, int, int]]:
    """(fraction of tissue, x, y) of every whole tile of a grid over a slide, most tissue first, then by row, column.

    x, y: level-0 pixels. A slide smaller than a tile has one. `mpp` None: tiles of level-0 pixels.
    """
    sides = (1.0, 1.0) if mpp is None or slide.pixel is None else (mpp / slide.pixel[0], mpp / slide.pixel[1])
    step_x, step_y = size * sides[0], size * sides[1]
    columns, rows = (max(1, int(side / step + 1e-9)) for side, step in zip(slide.size, (step_x, step_y)))
    lines = averages(found.tissue.astype(np.float32), np.arange(rows + 1) * step_y / found.step_y)
    shares = averages(lines.swapaxes(0, 1), np.arange(columns + 1) * step_x / found.step_x).swapaxes(0, 1)
    shares = np.round(shares, 6)
    order = np.argsort(-shares.ravel(), kind="stable")
    return [(float(shares.flat[k]), round(int(k) % columns * step_x), round(int(k) // columns * step_y)) for k in order]


def tissue_tiles(slide: Slide, size: int = 224, mpp: float | None = 0.5, limit: int | None = None) -> Iterator[Tile]:
    """Tiles of `size` x `size` pixels of `mpp` micrometres that are at least half tissue, most tissue first.

    `mpp` None reads level 0; `limit` is the maximum number of tiles.

    Raises:
        ReadError: damaged, or `mpp` is finer than the scan.
    """
    for number, (share, x, y) in enumerate(tissue_places(slide, tissue_map(slide), size, mpp)):
        if share < MIN_TISSUE or (limit is not None and number >= limit):
            return
        yield Tile(x, y, slide.read_region(x, y, size, size, mpp), share)
