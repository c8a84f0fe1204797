"""The files that the paths of a manifest mean.

* `locate`: the file of each cell, or the reason why there is none. * `Located`: the answer for many cells.

The plain case, a path below the data folder to a file that exists, takes one `os.stat`; calls run in several threads,
since on a network file system each waits for the server.
"""

import os
import re
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from m3bind.data.cells import path_spellings
from m3bind.data.manifest_rows import Fault
from m3bind.data.records import Codes
from m3bind.modalities.base import Modality, get

THREADS, CHUNK = 8, 1024  # calls of a thread together
_ODD = r"\\|^/|//|/$|(^|/)\.\.?(/|$)|[^ -~]|^$"  # paths that are more than names with "/" between them
_File = tuple[int, int]  # device and inode
_Answer = tuple[_File, Path | None, Fault | None]  # the path if it is not base/cell


class _NoFile(Exception):
    """A cell that means no usable file."""

    def __init__(self, kind: str, reason: str) -> None:
        self.fault: Fault = (kind, reason)


@dataclass(frozen=True)
class Located:
    """The files of n cells: device and inode (n, 2), absolute paths other than base/cell, faults; by position."""

    files: NDArray[np.uint64]
    elsewhere: dict[int, Path]
    faults: dict[int, Fault]


def locate(cells: pa.Array, modalities: Codes, names: Sequence[str], base: Path) -> Located:
    """The files of path cells (n,) of modalities `names[code]`, below `base`. Each distinct path is looked up once."""
    distinct = cells.dictionary_encode()
    odd = pc.match_substring_regex(distinct.dictionary, _ODD).to_numpy(zero_copy_only=False)
    texts = distinct.dictionary.to_pylist()
    kinds = [get(name) for name in names]
    pairs, inverse = np.unique(distinct.indices.to_numpy() * len(kinds) + modalities, return_inverse=True)
    prefix = f"{base}".rstrip("/") + "/"

    def look(pair: int) -> _Answer:
        text, kind = texts[pair // len(kinds)], kinds[pair % len(kinds)]
        try:
            file = None if odd[pair // len(kinds)] else _file_at(prefix + text, kind)
            return (file, None, None) if file else (*_locate(text, kind, base), None)
        except _NoFile as error:
            return (0, 0), None, error.fault

    def look_at(part: NDArray[np.int64]) -> list[_Answer]:
        return [look(pair) for pair in part.tolist()]

    parts = [pairs[start : start + CHUNK] for start in range(0, len(pairs), CHUNK)]
    with ThreadPoolExecutor(THREADS) as pool:
        answers = list(chain.from_iterable(pool.map(look_at, parts)))
    files = np.array([file for file, _, _ in answers], np.uint64).reshape(-1, 2)[inverse]
    special = np.array([where is not None or fault is not None for _, where, fault in answers], bool)
    elsewhere: dict[int, Path] = {}
    faults: dict[int, Fault] = {}
    for row in np.flatnonzero(special[inverse]).tolist():
        _, where, fault = answers[inverse[row]]
        if fault:
            faults[row] = fault
        elif where:
            elsewhere[row] = where
    return Located(files, elsewhere, faults)


def _locate(text: str, kind: Modality, base: Path) -> tuple[_File, Path]:
    """The file of a cell, and its absolute path.

    The path may omit the ending if a file with one of the modality's endings exists, and may be a folder if the
    modality reads folders.

    Raises:
        _NoFile: with the reason.
    """
    if not text:
        raise _NoFile("without path", "no path")
    for spelling in path_spellings(base, text, kind.suffixes):
        where = Path(os.path.abspath(base / spelling))
        if not where.is_relative_to(base):
            raise _NoFile(
                "with a path outside",
                "the path leads out of the data folder; give a common folder (--root, data.root)",
            )
        file = _file_at(str(where), kind)
        if file is not None:
            return file, where
    where = Path(os.path.abspath(base / text))
    if os.path.isdir(where):
        raise _NoFile("with a folder", "the path is a folder, not a file")
    reason = "no such file" + ("" if os.path.isdir(where.parent) else "; its folder does not exist")
    if re.match(r"[A-Za-z]:[\\/]", text):
        reason = "no such file: a path of another computer; write it relative to the manifest"
    raise _NoFile("with a missing file", reason)


def _file_at(where: str, kind: Modality) -> _File | None:
    """The file or folder that a modality reads at a path; None if missing.

    Raises:
        _NoFile: it is empty, or not of a kind that the modality reads.
    """
    for place in (where, *(where + suffix for suffix in kind.suffixes)):
        try:
            status = os.stat(place)
        except (OSError, ValueError):
            continue
        if stat.S_ISDIR(status.st_mode):
            if kind.folders and place == where and any(os.scandir(where)):
                return status.st_dev, status.st_ino
            continue
        if kind.suffixes and not place.lower().endswith(kind.suffixes):
            raise _NoFile("of another kind", f"{kind.name} reads {' '.join(kind.suffixes)}, not this kind of file")
        if status.st_size == 0:
            raise _NoFile("with an empty file", "the file is empty")
        return status.st_dev, status.st_ino
    return None
