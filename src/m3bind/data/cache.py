"""Cache of frozen features on disk, keyed by content, weights and preprocessing.

* `file_key`: hash of a file's content (for an ECG record: header and signal files together).
* `FeatureCache`: `get_or_compute(kind, weights_hash, items, compute, ...)` returns one row per item and calls `compute`
  only for missing ones.
* `Rows`: its result; an array read from the memory-mapped shards when indexed.

On disk: `<folder>/<hash of (kind, weights)>/<hash of the shard>.safetensors`, each shard with `keys` (n, 32) uint8 and
`rows` (n, ...) float32, float16 or uint8. A shard is named by the hash of its bytes, so it can be verified, appears
atomically, and several processes may read and add concurrently. A shard whose bytes do not match its name is
quarantined (`.damaged`) and its rows are computed again. Shards are written and read by hand, since the safetensors
package copies all rows to write them (half as fast) and has no limit on headers below 100 MB.

Batches are cut at fixed positions of the distinct items, wherever an earlier run stopped: a run that was killed and
resumed calls `compute` with exactly the batches of an uninterrupted one, hence gets the same bits.
"""

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3bind.core.files import atomic_path, sha256_file, sha256_text, write_json
from m3bind.core.progress import progress
from m3bind.core.stored import StoredFileError, checked, parse_json, read_json
from m3bind.errors import M3BindError, NotFiniteError, ReadError
from m3bind.modalities.formats.limits import check_bytes
from m3bind.modalities.formats.signals_wfdb_header import named_files

DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "U8": np.dtype("u1")}
FLUSH_BYTES = 64 << 20  # a shard is written when this much has been computed ...
FLUSH_SECONDS = 10.0  # ... or after this time
MAX_HEADER = 1 << 16  # bytes of a shard's header
SETTLED = 2.0  # seconds after which an equal time stamp proves that a file did not change

log = logging.getLogger(__name__)
Array = NDArray[Any]


def file_key(path: Path | str) -> str:
    """Hex SHA-256 of a file's content, independent of its name.

    A WFDB record (`path` without its ending, or its `.hea`) is its header with every file of its folder that the header
    or the header of a segment names; a folder is the names and contents of all files below it.

    Raises:
        ReadError: no such file, record or folder, or it is above the size limit.
    """
    parts = _parts(Path(path))
    if len(parts) == 1:
        return sha256_file(parts[0])
    base = Path(path)
    texts: list[str] = []
    for part in parts:
        name = part.relative_to(base).as_posix() if base.is_dir() else part.suffix
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


@dataclass(frozen=True)
class _Shard:
    keys: list[bytes]
    rows: Array  # memory-mapped


class Rows:
    """n rows of one shape on disk, loaded when indexed.

    `rows[3]`, `rows[10:20]`, `rows[[5, 1, 1]]` and `np.asarray(rows)` give arrays in memory, in the order of the items.
    """

    def __init__(self, shards: Sequence[Array], where: NDArray[np.int64], shape: tuple[int, ...], dtype: Any) -> None:
        """`where` (n, 2): shard and row of each item; `shape` and `dtype` are those of one row."""
        self._shards, self._where = list(shards), where
        self.shape: tuple[int, ...] = (len(where), *shape)
        self.dtype: np.dtype[Any] = np.dtype(dtype)

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, index: Any) -> Array:
        where = self._where[index]
        if where.ndim == 1:
            return np.array(self._shards[where[0]][where[1]])
        out = np.empty((len(where), *self.shape[1:]), self.dtype)
        for shard in np.unique(where[:, 0]):
            at = np.flatnonzero(where[:, 0] == shard)
            out[at] = self._shards[shard][where[at, 1]]
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self[:] if dtype is None else self[:].astype(dtype, copy=False)

    def __repr__(self) -> str:
        return f"Rows(shape={self.shape}, dtype={self.dtype}, shards={len(self._shards)})"


