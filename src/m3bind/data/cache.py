"""Cache of frozen features on disk, keyed by content, weights and preprocessing.

* `FeatureCache`: `get_or_compute(kind, weights_hash, items, compute, ...)` returns one row per item and calls `compute`
  only for missing ones.
* `Rows`: its result; an array read from the memory-mapped shards when indexed. * `Share`: one process's part of it.

On disk: `<folder>/<hash of (kind, weights)>/` with shards (`shards`) of `rows` (n, ...) float32, float16 or uint8, and
`<folder>/files/`, the memo of content keys (`file_keys`).

Batches are cut at fixed positions of the distinct items, wherever an earlier run stopped: a run that was killed and
resumed calls `compute` with exactly the batches of an uninterrupted one, hence gets the same bits.
"""

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3bind.core.files import sha256_text
from m3bind.core.progress import progress
from m3bind.data.file_keys import FileKeys
from m3bind.data.shards import DTYPES, KEY, ShardFolder
from m3bind.errors import M3BindError, NotFiniteError, ReadError

FLUSH_BYTES = 64 << 20  # a shard is written when this much has been computed ...
FLUSH_SECONDS = 10.0  # ... or after this time

Array = NDArray[Any]


class Rows:
    """n rows of one shape on disk, loaded when indexed.

    `rows[3]`, `rows[10:20]`, `rows[[5, 1, 1]]` and `np.asarray(rows)` give arrays in memory, in the order of the items.
    """

    def __init__(self, shards: ShardFolder, where: NDArray[np.int64], shape: tuple[int, ...], dtype: Any) -> None:
        """`where` (n, 2): shard and row of each item; `shape` and `dtype` are those of one row."""
        self._shards, self._where = shards, where
        self.shape: tuple[int, ...] = (len(where), *shape)
        self.dtype: np.dtype[Any] = np.dtype(dtype)

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, index: Any) -> Array:
        where = self._where[index]
        if where.ndim == 1:
            return np.asarray(self._shards.read(where[None])[0])
        return self._shards.read(where) if len(where) else np.empty((0, *self.shape[1:]), self.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self[:] if dtype is None else self[:].astype(dtype, copy=False)

    def __repr__(self) -> str:
        return f"Rows(shape={self.shape}, dtype={self.dtype}, shards={len(self._shards.shards)})"


@dataclass(frozen=True)
class Share:
    """The part of a pass that this process takes. `wait` returns when all processes have called it."""

    rank: int = 0
    world: int = 1
    wait: Callable[[], None] = lambda: None


class FeatureCache:
    """Feature rows of any number of kinds and weights in one folder. Processes may share it."""

    def __init__(self, folder: Path | str) -> None:
        """`folder` is created with the first row; it can be deleted at any time."""
        self.folder = Path(folder)
        self.files = FileKeys(self.folder / "files")
        self._groups: dict[str, ShardFolder] = {}
        self.share = Share()

    @contextlib.contextmanager
    def shared(self, share: Share) -> Iterator[None]:
        """Inside, all processes make the same calls, and each computes its part of what is missing."""
        before, self.share = self.share, share
        try:
            yield
        finally:
            self.share = before

    def shards(self, kind: str, weights_hash: str = "") -> ShardFolder:
        """The shards of one kind of rows, for reading and adding."""
        name = sha256_text(kind, weights_hash)[:32]
        if name not in self._groups:
            self._groups[name] = ShardFolder(self.folder / name, self._verified)
        return self._groups[name]

    def _verified(self, shard: Path) -> bool:
        """Whether the name of a shard is the hash of its bytes; hashed once, while size and time stamp stay."""
        try:
            return self.files.key(shard) == shard.stem
        except ReadError:  # not a plain file, or gone
            if not shard.exists():
                raise FileNotFoundError(shard) from None
            return False

    def file_keys(self, paths: Sequence[Path | str]) -> list[str]:
        """`file_key` of each path; unchanged files are not read again.

        Raises:
            ReadError: a file is missing.
        """
        keys = self.files.known(paths)
        found = [key or self.files.key(path) for key, path in zip(keys, paths, strict=True)]
        self.files.save()
        return found

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
        shards = self.shards(kind, weights_hash)
        keys = np.array([hashlib.sha256(item.encode("utf-8")).digest() for item in items], KEY)
        shards.refresh()
        where = shards.find(keys)
        if self.share.world > 1 or (where[:, 0] < 0).any():
            first: dict[bytes, int] = {}
            for position, key in enumerate(keys.tolist()):
                first.setdefault(key, position)
            distinct = list(first.values())
            chunks = [distinct[start : start + batch] for start in range(0, len(distinct), batch)]
            own = chunks[self.share.rank :: self.share.world]
            for each in (own, chunks):  # then what another process did not leave in this folder
                todo = where[:, 0] < 0
                if missing := [left for chunk in each if (left := [at for at in chunk if todo[at]])]:
                    self._compute(shards, kind, keys, missing, compute, progress, len(distinct))
                if each is own:
                    self.share.wait()
                shards.refresh()
                where = shards.find(keys)
        self.files.save()
        shape, dtype = self._row_type(kind, shards)
        return Rows(shards, where, shape, dtype)

    def _compute(
        self,
        shards: ShardFolder,
        kind: str,
        keys: Array,
        missing: list[list[int]],
        compute: Callable[[list[int]], Array],
        label: str | None,
        total: int,
    ) -> None:
        """Call `compute` batch by batch and write shards; rows computed before an error are stored."""
        done_at: list[int] = []
        rows: list[Array] = []
        started = time.monotonic()
        done = total - sum(map(len, missing))
        like = shards.tensor(0, "rows")[:0] if shards.shards else None
        bar = progress(label, total, done=done) if label else None
        try:
            with bar or contextlib.nullcontext():
                for chunk in missing:
                    values = _checked(compute(chunk), len(chunk), like, kind)
                    like = values[:0]
                    done_at += chunk
                    rows.append(values)
                    full = sum(value.nbytes for value in rows) >= FLUSH_BYTES
                    if full or time.monotonic() - started >= FLUSH_SECONDS:
                        self._write(shards, keys[done_at], rows)
                        done_at, rows, started = [], [], time.monotonic()
                    if bar is not None:
                        bar.advance(len(chunk))
        finally:
            if rows:
                self._write(shards, keys[done_at], rows)

    def _write(self, shards: ShardFolder, keys: Array, rows: list[Array]) -> None:
        path = shards.add(keys, {"rows": rows})
        self.files.add(path, path.stem)

    def _row_type(self, kind: str, shards: ShardFolder) -> tuple[tuple[int, ...], Any]:
        """Shape and type of a row.

        Raises:
            M3BindError: those of the shards differ.
        """
        kinds = {(shape[1:], dtype) for dtype, _, shape in (shard.tensors["rows"] for shard in shards.shards)}
        if len(kinds) > 1:
            raise M3BindError(
                f"cached rows of {kind!r} in {self.folder} have different shapes: {sorted(map(str, kinds))}; "
                "the preprocessing changed under the same name, so give `kind` a new name or remove the cache folder"
            )
        return kinds.pop() if kinds else ((), np.dtype(np.float32))


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
