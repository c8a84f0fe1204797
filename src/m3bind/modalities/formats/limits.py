"""Limits on the resources of a file: bytes, pixels, ratio, depth, seconds and memory.

* `Limits`: the numbers; `LIMITS`: those in force, from the environment variable M3BIND_LIMITS
  ("seconds=120 memory=8e9"), which worker processes inherit. * `from_environment`: parses it.
* `check_bytes`, `check_count`, `check_ratio`: reject a file by the sizes its header declares, before decoding.
"""

import os
from dataclasses import dataclass, fields
from pathlib import Path

from m3bind.errors import ConfigError, ReadError

VARIABLE = "M3BIND_LIMITS"
SMALL = 1 << 24  # decoded bytes that are accepted for any number of stored bytes


@dataclass(frozen=True)
class Limits:
    """Budgets of one file. `ratio` bounds decoded bytes per stored byte; the maximum of zlib is 1,032."""

    bytes: int = 8_000_000_000  # stored
    pixels: int = 64_000_000  # of a 2-D image: 8,000 x 8,000
    voxels: int = 536_870_912  # of a volume: 512 x 512 x 2,048
    samples: int = 50_000_000  # of a signal, all leads: more than an hour of 12 leads at 1,000 Hz
    files: int = 8_192  # of a series or an archive
    ratio: float = 1_100.0
    packing: float = 200.0  # of an archive: bytes unpacked per stored byte, from 512 MB on
    depth: int = 32  # of nested DICOM sequences
    seconds: float = 60.0
    memory: int = 4_000_000_000  # bytes of a reader in addition to its libraries


def from_environment(text: str) -> Limits:
    """`Limits` changed by `text` ("seconds=120 memory=8e9").

    Raises:
        ConfigError: an unknown name or a value that is not a positive number.
    """
    known = {field.name: field.type for field in fields(Limits)}
    changed: dict[str, float] = {}
    for item in text.replace(",", " ").split():
        name, _, value = item.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = 0.0
        if name not in known or number <= 0:
            raise ConfigError(f"{VARIABLE}: {item!r} is not one of {', '.join(known)} with a positive number")
        changed[name] = number if known[name] is float else int(number)
    return Limits(**changed)  # type: ignore[arg-type]


LIMITS = from_environment(os.environ.get(VARIABLE, ""))
_HINT = f"if the file is sound, raise {{}} in the environment variable {VARIABLE}"


def check_bytes(path: Path, limits: Limits | None = None) -> None:
    """Raise ReadError if a file is larger on disk than `limits.bytes`."""
    limits = limits or LIMITS
    size = path.stat().st_size
    if size > limits.bytes:
        raise ReadError(path, f"{size:,} bytes, more than {limits.bytes:,}", _HINT.format("bytes"))


def check_count(path: Path, count: int, name: str, limits: Limits | None = None) -> None:
    """Raise ReadError if a declared `count` ("pixels", "voxels", "samples", "files") exceeds the limit or is < 1."""
    maximum = int(getattr(limits or LIMITS, name))
    if count < 1:
        raise ReadError(path, f"declares {count} {name}", "fetch or export it again")
    if count > maximum:
        raise ReadError(path, f"{count:,} {name}, more than {maximum:,}", _HINT.format(name))


def check_ratio(path: Path, decoded: int, stored: int, limits: Limits | None = None) -> None:
    """Raise ReadError if `decoded` bytes are more than `limits.ratio` times `stored`, beyond any compression."""
    if decoded > (limits or LIMITS).ratio * max(stored, 1):
        reason = f"declares {decoded:,} bytes of content in {stored:,} stored bytes"
        raise ReadError(path, reason, "damaged, or malicious")
