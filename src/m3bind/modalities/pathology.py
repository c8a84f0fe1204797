"""Histology tiles (stained tissue under the microscope): PNG or JPEG -> (H, W, 3) float32 0..1 RGB."""

from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from m3bind.modalities import _images
from m3bind.modalities.base import Modality, Sample


class Pathology(Modality):
    """Tiles of stained tissue, as a rule haematoxylin and eosin."""

    name: ClassVar[str] = "pathology"
    title: ClassVar[str] = "Histology tile"
    color: ClassVar[str] = "#aa3377"
    suffixes: ClassVar[tuple[str, ...]] = _images.PICTURE_SUFFIXES

    def read(self, path: Path | str) -> Sample:
        """Decode a tile; array (H, W, 3) in 0..1.

        Raises:
            ReadError: missing, damaged, over the pixel limit, or without colour.
        """
        array, steps, warnings = _images.read_colour(_images.check_file(path, self), "a stained tissue tile")
        some = _images.sparse(array)
        smallest, largest = _images.channel_range(some)
        h, w = (max(1, side // 16) for side in largest.shape)
        corners = [largest[:h, :w], largest[:h, -w:], largest[-h:, :w], largest[-h:, -w:]]
        if max(float(corner.mean()) for corner in corners) < 0.15:
            warnings.append("four dark corners: a fundus photograph rather than tissue?")
        elif float((smallest > 0.9).mean()) > 0.95:
            warnings.append("almost only empty glass")
        return Sample(self.name, np.ascontiguousarray(array), steps=steps, warnings=warnings)

    def thumbnail(self, sample: Sample, size: int = 160) -> Image.Image:
        """The tile itself, small."""
        return _images.to_thumbnail(sample.array, size)
