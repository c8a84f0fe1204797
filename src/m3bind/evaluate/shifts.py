"""Shifts of decoded files: what other devices, settings and exports do to them.

* `shifts_of`: the shifts that a sample can have, by name; the first is `SHIPPED`, the file unchanged.
* `kind_of`: "image", "volume" or "signal".
* `on_array`, `resampled`, `thinned`, `noisy`, `jpeg`, `stained`: from which they, and others, are made.

Shapes: image (H, W) or (H, W, 3) in 0..1, volume (D, H, W) in HU, signal (leads, T) in mV.
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom
from scipy.signal import resample_poly

from m3bind.modalities.base import Sample

Floats = NDArray[np.float32]
Shift = Callable[[Sample], Sample]
Kind = Literal["image", "volume", "signal"]
SHIPPED = "as shipped"
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])  # H, E, DAB (Ruifrok, Johnston 2001)
LEAD = 8  # V3


def kind_of(sample: Sample) -> Kind:
    """By rate and shape."""
    if sample.rate is not None:
        return "signal"
    return "volume" if sample.array.ndim == 3 and sample.array.shape[-1] != 3 else "image"


def shifts_of(sample: Sample) -> Mapping[str, Shift]:
    """Name -> shift, in the order of tables."""
    kind = kind_of(sample)
    stain = {"stain": STAIN} if kind == "image" and sample.modality == "pathology" else {}
    return {SHIPPED: lambda given: given, **SHIFTS[kind], **stain}


def on_array(function: Callable[[Floats], Floats]) -> Shift:
    """A shift of the array alone."""
    return lambda sample: replace(sample, array=np.ascontiguousarray(function(sample.array), np.float32))


def _pixels(array: Floats) -> Image.Image:
    return Image.fromarray(np.rint(array.clip(0, 1) * 255).astype(np.uint8))


def _values(pixels: Image.Image) -> Floats:
    return np.asarray(pixels, np.float32) / np.float32(255)


def resampled(side: float) -> Callable[[Floats], Floats]:
    """An image whose longer side has `side` pixels (below 1: that share of its own)."""

    def resize(array: Floats) -> Floats:
        factor = side if side < 1 else side / max(array.shape[:2])
        height, width = (max(1, round(length * factor)) for length in array.shape[:2])
        return _values(_pixels(array).resize((width, height), Image.Resampling.LANCZOS))

    return resize


def jpeg(quality: int) -> Callable[[Floats], Floats]:
    """An image compressed and opened again."""

    def compress(array: Floats) -> Floats:
        file = io.BytesIO()
        _pixels(array).save(file, "jpeg", quality=quality)
        return _values(Image.open(file))

    return compress


def noisy(spread: float, alone: bool = False) -> Callable[[Floats], Floats]:
    """Normal noise, added or around the mean; the same for every file of one shape."""

    def add(array: Floats) -> Floats:
        base = array.mean() if alone else array
        return base + spread * np.random.default_rng(0).standard_normal(array.shape).astype(np.float32)

    return add


def _clipped(function: Callable[[Floats], Floats]) -> Shift:
    """Of an image, whose values stay in 0..1."""
    return on_array(lambda array: function(array).clip(0, 1))


def _centre(array: Floats) -> Floats:
    """The middle half of an image along both axes."""
    height, width = array.shape[:2]
    return array[height // 4 : height - height // 4, width // 4 : width - width // 4]


def _mirrored(array: Floats) -> Floats:
    """Four mirrored copies at half the size."""
    small = resampled(0.5)(array)
    wide = np.concatenate([small, small[:, ::-1]], axis=1)
    return np.concatenate([wide, wide[::-1]], axis=0)


def stained(factors: tuple[float, float]) -> Callable[[Floats], Floats]:
    """Haematoxylin and eosin of a colour image (H, W, 3) multiplied by `factors`, in optical density."""

    def stain(array: Floats) -> Floats:
        density = -np.log(array.clip(1 / 255, 1)) @ np.linalg.inv(STAINS)
        return np.asarray(np.exp(-(density * np.array([*factors, 1.0])) @ STAINS), np.float32)

    return on_colour(stain)


def on_colour(function: Callable[[Floats], Floats]) -> Callable[[Floats], Floats]:
    """`function` of colour images; grey ones are unchanged."""
    return lambda array: function(array) if array.ndim == 3 else array


def thinned(*factors: float) -> Shift:
    """A volume with fewer voxels along each axis (D, H, W), by `factors`; at least two remain."""

    def change(sample: Sample) -> Sample:
        lengths = [
            min(length, max(2, round(length / f))) for length, f in zip(sample.array.shape, factors, strict=True)
        ]
        ratios = [new / old for new, old in zip(lengths, sample.array.shape)]
        array = zoom(sample.array, ratios, order=1).astype(np.float32)
        extents = [old / new for old, new in zip(sample.array.shape, array.shape)]
        spacing = sample.spacing and tuple(mm * extent for mm, extent in zip(sample.spacing, extents))
        return replace(sample, array=array, spacing=spacing)

    return change


def _magnified(factor: float) -> Shift:
    """A volume whose voxels are said to be `factor` times as large."""
    return lambda sample: replace(sample, spacing=sample.spacing and tuple(factor * mm for mm in sample.spacing))


def _slower(factor: int) -> Shift:
    """A signal at a `factor`-th of the sampling rate."""

    def change(sample: Sample) -> Sample:
        array = np.ascontiguousarray(resample_poly(sample.array, 1, factor, axis=1), np.float32)
        return replace(sample, array=array, rate=None if sample.rate is None else sample.rate / factor)

    return change


def without_leads(*leads: int) -> Callable[[Floats], Floats]:
    """A signal in which some leads are flat."""
    return lambda array: np.where(np.isin(np.arange(len(array)), leads)[:, None], np.float32(0), array)


STAIN = _clipped(stained((1.4, 0.7)))
SHIFTS: Mapping[Kind, Mapping[str, Shift]] = {
    "image": {
        "half resolution": on_array(resampled(0.5)),
        "quarter resolution": on_array(resampled(0.25)),
        "JPEG 50": on_array(jpeg(50)),
        "blur 2 px": on_array(lambda array: gaussian_filter(array, (2, 2, 0)[: array.ndim])),
        "noise .1": _clipped(noisy(0.1)),
        "brighter": _clipped(lambda array: array + np.float32(0.15)),
        "half contrast": on_array(lambda array: (array + array.mean()) / 2),
        "2x magnification": on_array(_centre),
        "half magnification": on_array(_mirrored),
    },
    "volume": {
        "half resolution": thinned(1, 2, 2),
        "quarter resolution": thinned(1, 4, 4),
        "slices twice as thick": thinned(2, 1, 1),
        "blur 1 voxel": on_array(lambda array: gaussian_filter(array, 1)),
        "noise 200 HU": on_array(noisy(200)),
        "2x magnification": _magnified(2.0),
    },
    "signal": {
        "half sampling rate": _slower(2),
        "noise .2 mV": on_array(noisy(0.2)),
        "V3 flat": on_array(without_leads(LEAD)),
        "six leads flat": on_array(without_leads(0, 2, 4, 6, 8, 10)),
        "twice the gain": on_array(lambda array: 2 * array),
    },
}
