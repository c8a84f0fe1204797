"""One pass over the files of a modality: each is hashed, decoded and preprocessed once, and its input or fault stored.

* `ingest`: content keys, faults and inputs of records; what earlier passes stored is not read again.

    records -> threads (hash, decode in a child process, preprocess, pack) -> shards of inputs (`data.packing`)
                                                                           -> shards of verdicts: what is unreadable

The cost is linear in the number of files, whatever is unreadable. Shards are written every few seconds, so a killed
pass resumes there. Several processes take shares of one pass through the common cache folder. If the inputs need more
disk than allowed, only the verdicts are stored, and inputs are read from their files at every access (`LiveInputs`).

Hashing reads a file in the thread that then has it decoded, so the decoder finds it in the system's page cache.
"""

import contextlib
import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from m3bind.core.files import sha256_text
from m3bind.core.progress import progress
from m3bind.core.stored import parse_json
from m3bind.core.version import __version__
from m3bind.data.cache import FLUSH_BYTES, FLUSH_SECONDS, FeatureCache
from m3bind.data.file_keys import FileKeys, with_rescale
from m3bind.data.packing import PackedInput
from m3bind.data.prefetch import ahead
from m3bind.data.records import Records
from m3bind.data.shards import KEY
from m3bind.errors import M3BindError, ReadError, in_words, is_lasting
from m3bind.modalities.formats.limits import LIMITS
from m3bind.pipeline.stored_inputs import FileReader, Inputs, LiveInputs, StoredInputs

BLOCK = 64  # consecutive records of one share
TEXT = 512  # bytes of a verdict
LIMIT = 4  # files prefetched by each thread


@dataclass
class _Found:
    """What one file came to."""

    position: int
    key: str | None = None  # None: the file could not be hashed
    row: PackedInput | None = None
    reason: str = ""
    lasting: bool = True
    remembered: bool = False  # the cache knows the key

    @property
    def nbytes(self) -> int:
        return self.row.nbytes if self.row is not None else 0


@dataclass
class Ingested:
    """The result of a pass: content key of each record (None: no such file), reasons of unreadable ones, inputs."""

    keys: list[str | None]
    faults: dict[int, str]
    inputs: Inputs  # of all records; those with faults cannot be accessed


