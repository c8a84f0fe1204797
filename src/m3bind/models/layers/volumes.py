"""The first preprocessing steps of the published CT models (ct_clip, ct_net).

* `volume_of`: a sample's HU as a tensor, and its voxel sides.
* `checked_spacing`: the setting for volumes that state no voxel sides.
* `CT_RATE_LABELS`: the 18 labels of CT-RATE, in the order of the networks' outputs.

D, H, W depth, height and width in voxels.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from m3bind.errors import ConfigError
from m3bind.modalities.base import Sample

_LABELS = (
    "Medical material, Arterial wall calcification, Cardiomegaly, Pericardial effusion, Coronary artery wall "
    "calcification, Hiatal hernia, Lymphadenopathy, Emphysema, Atelectasis, Lung nodule, Lung opacity, Pulmonary "
    "fibrotic sequela, Pleural effusion, Mosaic attenuation pattern, Peribronchial thickening, Consolidation, "
    "Bronchiectasis, Interlobular septal thickening"
)
CT_RATE_LABELS = tuple(_LABELS.split(", "))
AIR = -1000.0  # HU, in place of NaN
_HIGHEST = 32767.0


def checked_spacing(spacing: Sequence[float] | None, model: str) -> list[float] | None:
    """The setting `spacing` as three voxel sides in mm, or None.

    Raises:
        ConfigError: `spacing` is not three positive numbers.
    """
    if spacing is None:
        return None
    if len(spacing) != 3 or not all(math.isfinite(side) and side > 0 for side in spacing):
        raise ConfigError(f"spacing={spacing!r} of {model}: give three positive numbers, mm along (D, H, W).")
    return list(map(float, spacing))


def volume_of(sample: Sample, fallback: Sequence[float] | None, model: str) -> tuple[Tensor, tuple[float, ...]]:
    """A new float32 tensor (D, H, W) of a sample's HU, and its voxel sides in mm.

    Raises:
        ConfigError: not a volume, or neither the sample nor `fallback` states the voxel sides.
    """
    array = sample.array
    if sample.rate is not None or array.ndim != 3 or array.shape[-1] == 3 or 0 in array.shape:
        raise ConfigError(
            f"{model} takes CT volumes (D, H, W) in HU, but a sample of modality {sample.modality!r} has shape "
            f"{' x '.join(map(str, array.shape))}; check the row's modality in the manifest."
        )
    spacing = sample.spacing or fallback
    if spacing is None or len(spacing) != 3:
        raise ConfigError(
            f"{model} needs the voxel size of a volume and this file states none; give the volume with its spacing, "
            "or set spacing=[mm along D, H, W] if all such files share one."
        )
    volume = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
    return volume.nan_to_num_(nan=AIR, posinf=_HIGHEST, neginf=AIR), tuple(spacing)
