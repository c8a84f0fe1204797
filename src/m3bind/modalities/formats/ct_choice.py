"""Selection of one volume among all CT slices of a folder or file.

* `one_volume`: the slices of one volume, each place once. * `joined`, `places_of`, `normal_of`, `values_of`: its steps.

A series is not one volume by its UID alone: it may contain phases, time points, acquisitions, kernels or projections
at the same places. The rule is deterministic, and excluded slices are reported:

1. Groups of one series, size, orientation and pixel spacing are never mixed. The group with the most places is taken;
   among equal ones that with the thinner slices, then with the lower number.
2. For each fact of `ct_headers.FACTS` that differs within the group, the slices are split by its value and the parts
   ranked in the same way, projections last. Parts beside the first one (slabs) or in holes of it are joined to it; a
   part at the same places, or in between, is another volume and is excluded.
3. Places that are still repeated: copies are dropped; of a few others the lower number is retained; of many the longest
   pass from end to end by number. Without distinct numbers they are rejected: any choice might alternate.

Places are mm along the normal of the slices.
"""

import re
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3bind.errors import ReadError
from m3bind.modalities.formats import dicom
from m3bind.modalities.formats.ct_headers import FACTS, Slice
from m3bind.modalities.formats.dicom_files import quiet

Numbers = NDArray[np.float64]

AXIAL = np.array([1.0, 0, 0, 0, 1, 0])
SAME_PLACE = 0.01  # mm up to which positions are equal
MANY = 64  # values of a fact above which it numbers slices rather than volumes
HOLE = 1.5  # usual slice distances above which there is a hole
BESIDE = 0.34  # fraction of a part that may lie at the places of another, where slabs overlap
FEW = 0.1  # fraction of places that may be repeated by slices of unknown origin
HALF = 0.5  # fraction of the places that one pass by number must cover
_PROJECTIONS = {
    "MIP", "MINIP", "MAX_IP", "MIN_IP", "MAXIMUM", "MINIMUM", "PROJECTION IMAGE", "LOCALIZER", "VOLUME_RENDER",
}  # fmt: skip
_KNOWN_WORDS = _PROJECTIONS | {
    "ORIGINAL", "DERIVED", "PRIMARY", "SECONDARY", "AXIAL", "HELIX", "MPR", "REFORMATTED", "AVERAGE", "VOLUME",
    "CT_SOM5 SPI", "CT_SOM5 SEQ", "STANDARD", "LUNG", "BONE", "BONEPLUS", "DETAIL", "SOFT", "CHEST", "EDGE",
}  # fmt: skip
_CODE = re.compile(r"-?\d{1,5}(\.\d+)?|[A-Z]{1,2}\d{1,3}[A-Z]{0,2}")  # a number, a kernel ("B30F")
TIMES = ("trigger time", "acquisition time", "content time")  # may differ for every slice of one volume
_OF_REPEATS = (*TIMES, "centre")  # considered only if places are repeated
_DISTINCT = ("stack", "temporal position", "cardiac phase", "respiratory phase", "dimension")  # also without places


def one_volume(slices: list[Slice], source: Any, steps: list[str], warnings: list[str]) -> list[Slice]:
    """The slices of one volume, each place once, in no order.

    Raises:
        ReadError: slices that do not fit together, or repeated places that no entry distinguishes.
    """
    slices = _with_places(_one_group(slices, source, steps, warnings), warnings)
    if len({item.patient for item in slices if item.patient}) > 1:
        warnings.append("slices of one series that name different patients")
    for name in FACTS:
        slices = _by_fact(slices, name, warnings)
    return _each_place_once(slices, source, warnings)


# --- 1. series, size, orientation, pixel spacing ----------------------------------------------------------------------


def _one_group(slices: list[Slice], source: Any, steps: list[str], warnings: list[str]) -> list[Slice]:
    """The slices of the largest group that can be one stack."""
    series: dict[tuple[float, str], list[list[Slice]]] = {}
    for item in slices:
        groups = series.setdefault(item.series, [])
        group = next((group for group in groups if _alike(group[0], item)), None)
        if group is None:
            groups.append([item])
        else:
            group.append(item)
    key, best = min(
        ((key, group) for key, groups in series.items() for group in groups),
        key=lambda candidate: (*_rank(candidate[1]), candidate[0]),
    )
    own = sum(map(len, series[key]))
    if len(best) == 1 and len(series[key]) > 1:
        reason = f"{own} slices of {len(series[key])} sizes, orientations or pixel spacings, all different"
        raise ReadError(source, reason, "name a folder with one series")
    if len(series) > 1:
        steps.append(f"{len(series)} series; took the one with {own} of {len(slices)} slices")
        rest = len(slices) - own
        warnings.append(f"{rest} slices of {len(series) - 1} other series excluded; use a separate folder for each")
    if len(series[key]) > 1:
        warnings.append(f"{own - len(best)} of {own} slices of another size, orientation or pixel spacing excluded")
    return best


