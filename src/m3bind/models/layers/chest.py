"""What published chest X-ray models share: report cleaning, the way of a picture to 224 x 224, upsampling to 299 x 299.

n items. MGCA and GLoRIA use all of it.
"""

import re

import numpy as np
import torch.nn.functional as F
from torch import Tensor, from_numpy

from m3bind.modalities.base import Sample
from m3bind.models.layers.transforms import grey_picture, resize_pad, standardize

RESIZED, CROPPED, UPSAMPLED = 256, 224, 299


def clean_report(text: str) -> str:
    """A report as MGCA and GLoRIA hand it to their tokenizer.

    Sentences end at a full stop or an item's number ("2."); of each, the words are kept in lower case and ASCII;
    sentences of a single word are left out. A text of which nothing would be left (a query such as "Pneumonia") keeps
    its single words, and one without any ASCII word stays as it is.
    """
    sentences = [re.findall(r"\w+", part.lower()) for part in re.split(r"[0-9]*\.", text)]
    longer = _ascii([word for words in sentences if len(words) > 1 for word in words])
    return longer or _ascii([word for words in sentences for word in words]) or text


def _ascii(words: list[str]) -> str:
    plain = (word.encode("ascii", "ignore").decode("ascii") for word in words)
    return " ".join(word for word in plain if word)


def radiograph(sample: Sample) -> Tensor:
    """(H, W) or (H, W, 3) -> (3, 224, 224) in -1..1.

    An 8-bit grey picture, longest side 256 by area interpolation, zeros around it, centre crop.
    """
    square = resize_pad(np.array(grey_picture(sample)), RESIZED)
    edge = (RESIZED - CROPPED) // 2
    grey = from_numpy(square[edge:-edge, edge:-edge].astype(np.float32) / np.float32(255))
    return standardize(grey[None], (0.5,), (0.5,)).repeat(3, 1, 1)


def upsample(batch: Tensor) -> Tensor:
    """(n, 3, H, W) -> (n, 3, 299, 299), what the ResNets of both models see: bilinear, corners aligned."""
    return F.interpolate(batch, (UPSAMPLED, UPSAMPLED), mode="bilinear", align_corners=True)
