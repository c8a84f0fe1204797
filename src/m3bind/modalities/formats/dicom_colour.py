"""DICOM pixels in colour -> RGB, for `dicom.colour`.

* `to_rgb`: the values of one frame. * `rgb_of`: YBR_FULL -> RGB.

The header's label (PhotometricInterpretation) and the markers of a compressed stream may contradict each other. If they
differ, the values decide: hardly any YBR value falls outside the RGB range, but most RGB values interpreted as YBR do.
Contradictions are always reported.

Shapes: H rows, W columns.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3bind.errors import ReadError, in_words
from m3bind.modalities.formats import buffer
from m3bind.modalities.formats.dicom_files import DAMAGED, HARM, quiet
from m3bind.modalities.formats.dicom_pixels import Pixels

Array = NDArray[np.float32]
Values = NDArray[Any]
MAX_LUT = 1 << 20  # entries of a palette written in segments
_WITHIN, _OUTSIDE = 0.1, 0.4  # fractions of pixels outside the RGB range below which they are YBR, above which not
_MIN_PIXELS = 256  # for this decision
_YBR = ("YBR_FULL", "YBR_FULL_422")
_TRANSFORMED = ("YBR_ICT", "YBR_RCT")


def to_rgb(dataset: Any, path: Path, pixels: Pixels, steps: list[str], warnings: list[str]) -> Array:
    """The values of one frame as RGB (H, W, 3) 0..1; adds to `steps` and `warnings`.

    Raises:
        ReadError: an unsupported colour model, or an unusable palette.
    """
    stored = pixels.values
    if pixels.label == "PALETTE COLOR" and stored.ndim == 2 and stored.dtype.kind in "iu":
        steps.append("palette applied")
        return _palette(dataset, path, stored, warnings)
    if stored.ndim != 3 or stored.dtype.kind not in "iu" or pixels.label not in ("RGB", *_YBR, *_TRANSFORMED):
        samples = 1 if stored.ndim == 2 else stored.shape[2]
        known = pixels.label if pixels.label in _KNOWN else "unknown"
        reason = f"labelled {known}, with {samples} samples per pixel, a colour model that is not supported"
        raise ReadError(path, reason, "export it as RGB")
    if stored.dtype.kind == "i":
        warnings.append("the header declares its colours as signed numbers, which is invalid: taken as unsigned")
        stored = _unsigned(dataset, stored)
    top = _largest(dataset, pixels)
    array = np.multiply(stored, np.float32(1 / top), out=buffer.empty(stored.shape), dtype=np.float32)
    zero = (top + 1) / 2 / top
    ybr, doubt = _is_ybr(pixels, array, zero)
    if doubt:
        warnings.append(doubt)
    if ybr:
        steps.append("YBR converted to RGB")
        array = rgb_of(array, zero)
    return np.asarray(np.clip(array, 0, 1, out=array))


def _unsigned(dataset: Any, stored: Values) -> Values:
    """The bits of signed values as unsigned ones."""
    width = 8 * stored.dtype.itemsize
    bits = min(int(dataset.get("BitsStored") or width), width)
    return stored.view(f"u{stored.dtype.itemsize}") & ((1 << bits) - 1)


_KNOWN = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "HSV", "ARGB", "CMYK", *_YBR, *_TRANSFORMED,
          "YBR_PARTIAL_422", "YBR_PARTIAL_420")  # fmt: skip


def _largest(dataset: Any, pixels: Pixels) -> int:
    """The value of full brightness, by the header, or by the stream if the header's is impossible."""
    bits = int(dataset.get("BitsStored") or 8 * pixels.values.dtype.itemsize)
    if pixels.stream is not None and (pixels.stream.precision < bits or int(pixels.values.max(initial=0)) >= 1 << bits):
        bits = pixels.stream.precision
    return (1 << bits) - 1


def _is_ybr(pixels: Pixels, array: Array, zero: float) -> tuple[bool, str]:
    """Whether values (H, W, 3) in 0..1 are luminance and colour differences, and the warning about it, or ""."""
    label, stream = pixels.label, pixels.stream
    if stream is None or (stream.signed is None and not stream.colour and stream.lossless):
        return _by_label(label, array, zero, "the pixels are not compressed" if stream is None else "it is lossless")
    if stream.signed is not None:  # JPEG 2000
        return _by_transform(label, stream.transformed, array, zero)
    stated, why = stream.colour, stream.why
    if stated == ("YBR" if label in _YBR else "RGB" if label == "RGB" else ""):
        return stated == "YBR", ""
    if not stated and label in _YBR:
        return True, ""
    looks = "YBR" if "half" in why else _looks(array, zero)
    if not stated and label == "RGB" and looks == "RGB":
        return False, ""
    taken = looks or stated or ("RGB" if label == "RGB" else "YBR")
    against = f"{stated} by {why}" if stated else f"the JPEG stream has no marker of {label}"
    return taken == "YBR", f"labelled {label}, but {against}: taken as {taken}{_because(looks)}"


