"""Chest X-rays: PNG or JPEG pictures -> (H, W) float32 0..1, bright = dense."""

from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from m3bind.modalities import _images
from m3bind.modalities.base import Modality, Sample


class XRay(Modality):
    """Projection radiographs. Pictures carry no photometric note, so bright is taken to mean dense (MONOCHROME2)."""

    name: ClassVar[str] = "xray"
    title: ClassVar[str] = "Chest X-ray"
    color: ClassVar[str] = "#4477aa"
    suffixes: ClassVar[tuple[str, ...]] = _images.PICTURE_SUFFIXES

    def read(self, path: Path | str) -> Sample:
        """Decode a radiograph; array (H, W) in 0..1.

        Raises:
            ReadError: missing, damaged, over the pixel limit, or a colour picture.
        """
        array, steps, warnings = _images.read_grey(_images.check_file(path, self), "an X-ray")
        if float((_images.sparse(array) < 0.03).mean()) > 0.6:
            warnings.append("most of the picture is black: a CT slice or an uncropped scan?")
        return Sample(self.name, array, steps=steps, warnings=warnings)

    def thumbnail(self, sample: Sample, size: int = 160) -> Image.Image:
        """Grey picture, stretched between its 0.5 % and 99.5 % quantiles."""
        low, high = np.quantile(_images.sparse(sample.array, 256), [0.005, 0.995])
        return _images.to_thumbnail((sample.array - low) / max(high - low, 1e-3), size)
