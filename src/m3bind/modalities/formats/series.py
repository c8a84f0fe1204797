"""CT slices in DICOM -> one volume, ordered, with spacing and units.

* `read_folder`: the files of a folder.
* `read_files`: any DICOM files, also one file with one slice or with many frames (enhanced CT).

1. Each header is read (`ct_headers`). Other objects (reports, localizers, other files) are skipped and counted.
2. The slices of one volume are chosen (`ct_choice`).
3. They are sorted by their position along the slice normal; missing slices, varying distances, gantry tilt and entries
   that contradict the positions are reported with values.
4. They are decoded one by one into a preallocated volume, rescaled to Hounsfield units once each; padding becomes air.

Shapes: N slices of A rows and B columns as stored; D, H, W in the patient (see `ct`). Lengths in mm.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3bind.errors import ReadError, in_words
from m3bind.modalities.base import Sample
from m3bind.modalities.formats import ct_headers, dicom, limits, volumes
from m3bind.modalities.formats.ct_beside import parts_beside
from m3bind.modalities.formats.ct_choice import AXIAL, normal_of, one_volume, places_of
from m3bind.modalities.formats.ct_headers import Slice
from m3bind.modalities.formats.ct_mixed import alternation_doubts, check_alternation, unmixed
from m3bind.modalities.formats.dicom_files import quiet
from m3bind.modalities.formats.dicom_pixels import decode
from m3bind.modalities.formats.dicom_values import padding

Numbers = NDArray[np.float64]

EVEN = 0.05  # fraction of the usual slice distance by which distances may differ
ROUNDED = 0.11  # mm by which they may differ because headers have one decimal
SHEAR = 0.5  # degrees between the slice normal and the direction from slice to slice
_UNITS = ("US", "OD", "HU_MOD", "PCT", "Z_EFF", "ED", "EDW", "MGML", "PCT", "KEV")  # of DICOM, besides HU


def read_folder(folder: Path) -> Sample:
    """The CT series in a folder and the folders below it; links to other folders are not followed.

    Raises:
        ReadError: no file or no CT slice in it, too many files, and as `read_files`.
    """
    files: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders.sort()
        files += [path for name in sorted(names) if (path := Path(place, name)).is_file()]
        if len(files) > limits.LIMITS.files:
            break
    if not files:
        raise ReadError(folder, "an empty folder", "name the folder that holds the DICOM slices")
    limits.check_count(folder, len(files), "files")
    return read_files(files, folder)


def read_files(paths: Iterable[Path], source: Path) -> Sample:
    """One volume (D, H, W) in HU from DICOM files; errors name `source`.

    Raises:
        ReadError: no CT slice among them, slices that do not fit together or cannot be ordered, a slice that cannot be
            decoded, a modality lookup table instead of slope and intercept, or more voxels than `LIMITS` allow.
    """
    steps: list[str] = []
    warnings: list[str] = []
    scan = _scan_folder if source.is_dir() else _scan
    every = scan(list(paths), source, steps, warnings)
    slices = unmixed(one_volume(every, source, steps, warnings), warnings)
    if source.is_dir():
        warnings += parts_beside(source, slices)
    slices, spacing, directions = _geometry(slices, source, steps, warnings)
    axes, flips, tilt = volumes.placement(directions)
    if tilt > volumes.TILT:
        warnings.append(f"tilted by {tilt:.0f} degrees; reoriented to the nearest axes only")
    shape = (len(slices), *slices[0].shape)
    limits.check_count(source, int(np.prod(shape, dtype=object)), "voxels")
    stored = sum(path.stat().st_size for path in {item.path for item in slices})
    limits.check_ratio(source, 2 * int(np.prod(shape, dtype=object)), stored)
    volume, stack = volumes.empty(shape, axes, flips)
    tags = _fill(stack, slices, source, steps, warnings)
    if places_of(slices) is not None:
        check_alternation(stack, source, warnings)
    else:  # the order is a guess
        warnings += alternation_doubts(stack)
    sides = None if spacing is None else tuple(float(spacing[a]) for a in axes)
    hounsfield = volumes.finish(volume, sides, steps, warnings) and all(item.unit in ("", "HU") for item in slices)
    if sides is not None:
        warnings += volumes.spacing_doubts(sides)
    unit = "HU" if hounsfield else ""
    return Sample("ct", volume, spacing=sides, unit=unit, steps=steps, warnings=warnings, tags=tags)


# --- 1. headers -------------------------------------------------------------------------------------------------------


def _scan(paths: Iterable[Path], source: Path, steps: list[str], warnings: list[str]) -> list[Slice]:
    """The CT slices among the files."""
    slices: list[Slice] = []
    skipped: Counter[str] = Counter()
    last: ReadError | None = None
    for path in paths:
        try:
            if not dicom.is_dicom(path) and not path.name.lower().endswith(dicom.SUFFIXES):
                skipped["not a DICOM file"] += 1
                continue
            with quiet():
                header = dicom.open_dicom(path, stop_before_pixels=True)
                kind = ct_headers.other_kind(header)
                if kind:
                    skipped[kind] += 1
                else:
                    slices += ct_headers.slices_of(header, path, source)
        except MemoryError:
            raise
        except Exception as error:  # headers may contain anything, and pydicom parses values late
            skipped["not readable"] += 1
            reason = f"its header cannot be read ({in_words(error)})"
            last = error if isinstance(error, ReadError) else ReadError(path, reason, "export it again")
    unreadable = skipped["not readable"]
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(skipped.items()) if count)
    if not slices:
        if last is not None and skipped.total() == unreadable:
            which = "" if unreadable == 1 else f"none of {unreadable} DICOM files is readable; the last: "
            raise ReadError(source, which + last.reason, last.hint) from last
        raise ReadError(source, f"no CT slice in it ({listed or 'no file'})", "check the modality of this path")
    if listed:
        steps.append(f"skipped: {listed}")
    if unreadable:
        warnings.append(f"{unreadable} of the DICOM files not readable and skipped")
    return slices


def _scan_folder(paths: list[Path], folder: Path, steps: list[str], warnings: list[str]) -> list[Slice]:
    """The CT slices of a folder and those below it; of a series in the folder itself, no other series."""
    here = [path for path in paths if path.parent == folder]
    own: list[Slice] = []
    own_steps: list[str] = []
    own_warnings: list[str] = []
    if 0 < len(here) < len(paths):
        with contextlib.suppress(ReadError):  # no CT slice in the folder itself
            own = _scan(here, folder, own_steps, own_warnings)
    series = {key for key, count in Counter(item.series for item in own).items() if count > 1}
    if not series:
        return _scan(paths, folder, steps, warnings)
    below: list[Slice] = []
    with contextlib.suppress(ReadError):
        below = _scan([path for path in paths if path.parent != folder], folder, [], [])
    same = [item for item in below if item.series in series]
    steps += own_steps
    warnings += own_warnings
    if len(same) < len(below):
        steps.append(f"{len(below) - len(same)} slices of other series in subfolders excluded")
    return own + same


# --- 3. positions -----------------------------------------------------------------------------------------------------


def _geometry(
    slices: list[Slice], source: Path, steps: list[str], warnings: list[str]
) -> tuple[list[Slice], Numbers | None, Numbers]:
    """Slices in order along their normal, voxel sides (3,) of (N, A, B) if known, directions (3, 3) of (N, A, B)."""
    orientation, odd = slices[0].orientation, slices[0].odd_orientation
    if orientation is None:
        stated = f"no orientation{f' but {odd}' if odd else ''}"
        warnings.append(f"the header states {stated}: left and right, head and feet are a guess")
        orientation = AXIAL
    elif odd:
        warnings.append(f"the header states {odd}")
    across, down = orientation.reshape(2, 3)
    directions = np.array([normal_of(slices[0]), down, across])
    slices = sorted(slices, key=lambda item: item.order)
    places = _places(slices, source, warnings)
    order = np.argsort(places, kind="stable")
    slices, places = [slices[k] for k in order], places[order]
    if len(slices) == 1:
        warnings.append("a single slice, not a volume")
        distance = slices[0].thickness or slices[0].apart
    else:
        distance = _distance(places, warnings)
        steps.append(f"{len(slices)} slices in order, {distance:.4g} mm apart")
        _judge_shear(slices, directions[0], warnings)
    if slices[0].position is None and len(slices) > 1 and slices[0].location is None:
        distance = slices[0].apart or slices[0].thickness
    elif len(slices) > 1:
        _judge_distance(slices, places, warnings)
    other = slices[0].other_sides
    if other is not None and slices[0].sides is not None and not np.allclose(other, slices[0].sides, rtol=0.01):
        texts = [volumes.spacing_text(tuple(sides)) for sides in (slices[0].sides, other)]
        warnings.append(f"PixelSpacing is {texts[0]}, ImagerPixelSpacing {texts[1]}: PixelSpacing taken")
    if distance is None or slices[0].sides is None:
        what = "pixel spacing" if slices[0].sides is None else "distance between slices"
        warnings.append(f"the header states no {what}: sizes in mm are unknown")
        return slices, None, directions
    return slices, np.array([distance, *slices[0].sides]), directions


def _places(slices: list[Slice], source: Path, warnings: list[str]) -> Numbers:
    """Places (N,) of slices along their normal in mm; without positions in headers, the best guess."""
    places = places_of(slices)
    if len(slices) == 1:
        return np.zeros(1)
    if slices[0].position is not None and places is not None:
        return places
    guess = "head and feet, and distances, are a guess"
    if places is not None:
        warnings.append(f"the headers state no positions: slices sorted by slice location; {guess}")
        return places
    numbers = [item.order[1] for item in slices]
    if len(set(numbers)) < len(slices):
        raise ReadError(source, "the headers state neither positions nor distinct numbers of slices", "export it again")
    warnings.append(f"the headers state no positions: slices sorted by number, taken as from the head down; {guess}")
    return -np.array(numbers) * (slices[0].apart or slices[0].thickness or 1.0)


def _judge_distance(slices: list[Slice], places: Numbers, warnings: list[str]) -> None:
    """Warn of entries that contradict the distances (mm) between sorted `places` (N,)."""
    own = float(np.median(np.diff(places)))
    stated = [item.apart for item in slices if item.apart is not None]
    apart = float(np.median(stated)) if stated else own
    if abs(apart - own) > max(EVEN * own, ROUNDED):
        warnings.append(f"positions are {own:.4g} mm apart, SpacingBetweenSlices {apart:.4g} mm: positions taken")
    locations = [item.location for item in slices if item.location is not None]
    positions = [item.position for item in slices if item.position is not None]
    if not len(locations) == len(positions) == len(slices):
        return
    gaps = np.diff(locations)
    ways = np.diff(np.stack(positions), axis=0)  # (N - 1, 3): locations may be along the normal, the table or these
    usual = float(np.median(np.abs(gaps)))
    near = [float(np.median(way)) for way in (np.diff(places), np.abs(ways).max(axis=1), np.linalg.norm(ways, axis=1))]
    if gaps.min() < 0 < gaps.max():
        warnings.append("slice locations and positions give another order of slices: positions taken")
    elif min(abs(usual - value) for value in near) > max(EVEN * own, ROUNDED):
        warnings.append(f"positions are {own:.4g} mm apart, slice locations {usual:.4g} mm: positions taken")


def _distance(places: Numbers, warnings: list[str]) -> float:
    """The usual distance in mm between neighbours of sorted `places` (N,), with a warning if it varies."""
    gaps = np.diff(places)
    usual = float(np.sort(gaps)[(len(gaps) - 1) // 2])
    odd = np.abs(gaps - usual) > max(EVEN * usual, ROUNDED)
    if not odd.any():
        return float(gaps.mean())
    times = gaps[odd] / usual
    whole = bool((np.abs(times - np.rint(times)) < 0.1 * np.maximum(1, times / 10)).all() and (times > 1.5).all())
    if whole and odd.sum() <= max(1, len(gaps) // 4):
        missing = int((np.rint(times) - 1).sum())
        where = "1 place" if odd.sum() == 1 else f"{int(odd.sum())} places"
        warnings.append(
            f"{missing} slices missing in {where} (up to {gaps.max():.4g} mm apart, {usual:.4g} mm is usual); "
            "the slices around are stacked without a gap"
        )
        return float(gaps[~odd].mean())
    warnings.append(f"distances between slices vary from {gaps.min():.4g} to {gaps.max():.4g} mm; {usual:.4g} mm taken")
    return usual


def _judge_shear(slices: list[Slice], normal: Numbers, warnings: list[str]) -> None:
    """Warn of slices that are not stacked along their normal (gantry tilt), or jump sideways."""
    tilt = float(np.median([item.tilt for item in slices]))
    stated = f" (gantry tilt {tilt:.4g} degrees in the header)" if abs(tilt) > SHEAR else ""
    positions = [item.position for item in slices if item.position is not None]
    if len(positions) < len(slices):
        if stated:
            warnings.append(f"perhaps sheared{stated}")
        return
    places = np.stack(positions)
    way = places[-1] - places[0]
    along = float(way @ normal)
    aside = way - along * normal
    angle = float(np.degrees(np.arctan2(np.linalg.norm(aside), abs(along))))
    if angle > SHEAR:
        shift = float(np.linalg.norm(aside)) / (len(slices) - 1)
        warnings.append(f"sheared by {angle:.1f} degrees{stated}: each slice is shifted by {shift:.2f} mm")
    elif stated:
        warnings.append(f"acquired with a tilted gantry{stated}, but the slices are not sheared")
    line = places[0] + ((places - places[0]) @ normal / along)[:, None] * way
    jump = float(np.linalg.norm(places - line, axis=1).max())
    side = 1.0 if slices[0].sides is None else float(slices[0].sides.max())
    if jump > 2 * side:
        warnings.append(f"slices are up to {jump:.1f} mm off the line through the first and the last")


# --- 4. pixels --------------------------------------------------------------------------------------------------------


def _fill(
    stack: NDArray[np.float32], slices: list[Slice], source: Path, steps: list[str], warnings: list[str]
) -> dict[str, str]:
    """Decode slices into `stack` (N, A, B), stored values times slope plus intercept, padding as air.

    Returns:
        the technical tags of the first slice.
    """
    opened: Path | None = None
    dataset: Any = None
    padded = 0
    doubts: Counter[str] = Counter()
    tags: dict[str, str] = {}
    for k, item in enumerate(slices):
        try:
            if item.path != opened:
                dataset, opened = dicom.open_dicom(item.path), item.path
            pixels = decode(dataset, item.path, item.frame or 0)
        except ReadError as error:
            which = f"slice {k + 1} of {len(slices)}: " if len(slices) > 1 else ""
            raise ReadError(source, which + error.reason, error.hint) from error
        stored = pixels.values
        doubts.update(pixels.doubts)
        if stored.shape != item.shape:
            raise ReadError(source, f"slice {k + 1} has {stored.shape}, not {item.shape} pixels", "export it again")
        if "ModalityLUTSequence" in dataset:
            raise ReadError(source, "a lookup table instead of slope and intercept", "export it in Hounsfield units")
        with np.errstate(over="ignore", invalid="ignore"):  # infinities are reported by volumes.finish
            stack[k] = stored * item.scale.slope + item.scale.intercept
        outside = padding(dataset, stored)
        if outside is not None:
            stack[k][outside] = volumes.AIR_HU
            padded += int(outside.sum())
        tags = tags or dicom.technical_tags(dataset)
    if padded:
        share = padded / stack.size
        steps.append(f"{share:.1%} of the voxels are padding by the header; set to {volumes.AIR_HU:g}")
    warnings += [f"{count} of {len(slices)} slices: {doubt}" for doubt, count in doubts.items()]
    _judge_rescaling(slices, steps, warnings)
    return tags


def _judge_rescaling(slices: list[Slice], steps: list[str], warnings: list[str]) -> None:
    """Record the rescaling in `steps`, and missing or contradictory statements of the header in `warnings`."""
    pairs = {(item.scale.slope, item.scale.intercept) for item in slices}
    unknown = sum(not item.scale.stated for item in slices)
    if unknown:
        warnings.append(f"{unknown} of {len(slices)} slices without slope and intercept: taken as HU")
    for doubt, count in Counter(item.scale.doubt for item in slices if item.scale.doubt).items():
        warnings.append(f"{count} of {len(slices)} slices: {doubt}")
    if len(pairs) == 1:
        slope, intercept = pairs.pop()
        steps.append(f"rescaled by slope {slope:g} and intercept {intercept:g} (once)")
    else:
        steps.append(f"rescaled by each slice's own slope and intercept (once): {len(pairs)} different pairs")
    others = Counter(item.unit for item in slices if item.unit not in ("", "HU"))
    if others:
        named = ", ".join(sorted(unit for unit in others if unit in _UNITS)) or "something else"
        which = f" of {others.total()} of {len(slices)} slices" if others.total() < len(slices) else ""
        warnings.append(f"by the header the values{which} are not Hounsfield units but {named}")