def ingest(
    records: Records,
    reader: FileReader,
    cache: FeatureCache,
    workers: int = 1,
    limit: float = 20e9,
) -> Ingested:
    """Make the inputs of `records` available, each file decoded at most once by all passes together.

    Args:
        records: of one modality.
        reader: reads them.
        cache: where inputs, verdicts and content keys are stored.
        workers: threads, each with a child process that decodes.
        limit: bytes of all inputs; if they need more, they are not stored.

    Processes take shares of the pass (`cache.share`); files that are left then are read by each process.

    Raises:
        M3BindError: stored inputs have another shape.
    """
    share = cache.share
    work = _Pass(records, reader, cache, limit)
    work.look_up(fresh=True)
    todo = work.left()
    mine = [at for at in todo if at // BLOCK % share.world == share.rank]
    if mine:
        work.run(mine, workers)
    share.wait()
    if todo:
        work.look_up()
        if left := work.left():  # of processes that see other time stamps, or fell short
            work.run(left, workers)
            work.look_up()
    return work.result(workers)


class _Pass:
    """The state of one pass."""

    def __init__(self, records: Records, reader: FileReader, cache: FeatureCache, limit: float) -> None:
        self.records, self.paths, self.rescale = records, records.paths, records.rescale
        self.reader, self.cache, self.limit = reader, cache, limit
        self.rows = cache.shards(f"input/{reader.kind}")
        self.verdicts = cache.shards(f"verdict/{reader.kind}")
        self.keys: list[str | None] = []
        self.where = np.empty((0, 2), np.int64)
        self.size: int | None = None  # bytes of one stored input
        self.shape: tuple[int, ...] | None = None
        self._readable = np.empty(0, bool)
        self._faults: dict[int, str] = {}
        self._found: dict[int, _Found] = {}  # own results that the cache may not hold: of fresh and unreadable files
        self._reasons: dict[bytes, str] = {}  # of own results, by `_fault_key`
        self._claimed: set[bytes] = set()  # beginnings of `_fault_key`s of files that are being read, or were
        self._lock = threading.Lock()

    # ---- what is known

    def look_up(self, fresh: bool = False) -> None:
        """Find keys, rows and verdicts. `fresh`: verdicts that need not last are disregarded."""
        keys = self.cache.files.known(self.paths)
        self.keys = [key and with_rescale(key, given) for key, given in zip(keys, self.rescale, strict=True)]
        for at, found in self._found.items():
            self.keys[at] = self.keys[at] or found.key
        self.rows.refresh()
        self.verdicts.refresh()
        table = np.array([bytes.fromhex(key) if key else b"" for key in self.keys], KEY)
        self.where = self.rows.find(table)
        stored = self.where[:, 0] >= 0
        self._readable = stored.copy()
        rest = np.flatnonzero(~stored)
        verdict = self.verdicts.find(table[rest])
        self._readable[rest] = verdict[:, 0] >= 0
        if self.size is None:
            self._sizes(verdict[verdict[:, 0] >= 0])
        self._faults = {}
        for position in np.flatnonzero(~self._readable).tolist():
            if (reason := self._fault(position, fresh)) is not None:
                self._faults[position] = reason

    def _sizes(self, verdicts: NDArray[np.int64]) -> None:
        """Bytes and shape of an input, by the first stored one."""
        stored = self.where[self.where[:, 0] >= 0]
        if len(stored):
            dtype, _, shape = self.rows.shards[stored[0, 0]].tensors["rows"]
            self.shape = shape[1:]
            self.size = dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
        elif len(verdicts):
            verdict = self._verdict(verdicts[:1])
            self.shape, self.size = tuple(verdict["shape"]), int(verdict["bytes"])

    def _fault(self, position: int, fresh: bool) -> str | None:
        """Why a file is unreadable, as far as known."""
        key = self.keys[position]
        found = self._found.get(position)
        if found is not None and found.reason:
            return found.reason
        if key is None:
            return None
        fault = _fault_key(key, self.paths[position])
        return self._reasons.get(fault) or self._stored_fault(fault, fresh)

    def _stored_fault(self, fault: bytes, fresh: bool) -> str | None:
        where = self.verdicts.find(np.array([fault], KEY))
        if where[0, 0] < 0:
            return None
        verdict = self._verdict(where)
        return None if fresh and not verdict["lasting"] else str(verdict["reason"])

    def _verdict(self, where: NDArray[np.int64]) -> dict[str, Any]:
        text = self.verdicts.read(where).tobytes().rstrip(b"\0")
        verdict: dict[str, Any] = parse_json(text, self.verdicts.folder)
        return verdict

    def live(self) -> bool:
        """Whether the inputs need more disk than allowed."""
        return self.size is not None and self.size * len(self.records) > self.limit

    def left(self) -> list[int]:
        """Positions of the files that must be read."""
        done = self._readable if self.live() else self.where[:, 0] >= 0
        return [at for at in np.flatnonzero(~done).tolist() if at not in self._faults]

    # ---- the pass

    def run(self, positions: Sequence[int], workers: int) -> None:
        """Read files and store what they came to."""
        name = self.records[0].modality
        writer = _Writer(self.cache, self.rows.add, self.verdicts.add)
        done, bad = len(self.records) - len(positions), 0
        with progress(f"read {name}", len(self.records), done=done) as bar, _single_threaded(workers):
            try:
                for found in ahead(self._read, positions, workers, LIMIT * workers, lambda found: found.nbytes):
                    self._take(found, writer)
                    bad += bool(found.reason)
                    bar.advance(1, note=f"{bad} bad")
            finally:
                writer.flush()

    def _read(self, position: int) -> _Found:
        path, rescale = self.paths[position], self.rescale[position]
        try:
            content, remembered = self.cache.files.look_up(path)
        except ReadError as error:
            return _Found(position, reason=error.advice)
        except OSError as error:
            return _Found(position, reason=f"not readable: {in_words(error)}")
        key = with_rescale(content, rescale)
        found = _Found(position, key, remembered=remembered)
        fault = _fault_key(key, path)
        with self._lock:
            claim = fault[:16]
            if claim in self._claimed:  # the same content at another place
                return found
            self._claimed.add(claim)
        if self._stored(key, fault):
            return found
        try:
            return replace(found, row=self.reader.read(path, rescale))
        except ReadError as error:
            return replace(found, reason=error.advice, lasting=is_lasting(error))

    def _stored(self, key: str, fault: bytes) -> bool:
        """Whether this content needs no decoding: the file was moved or touched."""
        table = np.array([bytes.fromhex(key)], KEY)
        if self.rows.find(table)[0, 0] >= 0 or (self.live() and self.verdicts.find(table)[0, 0] >= 0):
            return True
        return self._stored_fault(fault, fresh=True) is not None

    def _take(self, found: _Found, writer: "_Writer") -> None:
        row = found.row
        if found.reason or not found.remembered:
            self._found[found.position] = replace(found, row=None)
        if found.key is None:
            return
        if row is not None:
            self.shape = self.shape or row.array.shape
            if row.array.shape != self.shape:
                raise M3BindError(
                    f"preprocessing gave inputs of shapes {self.shape} and {row.array.shape}; the preprocessing of "
                    f"{type(self.reader.model).__name__} must give one shape, or changed under the same name"
                )
            self.size = self.size or row.nbytes
            if self.live():
                content = {"shape": row.array.shape, "bytes": row.nbytes}
                writer.add_verdict(bytes.fromhex(found.key), content)
            else:
                writer.add_row(bytes.fromhex(found.key), row)
        elif found.reason:
            fault = _fault_key(found.key, self.paths[found.position])
            self._reasons[fault] = found.reason
            writer.add_verdict(fault, {"reason": found.reason, "lasting": found.lasting})
        writer.flush_if_due()

    def result(self, workers: int) -> Ingested:
        """After the last `look_up`."""
        good = np.ones(len(self.records), bool)
        good[list(self._faults)] = False
        inputs: Inputs
        if (self.where[good, 0] >= 0).all():
            inputs = StoredInputs(self.rows, self.where, self.reader.levels)
        else:
            key_of = partial(_key_of, self.cache.files)
            inputs = LiveInputs(self.reader, self.records, self.shape or (1,), workers, key_of, self.keys)
        return Ingested(self.keys, self._faults, inputs)


@dataclass
class _Writer:
    """Rows and verdicts that are not yet in a shard."""

    cache: FeatureCache
    add_rows: Callable[..., Path]
    add_verdicts: Callable[..., Path]
    _rows: dict[tuple[str, str], list[tuple[bytes, PackedInput]]] = field(default_factory=lambda: defaultdict(list))
    _verdicts: list[tuple[bytes, NDArray[np.uint8]]] = field(default_factory=list)
    _bytes: int = 0
    _since: float = field(default_factory=time.monotonic)

    def add_row(self, key: bytes, row: PackedInput) -> None:
        """One input."""
        self._rows[row.form, row.array.dtype.name].append((key, row))
        self._bytes += row.nbytes

    def add_verdict(self, key: bytes, content: dict[str, Any]) -> None:
        """What is known about a file without an input."""
        text = json.dumps(content, separators=(",", ":")).encode()
        while len(text) > TEXT:
            content["reason"] = content["reason"][:-16]
            text = json.dumps(content, separators=(",", ":")).encode()
        self._verdicts.append((key, np.frombuffer(text.ljust(TEXT, b"\0"), np.uint8)[None]))

    def flush_if_due(self) -> None:
        """Write after 64 MiB or ten seconds."""
        if self._bytes >= FLUSH_BYTES or time.monotonic() - self._since >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write shards of rows and verdicts, then the keys of the files."""
        for (form, _), rows in self._rows.items():
            tensors: dict[str, list[NDArray[Any]]] = {"rows": [row.array[None] for _, row in rows]}
            if form == "step":
                tensors["scale"] = [row.scale[None] for _, row in rows if row.scale is not None]
            self._write(self.add_rows, [key for key, _ in rows], tensors)
        if self._verdicts:
            texts: dict[str, list[NDArray[Any]]] = {"rows": [text for _, text in self._verdicts]}
            self._write(self.add_verdicts, [key for key, _ in self._verdicts], texts)
        self._rows.clear()
        self._verdicts.clear()
        self.cache.files.save()
        self._bytes, self._since = 0, time.monotonic()

    def _write(self, add: Callable[..., Path], keys: list[bytes], tensors: dict[str, list[NDArray[Any]]]) -> None:
        path = add(np.array(keys, KEY), tensors)
        self.cache.files.add(path, path.stem)


def _key_of(files: FileKeys, path: str, rescale: tuple[float, float] | None) -> str:
    return with_rescale(files.key(path), rescale)


def _fault_key(key: str, path: str) -> bytes:
    """Everything that a fault depends on: content, ending of the name, a note beside an array, limits and version."""
    place = Path(path)
    note = ""
    if place.suffix == ".npy" and (beside := place.with_suffix(".json")).is_file():
        note = f"{beside.stat().st_size} {beside.stat().st_mtime_ns}"
    ending = "".join(place.suffixes[-2:]).lower()
    return bytes.fromhex(sha256_text(key, ending, note, str(LIMITS), __version__))


@contextlib.contextmanager
def _single_threaded(workers: int) -> Iterator[None]:
    """With several workers, each operation of PyTorch uses one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if workers > 1 else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
