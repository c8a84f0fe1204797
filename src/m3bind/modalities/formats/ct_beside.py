"""CT series whose slices are spread over sibling folders, of which only one is read.

* `parts_beside`: the warning that a folder is a part of a series.

`files.files_below` takes the parent folder for such a series, unless it contains whole series as well.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from m3bind.modalities.formats import dicom
from m3bind.modalities.formats.ct_choice import SAME_PLACE, normal_of, places_of
from m3bind.modalities.formats.ct_headers import Slice, other_kind, slices_of
from m3bind.modalities.formats.dicom_files import quiet

MAX_FOLDERS = 32  # sibling folders that are searched


def parts_beside(folder: Path, slices: Sequence[Slice]) -> list[str]:
    """The warning about `slices` of a folder whose series continues in a sibling folder; a list of 0 or 1.

    Only the first and last file of each sibling are read, and none if there are more than `MAX_FOLDERS`.
    """
    places = places_of(slices)
    if places is None or slices[0].position is None:
        return []
    for path in _files_beside(folder):
        for other in _slices(path):
            if other.series != slices[0].series or other.position is None:
                continue
            place = float(other.position @ normal_of(slices[0]))
            if np.abs(places - place).min() > SAME_PLACE:
                return [
                    "slices of the same series lie in a sibling folder: a part of a volume? Put them into one folder"
                ]
    return []


def _files_beside(folder: Path) -> Iterator[Path]:
    try:
        own = folder.resolve()
        others = sorted(entry.path for entry in os.scandir(own.parent) if entry.is_dir(follow_symlinks=False))
    except OSError:  # not accessible
        return
    beside = [Path(other) for other in others if Path(other) != own]
    for other in beside if len(beside) <= MAX_FOLDERS else []:
        try:
            files = sorted(entry.path for entry in os.scandir(other) if entry.is_file())
        except OSError:
            continue
        yield from map(Path, dict.fromkeys(files[:1] + files[-1:]))


def _slices(path: Path) -> list[Slice]:
    """The slices of a file; empty if it is not CT."""
    try:
        if not dicom.is_dicom(path):
            return []
        with quiet():
            header = dicom.open_dicom(path, stop_before_pixels=True)
            return [] if other_kind(header) else slices_of(header, path, path)
    except MemoryError:
        raise
    except Exception:  # headers may contain anything; this is not the file being read
        return []
