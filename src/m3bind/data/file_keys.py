"""Content keys of files, and their memo on disk.

* `file_key`: hash of a file's content (for an ECG record: header and signal files together).
* `with_rescale`: a key that also depends on a rescaling of the values.
* `FileKeys`: the same as `file_key`, memoised by path, size and time stamp, so that unchanged files are not read again.

The memo is a folder of shards (`shards`): mark -> key. A mark is a hash, so the memo contains no names.
"""

import hashlib
import os
import stat as modes
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from m3bind.core.files import sha256_file, sha256_text
from m3bind.data.shards import KEY, ShardFolder
from m3bind.errors import ReadError
from m3bind.modalities.formats.limits import check_bytes
from m3bind.modalities.formats.signals_wfdb_header import named_files

SETTLED = 2.0  # seconds after which an equal time stamp proves that a file did not change
MAX_SHARDS = 64  # of the memo; more are merged
FOLDED = 1 << 18  # entries of this process that are held beside those on disk

Stats = list[tuple[str, os.stat_result]]


def file_key(path: Path | str) -> str:
    """Hex SHA-256 of a file's content, independent of its name.

    A WFDB record (`path` without its ending, or its `.hea`) is its header with every file of its folder that the header
    or the header of a segment names; a folder is the names and contents of all files below it.

    Raises:
        ReadError: no such file, record or folder, or it is above the size limit.
        OSError: no permission, or a failing disk.
    """
    return _key_of(Path(path), _parts(Path(path)))


def with_rescale(key: str, rescale: tuple[float, float] | None) -> str:
    """The key of a content whose values are rescaled; the same key without."""
    return sha256_text(key, str(rescale)) if rescale else key


def _key_of(path: Path, parts: list[Path]) -> str:
    if len(parts) == 1:
        return sha256_file(parts[0])
    texts: list[str] = []
    for part in parts:
        name = part.relative_to(path).as_posix() if path.is_dir() else part.suffix
        texts += (name, sha256_file(part))
    return sha256_text(*texts)


def _parts(path: Path) -> list[Path]:
    """The files that make up one item."""
    header = path if path.suffix == ".hea" else path.with_name(path.name + ".hea")
    if path.is_dir():
        parts = sorted(file for file in path.rglob("*") if file.is_file())
    elif path.is_file() and path.suffix != ".hea":
        parts = [path]
    elif header.is_file():
        parts = [header, *_of_record(header)]
    else:
        raise ReadError(path, "no such file", "check the path in the manifest")
    for part in parts:
        check_bytes(part)
    return parts


def _of_record(header: Path) -> list[Path]:
    """The files beside a WFDB header that are named by it or by the headers of its segments."""
    files = {header.parent / name for name in named_files(header)}
    for segment in [file for file in files if file.suffix == ".hea"]:
        files |= {header.parent / name for name in named_files(segment)}
    return sorted(file for file in files - {header} if file.is_file())


