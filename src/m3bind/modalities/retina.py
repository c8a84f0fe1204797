"""Colour fundus photographs: PNG or JPEG -> (H, W, 3) float32 0..1 RGB."""

from pathlib import Path
from typing import ClassVar

from PIL import Image

from m3bind.modalities import _images
from m3bind.modalities.base import Modality, Sample


class Retina(Modality):
    """Fundus photographs; red-free and angiography pictures are grey and refused."""

    name: ClassVar[str] = "retina"
    title: ClassVar[str] = "Fundus photograph"
    color: ClassVar[str] = "#cc6633"
    suffixes: ClassVar[tuple[str, ...]] = _images.PICTURE_SUFFIXES

    def read(self, path: Path | str) -> Sample:
        """Decode a fundus photograph; array (H, W, 3) in 0..1.

        Raises:
            ReadError: missing, damaged, over the pixel limit, or without colour.
        """
        array, steps, warnings = _images.read_colour(_images.check_file(path, self), "a fundus photograph")
        some = _images.sparse(array)
        red, green, blue = (float(some[..., channel].mean()) for channel in range(3))
        if blue > green and red > 0.45:
            warnings.append("pink and bright: stained tissue rather than a fundus?")
        elif blue > red:
            warnings.append("more blue than red, unusual for a fundus photograph")
        return Sample(self.name, array, steps=steps, warnings=warnings)

    def thumbnail(self, sample: Sample, size: int = 160) -> Image.Image:
        """The photograph itself, small."""
        return _images.to_thumbnail(sample.array, size)
