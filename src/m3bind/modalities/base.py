"""What every modality offers: read a file into a `Sample`, say what looks wrong, draw a thumbnail.

Canonical arrays (float32):
    xray       (H, W)      0..1, bright = dense (MONOCHROME2)
    retina     (H, W, 3)   0..1 RGB
    pathology  (H, W, 3)   0..1 RGB
    ct         (D, H, W)   Hounsfield units, axes (superior, left-right rows as displayed); spacing (D, H, W) in mm
    ecg        (12, T)     millivolt, leads I II III aVR aVL aVF V1-V6; `rate` in Hz
A model's own `preprocess` turns a Sample into its input tensor; nothing model-specific happens here.

What is larger than one input, a whole slide or a long recording, can be had in parts: `Modality.decode_parts`.
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
    """One decoded file. `steps` says what was done to it, `warnings` what looks wrong; neither holds identifiers.

    `tags` are technical facts of the header from the allow-list in `m3bind.privacy` ("KVP", "Rows"), never free text.
    """

    modality: str
    array: NDArray[np.float32]
    spacing: tuple[float, ...] | None = None  # mm per axis of `array` (ct, pathology if known)
    rate: float | None = None  # Hz (ecg)
    steps: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    places: list[list[float]] | None = None  # of parts along a new first axis of `array`: where each begins
    unit: str = ""  # of volumes: "HU" where nothing speaks against Hounsfield units

    def parts(self) -> "list[Sample]":
        """Each part as a sample of its own; the sample itself where it is one."""
        if self.places is None:
            return [self]
        return [replace(self, array=part, places=None) for part in self.array]


@dataclass(frozen=True)
class Cut:
    """How `Modality.decode_parts` cuts what is larger than one input."""

    most: int = 64  # parts of one file
    seconds: float = 10.0  # of a window of a recording


class Modality(ABC):
    """A kind of medical data. One subclass per file in this package; `name` registers it."""

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""  # for people: "Chest X-ray"
    color: ClassVar[str] = "#888888"  # in plots
    suffixes: ClassVar[tuple[str, ...]] = ()  # lower-case file endings it reads, e.g. (".png", ".nii.gz")
    folders: ClassVar[bool] = False  # whether it reads a folder (a series of slices) as one thing
    version: ClassVar[int] = 1  # raised when reading the same file gives another array: cached inputs are made anew
    libraries: ClassVar[tuple[str, ...]] = ()  # what reading imports; not counted in a file's memory

    @abstractmethod
    def read(self, path: Path | str) -> Sample:
        """Decode one file, in this process, into the canonical array; doubts about it become `Sample.warnings`.

        Raises:
            ReadError: the file is missing, damaged, or plainly of another kind.
        """

    def decode(self, path: Path | str) -> Sample:
        """`read` without looking for doubts that need the pixels: the same array, faster; for training and encoding.

        The same as `read` unless a modality has something to leave out.

        Raises:
            ReadError: as `read`.
        """
        return self.read(path)

    def decode_parts(self, path: Path | str, cut: Cut) -> Sample:
        """`decode`, but what is larger than one input comes as several parts along a new first axis, with `places`.

        Raises:
            ReadError: as `read`.
        """
        return self.decode(path)

    @abstractmethod
    def thumbnail(self, sample: Sample, size: int = 160) -> Image.Image:
        """An RGB picture (at most `size` pixels wide and high) a person recognises the sample by."""


_registry: "Registry[Modality]" = Registry("modality", "m3bind.modalities", "m3bind.modalities", Modality)  # type: ignore[type-abstract]


def get(name: str) -> Modality:
    """The modality registered as `name`.

    Raises:
        UnknownNameError: no such modality; the message offers the nearest names.
    """
    return _registry.get(name)()


def names() -> list[str]:
    """Names of all modalities."""
    return _registry.names()
