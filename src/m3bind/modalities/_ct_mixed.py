"""Two volumes of one series whose slices lie in between each other, where no entry that tells volumes apart differs.

* `unmixed`: the slices of one of them, by the passes in which they were numbered or taken.
* `check_alternation`: refuse a finished stack whose slices alternate all the same.

Numbers and times tell little by themselves: slices of one volume are numbered and written in any order. So what they
suggest counts only where the pictures agree: a slice resembles its neighbours of another volume less than these
resemble each other.

Places are mm along the normal of the slices. Shapes: N slices of A rows and B columns.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3bind.errors import ReadError
from m3bind.modalities._ct_choice import TIMES, joined, places_of, values_of
from m3bind.modalities._ct_headers import Slice

LEAST = 8  # slices from which on passes are looked for
MANY = 4  # slices a pass must hold on average
UNEVEN = 0.45  # part of a pass's first step by which its steps may differ
UNLIKE = 1.2  # times by which a slice differs more from its neighbours than these from each other
OFTEN = 0.6  # share of such slices from which on a stack alternates
PROBES = 6  # slices that are decoded to tell
SIDE = 64  # pixels of a slice's rows and columns that are compared at least


def unmixed(slices: list[Slice], warnings: list[str]) -> list[Slice]:
    """The slices without those of other volumes in between; all, where there are none."""
    places = places_of(slices)
    if places is None or len(slices) < LEAST:
        return slices
    for name, order in _orders(slices, places):
        passes = _passes(places, order)
        if not 1 < len(passes) <= len(slices) / MANY:
            continue
        kept, others, _ = joined(sorted(passes, key=len, reverse=True), places)
        left = sorted(set(range(len(slices))) - set(kept))
        if others and _unlike(slices, places, kept, left):
            warnings.append(
                f"{len(others) + 1} volumes in between each other, told apart by {name}: took one with {len(kept)} "
                f"slices, left out {len(left)} slices"
            )
            return [slices[number] for number in sorted(kept)]
    return slices


def _orders(slices: list[Slice], places: NDArray[np.float64]) -> Iterator[tuple[str, list[int]]]:
    """What may tell passes, and the slices in its order; slices of one time by place."""
    every = range(len(slices))
    if len({item.order[1] for item in slices}) == len(slices):
        yield "their numbers", sorted(every, key=lambda k: slices[k].order[1])
    for name in TIMES:
        times = [item.facts.get(name) for item in slices]
        if None not in times and len(set(times)) > 1:
            yield name, sorted(every, key=lambda k, times=times: (str(times[k]), places[k]))  # type: ignore[misc]


def _passes(places: NDArray[np.float64], order: list[int]) -> list[list[int]]:
    """Runs of slices that lie one step after the other."""
    passes = [[order[0]]]
    first = 0.0
    for before, number in pairwise(order):
        step = places[number] - places[before]
        if len(passes[-1]) == 1:
            first = step
        elif abs(step - first) > UNEVEN * abs(first):
            passes.append([])
        passes[-1].append(number)
    return passes


def _unlike(slices: list[Slice], places: NDArray[np.float64], kept: list[int], left: list[int]) -> bool:
    """Whether slices left out differ more from their neighbours among those kept than these from each other."""
    kept = sorted(kept, key=lambda k: places[k])
    right = np.searchsorted(places[kept], places[left])
    inside = [(k, kept[r - 1], kept[r]) for k, r in zip(left, right.tolist()) if 0 < r < len(kept)]
    ratios = []
    for number in np.unique(np.linspace(0, len(inside) - 1, PROBES).astype(int)) if inside else ():
        own, below, above = (values_of(slices[k]) for k in inside[number])
        if own is not None and below is not None and above is not None:
            ratios.append(_ratio(_apart(own, below), _apart(own, above), _apart(below, above)))
    return bool(ratios) and float(np.median(ratios)) > UNLIKE


def _apart(one: Any, other: Any) -> float:
    return float(np.sqrt(np.square(one.astype(np.float64) - other).mean()))


def _ratio(below: float, above: float, across: float) -> float:
    return min(below, above) / max(across, 1e-6)


def check_alternation(stack: NDArray[np.float32], source: Any) -> None:
    """Refuse a stack (N, A, B) in which every second slice is of another picture.

    Raises:
        ReadError: it is.
    """
    if len(stack) < LEAST:
        return
    down, across = (max(1, side // SIDE) for side in stack.shape[1:])
    few = stack[:, ::down, ::across]
    near = [_apart(few[k], few[k + 1]) for k in range(len(few) - 1)]
    far = [_apart(few[k], few[k + 2]) for k in range(len(few) - 2)]
    ratios = np.array([_ratio(near[k], near[k + 1], far[k]) for k in range(len(far))])
    if (ratios > UNLIKE).mean() > OFTEN:
        reason = "every second slice is of another picture, and nothing tells which belong together"
        raise ReadError(source, reason, "export each phase or acquisition as a series of its own")