def _with_places(slices: list[Slice], warnings: list[str]) -> list[Slice]:
    """The slices; their positions are removed if all are equal but the slice locations differ."""
    positions = [item.position for item in slices if item.position is not None]
    locations = {item.location for item in slices}
    if len(positions) < len(slices) or None in locations or len(locations) < max(2, HALF * len(slices)):
        return slices
    if np.ptp(np.stack(positions), axis=0).max() > SAME_PLACE:
        return slices
    warnings.append("all slices state one position, but different slice locations: positions not used")
    return [replace(item, position=None) for item in slices]


def _alike(one: Slice, other: Slice) -> bool:
    def near(a: Numbers | None, b: Numbers | None, tolerance: float) -> bool:
        return (a is None) == (b is None) and (a is None or b is None or bool(np.abs(a - b).max() <= tolerance))

    return (
        one.shape == other.shape
        and near(one.orientation, other.orientation, 0.01)
        and near(one.sides, other.sides, 0.001)
        and (one.position is None) == (other.position is None)
    )


def _rank(part: list[Slice]) -> tuple[int, float, float]:
    """Sort key of groups: most places, thinnest slices, lowest number; smaller is better."""
    places = places_of(part)
    count = len(part) if places is None else _distinct(places)
    thickness = min((item.thickness or item.apart or np.inf for item in part), default=np.inf)
    return -count, thickness, min(item.order[1] for item in part)


def normal_of(item: Slice) -> Numbers:
    """The direction (3,) across a slice; towards the head if it states none."""
    across, down = (AXIAL if item.orientation is None else item.orientation).reshape(2, 3)
    return np.asarray(np.cross(across, down))


def places_of(slices: Sequence[Slice]) -> Numbers | None:
    """Places (N,) by position, else by slice location; None if a slice states neither."""
    positions = [item.position for item in slices if item.position is not None]
    if len(positions) == len(slices):
        return np.asarray(np.stack(positions) @ normal_of(slices[0]))
    locations = np.array([item.location for item in slices if item.location is not None])
    moving = len(locations) == len(slices) and _distinct(locations) > min(1, len(slices) - 1)
    return locations if moving else None


def _distinct(places: Numbers) -> int:
    return 1 + int((np.diff(np.sort(places)) > SAME_PLACE).sum()) if len(places) else 0


# --- 2. facts that differ within a group ------------------------------------------------------------------------------


def _by_fact(slices: list[Slice], name: str, warnings: list[str]) -> list[Slice]:
    """The slices of one value of a fact, with those of other values at other places."""
    places = places_of(slices)
    repeated = places is not None and _distinct(places) < len(places)
    parts: dict[Any, list[int]] = {}
    for number, item in enumerate(slices):
        parts.setdefault(_fact(item, name), []).append(number)
    only_repeats = name in _OF_REPEATS or len(parts) > MANY
    if len(parts) == 1 or (only_repeats and not repeated) or (places is None and name not in _DISTINCT):
        return slices
    order = sorted(parts, key=lambda value: _preference(value, [slices[k] for k in parts[value]], name))
    chosen, left, overlap = joined([parts[value] for value in order], places)
    if left:
        taken, rest = _text(order[0], name), sum(len(parts[order[k]]) for k in left)
        others = list(dict.fromkeys(_text(order[k], name) for k in left))
        listed = ", ".join(others[:6]) + (f" and {len(others) - 6} more" if len(others) > 6 else "")
        warnings.append(
            f"{len(left) + 1} volumes at the same places, distinguished by {name}: took {name} {taken} with "
            f"{len(chosen)} slices, excluded {rest} slices ({listed})"
        )
    if overlap:
        warnings.append(f"{overlap} slices dropped where parts of another {name} overlap")
    return [slices[number] for number in sorted(chosen)]


def joined(parts: list[list[int]], places: Numbers | None) -> tuple[list[int], list[int], int]:
    """The first part with all others beside it or in its holes.

    Returns:
        numbers of its slices, the parts that are other volumes, and the number of slices dropped where parts overlap.
    """
    chosen, left, overlap = list(parts[0]), [], 0
    for which, numbers in enumerate(parts[1:], 1):
        part = np.array(numbers)
        hit = np.ones(len(part), bool) if places is None else _among(places[part], np.sort(places[chosen]))
        if hit.sum() > BESIDE * min(len(part), len(chosen)):
            left.append(which)
        else:
            chosen += part[~hit].tolist()
            overlap += int(hit.sum())
    return chosen, left, overlap


def _fact(item: Slice, name: str) -> Hashable:
    if name != "centre" or item.position is None:
        return item.facts.get(name)
    normal = normal_of(item)
    return tuple(np.round(item.position - (item.position @ normal) * normal).tolist())


