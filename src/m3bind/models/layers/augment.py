"""Light random variation of input batches, the same code for 1-D, 2-D and 3-D.

* `ItemRandom`: random numbers of each item of a batch, independent of the other items. * `vary`: the variation.

n items, C channels, then 1 to 3 axes of space or time.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class ItemRandom:
    """One stream of random numbers per item of a batch, a function of a key and of the item.

    An item gets the same numbers in whatever batch, and in whatever process, it is drawn.
    """

    def __init__(self, key: int, items: Sequence[int] | NDArray[np.int64]) -> None:
        """`key` of 128 bits, e.g. of the seed and the step; `items`: (n,) non-negative numbers of the items."""
        self._streams = [np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, int(i)])) for i in items]

    def integers(self, low: int, high: int) -> Tensor:
        """(n,) int64, uniform in low <= x < high."""
        return torch.tensor([int(stream.integers(low, high)) for stream in self._streams])

    def uniform(self) -> Tensor:
        """(n,) float32, uniform in [0, 1)."""
        return torch.tensor([stream.random(dtype=np.float32) for stream in self._streams])

    def normal(self, shape: Sequence[int]) -> Tensor:
        """(n, *shape) float32, standard normal."""
        out = np.empty((len(self._streams), *shape), dtype=np.float32)
        for row, stream in zip(out, self._streams, strict=True):
            stream.standard_normal(dtype=np.float32, out=row)
        return torch.from_numpy(out)


def vary(
    batch: Tensor,
    random: ItemRandom,
    *,
    shift: float = 0.04,
    flips: Sequence[int] = (),
    gain: float = 0.1,
    noise: float = 0.02,
) -> Tensor:
    """A randomly shifted, flipped, scaled and noised copy of a batch (n, C, *axes).

    Args:
        batch: float tensor; not changed.
        random: of the n items; the only source of randomness.
        shift: largest shift along each axis, as a fraction of its length; the border value fills the gap.
        flips: axes (0 = first after the channels) mirrored with probability 1/2, where anatomy allows it.
        gain: amplitudes are multiplied by a factor uniform in [1 - gain, 1 + gain], one per item.
        noise: standard deviation of added Gaussian noise, in units of the batch.
    """
    n = batch.shape[0]
    out = batch
    for axis, length in enumerate(batch.shape[2:]):
        limit = int(shift * length)
        offset = random.integers(-limit, limit + 1)[:, None]
        index = (torch.arange(length) + offset).clamp(0, length - 1)
        if axis in flips:
            index = torch.where(random.uniform()[:, None] < 0.5, length - 1 - index, index)
        shape = [n, *([1] * (batch.ndim - 1))]
        shape[axis + 2] = length
        out = out.gather(axis + 2, index.view(shape).to(batch.device).expand_as(out))
    if gain:
        factor = 1 + gain * (2 * random.uniform() - 1)
        out = out * factor.view(n, *([1] * (batch.ndim - 1))).to(batch)
    if noise:
        out = out + noise * random.normal(batch.shape[1:]).to(batch)
    return out
