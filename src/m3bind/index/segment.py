"""The parts of an index in a folder: immutable files with a checksum for every block.

A part holds consecutive items of an index:

    vectors.f32    (m, d) float32 rows
    items.arrow    the metadata, one text column each (Arrow, uncompressed: read in place)
    keys.u64       sorted 64-bit hashes of the ids, then the row of each: finds an id without a table in memory
    gone.i64       rows of earlier parts that this one replaces or deletes
    codes.*, near.json, graph.faiss or lists.faiss    only in a committed segment: see `ann`

* `write_part`: writes one atomically. * `Segment`: an open part, mapped into memory.
* `checksums`, `verify`: CRC-32 of blocks. CRC-32 finds every single flipped bit and every burst of up to 32, and runs
  two to three times as fast as SHA-256 here; the small file that lists the checksums has a SHA-256 itself.

Shapes: m items of a part, d dimension.
"""

import contextlib
import fcntl
import hashlib
import math
import mmap
import os
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import TypedDict

from m3bind.core.files import atomic_path
from m3bind.errors import SpaceError
from m3bind.index.base import KEY, NEEDED, Array

BLOCK = 1 << 20  # bytes per checksum; a repair loses the block of a bad byte
VECTORS, ITEMS, KEYS, GONE = "vectors.f32", "items.arrow", "keys.u64", "gone.i64"
Rows = NDArray[np.int64]
Size = Annotated[int, Field(ge=0, lt=1 << 48)]


class Sums(TypedDict):
    """Size of a file and the CRC-32 of each of its blocks."""

    bytes: Size
    crc: list[int]


Files = dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*\.[a-z0-9]+$")], Sums]


class SegmentEntry(TypedDict):
    """The entry of a part in the list of parts."""

    name: Annotated[str, Field(pattern=r"^[0-9]{1,12}$")]
    rows: Size
    files: Files


class IndexDamageError(SpaceError):
    """Bytes of an index differ from what was written. `path` names the file."""

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
        gone: rows of earlier parts that are replaced or deleted.
        derive: writes further files into the folder.
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
    """A 64-bit hash of each id, independent of the machine."""
    joined = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids)
    return np.frombuffer(joined, "<u8")


def checksums(path: Path) -> Sums:
    """Size of a file and the CRC-32 of each of its blocks, read in parallel."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise IndexDamageError(path, "is not a plain file")
    size = status.st_size
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
        IndexDamageError: names the first file that differs.
        FileNotFoundError: a file is missing.
    """
    for name, expected in files.items():
        path = folder / name
        found = checksums(path)
        if found["bytes"] != expected["bytes"]:
            raise IndexDamageError(path, f"holds {found['bytes']} bytes instead of {expected['bytes']}")
        if found != expected:
            raise IndexDamageError(path, "its content does not fit its checksum")


def as_arrow(table: pd.DataFrame) -> pa.Table:
    """Text columns as an Arrow table."""
    return pa.table({name: pa.array(table[name].tolist(), pa.large_string()) for name in table.columns})


def read_items(folder: Path) -> pa.Table:
    """The metadata of a part, mapped into memory.

    Raises:
        IndexDamageError: not a table of text columns, or compressed.
    """
    path = folder / ITEMS
    try:
        mapped = pa.memory_map(str(path))
        for message in _messages(mapped):
            if message.type == "record batch" and _is_compressed(message.metadata):
                raise IndexDamageError(path, "is compressed; m3bind writes it uncompressed")
        mapped.seek(_ARROW_HEAD)  # the file holds a stream from there; offsets in its footer are not used
        reader = pa.ipc.open_stream(mapped)
        names = reader.schema.names
        if any(not pa.types.is_large_string(kind) for kind in reader.schema.types) or len(set(names)) < len(names):
            raise IndexDamageError(path, "has columns that are not text, or duplicate column names")
        if absent := [name for name in NEEDED if name not in names]:
            raise IndexDamageError(path, f"has no column {absent[0]!r}")
        table = reader.read_all()
        table.validate(full=True)
        return table
    except (pa.ArrowException, OSError, ValueError, IndexError) as error:
        raise IndexDamageError(path, "is not an Arrow table") from error


_ARROW_HEAD = 8  # bytes before the first message of a file


def _messages(mapped: Any) -> Iterator[Any]:
    """The messages of an Arrow file, without their bodies."""
    mapped.seek(_ARROW_HEAD)
    reader = pa.ipc.MessageReader.open_stream(mapped)
    with contextlib.suppress(StopIteration, EOFError):
        while True:
            yield reader.read_next_message()


