"""Decoded values of PNG, JPEG and TIFF images -> float32 0..1.

* * `unit_range`: values of any dtype, scaled linearly and never clipped.
* * `on_black`: transparent pixels blended with black.
* `grey_or_rgb`: a Pillow image of any mode as values (H, W) or (H, W, 3), with opacity and processing steps.

Shapes: H rows, W columns.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m3bind.errors import ReadError
from m3bind.modalities.formats import buffer

Array = NDArray[np.float32]
Values = NDArray[Any]
TRANSPARENT = "transparent pixels blended with black"


def unit_range(path: Path, values: Values, steps: list[str]) -> Array:
    """`values` (H, W) or (H, W, 3) as 0..1.

    Bytes are divided by 255. Larger numbers without a negative one are divided by 2^b - 1, where b is the smallest of
    8, 10, 12, 14, 16 bits that holds their maximum, so that 12-bit radiographs stored in 16 bits are not nearly black.
    Others are stretched from minimum to maximum, except floats already in 0..1.

    Raises:
        ReadError: values that are not finite.
    """
    if values.dtype == np.bool_:
        return values.astype(np.float32)
    if values.dtype == np.uint8:
        out = buffer.empty(values.shape)
        return np.multiply(values, np.float32(1 / 255), out=out, dtype=np.float32)  # in one pass
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ReadError(path, "pixel values that are not finite", "export it as 16-bit PNG")
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind in "iu" and low >= 0 and high < 2**16:
        bits = next((b for b in (8, 10, 12, 14) if high < 2**b), 16)
        steps.append(f"16-bit values divided by {2**bits - 1}")
        return (values.astype(np.float32) / np.float32(2**bits - 1)).astype(np.float32)
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        return values.astype(np.float32)
    steps.append(f"stretched from its minimum {low:g} to its maximum {high:g}")
    if values.dtype == np.float32:
        return np.asarray((values - np.float32(low)) / np.float32(max(high - low, 1e-12)), dtype=np.float32)
    return ((values.astype(np.float64) - low) / max(high - low, 1e-12)).astype(np.float32)


def on_black(array: Array, opacity: Array | None, steps: list[str]) -> Array:
    """`array` (H, W) or (H, W, 3) blended with black by `opacity` (H, W) in 0..1; recorded in `steps` if not opaque."""
    if opacity is None or bool((opacity >= 1).all()):
        return array
    steps.append(TRANSPARENT)
    return np.asarray(array * (opacity if array.ndim == 2 else opacity[..., None]), dtype=np.float32)


def grey_or_rgb(path: Path, image: Image.Image, steps: list[str]) -> tuple[Values, Array | None]:
    """Values of a loaded image and its opacity (H, W) in 0..1 (None: opaque); adds to `steps`.

    Raises:
        ReadError: an unsupported colour model.
    """
    key = image.info.get("transparency")
    if image.mode in ("1", "I", "F", "L", "RGB") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        key = bool(key) if image.mode == "1" and key is not None else key
        keyed = isinstance(key, {"L": int, "RGB": tuple}[image.mode]) if image.mode in ("L", "RGB") else key is not None
        return values, _unlike(values, key) if keyed else None
    if image.mode == "LA":
        pair = np.asarray(image)
        return pair[..., 0], _opacity(pair[..., 1])
    if image.mode in ("La", "RGBa"):  # premultiplied by its opacity, hence already blended with black
        steps.append(TRANSPARENT)
        return np.asarray(image)[..., 0 if image.mode == "La" else slice(3)], None
    steps.append(f"{image.mode} converted to RGB")
    if image.mode in ("P", "PA", "RGBA"):
        four = np.asarray(image.convert("RGBA"))
        return four[..., :3], _opacity(four[..., 3])
    if image.mode not in ("CMYK", "YCbCr", "RGBX", "HSV", "LAB"):
        raise ReadError(path, f"pixels in the colour model {image.mode}, which is not supported", "export it as RGB")
    return np.asarray(image.convert("RGB")), None


def _unlike(values: Values, key: Any) -> Array:
    """0 where `values` (H, W) or (H, W, 3) are the colour that a PNG declares transparent, else 1."""
    same = values == np.asarray(key)
    return np.asarray(1 - (same.all(axis=-1) if values.ndim == 3 else same).astype(np.float32))


def _opacity(values: Values) -> Array:
    return (values / np.float32(255)).astype(np.float32)
