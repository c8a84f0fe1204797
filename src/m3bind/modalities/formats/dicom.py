"""DICOM files: opened within limits, pixels decoded, and rendered as for diagnosis.

* `is_dicom`, `open_dicom`, `kind_of`, `technical_tags`: see `dicom_files`.
* `frame_count`, `pixel_frames`, `decode`: stored values, before any rescaling or window; see `dicom_pixels`.
* `grey`: the middle frame as 0..1, bright = dense, through modality LUT, VOI LUT and presentation.
* `colour`: the middle frame as RGB 0..1.

Shapes: F frames, H rows, W columns.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3bind.errors import ReadError, in_words
from m3bind.modalities.formats import buffer, colour_profile
from m3bind.modalities.formats.dicom_colour import to_rgb
from m3bind.modalities.formats.dicom_files import (
    DAMAGED,
    SUFFIXES,
    is_dicom,
    kind_of,
    named,
    open_dicom,
    quiet,
    technical_tags,
)
from m3bind.modalities.formats.dicom_pixels import LIBRARIES, decode, frame_count, pixel_frames
from m3bind.modalities.formats.dicom_values import numbers, padding, rescaling_of

__all__ = ["LIBRARIES", "SUFFIXES", "colour", "decode", "frame_count", "grey", "is_dicom", "kind_of", "named",
           "open_dicom", "pixel_frames", "technical_tags"]  # fmt: skip

Array = NDArray[np.float32]
Values = NDArray[Any]
MAX_OBLONG = 1.02  # ratio of the sides of a pixel that counts as square
MONOCHROME = ("MONOCHROME1", "MONOCHROME2")


@dataclass
class _Notes:
    """Processing steps and warnings, collected on the way."""

    steps: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def grey(dataset: Any, path: Path) -> tuple[Array, list[str], list[str]]:
    """The (middle) frame as (H, W) 0..1, bright = dense, with steps and warnings.

    Stored values go through the modality LUT or the rescaling (once), then through the first VOI LUT or the first
    window (LINEAR, LINEAR_EXACT, SIGMOID) whose output is 0..1; without either, the frame's minimum and maximum become
    0 and 1. MONOCHROME1 and PresentationLUTShape INVERSE then invert it, once even if both are set. Padding becomes
    black and is ignored before; overlays are not drawn.

    Raises:
        ReadError: as `pixel_frames`, or in colour, or with an unusable LUT.
    """
    photometric = str(dataset.get("PhotometricInterpretation", "") or "")
    if photometric and photometric not in MONOCHROME:
        raise ReadError(path, "pixels in colour, not grey", "check the modality of this file")
    notes = _Notes()
    if not photometric:
        notes.warnings.append("no photometric interpretation: bright taken to mean dense")
    frame = _middle(dataset, path, notes)
    pixels = decode(dataset, path, frame)
    stored = pixels.values
    notes.warnings += pixels.doubts
    if stored.ndim != 2:
        reason = f"labelled {pixels.label}, which is grey, but with {stored.shape[-1]} samples per pixel"
        raise ReadError(path, reason, "check the modality of this file")
    try:
        with quiet(), np.errstate(all="ignore"):
            array = _shown(dataset, path, frame, stored, notes)
    except (MemoryError, ReadError):
        raise
    except Exception as error:  # pydicom converts header values on access, and raises anything
        reason = f"its look-up tables or windows cannot be used ({in_words(error)})"
        raise ReadError(path, reason, DAMAGED) from error
    notes.warnings += _not_square(dataset)
    overlays = sum((0x6000 + 2 * k, 0x3000) in dataset or (0x6000 + 2 * k, 0x0010) in dataset for k in range(16))
    if overlays:
        notes.steps.append(f"overlay planes not drawn: {overlays}")
    return array, notes.steps, notes.warnings


def _middle(dataset: Any, path: Path, notes: _Notes) -> int:
    """Number of the middle frame, recorded if there are several."""
    frames = frame_count(dataset, path)
    if frames > 1:
        notes.steps.append(f"frame {frames // 2 + 1} of {frames} taken")
        notes.warnings.append(f"{frames} frames, of which only the middle one is used")
    return frames // 2


def _not_square(dataset: Any) -> list[str]:
    """The warning about pixels that are not square, by their size or their ratio."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"):
        sides = numbers(dataset, keyword)
        if len(sides) == 2 and min(sides) > 0:
            if max(sides) <= MAX_OBLONG * min(sides):
                return []
            return [f"pixels are not square: {sides[0]:.4g} high to {sides[1]:.4g} wide; not resampled"]
    return []


