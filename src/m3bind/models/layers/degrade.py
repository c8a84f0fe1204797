"""Random loss of quality of input batches, as in files of other devices, settings and exports.

* `degraded`: each item of a batch with one degradation, drawn at random.

| axes | degradations |
|---|---|
| 1 (signals) | sampling rate down to a quarter, noise, gain from half to double, up to half of the channels zero |
| 2 (images) | resolution down to a quarter, blur, noise, JPEG, contrast and brightness (colours too), magnification |
| 3 (volumes) | resolution of the planes down to a quarter, thickness of slices up to fourfold, blur, noise |

n items, C channels, then 1 to 3 axes of space or time.
"""

import io
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from m3bind.models.layers.augment import ItemRandom

Degradation = Callable[[Tensor, float, Tensor], Tensor]  # item (C, *axes), strength 0..1, (4,) uniform numbers


def degraded(batch: Tensor, random: ItemRandom, probability: float) -> Tensor:
    """A copy of a batch (n, C, *axes) in which each item has one degradation with `probability`.

    Args:
        batch: float tensor; not changed.
        random: of the n items; the only source of randomness, except for the pattern of noise.
        probability: of an item to be changed.
    """
    kinds = KINDS[batch.ndim - 2]
    chosen, chance, strength = random.integers(0, len(kinds)), random.uniform(), random.uniform()
    numbers = torch.stack([random.uniform() for _ in range(4)], dim=1)
    out = batch.clone()
    for at in torch.nonzero(chance < probability).flatten().tolist():
        item = batch[at].cpu()
        out[at] = kinds[int(chosen[at])](item, float(strength[at]), numbers[at]).to(batch)
    return out


def _resized(item: Tensor, size: list[int]) -> Tensor:
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)]
    return F.interpolate(item[None], size, mode=mode, antialias=len(size) == 2)[0]


def _coarse(item: Tensor, axes: range, strength: float) -> Tensor:
    """Down to a quarter of the resolution along `axes`, and back."""
    size = list(item.shape[1:])
    small = [max(1, round(length / 4**strength)) if axis in axes else length for axis, length in enumerate(size)]
    return _resized(_resized(item, small), size)


def _resolution(item: Tensor, strength: float, numbers: Tensor) -> Tensor:
    return _coarse(item, range(max(0, item.ndim - 3), item.ndim - 1), strength)


def _thickness(item: Tensor, strength: float, numbers: Tensor) -> Tensor:
    return _coarse(item, range(1), strength)


def _blur(item: Tensor, strength: float, numbers: Tensor) -> Tensor:
    """A Gaussian of up to 1.5 % of the width."""
    sigma = 0.015 * item.shape[-1] * strength
    return torch.from_numpy(gaussian_filter(item.numpy(), (0, *[sigma] * (item.ndim - 1))))


def _noise(item: Tensor, strength: float, numbers: Tensor) -> Tensor:
    """Of up to half the standard deviation of the item."""
    generator = torch.Generator().manual_seed(int(numbers[0] * (1 << 24)))
    return item + 0.5 * strength * item.std(correction=0) * torch.randn(item.shape, generator=generator)


def _jpeg(item: Tensor, strength: float, numbers: Tensor) -> Tensor:
    """Of quality 80 down to 20; images of other than 1 or 3 channels are unchanged."""
    if len(item) not in (1, 3):
        return item
    low, span = item.min(), (item.max() - item.min()).clamp(min=1e-6)
    pixels = ((item - low) / span * 255).round().byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if len(item) == 1 else pixels).save(file, "jpeg", quality=round(80 - 60 * strength))
    opened = np.asarray(Image.open(file), np.float32).reshape(pixels.shape)
    return torch.from_numpy(opened).permute(2, 0, 1) / 255 * span + low


def _colour(item: Tensor, strength: float, numbers: Tensor) -> Tensor:
    """Contrast from half to 1.5, brightness by up to half a standard deviation, each colour by up to 15 %."""
    signed = (2 * numbers - 1) * strength
    contrast = 1 + 0.5 * signed[0]
    if len(item) == 3 and not torch.equal(item[0], item[1]):
        contrast = contrast * (1 + 0.15 * signed[1:4, None, None])
    mean = item.mean()
    changed = (item - mean) * contrast + mean + 0.5 * signed[1] * item.std(correction=0)
    return changed.clamp(item.min(), item.max())


def _magnification(item: Tensor, strength: float, numbers: Tensor) -> Tensor:
    """From half to double, around the centre; mirrored beyond the border."""
    factor = math.pow(2, strength if numbers[0] < 0.5 else -strength)
    grid = F.affine_grid(torch.eye(2, 3)[None] / factor, [1, *item.shape], align_corners=False)
    return F.grid_sample(item[None], grid, padding_mode="reflection", align_corners=False)[0]


def _gain(item: Tensor, strength: float, numbers: Tensor) -> Tensor:
    return item * math.pow(2, strength if numbers[0] < 0.5 else -strength)


def _channels(item: Tensor, strength: float, numbers: Tensor) -> Tensor:
    """Up to half of the channels are zero."""
    generator = torch.Generator().manual_seed(int(numbers[0] * (1 << 24)))
    lost = torch.randperm(len(item), generator=generator)[: math.ceil(strength * len(item) / 2)]
    out = item.clone()
    out[lost] = 0
    return out


KINDS: dict[int, tuple[Degradation, ...]] = {
    1: (_resolution, _noise, _gain, _channels),
    2: (_resolution, _blur, _noise, _jpeg, _colour, _magnification),
    3: (_resolution, _thickness, _blur, _noise),
}
