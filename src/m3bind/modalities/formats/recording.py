"""The stored signals of a clinical file, with name, unit and rate; `signals_twelve` interprets the names.

* `Signal`, `Recording`: one channel, and all channels of one file.
* `decoding`, `check_size`: shared by the readers of all formats.

Shapes: T samples.
"""

import warnings as python_warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m3bind.errors import ReadError, in_words
from m3bind.modalities.formats import limits

AGAIN = "fetch or export it again"
MAX_HEADER = 1 << 20  # bytes of a text header
Values = NDArray[np.float64]


@dataclass
class Signal:
    """One channel: `values` (T,) in `unit`, NaN in gaps marked by the file.

    `unit` is "" if a table states none; in formats that require a calibration, a missing one is a `fault`.
    """

    name: str
    values: Values
    unit: str
    rate: float  # Hz
    start: float = 0.0  # seconds from the beginning of the recording
    fault: str = ""  # why `values` are not in `unit`; they are never taken as a voltage


@dataclass
class Recording:
    """The signals of one file, with processing steps and warnings; without identifiers."""

    signals: list[Signal]
    steps: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)


@contextmanager
def decoding(path: Path, kind: str) -> Iterator[None]:
    """Convert exceptions of a decoder into a ReadError without their messages, which may quote the file."""
    try:
        with python_warnings.catch_warnings():
            python_warnings.simplefilter("ignore")
            yield
    except (ReadError, MemoryError, RecursionError):
        raise
    except Exception as error:  # third-party decoders raise many types
        raise ReadError(path, f"not a readable {kind} ({in_words(error)})", AGAIN) from None


def check_size(path: Path, width: int) -> None:
    """Raise ReadError if a file could contain too many samples of `width` bytes each."""
    limits.check_bytes(path)
    limits.check_count(path, max(1, path.stat().st_size // width), "samples")