def _shown(dataset: Any, path: Path, frame: int, stored: Values, notes: _Notes) -> Array:
    """Stored values (H, W) -> 0..1. Up to 16 bits it is computed once per possible value, then looked up."""
    if stored.dtype.kind == "f" and not np.isfinite(stored).all():
        raise ReadError(path, "values that are not finite", DAMAGED)
    padding = _padding(dataset, stored, notes)
    content = stored if padding is None else stored[~padding]
    low, high = content.min(), content.max()
    modality = _modality_lut(dataset, path, frame, notes)
    bounds = modality(np.array([low, high], dtype=np.float64))
    display = _voi(dataset, path, frame, notes, bool(modality(np.array([0.0]))[0] < 0 or bounds.min() < 0))
    if display is None:
        low_out, high_out = float(bounds.min()), float(bounds.max())
        if _table(dataset, frame, "ModalityLUTSequence") is not None:
            every = modality(np.unique(content).astype(np.float64))
            low_out, high_out = float(every.min()), float(every.max())
        span = max(high_out - low_out, 1e-12)
        display = lambda values: (values - low_out) / span  # noqa: E731
        notes.steps.append(f"no window: stretched from its minimum {low_out:g} to its maximum {high_out:g}")
    inverted = _is_inverted(dataset, notes)

    def chain(values: Values) -> Array:
        out = np.clip(display(modality(values.astype(np.float64))), 0, 1)
        return (1 - out if inverted else out).astype(np.float32)

    array = _looked_up(chain, stored) if stored.dtype.kind in "iu" and stored.dtype.itemsize <= 2 else chain(stored)
    if padding is not None:
        array[padding] = 0
    return array


def _looked_up(chain: Callable[[Values], Array], stored: Values) -> Array:
    """`chain` of integers of up to 16 bits, computed once for every value between minimum and maximum."""
    first, last = int(stored.min()), int(stored.max())
    table = np.zeros(1 << (8 * stored.dtype.itemsize), dtype=np.float32)
    values = np.arange(first, last + 1)
    table[values % len(table)] = chain(values)  # a negative value is at the index of the unsigned value with its bits
    indices = stored.view(f"u{stored.dtype.itemsize}")
    out = buffer.empty(stored.shape)
    return np.take(table, indices, out=out, mode="clip")


def _group(dataset: Any, frame: int, macro: str) -> Any:
    """The item of an enhanced file's functional group `macro` for one frame, or the data set itself."""
    for keyword, number in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        groups = dataset.get(keyword)
        if groups and number < len(groups) and groups[number].get(macro):
            return groups[number].get(macro)[0]
    return dataset


def _padding(dataset: Any, stored: Values, notes: _Notes) -> NDArray[np.bool_] | None:
    """Where pixels are padding, or None; their fraction is recorded."""
    mask = padding(dataset, stored, notes.steps)
    if mask is None:
        return None
    if mask.all():
        notes.warnings.append("every pixel is padding")
        return None
    notes.steps.append(f"padding of {float(mask.mean()):.1%} of the pixels set to black")
    return mask


def _table(dataset: Any, frame: int, keyword: str) -> Any:
    """The first item of a LUT sequence, or None."""
    macro = {"ModalityLUTSequence": "PixelValueTransformationSequence", "VOILUTSequence": "FrameVOILUTSequence"}
    for source in (dataset, _group(dataset, frame, macro[keyword])):
        items = source.get(keyword)
        if items:
            return items[0]
    return None


def _modality_lut(dataset: Any, path: Path, frame: int, notes: _Notes) -> Callable[[Values], Values]:
    """Stored values -> modality values (Hounsfield, density), by LUT, by slope and intercept, or unchanged."""
    item = _table(dataset, frame, "ModalityLUTSequence")
    if item is not None:
        entries, first, bits = _entries(dataset, path, item, int(dataset.get("PixelRepresentation", 0)) == 1)
        notes.steps.append(f"modality LUT of {len(entries)} entries of {bits} bits applied (once)")
        return lambda values: _look_up(entries, first, values)
    source = _group(dataset, frame, "PixelValueTransformationSequence")
    scale = rescaling_of(source)
    if scale.doubt:
        notes.warnings.append(scale.doubt)
    if not scale.stated:
        return lambda values: values
    slope, intercept = scale.slope, scale.intercept
    notes.steps.append(f"rescaled by slope {slope:g} and intercept {intercept:g} (once)")
    return lambda values: values * slope + intercept