def _by_label(label: str, array: Array, zero: float, fact: str) -> tuple[bool, str]:
    """`_is_ybr` by only the label and the values."""
    looks = _looks(array, zero)
    if label in _TRANSFORMED:
        taken = looks or "RGB"
        return taken == "YBR", f"labelled {label}, but {fact}: taken as {taken}{_because(looks)}"
    ybr = label in _YBR
    if looks == ("RGB" if ybr else "YBR"):
        return ybr, f"labelled {label}, but its values look like {looks}: colours may be wrong"
    return ybr, ""


def _by_transform(label: str, transformed: bool, array: Array, zero: float) -> tuple[bool, str]:
    """`_is_ybr` of JPEG 2000, whose own transform is already inverted."""
    if label in _TRANSFORMED and transformed:
        return False, ""
    if label == "RGB":
        fact = "its JPEG 2000 stream has a colour transform, which was inverted" if transformed else ""
        return False, f"labelled RGB, but {fact}" if fact else ""
    if label in _YBR and not transformed:
        return True, ""
    looks = _looks(array, zero)
    taken = looks or "RGB"
    fact = "has a colour transform" if transformed else "has no colour transform"
    return taken == "YBR", f"labelled {label}, but its JPEG 2000 stream {fact}: taken as {taken}{_because(looks)}"


def _because(looks: str) -> str:
    return ", as its values suggest" if looks else ""


def _looks(array: Array, zero: float) -> str:
    """ "YBR" or "RGB" by how many values (H, W, 3) are outside the RGB range if taken as YBR; "" if undecided."""
    some = array[:: max(1, array.shape[0] // 64), :: max(1, array.shape[1] // 64)]
    if some.shape[0] * some.shape[1] < _MIN_PIXELS or float(some[..., 0].std()) < 0.02:
        return ""
    outside = float(((rgb := rgb_of(some, zero)) < -0.1).any(axis=2).mean() + (rgb > 1.1).any(axis=2).mean())
    return "YBR" if outside < _WITHIN else "RGB" if outside > _OUTSIDE else ""


def rgb_of(ybr: Array, zero: float) -> Array:
    """YBR_FULL (H, W, 3) -> RGB; `zero` is the chroma of grey (128 / 255)."""
    y, b, r = ybr[..., 0], ybr[..., 1] - np.float32(zero), ybr[..., 2] - np.float32(zero)
    return np.stack([y + 1.402 * r, y - 0.344136 * b - 0.714136 * r, y + 1.772 * b], axis=2).astype(np.float32)


def _palette(dataset: Any, path: Path, stored: Values, warnings: list[str]) -> Array:
    """Stored indices (H, W) -> RGB (H, W, 3) by the file's palette. Raises ReadError: no usable palette."""
    from pydicom.pixels import apply_color_lut

    try:
        with quiet():
            _check_segments(dataset, path)
            array = apply_color_lut(stored, dataset)[..., :3]
            bits = int(dataset.RedPaletteColorLookupTableDescriptor[2])
    except (MemoryError, ReadError):
        raise
    except Exception as error:
        raise ReadError(path, f"its palette cannot be used ({in_words(error)})", DAMAGED) from error
    maximum = int(array.max(initial=0))
    if bits > 8 and 0 < maximum < 256:
        warnings.append(f"its palette states {bits} bits, but no colour needs more than 8: taken as 8")
        bits = 8
    top = max(2**bits - 1, maximum)
    return np.asarray(np.multiply(array, np.float32(1 / top), dtype=np.float32))


def _check_segments(dataset: Any, path: Path) -> None:
    """Raise ReadError if a segmented palette would expand to more than `MAX_LUT` entries."""
    for name in ("Red", "Green", "Blue", "Alpha"):
        data = dataset.get(f"Segmented{name}PaletteColorLookupTableData")
        if not data:
            continue
        words = np.frombuffer(data[: len(data) // 2 * 2], dtype="<u2")
        at, total, longest = 0, 0, 0
        while at + 1 < len(words):
            code, count = int(words[at]), int(words[at + 1])
            longest = max(longest, count if code < 2 else 0)
            total += count if code < 2 else count * longest
            at += {0: 2 + count, 1: 3}.get(code, 4)
        if total > MAX_LUT:
            raise ReadError(path, f"its palette expands to {total:,} entries", HARM)