def _is_compressed(metadata: Any) -> bool:
    """Whether a record batch declares compressed buffers: field 3 of the table in field 2 of a flatbuffer."""
    data = memoryview(metadata)

    def number(at: int, size: int, signed: bool = False) -> int:
        return int.from_bytes(data[at : at + size], "little", signed=signed)

    def field(table: int, index: int) -> int:
        """Offset of a field of a table, 0 if absent."""
        entries = table - number(table, 4, signed=True)
        at = number(entries + 4 + 2 * index, 2) if 4 + 2 * index < number(entries, 2) else 0
        return table + at if at else 0

    header = field(number(0, 4), 2)
    return not header or bool(field(header + number(header, 4), 3))


def _mapped(path: Path, dtype: str, shape: tuple[int, ...]) -> Any:
    """The array in a file, mapped into memory.

    Raises:
        IndexDamageError: the file has another size.
    """
    expected, found = math.prod(shape) * np.dtype(dtype).itemsize, path.stat().st_size
    if found != expected or not expected:
        raise IndexDamageError(path, f"holds {found} bytes, not {expected}")
    return np.memmap(path, dtype, mode="r", shape=shape).view(np.ndarray)


class Segment:
    """A part that is open for reading. Its shared lock keeps writers from removing its files."""

    def __init__(self, folder: Path, entry: Mapping[str, Any], dim: int, *, check: bool = True) -> None:
        """Open `folder` as its `entry` describes it; `check` verifies its bytes.

        Raises:
            IndexDamageError, FileNotFoundError: see `verify`.
            BlockingIOError: a writer is removing the part; a newer list of parts exists.
        """
        self.folder, self.entry, self.rows, self.dim = folder, entry, int(entry["rows"]), dim
        self._lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if check:
                verify(folder, entry["files"])
            self.vectors: Array = np.empty((0, dim), np.float32)
            hashes = np.empty(0, np.uint64)
            self.table: Any = None
            if ITEMS in entry["files"]:
                self.vectors = _mapped(folder / VECTORS, "<f4", (self.rows, dim))
                hashes = _mapped(folder / KEYS, "<u8", (2 * self.rows,))
                self.table = read_items(folder)
                if self.table.num_rows != self.rows:
                    raise IndexDamageError(folder / ITEMS, f"holds {self.table.num_rows} items, not {self.rows}")
            self._hashes, self._order = hashes[: self.rows], hashes[self.rows :]
            if (self._order >= self.rows).any():
                raise IndexDamageError(folder / KEYS, "names rows that the part does not have")
            self.gone: Rows = np.fromfile(folder / GONE, "<i8") if GONE in entry["files"] else np.empty(0, np.int64)
            self._columns: dict[str, _Texts] = {}
        except BaseException:
            os.close(self._lock)
            raise

    def close(self) -> None:
        """Allow writers to remove the files; arrays that were read from them remain valid."""
        os.close(self._lock)

    @property
    def columns(self) -> list[str]:
        """Names of the metadata columns."""
        return self.table.column_names if self.table is not None else []

    def texts(self, column: str, rows: Sequence[int]) -> list[str]:
        """Values of a column at some rows; empty if the part lacks the column."""
        if column not in self._columns:
            if column not in self.columns:
                return [""] * len(rows)
            self._columns[column] = _Texts(self.table.column(column))
        return self._columns[column].take(rows)

    def find(self, ids: Sequence[str], hashes: NDArray[np.uint64]) -> dict[int, int]:
        """Position in `ids` -> row, for the ids in the part; `hashes`: `hash_ids(ids)`."""
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
        """The rows of those `ids` that are in the part."""
        return list(self.find(ids, hash_ids(ids)).values())


class _Texts:
    """A text column read in place, without creating Python strings for the other rows."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        array = column.combine_chunks()
        array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
        _, offsets, data = array.buffers()
        self._array = array  # owns the buffers
        self._offsets = np.frombuffer(offsets, "<i8")[array.offset : array.offset + len(array) + 1]
        self._data = memoryview(data) if data is not None else memoryview(b"")

    def take(self, rows: Iterable[int]) -> list[str]:
        offsets, data = self._offsets, self._data
        return [str(data[offsets[row] : offsets[row + 1]], "utf-8") for row in rows]
