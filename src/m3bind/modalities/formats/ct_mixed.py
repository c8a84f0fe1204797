"""Interleaved volumes of one series that no header entry distinguishes.

* `unmixed`: the slices of one of them, by the passes in which they were numbered or acquired.
* `check_alternation`: rejects a finished stack that is still mixed. * `alternation_doubts`: warns that it may be.

Numbers and times are weak evidence, because slices of one volume are numbered and written in any order. They count only
if the pixels agree: a slice is less similar to its neighbours of another volume than these are to each other.

Places are mm along the normal of the slices. Shapes: N slices of A rows and B columns.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3bind.errors import ReadError
from m3bind.modalities.formats.ct_choice import TIMES, joined, places_of, values_of
from m3bind.modalities.formats.ct_headers import Slice

MIN_SLICES = 8  # for the checks of this module
MANY = 4  # minimum slices of a pass on average
UNEVEN = 0.45  # fraction of a pass's first step by which its steps may differ
UNLIKE = 1.2  # factor by which a slice differs more from its neighbours than these from each other
PROBES = 6  # slices that are decoded for comparison
# None of 389 real volumes has an `UNLIKE` neighbour or gets a warning; nearly all mixtures of 2 to 5 patients or
# windows, in any order, are rejected; up to half of the mixtures of phases that differ by 20 to 100 HU get a warning.
FAR = 4  # maximum distance of a slice that may be more similar than the neighbour
OFTEN, SOMETIMES = 0.5, 0.4  # fraction of unlike neighbours above which a stack is mixed, and may be
IN_TURNS, BRIGHTER = 0.35, 5.0  # fraction of the differences, and HU, that alternate from slice to slice
ALWAYS, NOISIER = 0.9, 0.15  # fraction of slices that alternate, and ln of the ratio of noise
SIDE = 32  # blocks of a slice's rows and columns that are compared


def unmixed(slices: list[Slice], warnings: list[str]) -> list[Slice]:
    """The slices without interleaved ones of other volumes."""
    places = places_of(slices)
    if places is None or len(slices) < MIN_SLICES:
        return slices
    for name, order in _orders(slices, places):
        passes = _passes(places, order)
        if not 1 < len(passes) <= len(slices) / MANY:
            continue
        chosen, others, _ = joined(sorted(passes, key=len, reverse=True), places)
        left = sorted(set(range(len(slices))) - set(chosen))
        if others and _unlike(slices, places, chosen, left):
            warnings.append(
                f"{len(others) + 1} interleaved volumes, distinguished by {name}: took one with {len(chosen)} "
                f"slices, excluded {len(left)} slices"
            )
            return [slices[number] for number in sorted(chosen)]
    return slices


def _orders(slices: list[Slice], places: NDArray[np.float64]) -> Iterator[tuple[str, list[int]]]:
    """Names of entries that may distinguish passes, and the slices in their order; slices of equal time by place."""
    every = range(len(slices))
    if len({item.order[1] for item in slices}) == len(slices):
        yield "their numbers", sorted(every, key=lambda k: slices[k].order[1])
    for name in TIMES:
        times = [item.facts.get(name) for item in slices]
        if None not in times and len(set(times)) > 1:
            yield name, sorted(every, key=lambda k, times=times: (str(times[k]), places[k]))  # type: ignore[misc]


def _passes(places: NDArray[np.float64], order: list[int]) -> list[list[int]]:
    """Runs of slices at equal steps."""
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


def _unlike(slices: list[Slice], places: NDArray[np.float64], chosen: list[int], left: list[int]) -> bool:
    """Whether slices `left` differ more from their neighbours among the chosen ones than these from each other."""
    chosen = sorted(chosen, key=lambda k: places[k])
    right = np.searchsorted(places[chosen], places[left])
    inside = [(k, chosen[r - 1], chosen[r]) for k, r in zip(left, right.tolist()) if 0 < r < len(chosen)]
    ratios = []
    for number in np.unique(np.linspace(0, len(inside) - 1, PROBES).astype(int)) if inside else ():
        own, below, above = (values_of(slices[k]) for k in inside[number])
        if own is not None and below is not None and above is not None:
            ratios.append(min(_apart(own, below), _apart(own, above)) / max(_apart(below, above), 1e-6))
    return bool(ratios) and float(np.median(ratios)) > UNLIKE


def _apart(one: Any, other: Any) -> float:
    return float(np.sqrt(np.square(one.astype(np.float64) - other).mean()))


# --- a finished stack -------------------------------------------------------------------------------------------------


def check_alternation(stack: NDArray[np.float32], source: Any, warnings: list[str]) -> None:
    """Raise ReadError if neighbours in a stack (N, A, B) are of different volumes; warn if slices alternate."""
    if len(stack) < MIN_SLICES:
        return
    few = _coarse(stack)
    share = _torn(few)
    if share > OFTEN:
        reason = "neighbouring slices are of different volumes, and no entry distinguishes them"
        raise ReadError(source, reason, "export each phase or acquisition as a separate series")
    warnings += alternation_doubts(stack, few, share)


def alternation_doubts(
    volume: NDArray[np.float32], few: NDArray[np.float64] | None = None, share: float | None = None
) -> list[str]:
    """The warning about a volume (N, A, B) that may alternate between several, as a list of 0 or 1."""
    if len(volume) < MIN_SLICES:
        return []
    few = _coarse(volume) if few is None else few
    what = "neighbouring slices are less similar than more distant ones"
    if (_torn(few) if share is None else share) <= SOMETIMES:
        part, size = _in_turns(few)
        odd = "brightness" if part > IN_TURNS and size > BRIGHTER else "noise" if _noise_in_turns(volume) else ""
        if not odd:
            return []
        what = f"every second slice has another {odd} than its neighbours"
    return [f"{what}: perhaps several phases, kernels or windows in one volume"]


def _coarse(stack: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N, a, b) means of blocks, about `SIDE` per side, to reduce noise."""
    down, across = (max(1, side // (4 * SIDE)) for side in stack.shape[1:])
    some = stack[:, ::down, ::across]
    count, *sides = some.shape
    rows, columns = (max(1, side // SIDE) for side in sides)
    blocks = some[:, : sides[0] // rows * rows, : sides[1] // columns * columns]
    parted = blocks.reshape(count, sides[0] // rows, rows, sides[1] // columns, columns)
    return np.asarray(parted.mean(axis=(2, 4), dtype=np.float64))


def _torn(few: NDArray[np.float64]) -> float:
    """The fraction of neighbours in (N, a, b) that differ more than either does from a slice up to `FAR` away."""
    best = np.full(len(few) - 1, np.inf)
    for step in range(2, FAR + 1):
        apart = _steps(few, step)
        best[: len(apart)] = np.minimum(best[: len(apart)], apart)
        best[step - 1 :] = np.minimum(best[step - 1 :], apart)
    return float((_steps(few, 1) > UNLIKE * np.maximum(best, 1e-6)).mean())


def _steps(few: NDArray[np.float64], step: int) -> NDArray[np.float64]:
    """(N - step,) root mean square differences of slices `step` apart."""
    return np.asarray(np.sqrt(np.square(few[step:] - few[:-step]).mean(axis=(1, 2))))


def _in_turns(few: NDArray[np.float64]) -> tuple[float, float]:
    """The part of slices' differences from the mean of their neighbours that alternates in sign: fraction, and HU."""
    aside = few[1:-1] - (few[:-2] + few[2:]) / 2
    turns = aside * np.where(np.arange(len(aside)) % 2, -1.0, 1.0)[:, None, None]
    energy = float(np.square(turns.mean(axis=0)).mean())
    return energy / max(float(np.square(aside).mean()), 1e-9), float(np.sqrt(energy))


def _noise_in_turns(volume: NDArray[np.float32]) -> bool:
    """Whether every second slice of (N, A, B) has more noise, or sharper edges, than both neighbours."""
    top, left = (max(0, side // 2 - SIDE) for side in volume.shape[1:])
    middle = volume[:, top : top + 2 * SIDE, left : left + 2 * SIDE]
    if min(middle.shape[1:]) < 8:
        return False
    around = middle[:, :-2, 1:-1] + middle[:, 2:, 1:-1] + middle[:, 1:-1, :-2] + middle[:, 1:-1, 2:]
    noise = np.log(np.median(np.abs(middle[:, 1:-1, 1:-1] - around / 4), axis=(1, 2)) + 1)
    aside = noise[1:-1] - (noise[:-2] + noise[2:]) / 2
    turns = aside * np.where(np.arange(len(aside)) % 2, -1.0, 1.0)
    way = np.sign(np.median(turns))
    return bool((turns * way > 0).mean() > ALWAYS and abs(float(np.median(turns))) > NOISIER)
