"""The journal of an encoding: finished shards and decisions in OUT.parts, beside the result.

    OUT.parts/job.json                 settings, number of items, names of the shards
    OUT.parts/tower-MODALITY.json      how that tower computes; decided once, so that a resumed run gives the same bytes
    OUT.parts/NAME.safetensors         one finished shard
    OUT.parts/lock                     shared by the processes of the job; another job cannot begin meanwhile

* `Journal`: that folder. * `Shard`: one shard, with everything the final folder needs. * `Decision`: of one tower.

Files are written atomically and the first decision holds, so any number of processes may share the folder.
A shard is named by the hash of the job's settings and of its rows.

Shapes: g encoded items, p parts of slides and long recordings, d dimension of the space.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from typing_extensions import TypedDict

from m3bind.core.files import atomic_path, check_plain, open_lock, sha256_text, write_json
from m3bind.core.stored import checked, parse_json, read_json
from m3bind.errors import ConfigError, DiskError
from m3bind.models.embedding import Array

JOB, LOCK = "job.json", "lock"
PATIENCE, PAUSE = 5.0, 0.1  # seconds to wait until another process has begun the same job
_NAME = r"^[0-9a-f]{32}$"  # of a shard
_SHARD_FILE = re.compile(r"^[0-9a-f]{32}\.safetensors$")
_DTYPES = [("float32", 2), ("float32", 2), ("float64", 2), ("int64", 1)]  # of rows, part_rows, places, part_of


class _JobFile(TypedDict):
    """The schema of `job.json`."""

    settings: dict[str, Any]
    items: Annotated[int, Field(ge=0)]
    shards: list[Annotated[str, Field(pattern=_NAME)]]


class _Counts(TypedDict):
    """The counts in the metadata of a shard."""

    items: Annotated[int, Field(ge=0)]
    bad: Annotated[int, Field(ge=0)]
    parts: Annotated[int, Field(ge=0)]


class Decision(TypedDict):
    """How a tower computes: the schema of `tower-MODALITY.json`."""

    dtype: Literal["float32", "bfloat16"]
    folded: bool  # whether `towers.fuse_conv_bn` is applied


@dataclass
class Shard:
    """Consecutive items, encoded."""

    rows: Array  # (g, d) unit rows
    items: list[dict[str, str]]  # id, modality, path and the fields in `keep`
    bad: list[dict[str, str]]  # path, modality, reason of the unusable files
    doubts: list[dict[str, str]]  # path, modality, doubt; any number per item
    version: str  # `items.version_of` the files
    part_of: NDArray[np.int64]  # (p,) position in `items` of each part's item
    places: NDArray[np.float64]  # (p, 2) x, y of a tile in level-0 pixels; start in seconds and NaN of a window
    part_rows: Array  # (p, d) unit rows, or (0, d) if they are not stored


class Journal:
    """The folder of parts of one encoding."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._job: dict[str, Any] = {}

    @classmethod
    def beside(cls, out: Path) -> "Journal":
        """The journal of the result `out`."""
        return cls(out.with_name(f"{out.name}.parts"))

    def plan(self, settings: dict[str, Any], count: int, names: Sequence[str]) -> None:
        """Set the job: its settings, number of items, and the hash of the rows of each shard."""
        shards = [sha256_text(_json(settings), name)[:32] for name in names]
        self._job = {"settings": settings, "items": count, "shards": shards}

    @contextlib.contextmanager
    def begun(self) -> Iterator[None]:
        """Write the planned job, remove files of earlier jobs that it cannot use, and lock out other jobs.

        Raises:
            ConfigError: another process is working on another job here.
            DiskError: the file system refused.
        """
        if self.folder.is_symlink():  # files behind a link may belong to others
            raise ConfigError(f"{self.folder} is a link; remove it, or choose another --out")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = open_lock(self.folder / LOCK, 0o666)
        except OSError as error:
            raise DiskError(f"cannot write into {self.folder}: {error.strerror or error}") from error
        try:
            until = time.monotonic() + PATIENCE
            while not self._holds(lock):
                if time.monotonic() > until:
                    raise ConfigError(
                        f"{self.folder}: another process is encoding other files into it, or with other settings; "
                        "wait for it or choose another --out"
                    )
                time.sleep(PAUSE)
            yield
        finally:
            os.close(lock)

    def _holds(self, lock: int) -> bool:
        """Share `lock` with the processes of this job; the first one begins the job."""
        if _locked(lock, fcntl.LOCK_EX):
            self._begin()
        return _locked(lock, fcntl.LOCK_SH) and self._written() == self._job

    def _written(self) -> dict[str, Any]:
        """The stored job; empty without any."""
        try:
            return self._read()
        except FileNotFoundError:
            return {}

    def _read(self) -> dict[str, Any]:
        """The stored job.

        Raises:
            FileNotFoundError, NotADirectoryError: there is none.
            StoredFileError: it is damaged.
        """
        path = self.folder / JOB
        job: dict[str, Any] = read_json(path)
        checked(_JobFile, job, path)
        return job

    def _begin(self) -> None:
        before = self._written()
        if before == self._job:
            return
        write_json(self.folder / JOB, self._job)
        usable = {f"{name}.safetensors" for name in self._job["shards"]}
        shards = [file for file in self.folder.glob("*.safetensors") if _SHARD_FILE.match(file.name)]
        stale = [file for file in shards if file.name not in usable]
        if before.get("settings") != self._job["settings"]:
            stale += self.folder.glob("tower-*.json")
        for file in stale:
            file.unlink(missing_ok=True)

    @property
    def job(self) -> dict[str, Any]:
        """The job, planned now or by the process that wrote the folder.

        Raises:
            ConfigError: there is none.
        """
        try:
            self._job = self._job or self._read()
            return self._job
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ConfigError(f"{self.folder}: no parts of an encoding (no {JOB}); run encode --shard first") from error

    def identity(self) -> str:
        """Hash of the job."""
        return sha256_text(_json(self.job))

    def path(self, number: int) -> Path:
        """The file of a shard."""
        return self.folder / f"{self.job['shards'][number]}.safetensors"

    def decide(self, modality: str, decision: Decision) -> Decision:
        """Store how a tower computes, unless another process was first; returns the stored decision."""
        path = self.folder / f"tower-{modality}.json"
        draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
        write_json(draft, decision)
        try:
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)
        except OSError as error:
            raise DiskError(
                f"cannot write {path}: {error.strerror or error}; free space or choose another --out"
            ) from error
        finally:
            draft.unlink(missing_ok=True)
        return _decision_in(path)

    def decided(self, modality: str) -> Decision | None:
        """How a tower computes; None if not yet decided."""
        path = self.folder / f"tower-{modality}.json"
        return _decision_in(path) if path.exists() else None

    def decisions(self) -> dict[str, Decision]:
        """All stored decisions, by modality."""
        files = sorted(self.folder.glob("tower-*.json"))
        return {path.stem.removeprefix("tower-"): _decision_in(path) for path in files}

    def remove(self) -> None:
        """Remove the folder; the result holds everything in it."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _decision_in(path: Path) -> Decision:
    return checked(Decision, read_json(path), path)


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _locked(lock: int, kind: int) -> bool:
    """Whether the lock was acquired; always on a file system without locks."""
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def write_shard(path: Path, shard: Shard) -> None:
    """Write one shard atomically."""
    tensors = {
        "rows": shard.rows,
        "part_of": shard.part_of,
        "places": shard.places,
        "part_rows": shard.part_rows,
        "items": np.frombuffer(_json(shard.items).encode(), np.uint8),
        "bad": np.frombuffer(_json(shard.bad).encode(), np.uint8),
        "doubts": np.frombuffer(_json(shard.doubts).encode(), np.uint8),
    }
    counts = {"items": len(shard.items), "bad": len(shard.bad), "parts": len(shard.places)}
    metadata = {"version": shard.version, "counts": json.dumps(counts)}
    with atomic_path(path) as temporary:
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, temporary, metadata=metadata)


def read_shard(path: Path, dim: int) -> Shard:
    """Read a shard of rows of `dim` numbers.

    Raises:
        ConfigError: damaged.
    """
    try:
        check_plain(path)
        with safe_open(path, "np") as file:
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a mapping
            version = file.metadata()["version"]
        items, bad, doubts = (
            checked(list[dict[str, str]], parse_json(arrays.pop(key).tobytes(), path), path)
            for key in ("items", "bad", "doubts")
        )
        shard = Shard(items=items, bad=bad, doubts=doubts, version=version, **arrays)
        if not _fits(shard, dim):
            raise ValueError("arrays do not fit each other")
        return shard
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: damaged; remove this file and encode again") from error


def _fits(shard: Shard, dim: int) -> bool:
    """Whether arrays and columns of a shard are those that `Shard` documents."""
    n, p = len(shard.items), len(shard.places)
    arrays: list[NDArray[Any]] = [shard.rows, shard.part_rows, shard.places, shard.part_of]
    if [(array.dtype.name, array.ndim) for array in arrays] != _DTYPES:
        return False
    return (
        (shard.rows.shape, shard.places.shape, shard.part_of.shape) == ((n, dim), (p, 2), (p,))
        and shard.part_rows.shape in ((0, dim), (p, dim))
        and (not p or 0 <= int(shard.part_of.min()) <= int(shard.part_of.max()) < n)
        and all({"id", "modality", "path"} <= set(item) for item in shard.items)
        and all(set(line) == {"path", "modality", "reason"} for line in shard.bad)
        and all(set(line) == {"path", "modality", "doubt"} for line in shard.doubts)
    )


def head_of(path: Path) -> tuple[str, dict[str, int]] | None:
    """Version and counts (items, bad, parts) of a shard; None if it is missing or unusable."""
    try:
        check_plain(path)
        with safe_open(path, "np") as file:
            metadata = file.metadata()
            counts = checked(_Counts, parse_json(metadata["counts"], path), path)
            return metadata["version"], {"items": counts["items"], "bad": counts["bad"], "parts": counts["parts"]}
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        return None
