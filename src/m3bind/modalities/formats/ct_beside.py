"""Series of CT slices that are spread over folders side by side, of which one is read.

* `parts_beside`: the doubt that it is a part.

`_files.files_below` takes the folder above for such a series, but where that holds whole series as well.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from m3bind.modalities.formats import dicom
from m3bind.modalities.formats.ct_choice import SAME_PLACE, normal_of, places_of
from m3bind.modalities.formats.ct_headers import Slice, other_kind, slices_of
from m3bind.modalities.formats.dicom_files import quiet

MOST = 32  # folders beside it that are looked into


def parts_beside(folder: Path, slices: Sequence[Slice]) -> list[str]:
    """The doubt about `slices` of a folder whose series goes on, at other places, in one beside it; a list of 0 or 1.

    Only the first and the last file of each are looked at, and none where there are more than `MOST` folders.
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
                return ["slices of the same series lie in a folder beside it: a part of a volume? Put them into one"]
    return []


def _files_beside(folder: Path) -> Iterator[Path]:
    try:
        own = folder.resolve()
        others = sorted(entry.path for entry in os.scandir(own.parent) if entry.is_dir(follow_symlinks=False))
    except OSError:  # nothing that could be looked at
        return
    beside = [Path(other) for other in others if Path(other) != own]
    for other in beside if len(beside) <= MOST else []:
        try:
            files = sorted(entry.path for entry in os.scandir(other) if entry.is_file())
        except OSError:
            continue
        yield from map(Path, dict.fromkeys(files[:1] + files[-1:]))


def _slices(path: Path) -> list[Slice]:
    """The slices of a file; none where it is no CT."""
    try:
        if not dicom.is_dicom(path):
            return []
        with quiet():
            header = dicom.open_dicom(path, stop_before_pixels=True)
            return [] if other_kind(header) else slices_of(header, path, path)
    except MemoryError:
        raise
    except Exception:  # headers may hold anything; this is not the file that was asked for
        return []
