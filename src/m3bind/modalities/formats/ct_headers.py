"""DICOM headers of CT slices, in files of one or many frames: kind, series, geometry, rescaling.

* `Slice`: the facts of one slice.
* `FACTS`: entries that distinguish volumes of one series.
* `other_kind`: why an object is not a CT slice.
* `slices_of`, `slice_of`: the slice of a header, or one per frame (functional groups of enhanced CT).

Header values are untrusted: entries that are missing, not finite or of the wrong count are None.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3bind.errors import ReadError
from m3bind.modalities.formats import limits
from m3bind.modalities.formats.dicom_values import Rescaling, numbers, rescaling, unit_of

Numbers = NDArray[np.float64]

_CT_STORAGE = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.2(\.[12])?$")  # CT, enhanced CT, converted enhanced CT
_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_KINDS = (
    "MR", "PT", "CR", "DX", "DR", "US", "XA", "XC", "NM", "SR", "PR", "SEG", "KO", "MG", "OT", "RTSTRUCT", "RTDOSE",
    "RTPLAN", "DOC", "REG", "OP", "SM", "ECG",
)  # fmt: skip

# Facts that distinguish volumes of one series, in order: display name, header entries, functional group of enhanced CT.
FACTS: dict[str, tuple[tuple[str, ...], str]] = {
    "stack": (("StackID",), "FrameContentSequence"),
    "temporal position": (("TemporalPositionIndex", "TemporalPositionIdentifier"), "FrameContentSequence"),
    "cardiac phase": (("NominalPercentageOfCardiacPhase",), "CardiacSynchronizationSequence"),
    "respiratory phase": (("NominalPercentageOfRespiratoryPhase",), "RespiratorySynchronizationSequence"),
    "dimension": ((), ""),
    "image type": (("FrameType", "ImageType"), "CTImageFrameTypeSequence"),
    "kernel": (("ConvolutionKernel",), "CTReconstructionSequence"),
    "tube voltage": (("KVP",), "CTXRayDetailsSequence"),
    "slice thickness": (("SliceThickness",), "PixelMeasuresSequence"),
    "acquisition": (("AcquisitionNumber", "FrameAcquisitionNumber"), "FrameContentSequence"),
    "file": ((), ""),
    "centre": ((), ""),
    "trigger time": (("TriggerTime", "NominalCardiacTriggerDelayTime"), "CardiacSynchronizationSequence"),
    "acquisition time": (("FrameAcquisitionDateTime", "AcquisitionDateTime", "AcquisitionTime"),
                         "FrameContentSequence"),
    "content time": (("ContentTime",), ""),
}  # fmt: skip
_SPATIAL = ("StackID", "InStackPositionNumber", "ImagePositionPatient", "FrameAcquisitionNumber")
Fact = float | tuple[str, ...]


@dataclass
class Slice:
    """The header of one slice. `order` is its sort key if positions do not order the slices."""

    path: Path
    frame: int | None  # of a file with several frames
    series: tuple[float, str]  # number and UID; never shown
    shape: tuple[int, int]  # rows, columns
    order: tuple[float, float, str]  # acquisition, instance or frame, file name
    facts: dict[str, Fact]  # those of FACTS that the header states
    position: Numbers | None = None  # (3,) of the first pixel's centre
    orientation: Numbers | None = None  # (6,) direction along a row, direction down a column
    odd_orientation: str = ""  # the defect of the header's orientation
    sides: Numbers | None = None  # (2,) between rows, between columns
    other_sides: Numbers | None = None  # (2,) at the detector, if the header states them as well
    scale: Rescaling = field(default_factory=Rescaling)
    unit: str = ""  # of rescaled values by the header, in capitals; HU are Hounsfield units
    tilt: float = 0.0  # degrees, of the gantry
    apart: float | None = None  # mm between slices, by the header
    thickness: float | None = None  # mm
    location: float | None = None
    patient: str = ""  # only compared, never shown


def other_kind(header: Any) -> str:
    """Why a DICOM object is not a CT slice, or ""."""
    modality, kind = str(header.get("Modality", "")), str(header.get("SOPClassUID", ""))
    if modality != "CT" and (modality or not _CT_STORAGE.match(kind)):
        return f"of modality {modality}" if modality in _KINDS else "of another modality"
    if "Rows" not in header or "Columns" not in header:
        return "without an image"
    if "LOCALIZER" in [str(part).upper() for part in _several(header.get("ImageType"))]:
        return "localizer"
    indices = str(header.get("PhotometricInterpretation", "")).strip().upper() == "PALETTE COLOR"
    if kind.startswith(_CAPTURE) or indices or _number(header, "SamplesPerPixel", 1.0) != 1:
        return "screen capture"
    return ""


def slices_of(header: Any, path: Path, source: Path) -> list[Slice]:
    """The slice of a file, or all its frames that are not localizers."""
    frames = int(_number(header, "NumberOfFrames", 1.0) or 1)
    groups = header.get("PerFrameFunctionalGroupsSequence")
    first = slice_of(path, None, header, [header])
    if frames == 1 and not groups:
        return [first]
    limits.check_count(source, frames * first.shape[0] * first.shape[1], "voxels")
    limits.check_count(source, frames, "files")
    if groups is not None and len(groups) != frames:
        raise ReadError(source, f"{frames} frames declared, {len(groups)} described", "export it again")
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])[:1]
    slices = [slice_of(path, k, header, [*(groups or [])[k : k + 1], *shared, header]) for k in range(frames)]
    if not groups:
        for item in slices:  # one position for all frames is not a position of each
            item.position = None
    return [item for item in slices if "LOCALIZER" not in _words(item.facts.get("image type"))] or slices


def slice_of(path: Path, frame: int | None, header: Any, groups: list[Any]) -> Slice:
    """One slice from its header; `groups` are searched in order for its geometry."""

    def inside(macro: str) -> list[Any]:
        found = (group if group is header else next(iter(group.get(macro) or []), None) for group in groups)
        return [inner for inner in found if inner is not None]

    def find(keyword: str, macro: str, count: int) -> Numbers | None:
        values = (_numbers(inner, keyword, count) for inner in inside(macro))
        return next((found for found in values if found is not None), None)

    def scaling(keyword: str) -> list[float] | None:
        values = find(keyword, "PixelValueTransformationSequence", 1)
        if values is not None:
            return [float(values[0])]
        return [] if any(keyword in inner for inner in inside("PixelValueTransformationSequence")) else None

    apart = find("SpacingBetweenSlices", "PixelMeasuresSequence", 1)
    thickness = find("SliceThickness", "PixelMeasuresSequence", 1)
    sides = find("PixelSpacing", "PixelMeasuresSequence", 2)
    location = _numbers(header, "SliceLocation", 1)
    units = (unit_of(inner.get("RescaleType")) for inner in inside("PixelValueTransformationSequence"))
    orientation, odd = _right_angled(find("ImageOrientationPatient", "PlaneOrientationSequence", 6))
    instance = _number(header, "InstanceNumber", 0.0) if frame is None else float(frame)
    facts = {name: _fact(keywords, inside(macro)) for name, (keywords, macro) in FACTS.items() if keywords}
    if frame is not None:
        facts["file"] = (str(header.get("SOPInstanceUIDOfConcatenationSource") or path.name),)
        facts["dimension"] = _dimension(header, groups[0])
    return Slice(
        path=path,
        frame=frame,
        series=(_number(header, "SeriesNumber", 0.0), str(header.get("SeriesInstanceUID", ""))),
        shape=(int(_number(header, "Rows", 0.0)), int(_number(header, "Columns", 0.0))),
        order=(_number(header, "AcquisitionNumber", 0.0), instance, path.name),
        facts={name: fact for name, fact in facts.items() if fact is not None},
        position=find("ImagePositionPatient", "PlanePositionSequence", 3),
        orientation=orientation,
        odd_orientation=odd,
        sides=sides if sides is not None and (sides > 0).all() else None,
        other_sides=_numbers(header, "ImagerPixelSpacing", 2),
        scale=rescaling(scaling("RescaleSlope"), scaling("RescaleIntercept")),
        unit=next((unit for unit in units if unit), ""),
        tilt=_number(header, "GantryDetectorTilt", 0.0),
        apart=None if apart is None else float(abs(apart[0])) or None,
        thickness=None if thickness is None else float(abs(thickness[0])) or None,
        location=None if location is None or frame is not None else float(location[0]),
        patient="/".join(_several(header.get("PatientID"))),
    )


def _fact(keywords: tuple[str, ...], places: list[Any]) -> Fact | None:
    """The first of `keywords` that one of `places` states: a number, or its texts in capitals."""
    for inner in places:
        for keyword in keywords:
            texts = tuple(text.strip().upper() for text in _several(inner.get(keyword)))
            if any(texts):
                number = _numbers(inner, keyword, 1)
                return texts if number is None else round(float(number[0]), 3)
    return None


def _dimension(header: Any, group: Any) -> Fact | None:
    """A frame's indices in the non-spatial dimensions of an enhanced file."""
    content = next(iter(group.get("FrameContentSequence") or []), None)
    indices = [] if content is None else _several(content.get("DimensionIndexValues"))
    pointers = [item.get("DimensionIndexPointer") for item in header.get("DimensionIndexSequence") or []]
    if not indices or len(indices) != len(pointers):
        return None
    from pydicom.datadict import keyword_for_tag

    pairs = zip(indices, pointers)
    return tuple(index for index, tag in pairs if tag and keyword_for_tag(tag) not in _SPATIAL) or None


