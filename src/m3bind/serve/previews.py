"""The visible content of one file, in little memory: enough for images of any size on the page, slices and traces.

* `Preview`: this content.

A volume is stored as int16 Hounsfield units with every slice, rows and columns subsampled if it is too large; an image
as float16, up to `SIDE` pixels wide; a signal as float32 up to `RATE` Hz, its first `SECONDS`.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m3bind import modalities
from m3bind.modalities import Sample

SIDE = 1536  # pixels
RATE = 500.0  # Hz
SECONDS = 30.0
SHEET = 512  # pixels of the small image of a volume
VOLUME_BYTES = 160 << 20
Kind = Literal["image", "volume", "signal"]


@dataclass(frozen=True)
class Preview:
    """A reduced `Sample`; `sheet` is the small image of a volume, `seconds` the length of the whole signal."""

    modality: str
    kind: Kind
    array: NDArray[Any]
    spacing: tuple[float, ...] | None = None
    rate: float | None = None
    seconds: float = 0.0
    sheet: Image.Image | None = None

    @classmethod
    def of(cls, sample: Sample, volume_bytes: int = VOLUME_BYTES) -> "Preview":
        """The preview of a decoded file; a volume takes up to `volume_bytes`."""
        array, spacing = sample.array, sample.spacing
        if sample.rate is not None:
            signal, rate = _slower(array[:, : round(SECONDS * sample.rate)], sample.rate)
            return cls(sample.modality, "signal", signal, rate=rate, seconds=array.shape[1] / sample.rate)
        if array.ndim == 3 and array.shape[2] != 3:
            step = 1
            while array[:, ::step, ::step].size * 2 > volume_bytes and step < min(array.shape[1:]):
                step += 1
            thin = np.clip(array[:, ::step, ::step], -32768, 32767).astype(np.int16)
            sides = None if spacing is None else (spacing[0], spacing[1] * step, spacing[2] * step)
            sheet = modalities.get(sample.modality).thumbnail(sample, SHEET)
            return cls(sample.modality, "volume", thin, sides, sheet=sheet)
        return cls(sample.modality, "image", _smaller(array).astype(np.float16), spacing)

    @property
    def slices(self) -> int | None:
        """Slices of a volume."""
        return len(self.array) if self.kind == "volume" else None

    @property
    def nbytes(self) -> int:
        """Its memory."""
        return int(self.array.nbytes) + 3 * SHEET * SHEET * (self.sheet is not None)

    def sample(self) -> Sample:
        """As a `Sample`, for a modality's thumbnail."""
        return Sample(self.modality, self.array.astype(np.float32), spacing=self.spacing, rate=self.rate)


def _smaller(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """An image (H, W) or (H, W, 3) of up to `SIDE` in width and height."""
    height, width = array.shape[:2]
    scale = SIDE / max(height, width)
    if scale >= 1:
        return array
    import cv2

    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(array, size, interpolation=cv2.INTER_AREA), np.float32)


def _slower(array: NDArray[np.float32], rate: float) -> tuple[NDArray[np.float32], float]:
    """A signal at up to `RATE` Hz, low-passed."""
    if rate <= RATE:
        return np.array(array, np.float32), rate
    from fractions import Fraction

    from scipy.signal import resample_poly

    ratio = Fraction(RATE / rate).limit_denominator(1000)
    slow = resample_poly(array, ratio.numerator, ratio.denominator, axis=1, padtype="line")
    return np.asarray(slow, np.float32), float(rate * ratio)
