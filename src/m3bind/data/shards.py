"""Shards: immutable files of rows by key, in one folder.

* `ShardFolder`: finds, reads and adds rows. * `write_shard`: one file.

A shard `<hash of its bytes>.safetensors` has `keys` (n, 32) uint8 and tensors with one row per key. Named by its hash,
it can be verified, appears atomically, and several processes may read and add concurrently. A shard whose bytes do not
match its name is quarantined (`.damaged`). Shards are written and read by hand, since the safetensors package copies
all rows to write them (half as fast) and has no limit on headers below 100 MB.
"""

import contextlib
import hashlib
import json
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3bind.core.files import atomic_path, sha256_file
from m3bind.core.stored import parse_json
from m3bind.errors import DiskError

DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I16": np.dtype("<i2"),
    "U8": np.dtype("u1"),
}
KEY = np.dtype("S32")  # a SHA-256
MAX_HEADER = 1 << 16  # bytes of a shard's header
MAPPED = 4096  # files of a folder that are mapped into memory at once
BACK = 10.0  # seconds a new shard is dated back, so that any later change shows in its time stamp

log = logging.getLogger(__name__)
Array = NDArray[Any]


@dataclass(frozen=True)
class Shard:
    """One verified file: its keys, and type, offset and shape of its tensors."""

    path: Path
    keys: Array  # (n,) KEY
    tensors: dict[str, tuple[np.dtype[Any], int, tuple[int, ...]]]

    def map(self, name: str) -> Array:
        """A tensor, memory-mapped."""
        dtype, offset, shape = self.tensors[name]
        return np.memmap(self.path, dtype, "r", offset=offset, shape=shape)


def named_by_content(path: Path) -> bool:
    """Whether the name of a shard is the hash of its bytes."""
    return sha256_file(path) == path.stem


class ShardFolder:
    """The shards of one kind of rows."""

    def __init__(self, folder: Path, verified: Callable[[Path], bool] = named_by_content) -> None:
        """`verified` decides whether a file is as it was written."""
        self.folder, self._verified = folder, verified
        self.shards: list[Shard] = []
        self._names: set[str] = set()
        self._keys = np.empty(0, KEY)  # of all shards, sorted
        self._where = np.empty((0, 2), np.int64)  # shard and row of each
        self._maps: OrderedDict[tuple[int, str], Array] = OrderedDict()

    def refresh(self) -> None:
        """Take up the shards that were added since."""
        keys, where = [self._keys], [self._where]
        for path in sorted(self.folder.glob("*.safetensors")):
            if path.stem in self._names or (shard := self._open(path)) is None:
                continue
            rows = np.arange(len(shard.keys))
            where.append(np.stack([np.full_like(rows, len(self.shards)), rows], 1))
            keys.append(shard.keys)
            self._names.add(path.stem)
            self.shards.append(shard)
        if len(keys) > 1:
            together = np.concatenate(keys)
            order = np.argsort(together, kind="stable")
            self._keys, self._where = together[order], np.concatenate(where)[order]

    def find(self, keys: Array) -> NDArray[np.int64]:
        """(n,) KEY -> (n, 2) shard and row, -1 where there is none, as of the last `refresh`."""
        where = np.full((len(keys), 2), -1, np.int64)
        if len(self._keys):
            at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
            found = self._keys[at] == keys
            where[found] = self._where[at[found]]
        return where

    def read(self, where: NDArray[np.int64], name: str = "rows") -> Array:
        """(n, 2) shard and row -> (n, ...): rows of one type and shape."""
        dtype, _, shape = self.shards[where[0, 0]].tensors[name]
        out = np.empty((len(where), *shape[1:]), dtype)
        for shard in np.unique(where[:, 0]):
            at = np.flatnonzero(where[:, 0] == shard)
            out[at] = self.tensor(int(shard), name)[where[at, 1]]
        return out

    def add(self, keys: Array, tensors: Mapping[str, Sequence[Array]]) -> Path:
        """Write one shard; `find` knows it after `refresh`."""
        return write_shard(self.folder, keys, tensors)

    def tensor(self, number: int, name: str) -> Array:
        """A tensor of a shard, memory-mapped; the latest `MAPPED` stay mapped, even when the file is removed.

        Raises:
            DiskError: the file was removed, and is not mapped.
        """
        if (number, name) not in self._maps:
            try:
                self._maps[number, name] = self.shards[number].map(name)
            except FileNotFoundError as error:
                raise DiskError(
                    f"{self.shards[number].path} was removed while it was in use; run the same command again, "
                    "what is missing is computed again"
                ) from error
            if len(self._maps) > MAPPED:
                self._maps.popitem(last=False)
        return self._maps[number, name]

    def _open(self, path: Path) -> Shard | None:
        """A verified shard, mapped; None (and the file quarantined) if its bytes do not match its name."""
        try:
            if self._verified(path):
                shard = _shard_in(path)
                if len(self._maps) < MAPPED:
                    self._maps[len(self.shards), "rows"] = shard.map("rows")
                return shard
        except FileNotFoundError:
            return None  # another process removed it
        except (OSError, ValueError, KeyError, TypeError):  # not a plain file, or not a header of `write_shard`
            pass
        log.warning("cache shard %s is damaged; it is quarantined and its rows are computed again", path.name)
        with contextlib.suppress(OSError):  # gone, read-only, or the name is taken by a folder: it stays, unused
            os.replace(path, path.with_suffix(".damaged"))
        return None


