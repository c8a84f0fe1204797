"""Light random variation of input batches, the same code for 1-D, 2-D and 3-D.

n items, C channels, then 1 to 3 axes of space or time.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def vary(
    batch: Tensor,
    generator: torch.Generator,
    *,
    shift: float = 0.04,
    flips: Sequence[int] = (),
    gain: float = 0.1,
    noise: float = 0.02,
) -> Tensor:
    """A randomly shifted, flipped, scaled and noised copy of a batch (n, C, *axes).

    Args:
        batch: float tensor; not changed.
        generator: CPU generator; the only source of randomness.
        shift: largest shift along each axis, as a fraction of its length; the border value fills the gap.
        flips: axes (0 = first after the channels) mirrored with probability 1/2, where anatomy allows it.
        gain: amplitudes are multiplied by a factor uniform in [1 - gain, 1 + gain], one per item.
        noise: standard deviation of added Gaussian noise, in units of the batch.
    """
    n = batch.shape[0]
    out = batch
    for axis, length in enumerate(batch.shape[2:]):
        limit = int(shift * length)
        offset = torch.randint(-limit, limit + 1, (n, 1), generator=generator)
        index = (torch.arange(length) + offset).clamp(0, length - 1)
        if axis in flips:
            mirrored = torch.rand(n, 1, generator=generator) < 0.5
            index = torch.where(mirrored, length - 1 - index, index)
        shape = [n, *([1] * (batch.ndim - 1))]
        shape[axis + 2] = length
        out = out.gather(axis + 2, index.view(shape).to(batch.device).expand_as(out))
    if gain:
        factor = 1 + gain * (2 * torch.rand(n, *([1] * (batch.ndim - 1)), generator=generator) - 1)
        out = out * factor.to(batch)
    if noise:
        out = out + noise * torch.randn(batch.shape, generator=generator).to(batch)
    return out
