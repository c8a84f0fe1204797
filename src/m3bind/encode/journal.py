"""The journal of an encoding: finished shards and decisions in a folder beside the result, OUT.parts.

    OUT.parts/job.json                 what is encoded, with which settings, into which shards
    OUT.parts/tower-MODALITY.json      how that tower computes; decided once, so that a resumed run gives the same bytes
    OUT.parts/NAME.safetensors         one finished shard
    OUT.parts/lock                     held by all who work on the job, so that nobody begins another one meanwhile

* `Journal`: that folder. * `Shard`: what one shard holds, with everything the final folder needs of it.

Files appear whole or not at all, and the first who decides is right, so any number of processes may share the folder.
A shard is named by the hash of the job's settings and of its rows.

Shapes: g items that could be encoded, p parts of slides and long recordings, d dimension of the space.
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
PATIENCE, PAUSE = 5.0, 0.1  # seconds to wait for others of the same job to begin it
_NAME = r"^[0-9a-f]{32}$"  # of a shard
_OURS = re.compile(r"^[0-9a-f]{32}\.safetensors$")
_FORM = [("float32", 2), ("float32", 2), ("float64", 2), ("int64", 1)]  # of rows, part_rows, places, part_of


class _JobFile(TypedDict):
    """What `job.json` says."""

    settings: dict[str, Any]
    items: Annotated[int, Field(ge=0)]
    shards: list[Annotated[str, Field(pattern=_NAME)]]


class _Counts(TypedDict):
    """What a shard says about itself."""

    items: Annotated[int, Field(ge=0)]
    bad: Annotated[int, Field(ge=0)]
    parts: Annotated[int, Field(ge=0)]


class _Decision(TypedDict):
    """What `tower-MODALITY.json` says."""

    dtype: Literal["float32", "bfloat16"]
    folded: bool


@dataclass
class Shard:
    """Consecutive items, encoded."""

    rows: Array  # (g, d) unit rows
    items: list[dict[str, str]]  # of each: id, modality, path and kept fields
    bad: list[dict[str, str]]  # of the others: path, modality, reason
    doubts: list[dict[str, str]]  # about items: path, modality, doubt; none, one or several of each
    version: str  # of the files (`items.version_of`)
    part_of: NDArray[np.int64]  # (p,) position in `items` of the item each part belongs to
    places: NDArray[np.float64]  # (p, 2) x, y of a tile in level-0 pixels; start in seconds and NaN of a window
    part_rows: Array  # (p, d) unit rows, or (0, d) where they are not kept


class Journal:
    """The folder of parts of one encoding."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._job: dict[str, Any] = {}

    @classmethod
    def beside(cls, out: Path) -> "Journal":
        """That of the result `out`."""
        return cls(out.with_name(f"{out.name}.parts"))

    def plan(self, settings: dict[str, Any], count: int, names: Sequence[str]) -> None:
        """Say what the job is: its settings, number of items, and the hash of the rows of each shard."""
        shards = [sha256_text(_json(settings), name)[:32] for name in names]
        self._job = {"settings": settings, "items": count, "shards": shards}

    @contextlib.contextmanager
    def begun(self) -> Iterator[None]:
        """Write the planned job down, removing what earlier jobs left that is of no use to it; nobody may change it.

        Raises:
            ConfigError: another process is at another job here.
            DiskError: the file system refused.
        """
        if self.folder.is_symlink():  # what is removed there would be somebody else's
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
        """Take `lock` together with others of this job; who comes alone begins it."""
        if _locked(lock, fcntl.LOCK_EX):
            self._begin()
        return _locked(lock, fcntl.LOCK_SH) and self._written() == self._job

    def _written(self) -> dict[str, Any]:
        try:
            return self._read()
        except FileNotFoundError:
            return {}

    def _read(self) -> dict[str, Any]:
        """What stands in the folder.

        Raises:
            FileNotFoundError, NotADirectoryError: nothing.
            StoredFileError: no job.
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
        wanted = {f"{name}.safetensors" for name in self._job["shards"]}
        stale = [file for file in self.folder.glob("*.safetensors") if _OURS.match(file.name)]
        stale = [file for file in stale if file.name not in wanted]
        if before.get("settings") != self._job["settings"]:
            stale += self.folder.glob("tower-*.json")
        for file in stale:
            file.unlink(missing_ok=True)

    @property
    def job(self) -> dict[str, Any]:
        """What was planned, now or by the process that made the folder.

        Raises:
            ConfigError: there is nothing.
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

    def decide(self, modality: str, decision: dict[str, Any]) -> dict[str, Any]:
        """Keep how a tower computes, unless another process was first; returns what holds."""
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

    def decided(self, modality: str) -> dict[str, Any] | None:
        """How a tower computes, once that is decided."""
        path = self.folder / f"tower-{modality}.json"
        return _decision_in(path) if path.exists() else None

    def decisions(self) -> dict[str, dict[str, Any]]:
        """All of them, by modality."""
        found = sorted(self.folder.glob("tower-*.json"))
        return {path.stem.removeprefix("tower-"): _decision_in(path) for path in found}

    def remove(self) -> None:
        """Remove the folder; everything in it is in the result."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _decision_in(path: Path) -> dict[str, Any]:
    """How a tower computes, as a file says."""
    return dict(checked(_Decision, read_json(path), path))


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _locked(lock: int, kind: int) -> bool:
    """Whether the lock was to be had; a file system without locks gives every one."""
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def write_shard(path: Path, shard: Shard) -> None:
    """Write one shard, whole or not at all."""
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
    """What `write_shard` wrote, of rows of `dim` numbers.

    Raises:
        ConfigError: damaged.
    """
    try:
        check_plain(path)
        with safe_open(path, "np") as file:
            found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a mapping
            version = file.metadata()["version"]
        items, bad, doubts = (
            checked(list[dict[str, str]], parse_json(found.pop(key).tobytes(), path), path)
            for key in ("items", "bad", "doubts")
        )
        shard = Shard(items=items, bad=bad, doubts=doubts, version=version, **found)
        if not _fits(shard, dim):
            raise ValueError("arrays do not fit each other")
        return shard
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: damaged; remove this file and encode again") from error


def _fits(shard: Shard, dim: int) -> bool:
    """Whether the arrays of a shard have the shapes that `Shard` gives, and the columns of its items are the same."""
    n, p = len(shard.items), len(shard.places)
    arrays: list[NDArray[Any]] = [shard.rows, shard.part_rows, shard.places, shard.part_of]
    if [(array.dtype.name, array.ndim) for array in arrays] != _FORM:
        return False
    shapes = (shard.rows.shape, shard.places.shape, shard.part_of.shape)
    same = all({"id", "modality", "path"} <= set(item) for item in shard.items)
    return (
        shapes == ((n, dim), (p, 2), (p,))
        and shard.part_rows.shape in ((0, dim), (p, dim))
        and (not p or 0 <= int(shard.part_of.min()) <= int(shard.part_of.max()) < n)
        and same
        and all(set(line) == {"path", "modality", "reason"} for line in shard.bad)
        and all(set(line) == {"path", "modality", "doubt"} for line in shard.doubts)
    )


def head_of(path: Path) -> tuple[str, dict[str, int]] | None:
    """Version and counts (items, bad, parts) of a shard; None where there is none, or it is no use."""
    try:
        check_plain(path)
        with safe_open(path, "np") as file:
            metadata = file.metadata()
            counts = checked(_Counts, parse_json(metadata["counts"], path), path)
            return metadata["version"], {"items": counts["items"], "bad": counts["bad"], "parts": counts["parts"]}
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        return None