def write_shard(folder: Path, keys: Array, tensors: Mapping[str, Sequence[Array]]) -> Path:
    """Write one shard under the hash of its bytes: (n,) KEY, and tensors in pieces with n rows together."""
    table = keys.view(np.uint8).reshape(len(keys), KEY.itemsize)
    header: dict[str, Any] = {}
    data: list[Any] = []
    end = 0
    for name, pieces in {**tensors, "keys": [table]}.items():
        start, end = end, end + sum(piece.nbytes for piece in pieces)
        dtype = next(code for code, dtype in DTYPES.items() if dtype == pieces[0].dtype)
        header[name] = {"dtype": dtype, "shape": [len(keys), *pieces[0].shape[1:]], "data_offsets": [start, end]}
        data += [np.ascontiguousarray(piece).data for piece in pieces]
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # data aligned to 8 bytes
    data = [len(text).to_bytes(8, "little"), text, *data]
    digest = hashlib.sha256()
    for piece in data:
        digest.update(piece)
    path = folder / f"{digest.hexdigest()}.safetensors"
    with atomic_path(path) as temporary:
        with open(temporary, "wb") as handle:
            for piece in data:
                handle.write(piece)
        os.utime(temporary, (time.time() - BACK,) * 2)
    return path


def _shard_in(path: Path) -> Shard:
    """The header and keys of a file that `write_shard` wrote; others raise ValueError, KeyError or TypeError."""
    with open(path, "rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if length > MAX_HEADER:
            raise ValueError("header too long")
        header = parse_json(handle.read(length), path)
        size = os.fstat(handle.fileno()).st_size
    tensors = {}
    for name, spec in dict(header).items():
        dtype, shape, begin = DTYPES[spec["dtype"]], tuple(spec["shape"]), 8 + length + spec["data_offsets"][0]
        if not all(isinstance(side, int) and side >= 0 for side in shape):
            raise ValueError("not a shape")
        if begin + dtype.itemsize * int(np.prod(shape, dtype=np.float64)) > size or not len(shape):
            raise ValueError("a tensor beyond the end")
        tensors[name] = dtype, begin, shape
    dtype, offset, shape = tensors.pop("keys")
    if shape != (tensors["rows"][2][0], KEY.itemsize) or dtype != np.uint8:
        raise ValueError("not one key for each row")
    table = np.fromfile(path, np.uint8, int(np.prod(shape)), offset=offset)
    return Shard(path, table.view(KEY).reshape(-1), tensors)
