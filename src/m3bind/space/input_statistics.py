"""Statistics of the inputs of image towers that change with resolution, noise, contrast and magnification.

* `input_statistics`: of inputs of any shape. * `statistics_of`: their meaning in words. * `thinned`: what they look at.
* `degradations`: inputs of lower resolution, with noise, or of another magnification.

Inputs are (n, C, *axes) with 1 to 3 axes, or (n, L). Images and volumes are changed along their last two axes.
Shapes: n inputs, C channels, S statistics.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

TINY = 1e-4
BINS, WIDTH = 32, 4.0  # histogram of standardised values within +-4
SCALES = 3  # octaves of detail
SLICES = 16  # of a deep volume, and channels, that are inspected: all of 240 slices of 480 x 480 take 6 s, these 0.3
NOISE = 0.5  # of the noise that is added, in standard deviations of the input
Floats = NDArray[np.float32]


class Statistic(NamedTuple):
    """The smallest standard deviation that is taken as real; lower and higher values in words, if they have any."""

    floor: float
    lower: str = ""
    higher: str = ""


EXTENT = Statistic(0.1, "smaller than the training data", "larger than the training data")
STATISTICS: Mapping[str, Statistic] = {
    "level": Statistic(0.02, "darker than the training data", "brighter than the training data"),
    "contrast": Statistic(0.1, "less contrast than the training data", "more contrast than the training data"),
    "colour": Statistic(0.2, "less colour than the training data", "more colour than the training data"),
    "finest": Statistic(0.1),
    "fine": Statistic(0.1),
    "coarse": Statistic(0.1),
    "edges": Statistic(0.02),
    "coarse edges": Statistic(0.02),
    "flat": Statistic(0.05),
    "entropy": Statistic(0.1),
}


def statistics_of(count: int) -> list[Statistic]:
    """The S = `count` statistics in order: an extent per axis, then `STATISTICS`."""
    return [EXTENT] * (count - len(STATISTICS)) + [*STATISTICS.values()]


def input_statistics(inputs: Tensor) -> Floats:
    """(n, S) statistics of inputs, without the empty border that fits them to the shape of the model.

    Log extent of each axis inside the border (`EXTENT`), then `STATISTICS`: mean; log contrast; log spread across
    channels; log ratios of the RMS second difference at distances 1 and 2, at 2 and 4, and at 4 to the contrast; mean
    to RMS of the second differences at distances 1 and 2 (.8 for noise, less for edges); share of equal neighbours
    (arcsine of the root); entropy of the standardised values.
    """
    inputs = thinned(inputs.detach()).float().cpu()
    return np.stack([_statistics_of(item) for item in inputs])


def thinned(inputs: Tensor) -> Tensor:
    """Inputs (n, C, *axes) with at most `SLICES` evenly spaced channels, and slices of volumes."""
    inputs = inputs[:, None] if inputs.ndim == 2 else inputs
    for axis in range(1, max(2, inputs.ndim - 2)):
        length = inputs.shape[axis]
        if length > SLICES:
            inputs = inputs.index_select(axis, torch.linspace(0, length - 1, SLICES).round().long().to(inputs.device))
    return inputs


def _statistics_of(item: Tensor) -> Floats:
    """(S,) of one input (C, *axes)."""
    inside = _without_border(item)
    extents = [np.log(now / before) for now, before in zip(inside.shape[1:], item.shape[1:])]
    grey = inside.mean(0, keepdim=True) if len(inside) == 3 else inside
    colour = _rms(inside - inside.mean(0)) if len(inside) > 1 else 0.0
    contrast = float(grey.std(correction=0))
    rms, edges, scaled = [], [], grey
    for _ in range(SCALES):
        second = _second_differences(scaled)
        rms.append(_rms(second))
        edges.append((float(second.abs().mean()) + TINY / 10) / (rms[-1] + TINY / 10))
        scaled = _halved(scaled)
    detail = np.log(np.array([*rms, contrast]) + TINY)
    logs = np.log(np.array([contrast, colour]) + TINY)
    equal = np.arcsin(np.sqrt(_equal_neighbours(grey)))
    values = [*logs, *(detail[:-1] - detail[1:]), *edges[:2], equal, _entropy(grey, contrast)]
    return np.array([*extents, float(inside.mean()), *values], np.float32)


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def _without_border(item: Tensor) -> Tensor:
    """The smallest box with all elements other than 0; everything if all are 0, or of a list of numbers (1, L)."""
    used = (item != 0).any(0)
    if item.shape[0] == item.ndim - 1 == 1 or not used.any():
        return item
    for axis in range(used.ndim):
        others = [other for other in range(used.ndim) if other != axis]
        at = torch.nonzero(used.amax(others) if others else used)
        start, count = int(at[0]), int(at[-1] - at[0]) + 1
        item, used = item.narrow(axis + 1, start, count), used.narrow(axis, start, count)
    return item


def _plane(item: Tensor) -> range:
    """The last two axes of (C, *axes), or the only one."""
    return range(max(1, item.ndim - 2), item.ndim)


def _second_differences(item: Tensor) -> Tensor:
    """Along the axes of `_plane`, flattened; a zero if none is long enough."""
    parts = []
    for axis in _plane(item):
        length = item.shape[axis] - 2
        if length > 0:
            ends = item.narrow(axis, 0, length) + item.narrow(axis, 2, length)
            parts.append((ends - 2 * item.narrow(axis, 1, length)).flatten())
    return torch.cat(parts or [torch.zeros(1)])


def _halved(item: Tensor) -> Tensor:
    """Means of pairs along the axes of `_plane`."""
    for axis in _plane(item):
        length = item.shape[axis] // 2
        if length > 1:
            even = torch.arange(0, 2 * length, 2)
            item = (item.index_select(axis, even) + item.index_select(axis, even + 1)) / 2
    return item


def _equal_neighbours(item: Tensor) -> float:
    if item.shape[-1] < 2:
        return 1.0
    return float(((item[..., 1:] - item[..., :-1]).abs() < 1e-3).float().mean())


def _entropy(item: Tensor, contrast: float) -> float:
    """In nats, of the histogram of standardised values."""
    values = ((item - item.mean()) / (contrast + TINY)).clamp(-WIDTH, WIDTH)
    shares = torch.histc(values, BINS, -WIDTH, WIDTH) / values.numel()
    return float(-(shares * (shares + 1e-12).log()).sum())


def degradations(inputs: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(number of the kind, changed inputs (n, C, *axes)), images and volumes along their last two axes.

    0, 1: half and a quarter of the resolution. 2: with noise. 3: noise alone. 4: the centre at twice the size. 5: four
    mirrored copies at half the size. 4 and 5 are of images and volumes only.
    """
    inputs = thinned(inputs).float()
    yield 0, _coarse(inputs, 2)
    yield 1, _coarse(inputs, 4)
    noise = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0))
    flat = inputs.flatten(1)
    mean, spread = (values.reshape(-1, *[1] * (inputs.ndim - 1)) for values in (flat.mean(1), flat.std(1)))
    for kind, values in ((2, inputs + NOISE * spread * noise), (3, mean + spread * noise)):
        inside = values.clamp(inputs.min(), inputs.max())
        yield kind, torch.where((inputs != 0).any(1, keepdim=True), inside, inputs)
    if inputs.ndim > 3:
        height, width = inputs.shape[-2:]
        centre = inputs[..., height // 4 : height // 4 + -(-height // 2), width // 4 : width // 4 + -(-width // 2)]
        yield 4, _resized(centre, (height, width))
        yield 5, _mirrored(inputs)


def _resized(inputs: Tensor, size: tuple[int, ...]) -> Tensor:
    """The last axes as `size` (bilinear, anti-aliased)."""
    flat = inputs.reshape(-1, 1, *inputs.shape[-len(size) :])
    mode = {"mode": "bilinear", "antialias": True} if len(size) == 2 else {"mode": "linear"}
    resize: Callable[..., Tensor] = F.interpolate
    return resize(flat, size, **mode).reshape(*inputs.shape[: -len(size)], *size)


def _coarse(inputs: Tensor, factor: int) -> Tensor:
    size = tuple(inputs.shape[axis + 1] for axis in _plane(inputs[0]))
    return _resized(_resized(inputs, tuple(max(1, length // factor) for length in size)), size)


def _mirrored(inputs: Tensor) -> Tensor:
    height, width = inputs.shape[-2:]
    small = _resized(inputs, (-(-height // 2), -(-width // 2)))
    wide = torch.cat([small, small.flip(-1)], -1)
    return torch.cat([wide, wide.flip(-2)], -2)[..., :height, :width]
