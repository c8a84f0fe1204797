"""Files below a folder that a modality could read, one path per item: a series is represented by its folder.

* `files_below`: those paths, sorted.
* `dicom_code`: the Modality entry of a DICOM file; `DICOM_KINDS` maps it to the modality that reads it.
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

DICOM_KINDS = {  # modalities by the Modality entry of DICOM objects
    "CR": "xray", "DX": "xray", "MG": "xray", "RG": "xray", "RF": "xray", "PX": "xray", "IO": "xray",
    "CT": "ct", "OP": "retina", "OPT": "retina", "OPM": "retina", "ECG": "ecg", "SM": "pathology", "GM": "pathology",
}  # fmt: skip
ANY_KIND = ("OT", "SC", "XC", "")  # captures and photographs: recognised by their pixels
HEAD = 1 << 16  # bytes of a DICOM file that are searched for kind and series
_COMPANIONS = (".dat", ".mat")  # of a WFDB header
# Extensions that mostly belong to other data: a file counts only if its first bytes contain these.
_COMMON = {".csv": (b"v1", b"avr"), ".xml": (b"annotatedecg",)}


@dataclass(frozen=True)
class _DicomHead:
    """The entries of a DICOM file that are inspected before it is read; "" if missing. Never shown."""

    code: str = ""  # Modality
    series: str = ""
    place: str = ""  # of a CT slice; "" of localizers


def dicom_code(path: Path) -> str:
    """The Modality entry of a DICOM file ("CT"); "" if missing, and for other files."""
    return _head(path).code


def _head(path: Path) -> _DicomHead:
    """Kind, series and place of a DICOM file.

    This runs in the calling process, so only the first `HEAD` bytes are parsed, and values are not converted, because
    pydicom's warnings would quote them.
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
    except Exception:  # the reader reports what is wrong with it
        return _DicomHead()
    code = code if re.fullmatch("[A-Z]{2,8}", code) else ""
    return _DicomHead(code, series, "" if "LOCALIZER" in kinds.upper() else place)


def _stored(element: Any) -> str:
    """The text of an element that has not been converted."""
    value = b"" if element is None else element.value or b""
    return value.decode("ascii", "replace").strip(" \0") if isinstance(value, bytes) else str(value)


def files_below(folder: Path | str, modalities: Sequence[str] = ()) -> Iterator[Path]:
    """Paths below a folder that `modalities` (default: all) can read, sorted within each folder, without hidden files.

    A folder with several CT slices of one series is one path, the folder's own; if the slices of one series lie in
    several folders, the folder above these. A WFDB record is its header; one of several segments, the master header.

    Raises:
        UnknownNameError: no such modality.
    """
    wanted = list(modalities) or names()
    suffixes = tuple({suffix for name in wanted for suffix in get(name).suffixes})
    folders = {place: dict(zip(paths, map(_head, paths))) for place, paths in _walk(Path(folder))}
    above = _split_series(folders)
    for place, heads in folders.items():
        kinds = {path: DICOM_KINDS.get(head.code, "") for path, head in heads.items()}
        sizes = Counter(head.series for head in heads.values() if head.code == "CT" and head.series)
        slices = {path for path, head in heads.items() if head.code == "CT" and sizes[head.series] > 1}
        elsewhere = {path for path, head in heads.items() if head.code == "CT" and head.series in above}
        if "ct" in wanted and (slices - elsewhere or place in above.values()):
            yield place
        headers = [path for path in heads if path.suffix.lower() == ".hea"]
        stems = {path.stem for path in headers}
        parts = {name for path in headers for name in named_files(path)}
        for path in heads:
            if path in slices | elsewhere or (kinds[path] and kinds[path] not in wanted):
                continue
            if path.name in parts or (path.suffix.lower() in _COMPANIONS and path.stem in stems):
                continue
            if kinds[path] or (ending(path, suffixes) and _is_data(path)):
                yield path


def _walk(folder: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Each folder with its files, sorted, without hidden ones."""
    for place, folders, found in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(place), [Path(place) / name for name in sorted(found) if not name.startswith(".")]


def _split_series(folders: dict[Path, dict[Path, _DicomHead]]) -> dict[str, Path]:
    """CT series whose slices lie in several folders, each place once, and the folder above all of them.

    Excluded are copies and phases in separate folders (the same places again), and series that share the folder above
    with whole series, as one of which it would be read.
    """
    places: dict[str, dict[Path, set[str]]] = {}
    for folder, heads in folders.items():
        for head in heads.values():
            if head.code == "CT" and head.place:
                places.setdefault(head.series, {}).setdefault(folder, set()).add(head.place)
    split: dict[str, Path] = {}
    whole: list[Path] = []
    for series, parts in places.items():
        disjoint = sum(map(len, parts.values())) == len(set().union(*parts.values()))
        if series and len(parts) > 1 and disjoint:
            split[series] = Path(os.path.commonpath(parts))
        else:
            whole += parts
    blocked = set(whole)
    for path in (*whole, *split.values()):
        blocked.update(path.parents)
    return {series: top for series, top in split.items() if top not in blocked}


def _is_data(path: Path) -> bool:
    """Whether a file with a common extension contains medical data; with other extensions, always True."""
    if path.suffix == ".npy":
        return path.with_suffix(".json").exists()
    marks = _COMMON.get(path.suffix)
    if marks is None:
        return True
    with open(path, "rb") as handle:
        head = handle.read(4096).replace(b"\0", b"").lower()  # also of UTF-16
    return all(mark in head for mark in marks)
