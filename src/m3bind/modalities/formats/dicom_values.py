"""The meaning of stored values by the DICOM header: rules shared by all readers.

* `numbers`: the finite numbers of an entry.
* `padding`: which pixels are padding, by PixelPaddingValue and its range limit.
* `rescaling`, `rescaling_of`: slope and intercept, with a warning if the header's are unusable.
* `unit_of`: the unit of rescaled values, "" if the header states none.

Shapes: H rows, W columns.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PADDING = {  # kind of stored values and their bytes -> entries with the value and the other end of its range
    ("f", 4): ("FloatPixelPaddingValue", "FloatPixelPaddingRangeLimit"),
    ("f", 8): ("DoubleFloatPixelPaddingValue", "DoubleFloatPixelPaddingRangeLimit"),
}


@dataclass(frozen=True)
class Rescaling:
    """Stored values x `slope` + `intercept`. `stated`: the header has either; `doubt`: which was unusable."""

    slope: float = 1.0
    intercept: float = 0.0
    stated: bool = False
    doubt: str = ""


def numbers(dataset: Any, keyword: str) -> list[float]:
    """The finite numbers of an entry; [] if it is missing, not a number, or contains one that is not finite.

    Decimal commas, which DICOM does not allow but some writers use, are read as points.
    """
    try:
        value = _value_of(dataset, keyword)
        if isinstance(value, str) and value:  # of a VR for texts
            value = value.split("\\")
        values = [] if value is None or value == "" else list(value) if hasattr(value, "__iter__") else [value]
        floats = [float(v.strip(" \0").replace(",", ".") if isinstance(v, str) else v) for v in values]
    except Exception:  # pydicom converts values on access, and raises anything
        return []
    return floats if all(np.isfinite(floats)) else []


def _value_of(dataset: Any, keyword: str) -> Any:
    """The value of an entry; the text of one that pydicom cannot convert."""
    try:
        return dataset.get(keyword)
    except Exception:  # see `numbers`
        return dataset.get_item(keyword).value.decode("ascii")


def padding(dataset: Any, stored: NDArray[Any], steps: list[str] | None = None) -> NDArray[np.bool_] | None:
    """Where `stored` (H, W) is padding by the header, (H, W) bool, or None without padding.

    A padding value within the range of the image, such as 0 among Hounsfield units, is padding only in regions that
    touch the border: elsewhere it is a measured value, which is recorded in `steps`.
    """
    kind, size = stored.dtype.kind, stored.dtype.itemsize
    value, limit = _PADDING.get((kind, size), ("PixelPaddingValue", "PixelPaddingRangeLimit"))
    limits = numbers(dataset, value)[:1]
    if not limits:
        return None
    limits = limits + numbers(dataset, limit)[:1]
    if kind in "iu":
        bits = int((numbers(dataset, "BitsStored") or [8 * size])[0])
        limits = [_in_range(v, kind == "i", min(bits, 8 * size), 8 * size) for v in limits]
    mask: NDArray[np.bool_] = (stored >= min(limits)) & (stored <= max(limits))
    if not mask.any() or mask.all():
        return mask if mask.any() else None
    rest = stored[~mask]
    if rest.min() < min(limits) and rest.max() > max(limits):
        outer = mask & _reaches_border(mask)
        if steps is not None and (inner := int(mask.sum() - outer.sum())):
            steps.append(f"{inner} pixels of the padding value inside the image taken as measured")
        mask = outer
    return mask if mask.any() else None


def _in_range(value: float, signed: bool, bits: int, width: int) -> float:
    """A padding value in the pixels' dtype: writers put signed numbers into unsigned entries, and the reverse."""
    turn = float(1 << width)
    if not signed:
        return value + turn if value < 0 else value
    if value >= turn / 2:
        return value - turn
    return value - (1 << bits) if 1 << (bits - 1) <= value < 1 << bits else value


def _reaches_border(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The connected parts of `mask` (H, W) that touch the image's border."""
    from scipy.ndimage import label

    parts, _ = label(mask)
    edges = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    return np.asarray(np.isin(parts, edges[edges > 0]))


def rescaling(slope: list[float] | None, intercept: list[float] | None) -> Rescaling:
    """The rescaling by the `numbers` of RescaleSlope and RescaleIntercept; None: the entry is missing.

    A slope of 0, or that is not a finite number, is taken as 1; an intercept that is missing or not a number as 0.
    """
    if slope is None and intercept is None:
        return Rescaling()
    doubts = []
    if not slope or slope[0] == 0:
        what = "missing" if slope is None else "not a number" if not slope else "0"
        doubts.append(f"its rescale slope is {what}: taken as 1")
    if not intercept:
        doubts.append(f"its rescale intercept is {'missing' if intercept is None else 'not a number'}: taken as 0")
    usable = slope[0] if slope and slope[0] != 0 else 1.0
    return Rescaling(usable, intercept[0] if intercept else 0.0, True, "; ".join(doubts))


def rescaling_of(source: Any) -> Rescaling:
    """`rescaling` by the entries of one dataset."""
    return rescaling(*(numbers(source, name) if name in source else None for name in
                       ("RescaleSlope", "RescaleIntercept")))  # fmt: skip


def unit_of(value: Any) -> str:
    """A RescaleType in capitals; "" if it is missing or empty."""
    if value is not None and not isinstance(value, str) and hasattr(value, "__iter__"):
        value = next(iter(value), None)
    return "" if value is None else str(value).strip(" \0").upper()
