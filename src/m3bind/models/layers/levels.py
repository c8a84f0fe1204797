"""The values that 8-bit images take after a model's preprocessing.

* `image_levels`: what each of the 256 grey levels becomes, by channel.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from m3bind.modalities.base import Sample

SIDE = 16  # pixels of a probe


def image_levels(preprocess: Callable[[Sample], Tensor]) -> Tensor | None:
    """(C, 256) float32: the value of every grey level in each channel of an input (C, H, W), by uniform images.

    None if `preprocess` takes no images or returns another shape.
    """
    values = []
    for level in range(256):
        image = np.full((SIDE, SIDE, 3), np.float32(level) / np.float32(255))
        try:
            row = preprocess(Sample("", image))
        except Exception:  # models of signals and volumes, and of plugins, refuse an image in many ways
            return None
        if row.ndim != 3:
            return None
        values.append(row[:, row.shape[1] // 2, row.shape[2] // 2])
    return torch.stack(values, dim=1).float()
