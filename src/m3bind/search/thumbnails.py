"""Thumbnails of items, read from their files when they are displayed.

* `thumbnail`: one, cached. * `write_thumbnails`: those of hits as PNG files.
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

CACHED = 512  # thumbnails


class Pictured(Protocol):
    """An item with a file."""

    @property
    def modality(self) -> str:
        """Its modality."""

    @property
    def path(self) -> str:
        """Its file."""


def thumbnail(modality: str, path: str, size: int = 160, roots: Roots | None = None) -> Image.Image:
    """An RGB image, at most `size` pixels wide and high, of a file that may be shown.

    Raises:
        ReadError: the file is missing or damaged.
        ConfigError: no path, or one outside the `roots`.
    """
    if not path:
        raise ConfigError("no image: this index stores no paths; build it from an archive that has them")
    if roots is not None and not roots.allow_all(path):
        raise ConfigError("its file lies outside the folders that may be shown; name one with --files")
    try:
        changed = os.stat(path).st_mtime_ns
    except (OSError, ValueError):
        changed = 0  # a record without its suffix, or missing: reading it raises
    return _drawn(modality, path, size, changed).copy()


@lru_cache(maxsize=CACHED)
def _drawn(modality: str, path: str, size: int, changed: int) -> Image.Image:
    kind = modalities.get(modality)
    return kind.thumbnail(modalities.decode(modality, path), size).convert("RGB")


def write_thumbnails(
    hits: Sequence[Pictured], folder: Path, size: int = 160, roots: Roots | None = None
) -> dict[str, str]:
    """Write 001_xray.png, 002_ct.png, ... in the order of the hits; returns name -> reason of those without an image.

    `roots`: folders whose files may be shown; default: any.

    Raises:
        DiskError: the file system refused.
    """
    bad: dict[str, str] = {}
    for rank, hit in enumerate(hits, 1):
        name = f"{rank:03d}_{hit.modality}.png"
        try:
            image = thumbnail(hit.modality, hit.path, size, roots)
        except (ReadError, ConfigError) as error:
            bad[name] = error.reason if isinstance(error, ReadError) else str(error)
            continue
        with atomic_path(folder / name) as temporary:
            image.save(temporary, "png")
    return bad
