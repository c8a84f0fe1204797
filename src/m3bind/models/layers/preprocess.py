"""From a decoded sample to a tensor of fixed shape; used by the compact models and those for ECGs.

* `channels`, `rgb_image`, `image_tensor`: 2-D grey or colour, or slices of a volume -> (3, H, W), 8-bit RGB, (3, S, S).
* `volume_tensor`: a volume in HU -> (1, D, H, W), 0..1.
* `signal_tensor`: leads over time -> (leads, T) in units of 0.5 mV; `resampled`: the same in mV, at its own length.
* `centred`: crop and pad around the centre.

C channels, S side in pixels, D H W depth, height, width in voxels, T time samples.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from m3bind.errors import ConfigError
from m3bind.modalities.base import Sample

LUNG_WINDOW = (-1000.0, 600.0)  # HU
SIGNAL_UNIT = 0.5  # mV; a QRS complex then spans a few units
SIGNAL_LIMIT = 5.0  # mV; larger values are artefacts
BLOCK = 1 << 15  # pixel values converted at a time


def _shape_error(sample: Sample, expected: str) -> ConfigError:
    shape = " x ".join(map(str, sample.array.shape))
    return ConfigError(
        f"this model takes {expected}, but a sample of modality {sample.modality!r} has shape {shape}; "
        "choose a model made for this kind of data, or check the row's modality in the manifest."
    )


def window(volume: Tensor, low: float, high: float) -> Tensor:
    """Clip HU to [low, high] and map to 0..1."""
    return (volume.clamp(low, high) - low) / (high - low)


def channels(sample: Sample, hu: Sequence[float] = LUNG_WINDOW) -> Tensor:
    """A grey (H, W) or colour (H, W, 3) sample as (3, H, W) in 0..1, at its own size.

    Of a volume (D, H, W), three slices at 1/4, 1/2 and 3/4 of the depth become the channels, windowed by `hu`.

    Raises:
        ConfigError: the sample is not an image or volume (a signal, for instance).
    """
    array = torch.from_numpy(np.ascontiguousarray(np.nan_to_num(sample.array), dtype=np.float32))
    if sample.rate is not None or array.ndim not in (2, 3) or 0 in array.shape:
        raise _shape_error(sample, "images (H, W), (H, W, 3) or volumes (D, H, W)")
    if array.ndim == 2:
        image = array.expand(3, -1, -1)
    elif array.shape[-1] == 3:
        image = array.permute(2, 0, 1)
    else:
        depth = array.shape[0]
        image = window(array[[depth // 4, depth // 2, (3 * depth) // 4]], hu[0], hu[1])
    return image.clamp(0, 1)


def rgb_image(sample: Sample, hu: Sequence[float] = LUNG_WINDOW) -> Image.Image:
    """`channels` as an 8-bit RGB image, for the image processors of other libraries.

    Grey and colour are converted in memory order, in blocks that fit the cache, grey once for all three channels.

    Raises:
        ConfigError: as `channels`.
    """
    array = sample.array
    if sample.rate is not None or 0 in array.shape or not (array.ndim == 2 or array.shape[2:] == (3,)):
        array = channels(sample, hu).permute(1, 2, 0).numpy()
    values = np.ascontiguousarray(array, dtype=np.float32).reshape(-1)
    pixels = np.empty(array.shape, np.uint8)
    for at in range(0, values.size, BLOCK):
        block = values[at : at + BLOCK] * np.float32(255)
        np.rint(block, out=block)
        np.fmax(block, 0, out=block)  # NaN becomes 0
        pixels.reshape(-1)[at : at + BLOCK] = np.fmin(block, 255, out=block)
    image = Image.fromarray(pixels)
    return image if image.mode == "RGB" else image.convert("RGB")


def image_tensor(sample: Sample, size: int, hu: Sequence[float] = LUNG_WINDOW) -> Tensor:
    """`channels` resized to (3, S, S); the aspect ratio is unchanged, the rest is 0.

    Raises:
        ConfigError: as `channels`.
    """
    image = channels(sample, hu)
    height, width = image.shape[-2:]
    scale = size / max(height, width)
    inner = (max(1, round(height * scale)), max(1, round(width * scale)))
    if inner != (height, width):
        image = F.interpolate(image[None], inner, mode="bilinear", antialias=True, align_corners=False)[0]
    top, left = (size - inner[0]) // 2, (size - inner[1]) // 2
    padding = (left, size - inner[1] - left, top, size - inner[0] - top)
    return F.pad(image, padding).contiguous()


def volume_tensor(
    sample: Sample, shape: Sequence[int], hu: Sequence[float] = LUNG_WINDOW, spacing: Sequence[float] | None = None
) -> Tensor:
    """A volume (D, H, W) in HU as (1, *shape) in 0..1.

    With `spacing` (mm per voxel, D H W) and a sample that states its own, the volume is resampled to that spacing and
    centre-cropped or padded with air, so that structures have their true size. Otherwise height and width are resized
    to `shape` (trilinear), and so is the depth if the sample has more slices than `shape`, else it is padded.

    Raises:
        ConfigError: the sample is not a volume.
    """
    array = torch.from_numpy(np.ascontiguousarray(np.nan_to_num(sample.array), dtype=np.float32))
    if sample.rate is not None or array.ndim not in (2, 3) or array.shape[-1] == 3 or 0 in array.shape:
        raise _shape_error(sample, "volumes (D, H, W)")
    if array.ndim == 2:
        array = array[None]
    volume = window(array, hu[0], hu[1])
    size = list(shape)
    if spacing is not None and sample.spacing is not None and len(sample.spacing) == 3:
        inner = [max(1, round(n * s / t)) for n, s, t in zip(volume.shape, sample.spacing, spacing)]
    else:
        inner = [min(volume.shape[0], size[0]), *size[1:]]
    if inner != list(volume.shape):
        volume = F.interpolate(volume[None, None], inner, mode="trilinear", align_corners=False)[0, 0]
    return centred(volume, size)[None].contiguous()


def centred(tensor: Tensor, shape: Sequence[int], value: float = 0.0) -> Tensor:
    """`tensor` cropped around its centre and padded with `value` on both sides to `shape`, along every axis."""
    padding: list[int] = []
    for axis, target in enumerate(shape):
        length = tensor.shape[axis]
        if length > target:
            tensor = tensor.narrow(axis, (length - target) // 2, target)
        before = max(0, target - length) // 2
        padding = [before, max(0, target - length) - before, *padding]
    return F.pad(tensor, padding, value=value)


def resampled(sample: Sample, rate: float, leads: int = 12) -> NDArray[np.float32]:
    """Leads (leads, T') at `sample.rate` Hz as (leads, T) at `rate` (polyphase, anti-aliased); NaN and infinity are 0.

    Raises:
        ConfigError: no sampling rate, or another number of leads.
    """
    from scipy.signal import resample_poly  # slow to import

    array = np.nan_to_num(np.asarray(sample.array, dtype=np.float32), posinf=0.0, neginf=0.0)
    if sample.rate is None or array.ndim != 2 or array.shape[0] != leads or array.shape[1] == 0:
        raise _shape_error(sample, f"signals ({leads} leads, time) with a sampling rate")
    if sample.rate != rate:
        up, down = round(rate * 1000), round(sample.rate * 1000)
        common = math.gcd(up, down)
        array = resample_poly(array, up // common, down // common, axis=1, padtype="line").astype(np.float32)
    return array


def signal_tensor(sample: Sample, rate: float = 100.0, seconds: float = 10.0, leads: int = 12) -> Tensor:
    """Leads (leads, T') in mV at `sample.rate` Hz as (leads, rate * seconds).

    Resampled (polyphase, anti-aliased), each lead's median subtracted (robust to QRS complexes), clipped to +-5 mV and
    divided by 0.5 mV: a fixed unit, so that the voltage (a sign of hypertrophy) is retained. Cropped or zero-padded at
    the centre.

    Raises:
        ConfigError: no sampling rate, or another number of leads.
    """
    array = resampled(sample, rate, leads)
    array = array - np.median(array, axis=1, keepdims=True)
    signal = torch.from_numpy(np.ascontiguousarray(array)).clamp(-SIGNAL_LIMIT, SIGNAL_LIMIT) / SIGNAL_UNIT
    return centred(signal, [leads, round(rate * seconds)]).contiguous()
