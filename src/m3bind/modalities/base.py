"""The interface of a modality: read a file into a `Sample` with warnings about its content, and draw a thumbnail.

Canonical arrays (float32):
    xray       (H, W)      0..1, bright = dense (MONOCHROME2)
    retina     (H, W, 3)   0..1 RGB
    pathology  (H, W, 3)   0..1 RGB
    ct         (D, H, W)   Hounsfield units, axes (superior, left-right rows as displayed); spacing (D, H, W) in mm
    ecg        (12, T)     millivolt, leads I II III aVR aVL aVF V1-V6; `rate` in Hz
A model's `preprocess` turns a Sample into its input tensor; nothing here is specific to a model.
Files larger than one input, whole slides and long recordings, can be decoded in parts: `Modality.decode_parts`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m3bind.core.registry import Registry


@dataclass
class Sample:
    """One decoded file. `steps` lists the processing, `warnings` possible problems; neither contains identifiers.

    `tags` are technical header entries from the allow-list in `m3bind.privacy` ("KVP", "Rows"), never free text.
    """

    modality: str
    array: NDArray[np.float32]
    spacing: tuple[float, ...] | None = None  # mm per axis of `array` (ct, pathology if known)
    rate: float | None = None  # Hz (ecg)
    steps: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    places: list[list[float]] | None = None  # origin of each part along a new first axis of `array`
    unit: str = ""  # of volumes: "HU" if the values are consistent with Hounsfield units

    def parts(self) -> "list[Sample]":
        """Each part as a separate sample; the sample itself if it has no parts."""
        if self.places is None:
            return [self]
        return [replace(self, array=part, places=None) for part in self.array]


@dataclass(frozen=True)
class Cut:
    """How `Modality.decode_parts` divides a file larger than one input."""

    most: int = 64  # maximum parts of one file
    seconds: float = 10.0  # of a window of a recording


class Modality(ABC):
    """A kind of medical data. One subclass per file in this package; `name` registers it."""

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""  # display name: "Chest X-ray"
    color: ClassVar[str] = "#888888"  # in plots
    suffixes: ClassVar[tuple[str, ...]] = ()  # lower-case file endings it reads, e.g. (".png", ".nii.gz")
    folders: ClassVar[bool] = False  # whether it reads a folder (a series of slices) as one item
    version: ClassVar[int] = 1  # raised when the same file is read as another array, to invalidate cached inputs
    libraries: ClassVar[tuple[str, ...]] = ()  # imported by reading; not counted in a file's memory

    @abstractmethod
    def read(self, path: Path | str) -> Sample:
        """Decode one file, in this process, into the canonical array; doubts become `Sample.warnings`.

        Raises:
            ReadError: the file is missing, damaged, or clearly of another kind.
        """

    def decode(self, path: Path | str) -> Sample:
        """`read` without checks that need the pixels: the same array, faster; for training and encoding.

        Raises:
            ReadError: as `read`.
        """
        return self.read(path)

    def decode_parts(self, path: Path | str, cut: Cut) -> Sample:
        """`decode`, but a file larger than one input becomes several parts along a new first axis, with `places`.

        Raises:
            ReadError: as `read`.
        """
        return self.decode(path)

    @abstractmethod
    def thumbnail(self, sample: Sample, size: int = 160) -> Image.Image:
        """An RGB preview of at most `size` x `size` pixels."""


_registry: "Registry[Modality]" = Registry("modality", "m3bind.modalities", "m3bind.modalities", Modality)  # type: ignore[type-abstract]


def get(name: str) -> Modality:
    """The modality registered as `name`.

    Raises:
        UnknownNameError: no such modality; the message suggests the nearest names.
    """
    return _registry.get(name)()


def names() -> list[str]:
    """Names of all modalities."""
    return _registry.names()
