"""The journal of an encoding: finished shards and decisions in a folder beside the result, OUT.parts.

    OUT.parts/job.json                 what is encoded, with which settings, into which shards
    OUT.parts/tower-MODALITY.json      how that tower computes; decided once, so that a resumed run gives the same bytes
    OUT.parts/NAME.safetensors         one finished shard
    OUT.parts/lock                     held by all who work on the job, so that nobody begins another one meanwhile

* `Store`: that folder. * `Shard`: what one shard holds, with everything the final folder needs of it.

Files appear whole or not at all, and the first who decides is right, so any number of processes may share the folder.
A shard is named by the hash of the job's settings and of its rows.

Shapes: g items that could be encoded, p parts of slides and long recordings, d dimension of the space.
"""

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from m3bind.errors import ConfigError, DiskError
from m3bind.files import atomic_path, read_json, sha256_text, write_json
from m3bind.space.compute import Array

JOB, LOCK = "job.json", "lock"
PATIENCE, PAUSE = 5.0, 0.1  # seconds to wait for others of the same job to begin it


@dataclass
class Shard:
    """Consecutive items, encoded."""

    rows: Array  # (g, d) unit rows
    items: list[dict[str, str]]  # of each: id, modality, path and kept fields
    bad: list[dict[str, str]]  # of the others: path, modality, reason
    doubts: list[dict[str, str]]  # about items: path, modality, doubt; none, one or several of each
    version: str  # of the files (`_items.version_of`)
    part_of: NDArray[np.int64]  # (p,) position in `items` of the item each part belongs to
    places: NDArray[np.float64]  # (p, 2) x, y of a tile in level-0 pixels; start in seconds and NaN of a window
    part_rows: Array  # (p, d) unit rows, or (0, d) where they are not kept


class Store:
    """The folder of parts of one encoding."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._job: dict[str, Any] = {}

    @classmethod
    def beside(cls, out: Path) -> "Store":
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
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
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
            return dict(read_json(self.folder / JOB))
        except FileNotFoundError:
            return {}

    def _begin(self) -> None:
        before = self._written()
        if before == self._job:
            return
        write_json(self.folder / JOB, self._job)
        wanted = {f"{name}.safetensors" for name in self._job["shards"]}
        stale = [file for file in self.folder.glob("*.safetensors") if file.name not in wanted]
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
            self._job = self._job or dict(read_json(self.folder / JOB))
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
        return dict(read_json(path))

    def decided(self, modality: str) -> dict[str, Any] | None:
        """How a tower computes, once that is decided."""
        path = self.folder / f"tower-{modality}.json"
        return dict(read_json(path)) if path.exists() else None

    def decisions(self) -> dict[str, dict[str, Any]]:
        """All of them, by modality."""
        found = sorted(self.folder.glob("tower-*.json"))
        return {path.stem.removeprefix("tower-"): dict(read_json(path)) for path in found}

    def remove(self) -> None:
        """Remove the folder; everything in it is in the result."""
        shutil.rmtree(self.folder, ignore_errors=True)


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


def read_shard(path: Path) -> Shard:
    """What `write_shard` wrote.

    Raises:
        ConfigError: damaged.
    """
    try:
        with safe_open(path, "np") as file:
            found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a mapping
            version = file.metadata()["version"]
        items, bad, doubts = (json.loads(found.pop(key).tobytes()) for key in ("items", "bad", "doubts"))
        return Shard(items=items, bad=bad, doubts=doubts, version=version, **found)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: damaged; remove this file and encode again") from error


def head_of(path: Path) -> tuple[str, dict[str, int]] | None:
    """Version and counts (items, bad, parts) of a shard; None where there is none, or it is no use."""
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata()
            return metadata["version"], dict(json.loads(metadata["counts"]))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        return None
