"""The signals of a clinical file as they are stored: named, with unit and rate; what a name means is for `ecg` to say.

* `Signal`, `Recording`: one channel, and all of one file.
* `decoding`, `check_size`: what every format's reader needs.

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
    """One channel: `values` (T,) in `unit`, NaN where the file marks a gap.

    `unit` is "" where a table does not say; a format that demands a calibration and has none of it gives a `fault`.
    """

    name: str
    values: Values
    unit: str
    rate: float  # Hz
    start: float = 0.0  # seconds from the beginning of the recording
    fault: str = ""  # why `values` are not in `unit`: they are never taken for a voltage


@dataclass
class Recording:
    """The signals of one file, with what was done and what looks wrong; nothing in it identifies a person."""

    signals: list[Signal]
    steps: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)


@contextmanager
def decoding(path: Path, kind: str) -> Iterator[None]:
    """Turn what a decoder raises into a ReadError that does not quote it: its words may quote the file."""
    try:
        with python_warnings.catch_warnings():
            python_warnings.simplefilter("ignore")
            yield
    except (ReadError, MemoryError, RecursionError):
        raise
    except Exception as error:  # decoders of foreign formats raise many kinds
        raise ReadError(path, f"not a readable {kind} ({in_words(error)})", AGAIN) from None


def check_size(path: Path, least: int) -> None:
    """Refuse a file whose bytes could hold too many samples of `least` bytes each."""
    limits.check_bytes(path)
    limits.check_count(path, max(1, path.stat().st_size // least), "samples")