class FileKeys:
    """`file_key`, remembered in a folder that threads and processes may share."""

    def __init__(self, folder: Path) -> None:
        self._folder = ShardFolder(folder)
        self._own: dict[bytes, bytes] = {}  # entries of this process
        self._unsaved: list[bytes] = []
        self._loaded = False
        self._lock = threading.Lock()

    def refresh(self) -> None:
        """Take up what other processes have saved."""
        with self._lock:
            self._loaded = True
            self._folder.refresh()

    def known(self, paths: Sequence[Path | str]) -> list[str | None]:
        """The remembered keys; None for files that must be read, or are missing. At most a few calls of stat a file."""
        self.refresh()
        marks = [_mark(stats) if (stats := _quick_stats(os.fspath(path))) else b"" for path in paths]
        where = self._folder.find(np.array(marks, KEY))
        keys: list[str | None] = [None] * len(marks)
        on_disk = np.flatnonzero(where[:, 0] >= 0)
        if len(on_disk):
            text = self._folder.read(where[on_disk]).tobytes().hex()
            for place, at in enumerate(on_disk.tolist()):
                keys[at] = text[64 * place : 64 * place + 64]
        for at in np.flatnonzero(where[:, 0] < 0).tolist() if self._own else ():
            if own := self._own.get(marks[at]):
                keys[at] = own.hex()
        return keys

    def key(self, path: Path | str) -> str:
        """`file_key` of one file, read only if it is not remembered.

        Raises:
            ReadError: no such file, record or folder, or it is above the size limit.
            OSError: no permission, or a failing disk.
        """
        return self.look_up(path)[0]

    def look_up(self, path: Path | str) -> tuple[str, bool]:
        """`key`, and whether it is remembered; not while a further change of the file could go unnoticed.

        Raises:
            ReadError, OSError: as `key`.
        """
        if not self._loaded:
            self.refresh()
        stats = _quick_stats(os.fspath(path))
        mark = _mark(stats) if stats else b""
        known = self._remembered(mark)
        if known is None:
            parts = _parts(Path(path))
            if not {*parts} <= {Path(part) for part, _ in stats}:  # the quick mark does not cover all
                stats = [(str(part), part.stat()) for part in parts]
                mark = _mark(stats)
                known = self._remembered(mark)
            if known is None:
                known = bytes.fromhex(_key_of(Path(path), parts))
                return known.hex(), self._remember(stats, mark, known)
        return known.hex(), True

    def add(self, path: Path, key: str) -> None:
        """Remember the key of a file that this process has just written."""
        stats = [(str(path), os.stat(path))]
        self._remember(stats, _mark(stats), bytes.fromhex(key))

    def _remembered(self, mark: bytes) -> bytes | None:
        own = self._own.get(mark)
        if own is not None or not mark:
            return own
        with self._lock:
            where = self._folder.find(np.array([mark], KEY))
            return self._folder.read(where).tobytes() if where[0, 0] >= 0 else None

    def _remember(self, stats: Stats, mark: bytes, key: bytes) -> bool:
        now = time.time()
        settled = all(abs(now - stat.st_mtime) > SETTLED for _, stat in stats)
        if settled:
            with self._lock:
                self._own[mark] = key
                self._unsaved.append(mark)
        return settled

    def save(self) -> None:
        """Write the new entries to disk."""
        with self._lock:
            unsaved, self._unsaved = self._unsaved, []
            if unsaved:
                values = np.frombuffer(b"".join(self._own[mark] for mark in unsaved), np.uint8).reshape(-1, 32)
                self._folder.add(np.array(unsaved, KEY), {"rows": [values]})
            if len(self._own) > FOLDED:
                self._folder.refresh()
                self._own.clear()
            self._merge()

    def _merge(self) -> None:
        """Write many small shards as one."""
        if len(list(self._folder.folder.glob("*.safetensors"))) <= MAX_SHARDS:
            return
        self._folder.refresh()
        shards = self._folder.shards
        keys = np.concatenate([shard.keys for shard in shards])  # rows are mapped: another process may merge them too
        merged = self._folder.add(keys, {"rows": [self._folder.tensor(at, "rows") for at in range(len(shards))]})
        for shard in shards:
            if shard.path != merged:
                shard.path.unlink(missing_ok=True)
        self._folder = ShardFolder(self._folder.folder)
        self._folder.refresh()


def _quick_stats(path: str) -> Stats:
    """The file, or the header of a WFDB record and the usual files beside it; [] for folders and missing files."""
    try:
        found = os.stat(path)
        if modes.S_ISREG(found.st_mode) and not path.endswith(".hea"):
            return [(path, found)]
        if modes.S_ISDIR(found.st_mode):
            return []
    except (OSError, ValueError):
        pass
    stem = path.removesuffix(".hea")
    stats: Stats = []
    for ending in (".hea", ".dat", ".mat"):
        try:
            stats.append((stem + ending, os.stat(stem + ending)))
        except (OSError, ValueError):
            if ending == ".hea":
                return []
    return stats


def _mark(stats: Stats) -> bytes:
    """Hash of paths, sizes and time stamps."""
    texts = []
    for path, stat in stats:
        place = path if path.startswith("/") else os.path.abspath(path)
        texts.append(f"{place}|{stat.st_size}|{stat.st_mtime_ns}")
    return hashlib.sha256("|".join(texts).encode("utf-8", "surrogatepass")).digest()
