"""An open whole slide of any file format: its levels, and any rectangle of it at any pixel size.

* `Slide.read_region`: averaged by area, never enlarged. `Slide.doubt`: damage of the data it decodes.
* `averages`: means between positions. * `check_area`: a level can contain the pixels it declares.

Shapes: H rows, W columns.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3bind.errors import ReadError
from m3bind.modalities.formats import limits

_BAND_PIXELS = 4_000_000  # decoded at a time

Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Level:
    """One resolution. `scale_x`, `scale_y`: level-0 pixels per pixel of this level."""

    width: int
    height: int
    scale_x: float
    scale_y: float


@dataclass
class Slide:
    """An open whole slide; close it, or use it in a `with` statement.

    `pixel` is the width and height of a level-0 pixel in micrometres, None if the file states none (see `notes`).
    """

    path: Path
    levels: list[Level]  # finest first
    pixel: tuple[float, float] | None
    decode: Callable[[int, int, int, int, int], Bytes]  # level, left, top, width, height (inside it) -> (H, W, 3)
    damage: Callable[[int, int, int, int, int], str]  # same arguments -> a warning about the stored data, or ""
    close: Callable[[], None]
    kind: str  # for steps: "TIFF", "DICOM"
    notes: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    codec: str = ""  # of its tiles, for errors

    def __enter__(self) -> "Slide":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def mpp(self) -> float | None:
        """Micrometres per level-0 pixel (the mean of both axes), None if unknown."""
        return None if self.pixel is None else sum(self.pixel) / 2

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in level-0 pixels."""
        return self.levels[0].width, self.levels[0].height

    def finest(self, mpp: float) -> float | None:
        """`mpp` micrometres per pixel, or the scan's value if that is coarser; None if it is unknown."""
        return None if self.pixel is None else max(mpp, *self.pixel)

    def read_region(self, x: int, y: int, width: int, height: int, mpp: float | None) -> Array:
        """`width` x `height` pixels of `mpp` micrometres from level-0 pixel (x, y) on; (H, W, 3) float32 in 0..1.

        The coarsest level that is at least as fine is averaged by area. Pixels outside the slide are white.
        `mpp` None reads level 0 unchanged.

        Raises:
            ReadError: finer than the scan, of unknown pixel size, damaged, or too large to decode.
        """
        return self.read_steps(x, y, width, height, *self._steps(mpp))

    def doubt(self, x: int, y: int, width: int, height: int, mpp: float | None) -> str:
        """The warning about damaged data that `read_region` with the same arguments decodes, or ""."""
        step_x, step_y = self._steps(mpp)
        number = self._level(step_x, step_y)
        level = self.levels[number]
        left, top = (max(0, math.floor(v / scale)) for v, scale in ((x, level.scale_x), (y, level.scale_y)))
        right = min(level.width, math.ceil((x + width * step_x) / level.scale_x))
        bottom = min(level.height, math.ceil((y + height * step_y) / level.scale_y))
        if right <= left or bottom <= top:
            return ""
        return self.damage(number, left, top, right - left, bottom - top)

    def _steps(self, mpp: float | None) -> tuple[float, float]:
        """Level-0 pixels per pixel of `mpp` micrometres."""
        if mpp is None:
            return 1.0, 1.0
        if self.pixel is None:
            raise ReadError(self.path, "the file does not state its pixel size", "read level 0 of it")
        return mpp / self.pixel[0], mpp / self.pixel[1]

    def _level(self, step_x: float, step_y: float) -> int:
        """The coarsest level that is at least as fine."""
        fit = [k for k, lv in enumerate(self.levels) if lv.scale_x <= step_x + 1e-9 and lv.scale_y <= step_y + 1e-9]
        if not fit:
            raise ReadError(self.path, "the requested pixels are finer than the scan", "enlarge the tile afterwards")
        return max(fit, key=lambda k: self.levels[k].scale_x)

    def read_steps(self, x: int, y: int, width: int, height: int, step_x: float, step_y: float) -> Array:
        """As `read_region`, with output pixels of `step_x` x `step_y` level-0 pixels."""
        number = self._level(step_x, step_y)
        level = self.levels[number]
        columns = (x + np.arange(width + 1) * step_x) / level.scale_x  # edges of output pixels in this level's pixels
        rows = (y + np.arange(height + 1) * step_y) / level.scale_y
        maximum = 8 * limits.LIMITS.pixels
        if (needed := int((columns[-1] - columns[0]) * (rows[-1] - rows[0]))) > maximum:
            reason = f"{needed:,} pixels to decode, more than {maximum:,}"
            raise ReadError(self.path, reason, "write it with smaller levels, or name the folder of all its levels")
        band = max(1, int(_BAND_PIXELS / (columns[-1] - columns[0] + 1) / max(step_y / level.scale_y, 1)))
        image = np.empty((height, width, 3), np.float32)
        for top in range(0, height, band):
            edges = rows[top : top + band + 1]
            first_row, first_column = math.floor(edges[0] + 1e-9), math.floor(columns[0] + 1e-9)
            pixels = self._decode_padded(number, first_column, first_row, columns[-1], edges[-1])
            lines = averages(pixels, edges - first_row)
            image[top : top + band] = averages(lines.swapaxes(0, 1), columns - first_column).swapaxes(0, 1)
        return image / np.float32(255)

    def _decode_padded(self, number: int, left: int, top: int, right: float, bottom: float) -> Bytes:
        """Pixels of a level from (left, top) to beyond (right, bottom), white outside the level."""
        level = self.levels[number]
        width, height = (max(1, math.ceil(end - 1e-9) - start) for start, end in ((left, right), (top, bottom)))
        inside = (max(left, 0), max(top, 0), min(left + width, level.width), min(top + height, level.height))
        columns, rows = inside[2] - inside[0], inside[3] - inside[1]
        if columns <= 0 or rows <= 0:
            return np.full((height, width, 3), 255, np.uint8)
        try:
            pixels = self.decode(number, inside[0], inside[1], columns, rows)
        except (MemoryError, ReadError):
            raise
        except Exception as error:  # decoders raise many types for damaged tiles; their messages may quote the file
            variant = f", or an unsupported variant of {self.codec}" if self.codec else ""
            raise ReadError(self.path, f"a tile of it is damaged{variant}", "fetch or export it again") from error
        if pixels.shape != (rows, columns, 3) or pixels.dtype != np.uint8:
            raise ReadError(self.path, "its tiles are not 8-bit RGB", "export it as 8-bit RGB")
        if (columns, rows) == (width, height):
            return pixels
        padded = np.full((height, width, 3), 255, np.uint8)
        padded[inside[1] - top : inside[3] - top, inside[0] - left : inside[2] - left] = pixels
        return padded


def averages(values: NDArray[Any], edges: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Means of `values` (N, ...) along axis 0 between neighbouring `edges` (n + 1 positions within 0..N): (n, ...)."""
    wide = (-1,) + (1,) * (values.ndim - 1)
    edges = np.clip(edges, 0, len(values))
    below = np.minimum(edges.astype(np.intp), len(values) - 1)
    part = values[below] * (edges - below).reshape(wide)  # of the pixel that each edge cuts, the part before it
    whole = np.add.reduceat(values, below, axis=0, dtype=np.uint32 if values.dtype == np.uint8 else np.float64)[:-1]
    whole = whole * (np.diff(below) > 0).reshape(wide)  # reduceat takes an empty range for its first pixel
    return np.asarray((whole + np.diff(part, axis=0)) / np.diff(edges).reshape(wide))


def check_area(path: Path, width: int, height: int, stored: int) -> None:
    """Raise ReadError if a level declares no pixels, or more than its bytes can contain."""
    if min(width, height) < 1:
        raise ReadError(path, f"declares {width} x {height} pixels", "export it again")
    if width * height * 3 > limits.SMALL:
        limits.check_ratio(path, width * height * 3, stored)
