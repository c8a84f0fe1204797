"""What DICOM headers say of CT slices: kind, series, geometry, rescaling; of files with one frame or with many.

* `Slice`: the facts of one slice.
* `other_kind`: why an object is no CT slice.
* `slices_of`: the slice of a header, or one per frame (functional groups of enhanced CT).

Header values are numbers from anywhere: entries that are missing, not finite or of the wrong count are None.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3bind.errors import ReadError
from m3bind.modalities import _limits

Numbers = NDArray[np.float64]

_CT_STORAGE = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.2(\.[12])?$")  # CT, enhanced CT, converted enhanced CT
_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_KINDS = (
    "MR", "PT", "CR", "DX", "DR", "US", "XA", "XC", "NM", "SR", "PR", "SEG", "KO", "MG", "OT", "RTSTRUCT", "RTDOSE",
    "RTPLAN", "DOC", "REG", "OP", "SM", "ECG",
)  # fmt: skip


@dataclass
class Slice:
    """What the header says of one slice. `order` is what it is sorted by where its position does not tell."""

    path: Path
    frame: int | None  # of a file with several frames
    series: tuple[float, str]  # number and UID; never shown
    shape: tuple[int, int]  # rows, columns
    order: tuple[float, float, str]  # acquisition, instance or frame, file name
    position: Numbers | None = None  # (3,) of the first pixel's centre
    orientation: Numbers | None = None  # (6,) direction along a row, direction down a column
    sides: Numbers | None = None  # (2,) between rows, between columns
    rescale: Numbers | None = None  # slope, intercept
    hounsfield: bool = True  # what the header says of the unit
    tilt: float = 0.0  # degrees, of the gantry
    apart: float | None = None  # mm between slices, as the header says
    thickness: float | None = None  # mm
    location: float | None = None


def other_kind(header: Any) -> str:
    """Why a DICOM object is no CT slice, or ""."""
    modality, kind = str(header.get("Modality", "")), str(header.get("SOPClassUID", ""))
    if modality != "CT" and (modality or not _CT_STORAGE.match(kind)):
        return f"of modality {modality}" if modality in _KINDS else "of another modality"
    if "Rows" not in header or "Columns" not in header:
        return "without a picture"
    if "LOCALIZER" in [str(part).upper() for part in _several(header.get("ImageType"))]:
        return "localizer"
    if kind.startswith(_CAPTURE) or _number(header, "SamplesPerPixel", 1.0) != 1:
        return "screen capture"
    return ""


def slices_of(header: Any, path: Path, source: Path) -> list[Slice]:
    """The slice of a file, or all its frames."""
    frames = int(_number(header, "NumberOfFrames", 1.0) or 1)
    groups = header.get("PerFrameFunctionalGroupsSequence")
    first = slice_of(path, None, header, [header])
    if frames == 1 and not groups:
        return [first]
    _limits.check_count(source, frames * first.shape[0] * first.shape[1], "voxels")
    _limits.check_count(source, frames, "files")
    if groups is not None and len(groups) != frames:
        raise ReadError(source, f"{frames} frames, but {len(groups)} are described", "export it again")
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])[:1]
    slices = [slice_of(path, k, header, [*(groups or [])[k : k + 1], *shared, header]) for k in range(frames)]
    if not groups:
        for item in slices:  # one position for all frames is none
            item.position = None
    return slices


def slice_of(path: Path, frame: int | None, header: Any, groups: list[Any]) -> Slice:
    """One slice from its header; `groups` are searched for its geometry, the first that knows wins."""

    def find(keyword: str, macro: str, count: int) -> Numbers | None:
        for group in groups:
            inner = group if group is header else next(iter(group.get(macro) or []), None)
            values = None if inner is None else _numbers(inner, keyword, count)
            if values is not None:
                return values
        return None

    slope, intercept = (
        find(f"Rescale{what}", "PixelValueTransformationSequence", 1) for what in ("Slope", "Intercept")
    )
    apart = find("SpacingBetweenSlices", "PixelMeasuresSequence", 1)
    thickness = find("SliceThickness", "PixelMeasuresSequence", 1)
    sides = find("PixelSpacing", "PixelMeasuresSequence", 2)
    location = _numbers(header, "SliceLocation", 1)
    unit = _several(header.get("RescaleType"))
    for group in groups:
        for inner in [] if group is header else group.get("PixelValueTransformationSequence") or []:
            unit = unit or _several(inner.get("RescaleType"))
    instance = _number(header, "InstanceNumber", 0.0) if frame is None else float(frame)
    return Slice(
        path=path,
        frame=frame,
        series=(_number(header, "SeriesNumber", 0.0), str(header.get("SeriesInstanceUID", ""))),
        shape=(int(_number(header, "Rows", 0.0)), int(_number(header, "Columns", 0.0))),
        order=(_number(header, "AcquisitionNumber", 0.0), instance, path.name),
        position=find("ImagePositionPatient", "PlanePositionSequence", 3),
        orientation=_right_angled(find("ImageOrientationPatient", "PlaneOrientationSequence", 6)),
        sides=sides if sides is not None and (sides > 0).all() else None,
        rescale=None if slope is None or intercept is None else np.concatenate([slope, intercept]),
        hounsfield=not unit or unit[0].strip().upper() == "HU",
        tilt=_number(header, "GantryDetectorTilt", 0.0),
        apart=None if apart is None else float(abs(apart[0])) or None,
        thickness=None if thickness is None else float(abs(thickness[0])) or None,
        location=None if location is None or frame is not None else float(location[0]),
    )


def _several(value: Any) -> list[str]:
    """A header's value as a list of texts."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else [str(v) for v in value] if np.iterable(value) else [str(value)]


def _numbers(group: Any, keyword: str, count: int) -> Numbers | None:
    """`count` finite numbers of a header entry, or None."""
    try:
        value = group.get(keyword)
        values = np.array(value if np.iterable(value) and not isinstance(value, str) else [value], dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        return None
    return values if values.shape == (count,) and np.isfinite(values).all() else None


def _number(group: Any, keyword: str, default: float) -> float:
    values = _numbers(group, keyword, 1)
    return default if values is None else float(values[0])


def _right_angled(orientation: Numbers | None) -> Numbers | None:
    """Two unit vectors at a right angle, or None where the header's are not."""
    if orientation is None:
        return None
    pair = orientation.reshape(2, 3)
    lengths = np.linalg.norm(pair, axis=1)
    if (np.abs(lengths - 1) > 0.05).any() or abs(pair[0] @ pair[1]) > 0.05:
        return None
    return np.asarray((pair / lengths[:, None]).ravel())
