"""The values that 8-bit pictures take after a model's preprocessing.

* `picture_levels`: what each of the 256 grey levels becomes, by channel.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from m3bind.modalities.base import Sample

SIDE = 16  # pixels of a probe


def picture_levels(preprocess: Callable[[Sample], Tensor]) -> Tensor | None:
    """(C, 256) float32: the value of every grey level in each channel of an input (C, H, W), by uniform pictures.

    None if `preprocess` takes no pictures or returns another shape.
    """
    values = []
    for level in range(256):
        picture = np.full((SIDE, SIDE, 3), np.float32(level) / np.float32(255))
        try:
            row = preprocess(Sample("", picture))
        except Exception:  # models of signals and volumes, and of plugins, refuse a picture in many ways
            return None
        if row.ndim != 3:
            return None
        values.append(row[:, row.shape[1] // 2, row.shape[2] // 2])
    return torch.stack(values, dim=1).float()
