"""Files that never change once written, with a checksum for every block: what an index in a folder is made of.

A part holds consecutive items of an index:

    vectors.f32    (m, d) float32 rows
    items.arrow    the metadata, one text column each (Arrow, not compressed: it is read in place)
    keys.u64       sorted 64-bit hashes of the ids, then the row of each: how an id is found without a table in memory
    gone.i64       rows of earlier parts that this one replaces or deletes
    codes.*, near.json, graph.faiss or lists.faiss    only in a published part: see `near`

* `write_part`: makes one, whole or not at all. * `Part`: one that is open, mapped into memory.
* `checksums`, `verify`: CRC-32 of blocks. CRC-32 finds every single flipped bit and every burst of up to 32, and runs
  two to three times as fast as SHA-256 here; the small file that lists the checksums is under SHA-256 itself.

Shapes: m items of a part, d dimension.
"""

import fcntl
import hashlib
import mmap
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from m3bind.files import atomic_path
from m3bind.space.index.base import KEY, Array

BLOCK = 1 << 20  # bytes under one checksum; what a repair loses to one bad byte
VECTORS, ITEMS, KEYS, GONE = "vectors.f32", "items.arrow", "keys.u64", "gone.i64"
Rows = NDArray[np.int64]
Files = dict[str, dict[str, Any]]  # name -> {"bytes", "crc": one number per block}


