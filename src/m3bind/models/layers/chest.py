"""Preprocessing of MGCA and GLoRIA (chest X-ray): report cleaning, images to 224 x 224, upsampling to 299 x 299.

n items.
"""

import re

import numpy as np
import torch.nn.functional as F
from torch import Tensor, from_numpy

from m3bind.modalities.base import Sample
from m3bind.models.layers.transforms import grey_image, resize_pad, standardize

RESIZED, CROPPED, UPSAMPLED = 256, 224, 299


def clean_report(text: str) -> str:
    """A report as MGCA and GLoRIA pass it to their tokenizer.

    Sentences end at a full stop or an item's number ("2."); their words become lower case and ASCII;
    sentences of a single word are dropped. In a text without longer sentences (a query such as "Pneumonia") the single
    words are retained, and a text without any ASCII word is returned unchanged.
    """
    sentences = [re.findall(r"\w+", part.lower()) for part in re.split(r"[0-9]*\.", text)]
    longer = _ascii([word for words in sentences if len(words) > 1 for word in words])
    return longer or _ascii([word for words in sentences for word in words]) or text


def _ascii(words: list[str]) -> str:
    plain = (word.encode("ascii", "ignore").decode("ascii") for word in words)
    return " ".join(word for word in plain if word)


def radiograph(sample: Sample) -> Tensor:
    """(H, W) or (H, W, 3) -> (3, 224, 224) in -1..1.

    An 8-bit grey image, longest side 256 by area interpolation, zeros around it, centre crop.
    """
    square = resize_pad(np.array(grey_image(sample)), RESIZED)
    edge = (RESIZED - CROPPED) // 2
    grey = from_numpy(square[edge:-edge, edge:-edge].astype(np.float32) / np.float32(255))
    return standardize(grey[None], (0.5,), (0.5,)).repeat(3, 1, 1)


def upsample(batch: Tensor) -> Tensor:
    """(n, 3, H, W) -> (n, 3, 299, 299), the input of both models' ResNets: bilinear, corners aligned."""
    return F.interpolate(batch, (UPSAMPLED, UPSAMPLED), mode="bilinear", align_corners=True)