class FeatureCache:
    """Feature rows of any number of kinds and weights in one folder. Processes may share it."""

    def __init__(self, folder: Path | str) -> None:
        """`folder` is created with the first row; it can be deleted at any time."""
        self.folder = Path(folder)
        self._groups: dict[Path, dict[str, _Shard]] = {}
        self._memo: dict[str, str] | None = None
        self._saved = (0, 0.0)  # entries of the memo on disk, and the time of writing

    def file_keys(self, paths: Sequence[Path | str]) -> list[str]:
        """`file_key` of each path, memoised by (path, size, time stamp) so that unchanged files are not read again.

        Raises:
            ReadError: a file is missing.
        """
        if self._memo is None:
            self._memo = {}
            with contextlib.suppress(OSError, StoredFileError):
                memo = self.folder / "files.json"
                self._memo = checked(dict[str, str], read_json(memo), memo)
            self._saved = (len(self._memo), 0.0)
        keys = []
        for path in paths:
            stats = [(part, part.stat()) for part in _parts(Path(path))]
            marks = [f"{os.path.abspath(part)}|{stat.st_size}|{stat.st_mtime_ns}" for part, stat in stats]
            mark = sha256_text(*marks)  # a hash, so that the memo contains no names
            key = self._memo.get(mark) or file_key(path)
            if all(time.time() - stat.st_mtime > SETTLED for _, stat in stats):
                self._memo[mark] = key
            keys.append(key)
        if len(paths) > 1 or time.monotonic() - self._saved[1] > FLUSH_SECONDS:  # not at every call for one path
            self._save_memo()
        return keys

    def _save_memo(self) -> None:
        if self._memo and len(self._memo) > self._saved[0]:
            write_json(self.folder / "files.json", self._memo)
            self._saved = (len(self._memo), time.monotonic())

    def get_or_compute(
        self,
        kind: str,
        weights_hash: str,
        items: Sequence[str],
        compute: Callable[[list[int]], Array],
        batch: int = 64,
        progress: str | None = None,
    ) -> Rows:
        """One row per item; missing rows are computed.

        Args:
            kind: name of the rows, with everything else they depend on (e.g. "image/224/flip" or a hash of it).
            weights_hash: hash of the weights.
            items: content key per item (`file_keys`, or the text itself); equal items share a row.
            compute: positions in `items` -> array (len, ...) of float32, float16 or uint8.
            batch: maximum number of positions per call of `compute`.
            progress: label of a progress bar; None: no bar.

        Raises:
            NotFiniteError: a computed row contains NaN or infinity; its batch is not stored.
            M3BindError: `compute` returned another number, type or shape of rows than the cached ones.
        """
        self._save_memo()
        group = self.folder / sha256_text(kind, weights_hash)[:32]
        keys = [hashlib.sha256(item.encode("utf-8")).digest() for item in items]
        first: dict[bytes, int] = {}
        for position, key in enumerate(keys):
            first.setdefault(key, position)
        known = self._index(group)
        distinct = list(first.items())
        chunks = [distinct[start : start + batch] for start in range(0, len(distinct), batch)]
        missing = [todo for chunk in chunks if (todo := [(key, at) for key, at in chunk if key not in known])]
        if missing:
            self._compute(group, kind, missing, compute, progress, len(distinct))
            known = self._index(group)
        shards = [shard.rows for shard in self._groups.get(group, {}).values()]
        where = np.array([known[key] for key in keys], dtype=np.int64).reshape(-1, 2)
        if not shards:
            return Rows([], where, (), np.float32)
        self._same_shape(kind, shards)
        return Rows(shards, where, shards[0].shape[1:], shards[0].dtype)

    def _compute(
        self,
        group: Path,
        kind: str,
        missing: list[list[tuple[bytes, int]]],
        compute: Callable[[list[int]], Array],
        label: str | None,
        total: int,
    ) -> None:
        """Call `compute` batch by batch and write shards; rows computed before an error are stored."""
        keys: list[bytes] = []
        rows: list[Array] = []
        started = time.monotonic()
        done = total - sum(map(len, missing))
        like = next((shard.rows[:0] for shard in self._groups[group].values()), None)
        bar = progress(label, total, done=done) if label else None
        try:
            with bar or contextlib.nullcontext():
                for chunk in missing:
                    values = _checked(compute([at for _, at in chunk]), len(chunk), like, kind)
                    like = values[:0]
                    keys += [key for key, _ in chunk]
                    rows.append(values)
                    full = sum(value.nbytes for value in rows) >= FLUSH_BYTES
                    if full or time.monotonic() - started >= FLUSH_SECONDS:
                        _write_shard(group, keys, rows)
                        keys, rows, started = [], [], time.monotonic()
                    if bar is not None:
                        bar.advance(len(chunk))
        finally:
            if rows:
                _write_shard(group, keys, rows)

    def _index(self, group: Path) -> dict[bytes, tuple[int, int]]:
        """(shard, row) of every key on disk, including new shards."""
        shards = self._groups.setdefault(group, {})
        for path in sorted(group.glob("*.safetensors")):
            if path.stem not in shards and (shard := _open_shard(path)):
                shards[path.stem] = shard
        known: dict[bytes, tuple[int, int]] = {}
        for number, shard in enumerate(shards.values()):
            for row, key in enumerate(shard.keys):
                known.setdefault(key, (number, row))
        return known

    def _same_shape(self, kind: str, shards: list[Array]) -> None:
        """Raise unless the rows of all shards have the same shape and type."""
        shapes = sorted({(shard.shape[1:], str(shard.dtype)) for shard in shards}, key=str)
        if len(shapes) > 1:
            raise M3BindError(
                f"cached rows of {kind!r} in {self.folder} have different shapes: {shapes}; "
                "the preprocessing changed under the same name, so give `kind` a new name or remove the cache folder"
            )


