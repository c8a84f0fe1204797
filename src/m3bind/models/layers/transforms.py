"""Steps of the published models' image preprocessing; each model's own file combines them.

* `grey_image`: a decoded sample as an 8-bit grey image (`preprocess.rgb_image`: in colour).
* `resize_pad`: longest side to a size by area interpolation, zeros around (MGCA, GLoRIA).
* `clip_transform`: shortest side to a size, centre crop, mean and standard deviation (CLIP and its descendants).
* `normalized`: an 8-bit image as a tensor in 0..1, then mean and standard deviation. `standardize`: (x - mean) / std.

C channels, S side in pixels, H W height and width.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from m3bind.modalities.base import Sample
from m3bind.models.layers.preprocess import LUNG_WINDOW, channels, rgb_image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def grey_image(sample: Sample, hu: Sequence[float] = LUNG_WINDOW) -> Image.Image:
    """An 8-bit grey image; colour becomes luminance (ITU-R 601), of a volume the slice in the middle is taken.

    Raises:
        ConfigError: the sample is not an image or volume.
    """
    array = sample.array
    if array.ndim == 3 and array.shape[-1] == 3 and sample.rate is None:
        return rgb_image(sample, hu).convert("L")
    middle = (channels(sample, hu)[1] * 255).round().to(torch.uint8)
    return Image.fromarray(middle.contiguous().numpy())


def resize_pad(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """8-bit (H, W) -> (S, S): longest side to `size` by area interpolation, zeros on both sides of the other."""
    import cv2

    height, width = pixels.shape
    scale = size / max(height, width)
    inner = (size, int(width * scale)) if height >= width else (int(height * scale), size)
    inner = (max(1, inner[0]), max(1, inner[1]))
    small = cv2.resize(pixels, inner[::-1], interpolation=cv2.INTER_AREA)
    out = np.zeros((size, size), np.uint8)
    top, left = (size - inner[0]) // 2, (size - inner[1]) // 2
    out[top : top + inner[0], left : left + inner[1]] = small
    return out


def standardize(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(C, ...) minus `mean`, divided by `std`, one value per channel or one for all."""
    shape = (-1,) + (1,) * (image.ndim - 1)
    return (image - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


def normalized(image: Image.Image, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """8-bit RGB (H, W) -> float32 (3, H, W): 0..1, minus `mean`, divided by `std`; by torchvision."""
    from torchvision.transforms import functional as transforms

    pixels: Tensor = transforms.normalize(transforms.to_tensor(image), list(mean), list(std))
    return pixels


def clip_transform(
    size: int, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD
) -> Callable[[Image.Image], Tensor]:
    """An image -> (3, S, S): shortest side to `size` (bicubic), centre crop, 0..1, mean and std; as open_clip does."""
    from open_clip.transform import image_transform

    return image_transform(size, is_train=False, mean=tuple(mean), std=tuple(std))  # type: ignore[no-any-return]