def _voi(dataset: Any, path: Path, frame: int, notes: _Notes, signed: bool) -> Callable[[Values], Values] | None:
    """Modality values -> 0..1 by the first VOI LUT or window; None without a usable one."""
    item = _table(dataset, frame, "VOILUTSequence")
    if item is not None:
        entries, first, bits = _entries(dataset, path, item, signed)
        notes.steps.append(f"VOI LUT of {len(entries)} entries of {bits} bits applied")
        top = 2**bits - 1
        return lambda values: _look_up(entries, first, values) / top
    source = dataset if "WindowWidth" in dataset else _group(dataset, frame, "FrameVOILUTSequence")
    if "WindowCenter" not in source and "WindowWidth" not in source:
        return None
    centres, widths = numbers(source, "WindowCenter"), numbers(source, "WindowWidth")
    function = str(source.get("VOILUTFunction", "") or "LINEAR").upper()
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        notes.warnings.append("an unknown VOI LUT function is taken as LINEAR")
        function = "LINEAR"
    if not centres or not widths or widths[0] <= 0 or (function == "LINEAR" and widths[0] < 1):
        notes.warnings.append("an unusable window is ignored")
        return None
    centre, width = centres[0], widths[0]
    others = f", the first of {len(widths)}" if len(widths) > 1 else ""
    shape = {"LINEAR": "", "LINEAR_EXACT": " (exact)", "SIGMOID": " (sigmoid)"}[function]
    notes.steps.append(f"window {centre:g}/{width:g}{shape} applied{others}")
    if function == "SIGMOID":
        return lambda values: 1 / (1 + np.exp(-4 * (values - centre) / width))
    if function == "LINEAR":  # half a step and one value less, as the standard defines it
        centre, width = centre - 0.5, width - 1
    if width == 0:
        return lambda values: (values > centre).astype(np.float64)
    return lambda values: np.clip((values - centre) / width + 0.5, 0, 1)


def _entries(dataset: Any, path: Path, item: Any, signed: bool) -> tuple[Values, int, int]:
    """Entries of a LUT, the input value of the first one and the number of bits of an entry.

    Raises ReadError: shorter than declared, or of an unknown depth.
    """
    count, first, bits = (int(v) for v in item.LUTDescriptor)
    count = count or 65536
    if signed and first > 32767:  # US where SS was meant
        first -= 65536
    data = item.LUTData
    if isinstance(data, bytes):
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        packed = bits <= 8 and len(data) < 2 * count
        data = np.frombuffer(data, dtype="u1" if packed else f"{order}u2")
    values = np.atleast_1d(np.asarray(data)).astype(np.int64) & 0xFFFF
    if not 1 <= bits <= 16 or not 1 <= count <= len(values):
        raise ReadError(path, f"a look-up table of {count} entries of {bits} bits has {len(values)}", DAMAGED)
    return values[:count], first, max(bits, int(values[:count].max()).bit_length())


def _look_up(entries: Values, first: int, values: Values) -> Values:
    """Entries for values as floats; the first and last entry beyond the table."""
    return np.asarray(entries[np.clip(values - first, 0, len(entries) - 1).astype(np.int64)], dtype=np.float64)


def _is_inverted(dataset: Any, notes: _Notes) -> bool:
    """Whether dark means dense: MONOCHROME1, PresentationLUTShape INVERSE or both."""
    inverted = dataset.get("PhotometricInterpretation", "") == "MONOCHROME1"
    shape = str(dataset.get("PresentationLUTShape", "") or "")
    if shape in ("INVERSE", "IDENTITY") and (shape == "INVERSE") != inverted:
        notes.warnings.append("photometric interpretation and PresentationLUTShape contradict each other")
    if inverted or shape == "INVERSE":
        notes.steps.append("MONOCHROME1 inverted (once): bright = dense" if inverted else "INVERSE inverted (once)")
    return inverted or shape == "INVERSE"


def colour(dataset: Any, path: Path) -> tuple[Array, list[str], list[str]]:
    """The (middle) frame as RGB (H, W, 3) 0..1, with steps and warnings; RGB, YBR_* and PALETTE COLOR are supported.

    Raises:
        ReadError: as `pixel_frames`, grey, or in an unsupported colour model.
    """
    photometric = str(dataset.get("PhotometricInterpretation", "") or "")
    if photometric in MONOCHROME:
        raise ReadError(path, "grey pixels, not colour", "check the modality of this file")
    notes = _Notes()
    pixels = decode(dataset, path, _middle(dataset, path, notes))
    notes.warnings += pixels.doubts + _not_square(dataset) + colour_profile.doubts_of_dicom(dataset)
    return to_rgb(dataset, path, pixels, notes.steps, notes.warnings), notes.steps, notes.warnings
