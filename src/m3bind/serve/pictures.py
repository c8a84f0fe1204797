"""Images and signals of items and uploads, as bytes of an answer.

* `thumbnail`, `picture`, `signal`: of a `Preview`. * `png`: an image as a file. * `WINDOWS`: names of CT windows.
"""

import io
from typing import Any, Literal

import numpy as np
from PIL import Image

from m3bind import modalities
from m3bind.modalities.ct import IMAGE_HU, LUNG_WINDOW, SOFT_WINDOW
from m3bind.modalities.ecg import LEADS
from m3bind.modalities.formats import images
from m3bind.serve.errors import Refusal
from m3bind.serve.previews import Preview

Window = Literal["lung", "soft", "bone"]
WINDOWS: dict[str, tuple[float, float]] = {
    "lung": LUNG_WINDOW,
    "soft": SOFT_WINDOW,
    "bone": (-500.0, 1300.0),  # level 400, width 1800
}


def thumbnail(preview: Preview, size: int) -> bytes:
    """A PNG of up to `size` pixels in width and height."""
    if preview.sheet is None:
        return png(modalities.get(preview.modality).thumbnail(preview.sample(), size))
    small = preview.sheet.copy()
    small.thumbnail((size, size), Image.Resampling.LANCZOS)
    return png(small)


def picture(preview: Preview, size: int, at: int | None, window: Window | None) -> bytes:
    """A PNG of up to `size` pixels in width and height: slice `at` (default: the middle) of a volume, or the image.

    Raises:
        Refusal: no such slice, or a slice or window of an item that is not a volume.
    """
    if preview.kind != "volume":
        if at is not None or window is not None:
            raise Refusal(400, "no_slices", "Only volumes have slices and windows; leave both out.")
        return thumbnail(preview, size)
    depth = len(preview.array)
    at = depth // 2 if at is None else at
    if not 0 <= at < depth:
        raise Refusal(400, "no_slice", f"This volume has slices 0 to {depth - 1}.")
    plane = preview.array[at].astype(np.float32)
    low, high = WINDOWS[window] if window else _window(preview, plane)
    rows, columns = plane.shape
    if preview.spacing is not None:
        rows, columns = round(rows * preview.spacing[1] * 1000), round(columns * preview.spacing[2] * 1000)
    scale = size / max(rows, columns)
    box = max(1, round(columns * scale)), max(1, round(rows * scale))
    grey = Image.fromarray(np.rint(np.clip((plane - low) / (high - low), 0, 1) * 255).astype(np.uint8))
    return png(grey.resize(box, Image.Resampling.BICUBIC))


def _window(preview: Preview, plane: images.Array) -> tuple[float, float]:
    """The window that shows most of a slice: everything without Hounsfield units, lung if it contains lung."""
    if preview.spacing is None:
        return IMAGE_HU
    return LUNG_WINDOW if float(((plane > -950) & (plane < -500)).mean()) > 0.1 else SOFT_WINDOW


def signal(preview: Preview) -> dict[str, Any]:
    """A 12-lead signal as JSON values, in steps of a microvolt.

    Raises:
        Refusal: it is not a signal.
    """
    if preview.kind != "signal" or preview.rate is None or len(preview.array) != len(LEADS):
        raise Refusal(400, "no_signal", "Only 12-lead ECGs have signals; request the picture.")
    lines = np.round(preview.array.astype(np.float64), 3)
    return {"rate": preview.rate, "leads": list(LEADS), "mv": lines.tolist(), "seconds": preview.seconds}


def png(image: Image.Image) -> bytes:
    """A PNG file."""
    stream = io.BytesIO()
    image.save(stream, "png")
    return stream.getvalue()
