"""Small pictures of items, read from their files when they are looked at.

* `thumbnail`: one, remembered. * `write_thumbnails`: those of some hits as PNG files.
"""

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from PIL import Image

from m3bind import modalities
from m3bind.core.files import atomic_path
from m3bind.errors import ConfigError, ReadError
from m3bind.index.roots import Roots

KEPT = 512  # pictures remembered


class Pictured(Protocol):
    """What can be shown."""

    @property
    def modality(self) -> str:
        """Its modality."""

    @property
    def path(self) -> str:
        """Its file."""


def thumbnail(modality: str, path: str, size: int = 160, roots: Roots | None = None) -> Image.Image:
    """An RGB picture, at most `size` pixels wide and high, of a file that may be shown.

    Raises:
        ReadError: the file is missing or damaged.
        ConfigError: there is no path, or it leads out of the `roots`.
    """
    if not path:
        raise ConfigError("no picture: this index keeps no paths; build it from an archive that has them")
    if roots is not None and not roots.allow_all(path):
        raise ConfigError("its file lies outside the folders that may be shown; name one with --files")
    try:
        changed = os.stat(path).st_mtime_ns
    except (OSError, ValueError):
        changed = 0  # a record named without its ending, or nothing: reading it tells
    return _drawn(modality, path, size, changed).copy()


@lru_cache(maxsize=KEPT)
def _drawn(modality: str, path: str, size: int, changed: int) -> Image.Image:
    kind = modalities.get(modality)
    return kind.thumbnail(modalities.decode(modality, path), size).convert("RGB")


def write_thumbnails(
    hits: Sequence[Pictured], folder: Path, size: int = 160, roots: Roots | None = None
) -> dict[str, str]:
    """Write 001_xray.png, 002_ct.png, ... in the order of the hits; returns name -> reason of those without a picture.

    `roots`: where files may be shown from; default: anywhere.

    Raises:
        DiskError: the file system refused.
    """
    bad: dict[str, str] = {}
    for rank, hit in enumerate(hits, 1):
        name = f"{rank:03d}_{hit.modality}.png"
        try:
            picture = thumbnail(hit.modality, hit.path, size, roots)
        except (ReadError, ConfigError) as error:
            bad[name] = error.reason if isinstance(error, ReadError) else str(error)
            continue
        with atomic_path(folder / name) as temporary:
            picture.save(temporary, "png")
    return bad
