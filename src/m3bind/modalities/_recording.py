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
from m3bind.modalities import _limits

AGAIN = "fetch or export it again"
SECONDS = {"s": 1.0, "sec": 1.0, "seconds": 1.0, "ms": 1e-3, "us": 1e-6}  # units of time
MAX_HEADER = 1 << 20  # bytes of a text header
_TO_MV = {"mv": 1.0, "millivolt": 1.0, "uv": 1e-3, "µv": 1e-3, "μv": 1e-3, "microvolt": 1e-3, "v": 1e3, "volt": 1e3,
          "nv": 1e-6, "nanovolt": 1e-6}  # fmt: skip
Values = NDArray[np.float64]


@dataclass
class Signal:
    """One channel: `values` (T,) in `unit` ("" where the file does not say), NaN where the file marks a gap."""

    name: str
    values: Values
    unit: str
    rate: float  # Hz


@dataclass
class Recording:
    """The signals of one file, with what was done and what looks wrong; nothing in it identifies a person."""

    signals: list[Signal]
    steps: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)


def to_millivolt(unit: str) -> float | None:
    """What a value in `unit` is multiplied by to give mV; None: no unit of voltage."""
    return _TO_MV.get(unit.strip().lower())


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
    _limits.check_bytes(path)
    _limits.check_count(path, max(1, path.stat().st_size // least), "samples")