def _checked(values: Array, n: int, like: Array | None, kind: str) -> Array:
    """The computed rows, in C order, after checking number, type, shape (that of `like`) and finiteness."""
    values = np.ascontiguousarray(values)
    if values.dtype not in DTYPES.values() or values.ndim == 0 or len(values) != n:
        raise M3BindError(
            f"computing {kind!r} gave {values.dtype} {values.shape} for {n} items; "
            "needed: one row per item of float32, float16 or uint8"
        )
    if like is not None and (values.shape[1:], values.dtype) != (like.shape[1:], like.dtype):
        raise M3BindError(
            f"computing {kind!r} gave rows {values.dtype} {values.shape[1:]}, but earlier ones were {like.dtype} "
            f"{like.shape[1:]}; the preprocessing changed under the same name, so give `kind` a new name"
        )
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise NotFiniteError(f"computing {kind!r} gave NaN or infinity; check the weights and the inputs")
    return values


def _write_shard(group: Path, keys: list[bytes], rows: list[Array]) -> None:
    """Write one shard under the hash of its bytes."""
    table = np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), 32)
    name = next(name for name, dtype in DTYPES.items() if dtype == rows[0].dtype)
    size = sum(value.nbytes for value in rows)
    header = {
        "rows": {"dtype": name, "shape": [len(keys), *rows[0].shape[1:]], "data_offsets": [0, size]},
        "keys": {"dtype": "U8", "shape": [len(keys), 32], "data_offsets": [size, size + table.nbytes]},
    }
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # data aligned to 8 bytes
    pieces: list[Any] = [len(text).to_bytes(8, "little"), text, *(value.data for value in rows), table.data]
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    with atomic_path(group / f"{digest.hexdigest()}.safetensors") as temporary, open(temporary, "wb") as handle:
        for piece in pieces:
            handle.write(piece)


def _open_shard(path: Path) -> _Shard | None:
    """A verified shard, or None (and the file quarantined) if its bytes do not match its name."""
    try:
        if sha256_file(path) == path.stem:
            return _shard_in(path)
    except FileNotFoundError:
        return None  # another process quarantined it
    except (OSError, ValueError, KeyError, TypeError):  # not a plain file, or not a header of `_write_shard`
        pass
    log.warning("cache shard %s is damaged; it is quarantined and its rows are computed again", path.name)
    with contextlib.suppress(FileNotFoundError):
        os.replace(path, path.with_suffix(".damaged"))
    return None


def _shard_in(path: Path) -> _Shard:
    """The keys and rows of a file that `_write_shard` wrote; others raise ValueError, KeyError or TypeError."""
    with open(path, "rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if length > MAX_HEADER:
            raise ValueError("header too long")
        header = parse_json(handle.read(length), path)
    spec, begin = header["rows"], 8 + length
    dtype, shape = DTYPES[spec["dtype"]], tuple(spec["shape"])
    rows = np.memmap(path, dtype, "r", offset=begin + spec["data_offsets"][0], shape=shape)
    table = np.fromfile(path, np.uint8, offset=begin + header["keys"]["data_offsets"][0]).tobytes()
    if len(table) != 32 * len(rows):
        raise ValueError("not one key for each row")
    return _Shard([table[at : at + 32] for at in range(0, len(table), 32)], rows)
