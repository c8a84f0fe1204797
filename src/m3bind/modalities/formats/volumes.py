"""Steps common to CT volumes of all file formats.

* `placement`, `empty`: from any storage order to slices towards the head, rows to the back, columns to the left.
* `finish`: warnings about the values, and air in place of invalid values.
* `double_rescale_doubt`: values that were rescaled twice, or never. * `range_doubt`: values of another range.
* `spacing_text`, `spacing_doubts`: voxel sizes. * `resample`: a volume at another voxel size.

Shapes: D slices, H rows, W columns; A, B, C the three axes as a file stores them.
Directions are unit vectors in the patient's LPS coordinates: x to the left, y to the back, z to the head.
"""

from dataclasses import replace
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from m3bind.errors import ConfigError
from m3bind.modalities.base import Sample
from m3bind.modalities.formats import buffer, limits

AIR_HU = -1024.0
PADDING_HU = -1500.0  # below all physical values; scanners fill the outside of the field of view with -2000 or -3024
EXPECTED = "Hounsfield units have air near -1000, water at 0 and bone up to about 2000"
AIR_BELOW = -300.0  # HU; lung and air are below, fat and all other tissue above
LARGE = 150.0  # mm; a CT with so wide a field of view contains air
LARGE_PIXELS = 256  # if the size in mm is unknown
TILT = 10.0  # degrees between a file's axes and the patient's above which it is reported
_TARGETS = np.eye(3)[::-1]  # of D, H, W: towards the head (z), the back (y), the left (x)

Array = NDArray[np.float32]
Numbers = NDArray[np.float64]


def placement(directions: Numbers) -> tuple[tuple[int, ...], tuple[slice, ...], float]:
    """How an array with axes (A, B, C) along `directions` (3, 3) becomes (D, H, W).

    Returns:
        axes and flips, so that `array.transpose(axes)[flips]` is the volume, and the remaining angle in degrees between
        its axes and the patient's.
    """
    cosines = directions @ _TARGETS.T
    axes = max(permutations(range(3)), key=lambda p: sum(abs(cosines[a, i]) for i, a in enumerate(p)))
    along = [float(cosines[a, i]) for i, a in enumerate(axes)]
    flips = tuple(slice(None, None, -1) if cosine < 0 else slice(None) for cosine in along)
    return axes, flips, float(np.degrees(np.arccos(min(1.0, min(map(abs, along))))))


def empty(shape: tuple[int, int, int], axes: tuple[int, ...], flips: tuple[slice, ...]) -> tuple[Array, Array]:
    """A new volume (D, H, W), and a view of it as (A, B, C) of `shape`, to be filled in storage order."""
    volume = buffer.empty([shape[a] for a in axes])
    return volume, volume[flips].transpose(np.argsort(axes))


def finish(volume: Array, spacing: tuple[float, ...] | None, steps: list[str], warnings: list[str]) -> bool:
    """Check the values, then replace invalid ones (NaN, infinite, padding) by air in place.

    If the values do not seem to be Hounsfield units, none counts as padding: low values may be air or tissue.

    Returns:
        whether the values are consistent with Hounsfield units.
    """
    doubt = double_rescale_doubt(volume) or _depth_doubt(volume)
    broken = padding = 0
    for plane in volume:
        wrong = ~np.isfinite(plane)
        if wrong.any():
            broken += int(wrong.sum())
            plane[wrong] = AIR_HU
        if doubt is None:
            outside = plane < PADDING_HU
            if outside.any():
                padding += int(outside.sum())
                plane[outside] = AIR_HU
    if broken:
        warnings.append(f"{broken / volume.size:.1%} of the voxels are NaN or infinite; taken as air")
    if padding:
        steps.append(f"{padding / volume.size:.1%} of the voxels below {PADDING_HU:g} HU (padding) set to {AIR_HU:g}")
    doubt = doubt or range_doubt(volume, spacing)
    if doubt:
        warnings.append(doubt)
    return doubt is None


def _sparse(volume: Array) -> Array:
    """Every k-th voxel along each axis, about 100,000 in all: a sufficient sample for statistics."""
    step = max(1, round((volume.size / 100_000) ** (1 / 3)))
    return volume[::step, ::step, ::step]


def double_rescale_doubt(volume: Array) -> str | None:
    """A warning if (D, H, W) values seem rescaled twice, or not at all; None if not, or if unknown.

    In Hounsfield units air is near -1000 and soft tissue near 0..80. Volumes already in these units whose header still
    states an intercept of -1024 (CT-RATE v2) have air near -2024 and tissue near -1000 once it is applied again. Stored
    values that were never rescaled have air near 0..24 and tissue near 1024..1100.
    Call it before padding is replaced: padding is a single value below -1500, twice rescaled lung and air are many.
    """
    some = _sparse(volume)
    some = some[np.isfinite(some)]
    if some.size < 64:
        return None

    def share(low: float, high: float) -> float:
        return float(((some >= low) & (some < high)).mean())

    tissue = share(-1150, -850)  # soft tissue after -1024 was added twice; also air
    if share(-1960, -1160) > 0.005 and share(-2200, -1850) > 0.01 and tissue > 0.02 and share(-500, 3e4) < 0.05:
        return _shifted(some, -2200, -1850, "as if the rescale intercept was applied twice")
    bottom = float(((some >= -1400) & (some < -200) & (some > some.min())).mean())  # the minimum may be padding
    if bottom < 0.001 and share(-60, 100) > 0.02 and share(900, 1250) > 0.05:
        return _shifted(some, -60, 100, "as if the rescale intercept was never applied")
    return None