def _preference(value: Any, part: list[Slice], name: str) -> tuple[Any, ...]:
    """Sort key of parts: projections last, then as groups; among equal ones stated values first, then lower ones."""
    kinds = value if name == "image type" and isinstance(value, tuple) else ()
    projection, derived = not _PROJECTIONS.isdisjoint(kinds), "DERIVED" in kinds
    count, thickness, number = _rank(part)
    size = value if isinstance(value, float) else 0.0
    words = tuple(map(str, value)) if isinstance(value, tuple) else ()
    tie = (words, number) if name in TIMES else (number, words)
    return projection, count, thickness, derived, value is None, size, *tie, min(item.order for item in part)


def _among(places: Numbers, others: Numbers) -> NDArray[np.bool_]:
    """Which of `places` (N,) are at one of the sorted `others` (M,) or between two of them, but not in a hole."""
    right = np.searchsorted(others, places)
    after, before = others[np.minimum(right, len(others) - 1)], others[np.maximum(right - 1, 0)]
    at = np.minimum(np.abs(after - places), np.abs(before - places)) <= SAME_PLACE
    gaps = np.diff(others)
    gaps = np.sort(gaps[gaps > SAME_PLACE])
    usual = gaps[(len(gaps) - 1) // 2] if len(gaps) else 0.0
    between = (right > 0) & (right < len(others)) & (after - before <= HOLE * usual)
    return np.asarray(at | between)


def _text(value: Any, name: str) -> str:
    """A value as a message may quote it: short numbers and known words, no free text."""
    if value is None:
        return "unstated"
    if name in _OF_REPEATS or name == "file":
        return "1 of several"
    words = [f"{value:g}"] if isinstance(value, float) else list(value)
    return "/".join(word if word in _KNOWN_WORDS or _CODE.fullmatch(word) else "..." for word in words)


# --- 3. places that are still repeated --------------------------------------------------------------------------------


def _each_place_once(slices: list[Slice], source: Any, warnings: list[str]) -> list[Slice]:
    """Slices without copies; of others at one place, the slice chosen by number."""
    places = places_of(slices)
    if places is None or len(slices) == 1:
        return slices
    at = _clusters(places)
    groups: dict[int, list[Slice]] = {}
    for item, place in sorted(zip(slices, at), key=lambda pair: pair[0].order):
        groups.setdefault(int(place), []).append(item)
    if len(groups) == len(slices):
        return slices
    groups = {place: _without_copies(group) for place, group in groups.items()}
    left = [item for group in groups.values() for item in group]
    if len(left) < len(slices):
        copies = len(slices) - len(left)
        warnings.append(f"{copies} of {len(slices)} slices repeat a position and were dropped (the same pixels)")
    repeated = sum(len(group) > 1 for group in groups.values())
    if not repeated:
        return left
    if repeated > max(1, FEW * len(groups)):
        chosen = _one_pass(left, len(groups))
        if not chosen:
            reason = f"{repeated} of {len(groups)} places have several slices, and no entry distinguishes them"
            raise ReadError(source, reason, "export each phase or acquisition as a separate series")
    else:
        chosen = [group[0] for group in groups.values()]
    warnings.append(
        f"{len(left) - len(chosen)} of {len(slices)} slices repeat a position and were dropped (other pixels; no "
        "entry of the header distinguishes them, taken by number)"
    )
    return chosen


def _clusters(places: Numbers) -> NDArray[np.int64]:
    """The index (N,) of the place of each slice, counted along the normal."""
    order = np.argsort(places, kind="stable")
    numbers = np.zeros(len(places), np.int64)
    numbers[order[1:]] = np.cumsum(np.diff(places[order]) > SAME_PLACE)
    return numbers


def _without_copies(group: list[Slice]) -> list[Slice]:
    """Slices at one place, without those with the same values as an earlier one."""
    if len(group) == 1:
        return group
    seen: list[Any] = []
    different = []
    for item in group:
        values = values_of(item)
        if values is None or not any(np.array_equal(values, other) for other in seen):
            different.append(item)
            seen += [] if values is None else [values]
    return different


def values_of(item: Slice) -> Any:
    """Rescaled values of a slice, None if they cannot be decoded."""
    try:
        with quiet():
            stored = dicom.pixel_frames(dicom.open_dicom(item.path), item.path, item.frame or 0)
    except ReadError:
        return None
    return stored * item.scale.slope + item.scale.intercept


def _one_pass(slices: list[Slice], count: int) -> list[Slice]:
    """The longest pass through the `count` places by number, and others beside it; [] without distinct numbers."""
    slices = sorted(slices, key=lambda item: item.order)
    if len({item.order[:2] for item in slices}) < len(slices):
        return []
    places = places_of(slices)
    assert places is not None
    passes: list[list[int]] = [[]]
    seen: set[int] = set()
    for number, place in enumerate(_clusters(places).tolist()):
        if place in seen:
            passes.append([])
            seen = set()
        passes[-1].append(number)
        seen.add(place)
    passes.sort(key=len, reverse=True)
    steps = np.sign(np.diff(places[passes[0]]))
    if len(passes[0]) < HALF * count or (steps != steps[0]).any():
        return []
    return [slices[number] for number in joined(passes, places)[0]]