def _words(fact: Fact | None) -> tuple[str, ...]:
    return fact if isinstance(fact, tuple) else ()


def _several(value: Any) -> list[str]:
    """A header's value as a list of texts."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else [str(v) for v in value] if np.iterable(value) else [str(value)]


def _numbers(group: Any, keyword: str, count: int) -> Numbers | None:
    """`count` finite numbers of a header entry, or None."""
    values = np.array(numbers(group, keyword), dtype=np.float64)
    return values if values.shape == (count,) else None


def _number(group: Any, keyword: str, default: float) -> float:
    values = _numbers(group, keyword, 1)
    return default if values is None else float(values[0])


def _right_angled(orientation: Numbers | None) -> tuple[Numbers | None, str]:
    """Two unit vectors at a right angle, or None if the header's are not; and the defect of the header's."""
    if orientation is None:
        return None, ""
    pair = orientation.reshape(2, 3)
    lengths = np.linalg.norm(pair, axis=1)
    if (lengths < 0.01).any() or abs(pair[0] @ pair[1]) > 0.05 * lengths.prod():
        return None, "two directions that are not at a right angle"
    odd = (np.abs(lengths - 1) > 0.05).any()
    text = f"directions of length {lengths[0]:.3g} and {lengths[1]:.3g} instead of 1: normalised"
    return np.asarray((pair / lengths[:, None]).ravel()), text if odd else ""