def _shifted(some: Array, low: float, high: float, cause: str) -> str:
    counts, edges = np.histogram(some, bins=round((high - low) / 10), range=(low, high))
    peak = float(edges[int(counts.argmax())]) + 5
    return f"the air is near {peak:.0f} instead of -1000, {cause}: all values may be {abs(peak + 1000):.0f} too " + (
        "low" if peak < -1000 else "high"
    )


def _depth_doubt(volume: Array) -> str | None:
    """A warning if many values are far below air and are not padding, which is one or two values."""
    some = _sparse(volume)
    deep = some[np.isfinite(some) & (some < PADDING_HU)]
    if deep.size < 64 or deep.size < 0.01 * some.size:
        return None
    counts = np.sort(np.unique(np.floor(deep / 50), return_counts=True)[1])
    if counts[-2:].sum() >= 0.5 * deep.size:
        return None
    return (
        f"values down to {float(deep.min()):.4g}, {deep.size / some.size:.0%} of them below {PADDING_HU:g}: {EXPECTED}"
    )


def range_doubt(volume: Array, spacing: tuple[float, ...] | None) -> str | None:
    """A warning if values (D, H, W) are unlikely to be Hounsfield units of a CT: their range and the expected one.

    Crops without air, of bone or of contrast agent, pass: air is required only in a wide field of view.
    """
    some = _sparse(volume)
    low, high = float(some.min()), float(some.max())
    seen = f"values from {low:.4g} to {high:.4g}"
    if high - low < 10:
        return f"nearly blank: {seen} only" + (", normalised or a mask?" if high <= 10 else "?") + f" {EXPECTED}"
    if low >= 0 and high <= 255:
        return f"{seen}: an image at some window level rather than Hounsfield units? {EXPECTED}"
    if low >= 0:
        return f"{seen}, no value below 0: MR, or the rescale intercept (often -1024) is missing? {EXPECTED}"
    if float((some > 3071).mean()) > 0.01 or high > 32767:
        return f"out of the range of Hounsfield units: {seen}; {EXPECTED}"
    if float((some < AIR_BELOW).mean()) >= 0.001:
        return None
    if high - low < 30:
        return f"{seen} only: normalised? {EXPECTED}"
    if float(np.percentile(some, 95)) > 1500:
        return f"{seen}, no air and most of it denser than bone: MR, or rescaled? {EXPECTED}"
    planes = [1.0, 1.0] if spacing is None else list(spacing[1:])
    minimum = LARGE_PIXELS if spacing is None else LARGE
    if min(side * count for side, count in zip(planes, volume.shape[1:])) >= minimum:
        return f"{seen}, no air in a wide field of view: MR, or cut to a window? {EXPECTED}"
    return None


def spacing_text(spacing: tuple[float, ...]) -> str:
    """Voxel sides as text: "2 x 0.63 x 0.63 mm"."""
    return " x ".join(f"{side:.3g}" for side in spacing) + " mm"


def spacing_doubts(spacing: tuple[float, ...]) -> list[str]:
    """A warning if a side of the voxels (mm) is unusual for CT."""
    sound = all(0.05 <= side <= 20 for side in spacing)
    return [] if sound else [f"unlikely voxel size {spacing_text(spacing)}"]


def resample(sample: Sample, spacing: tuple[float, float, float]) -> Sample:
    """A volume at voxel sides `spacing` (D, H, W) in mm, by trilinear interpolation.

    The number of voxels along an axis is its length divided by the new side, rounded; the centres of the old and the
    new volume coincide, and beyond the outermost voxel centres their values are repeated. There is no smoothing: with
    new sides much larger than the old ones, fine structures are sampled rather than averaged.

    Returns:
        a new Sample with array (D', H', W'); `sample` is unchanged.

    Raises:
        ConfigError: the sample is not a volume with known spacing, a side is not positive, or the result is too large.
    """
    old = sample.spacing
    if sample.array.ndim != 3 or old is None or len(old) != 3:
        raise ConfigError("resample: the sample is not a volume with known spacing, without which sizes are unknown")
    if len(spacing) != 3 or not all(np.isfinite(side) and side > 0 for side in spacing):
        raise ConfigError(f"resample: spacing {spacing} is not three positive numbers of mm (D, H, W)")
    sizes = [max(1, round(n * s / t)) for n, s, t in zip(sample.array.shape, old, spacing)]
    if int(np.prod(sizes, dtype=object)) > limits.LIMITS.voxels:
        raise ConfigError(f"resample: {sizes} voxels, more than {limits.LIMITS.voxels:,}; take a larger spacing")
    volume = sample.array
    for axis in sorted(range(3), key=lambda a: sizes[a] / sample.array.shape[a]):  # shrinking axes first
        volume = _along(volume, axis, sizes[axis], spacing[axis] / old[axis])
    steps = [*sample.steps, f"resampled from {spacing_text(old)} to {spacing_text(spacing)} (trilinear)"]
    sides, warnings, tags = tuple(map(float, spacing)), list(sample.warnings), dict(sample.tags)
    array = np.ascontiguousarray(volume)
    return replace(sample, array=array, spacing=sides, steps=steps, warnings=warnings, tags=tags)


def _along(volume: Array, axis: int, size: int, ratio: float) -> Array:
    """Linear interpolation along one axis to `size` voxels that lie `ratio` old voxels apart."""
    length = volume.shape[axis]
    place = (np.arange(size) - (size - 1) / 2) * ratio + (length - 1) / 2
    place = np.clip(place, 0, length - 1)
    low = np.floor(place).astype(np.intp)
    part = (place - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
    below: Array = volume.take(low, axis)
    above: Array = volume.take(np.minimum(low + 1, length - 1), axis)
    above -= below
    above *= part
    above += below
    return above
