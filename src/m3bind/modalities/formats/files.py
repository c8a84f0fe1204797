"""Files below a folder that a modality could read, one path for each thing: a series is its folder.

* `files_below`: those paths, sorted.
* `dicom_code`: the Modality entry of a DICOM file; `DICOM_KINDS` says which modality reads it.
"""

import io
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m3bind.modalities.base import get, names
from m3bind.modalities.formats.dicom import is_dicom
from m3bind.modalities.formats.images import ending
from m3bind.modalities.formats.signals_wfdb_header import named_files

# Kinds of DICOM objects by their Modality entry.
DICOM_KINDS = {
    "CR": "xray", "DX": "xray", "MG": "xray", "RG": "xray", "RF": "xray", "PX": "xray", "IO": "xray",
    "CT": "ct", "OP": "retina", "OPT": "retina", "OPM": "retina", "ECG": "ecg", "SM": "pathology", "GM": "pathology",
}  # fmt: skip
ANY_KIND = ("OT", "SC", "XC", "")  # captures and photographs: by their pixels
HEAD = 1 << 16  # bytes of a DICOM file in which kind and series are looked for
_COMPANIONS = (".dat", ".mat")  # of a WFDB header
# Endings that mostly belong to something else: read only where the first bytes hold one of these.
_COMMON = {".csv": (b"v1", b"avr"), ".xml": (b"annotatedecg",)}


@dataclass(frozen=True)
class _DicomHead:
    """What is looked at in a DICOM file before it is read; "" where it does not say. Never shown."""

    code: str = ""  # Modality
    series: str = ""
    place: str = ""  # of a CT slice; "" of localizers


def dicom_code(path: Path) -> str:
    """The Modality entry of a DICOM file ("CT"); "" without one, and for other files."""
    return _head(path).code


def _head(path: Path) -> _DicomHead:
    """Kind, series and place of a DICOM file.

    This runs in the calling process, so only the first `HEAD` bytes are parsed, whatever they inflate to or nest, and
    values are taken as they are stored: converting them makes pydicom quote them.
    """
    if not path.is_file() or path.stat().st_size < 132 or not is_dicom(path):
        return _DicomHead()
    import pydicom

    with open(path, "rb") as handle:
        head = io.BytesIO(handle.read(HEAD))
    keywords = ["Modality", "SeriesInstanceUID", "ImagePositionPatient", "ImageType"]
    try:
        header = pydicom.dcmread(head, stop_before_pixels=True, specific_tags=keywords)
        code, series, place, kinds = (_stored(header.get_item(keyword)) for keyword in keywords)
    except Exception:  # the reader will say what is wrong with it
        return _DicomHead()
    code = code if re.fullmatch("[A-Z]{2,8}", code) else ""
    return _DicomHead(code, series, "" if "LOCALIZER" in kinds.upper() else place)


def _stored(element: Any) -> str:
    """The text of an element that was not converted yet."""
    value = b"" if element is None else element.value or b""
    return value.decode("ascii", "replace").strip(" \0") if isinstance(value, bytes) else str(value)


def files_below(folder: Path | str, modalities: Sequence[str] = ()) -> Iterator[Path]:
    """What `modalities` (default: all) could read below a folder, sorted within each folder; hidden files left out.

    A folder with several CT slices of one series is one path, the folder's own; where the slices of one series lie in
    several folders, the folder above these. A WFDB record is its header, one of several segments the header that names
    them.

    Raises:
        UnknownNameError: no such modality.
    """
    wanted = list(modalities) or names()
    suffixes = tuple({suffix for name in wanted for suffix in get(name).suffixes})
    folders = {place: {path: _head(path) for path in here} for place, here in _walk(Path(folder))}
    above = _parted_series(folders)
    for place, told in folders.items():
        kinds = {path: DICOM_KINDS.get(head.code, "") for path, head in told.items()}
        sizes = Counter(head.series for head in told.values() if head.code == "CT" and head.series)
        slices = {path for path, head in told.items() if head.code == "CT" and sizes[head.series] > 1}
        elsewhere = {path for path, head in told.items() if head.code == "CT" and head.series in above}
        if "ct" in wanted and (slices - elsewhere or place in above.values()):
            yield place
        headers = [path for path in told if path.suffix.lower() == ".hea"]
        stems = {path.stem for path in headers}
        parts = {name for path in headers for name in named_files(path)}
        for path in told:
            if path in slices | elsewhere or (kinds[path] and kinds[path] not in wanted):
                continue
            if path.name in parts or (path.suffix.lower() in _COMPANIONS and path.stem in stems):
                continue
            if kinds[path] or (ending(path, suffixes) and _is_data(path)):
                yield path


def _walk(folder: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Each folder with its files, sorted, hidden ones left out."""
    for place, folders, found in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(place), [Path(place) / name for name in sorted(found) if not name.startswith(".")]


def _parted_series(folders: dict[Path, dict[Path, _DicomHead]]) -> dict[str, Path]:
    """CT series whose slices lie in several folders, each place once, and the folder above all of them.

    Left out are copies and phases in folders of their own (the same places again), and those that share the folder
    above with whole series: that would be read as one of these.
    """
    places: dict[str, dict[Path, set[str]]] = {}
    for place, told in folders.items():
        for head in told.values():
            if head.code == "CT" and head.place:
                places.setdefault(head.series, {}).setdefault(place, set()).add(head.place)
    parted = {
        series: Path(os.path.commonpath(found))
        for series, found in places.items()
        if series and len(found) > 1 and sum(map(len, found.values())) == len(set().union(*found.values()))
    }
    whole = [place for series, found in places.items() if series not in parted for place in found]
    blocked = {top for top in parted.values() if any(place.is_relative_to(top) for place in whole)}
    blocked |= {top for top in parted.values() if any(top in other.parents for other in parted.values())}
    return {series: top for series, top in parted.items() if top not in blocked}


def _is_data(path: Path) -> bool:
    """Whether a file of a common ending is what we mean by it; other endings always are."""
    if path.suffix == ".npy":
        return path.with_suffix(".json").exists()
    marks = _COMMON.get(path.suffix)
    if marks is None:
        return True
    with open(path, "rb") as handle:
        head = handle.read(4096).replace(b"\0", b"").lower()  # of UTF-16 too
    return all(mark in head for mark in marks)
