"""Files below a folder that a modality could read, one path for each thing: a series is its folder.

* `files_below`: those paths, sorted.
* `dicom_code`: the Modality entry of a DICOM file; `DICOM_KINDS` says which modality reads it.
"""

import io
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from m3bind.modalities._dicom import is_dicom
from m3bind.modalities._images import ending
from m3bind.modalities._signals_wfdb_header import segment_names
from m3bind.modalities.base import get, names

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


def dicom_code(path: Path) -> str:
    """The Modality entry of a DICOM file ("CT"); "" without one, and for other files."""
    return _kind_and_series(path)[0]


def _kind_and_series(path: Path) -> tuple[str, str]:
    """The Modality entry and the series of a DICOM file, which is never shown; "" for both of other files.

    This runs in the calling process, so only the first `HEAD` bytes are parsed, whatever they inflate to or nest, and
    values are taken as they are stored: converting them makes pydicom quote them.
    """
    if not path.is_file() or path.stat().st_size < 132 or not is_dicom(path):
        return "", ""
    import pydicom

    with open(path, "rb") as handle:
        head = io.BytesIO(handle.read(HEAD))
    try:
        header = pydicom.dcmread(head, stop_before_pixels=True, specific_tags=["Modality", "SeriesInstanceUID"])
        code, series = (_stored(header.get_item(keyword)) for keyword in ("Modality", "SeriesInstanceUID"))
    except Exception:  # the reader will say what is wrong with it
        return "", ""
    return code if re.fullmatch("[A-Z]{2,8}", code) else "", series


def _stored(element: Any) -> str:
    """The text of an element that was not converted yet."""
    value = b"" if element is None else element.value or b""
    return value.decode("ascii", "replace").strip(" \0") if isinstance(value, bytes) else str(value)


def files_below(folder: Path | str, modalities: Sequence[str] = ()) -> Iterator[Path]:
    """What `modalities` (default: all) could read below a folder, sorted within each folder; hidden files left out.

    A folder with several CT slices of one series is one path, the folder's own; a WFDB record is its header,
    one of several segments the header that names them.

    Raises:
        UnknownNameError: no such modality.
    """
    wanted = list(modalities) or names()
    suffixes = tuple({suffix for name in wanted for suffix in get(name).suffixes})
    for place, folders, found in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = [Path(place) / name for name in sorted(found) if not name.startswith(".")]
        told = {path: _kind_and_series(path) for path in here}
        kinds = {path: DICOM_KINDS.get(code, "") for path, (code, _) in told.items()}
        sizes = Counter(series for code, series in told.values() if code == "CT" and series)
        slices = {path for path, (code, series) in told.items() if code == "CT" and sizes[series] > 1}
        if slices and "ct" in wanted:
            yield Path(place)
        headers = {path.stem for path in here if path.suffix == ".hea"}
        segments = {name for path in here if path.suffix == ".hea" for name in segment_names(path)}
        for path in here:
            if path in slices or (kinds[path] and kinds[path] not in wanted):
                continue
            if path.suffix in _COMPANIONS and path.stem in headers:
                continue
            if path.suffix == ".hea" and path.stem in segments:
                continue
            if kinds[path] or (ending(path, suffixes) and _is_data(path)):
                yield path


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