class Damaged(Exception):
    """Bytes of an index are not what was written. `path` names the file."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


def write_part(
    folder: Path,
    blocks: Iterable[Array],
    items: pa.Table,
    gone: Rows,
    derive: Callable[[Path], None] = lambda folder: None,
) -> dict[str, Any]:
    """Write a part and return its entry for the list of parts: name, number of rows, size and checksums of its files.

    Args:
        folder: of the part; replaced as a whole.
        blocks: the rows (m, d), in blocks.
        items: m lines of text columns.
        gone: rows of earlier parts.
        derive: writes further files beside the rows.
    """
    with atomic_path(folder, directory=True) as temporary:
        if items.num_rows:
            with open(temporary / VECTORS, "wb") as file:
                for block in blocks:
                    file.write(np.ascontiguousarray(block, "<f4").data)
            with pa.OSFile(str(temporary / ITEMS), "wb") as sink, pa.ipc.new_file(sink, items.schema) as writer:
                writer.write_table(items.combine_chunks())
            write_keys(temporary, items)
        if len(gone):
            (temporary / GONE).write_bytes(np.sort(gone).astype("<i8").tobytes())
        derive(temporary)
        files = {path.name: checksums(path) for path in sorted(temporary.iterdir())}
    return {"name": folder.name, "rows": items.num_rows, "files": files}


def write_keys(folder: Path, items: pa.Table) -> None:
    """Write `keys.u64` of a part."""
    hashes = hash_ids(items[KEY].to_pylist())
    order = np.argsort(hashes, kind="stable")
    with open(folder / KEYS, "wb") as file:
        file.write(np.ascontiguousarray(hashes[order], "<u8").data)
        file.write(np.ascontiguousarray(order, "<u8").data)


def hash_ids(ids: Sequence[str]) -> NDArray[np.uint64]:
    """A 64-bit hash of each id, the same on every machine."""
    joined = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids)
    return np.frombuffer(joined, "<u8")


def checksums(path: Path) -> dict[str, Any]:
    """Size of a file and the CRC-32 of each of its blocks, read in parallel."""
    size = path.stat().st_size
    if size <= BLOCK:
        return {"bytes": size, "crc": [zlib.crc32(path.read_bytes())]}
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        view = memoryview(mapped)
        try:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                crc = list(pool.map(lambda start: zlib.crc32(view[start : start + BLOCK]), range(0, size, BLOCK)))
        finally:
            view.release()
    return {"bytes": size, "crc": crc}


def verify(folder: Path, files: Files) -> None:
    """Compare every byte of a part with its checksums.

    Raises:
        Damaged: names the first file that differs.
        FileNotFoundError: a file is missing.
    """
    for name, expected in files.items():
        path = folder / name
        found = checksums(path)
        if found["bytes"] != expected["bytes"]:
            raise Damaged(path, f"holds {found['bytes']} bytes instead of {expected['bytes']}")
        if found != expected:
            raise Damaged(path, "its content does not fit its checksum")


def as_arrow(table: pd.DataFrame) -> pa.Table:
    """Text columns as Arrow."""
    return pa.table({name: pa.array(table[name].tolist(), pa.large_string()) for name in table.columns})


def read_items(folder: Path) -> pa.Table:
    """The metadata of a part, mapped into memory."""
    return pa.ipc.open_file(pa.memory_map(str(folder / ITEMS))).read_all()


class Part:
    """A part that is open for reading. As long as it is, no writer removes its files (a shared lock says so)."""

    def __init__(self, folder: Path, entry: Mapping[str, Any], dim: int, *, check: bool = True) -> None:
        """Open `folder` as its `entry` describes it; `check` verifies its bytes.

        Raises:
            Damaged, FileNotFoundError: see `verify`.
            BlockingIOError: a writer is removing the part; its list of parts is a newer one.
        """
        self.folder, self.entry, self.rows = folder, entry, int(entry["rows"])
        self._lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if check:
                verify(folder, entry["files"])
            self.vectors: Array = np.empty((0, dim), np.float32)
            hashes = np.empty(0, np.uint64)
            self.table: Any = None
            if ITEMS in entry["files"]:
                self.vectors = np.memmap(folder / VECTORS, "<f4", mode="r", shape=(self.rows, dim)).view(np.ndarray)
                hashes = np.memmap(folder / KEYS, "<u8", mode="r").view(np.ndarray)
                self.table = read_items(folder)
            self._hashes, self._order = hashes[: self.rows], hashes[self.rows :]
            self.gone: Rows = np.fromfile(folder / GONE, "<i8") if GONE in entry["files"] else np.empty(0, np.int64)
            self._columns: dict[str, _Texts] = {}
        except BaseException:
            os.close(self._lock)
            raise

    def close(self) -> None:
        """Let a writer remove the files; what was read from them stays valid."""
        os.close(self._lock)

    @property
    def columns(self) -> list[str]:
        """Names of the metadata columns."""
        return self.table.column_names if self.table is not None else []

    def texts(self, column: str, rows: Sequence[int]) -> list[str]:
        """Values of a column at some rows; empty where the part has no such column."""
        if column not in self._columns:
            if column not in self.columns:
                return [""] * len(rows)
            self._columns[column] = _Texts(self.table.column(column))
        return self._columns[column].take(rows)

    def find(self, ids: Sequence[str], hashes: NDArray[np.uint64]) -> dict[int, int]:
        """Position in `ids` -> row, of those the part holds; `hashes` are theirs."""
        found: dict[int, int] = {}
        start = np.searchsorted(self._hashes, hashes, "left")
        stop = np.searchsorted(self._hashes, hashes, "right")
        for position in np.flatnonzero(stop > start):
            for place in range(int(start[position]), int(stop[position])):
                row = int(self._order[place])
                if self.texts(KEY, [row])[0] == ids[int(position)]:
                    found[int(position)] = row
        return found

    def rows_of(self, ids: Sequence[str]) -> list[int]:
        """The rows of those of `ids` that the part holds."""
        return list(self.find(ids, hash_ids(ids)).values())


class _Texts:
    """A text column read in place: no table of Python strings for what is never asked."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        array = column.combine_chunks()
        array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
        _, offsets, data = array.buffers()
        self._array = array  # keeps the buffers
        self._offsets = np.frombuffer(offsets, "<i8")[array.offset : array.offset + len(array) + 1]
        self._data = memoryview(data) if data is not None else memoryview(b"")

    def take(self, rows: Iterable[int]) -> list[str]:
        """The texts at some rows."""
        offsets, data = self._offsets, self._data
        return [str(data[offsets[row] : offsets[row + 1]], "utf-8") for row in rows]
