"""Thermal images: 8-bit grey PNG, hot is bright."""

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from m3bind.errors import ReadError
from m3bind.modalities.base import Modality, Sample


class Thermal(Modality):
    """Surface temperature as a grey picture."""

    name = "thermal"
    title = "Thermal image"
    color = "#aa5500"
    suffixes = (".png",)

    def read(self, path: Path | str) -> Sample:
        """(H, W) float32, 0..1."""
        try:
            with Image.open(path) as image:
                array = np.asarray(image.convert("L"), dtype=np.float32) / 255
        except (OSError, UnidentifiedImageError) as error:
            raise ReadError(path, "not a readable PNG", "export it again") from error
        return Sample("thermal", array, steps=["8-bit grey / 255"])

    def thumbnail(self, sample: Sample, size: int = 160) -> Image.Image:
        """The picture itself."""
        image = Image.fromarray((sample.array * 255).astype(np.uint8)).convert("RGB")
        image.thumbnail((size, size))
        return image
