"""An archive of files -> embeddings on disk, however often the run is interrupted and whatever some files look like.

    OUT/embeddings.npy    (n, d) float32 unit rows
    OUT/items.parquet     row, modality, path (and what `keep` asked for), one per embedding
    OUT/quarantine.csv    path, modality, reason of every file that could not be used
    OUT/encoded.json      which space, dimension, counts, gap correction, hash of embeddings.npy

* `encode_files`: makes that folder. * `open_encoded`: opens it, memory-mapped. * `collect`: files below folders.

Items are cut into shards at fixed positions; each finished shard is kept beside OUT until all are done, so a run that
was killed goes on with the next shard and ends with the same bytes. OUT appears (or is replaced) as a whole.
Files are decoded by threads, a batch ahead of the towers. Memory does not grow with the number of files.

Shapes: n items, d dimension of the space.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor

from m3bind.errors import ConfigError, M3BindError, ReadError, SpaceError
from m3bind.files import atomic_path, read_json, sha256_file, sha256_text, write_json
from m3bind.modalities._files import files_below
from m3bind.progress import Progress, progress
from m3bind.space.bundle import Space
from m3bind.space.compute import Array, correct_gap
from m3bind.space.folder import damaged, guard_folder, read_whole

MARKER = "encoded.json"
FILES = ("embeddings.npy", "items.parquet", "quarantine.csv")
SHARD = 1024  # items per shard
Decoded = Tensor | str  # a prepared input, or the reason why there is none


class Item(Protocol):
    """What a row of a manifest must offer."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def modality(self) -> str:
        """Its modality."""


@dataclass
class Encoded:
    """An encoded archive, opened."""

    folder: Path
    embeddings: Array  # (n, d), memory-mapped
    items: pd.DataFrame  # row, modality, path, ...
    fingerprint: str  # of the space
    gap_corrected: bool
    bad: int  # files in quarantine.csv
    modalities: dict[str, int] = field(default_factory=dict)  # items per modality

    def __len__(self) -> int:
        return len(self.embeddings)

    def __repr__(self) -> str:
        counts = ", ".join(f"{name} {n}" for name, n in self.modalities.items())
        return f"Encoded({self.folder}: {len(self)} done ({counts}), {self.bad} bad)"


def encode_files(
    space: Space,
    sources: Sequence[Path | str | Item],
    out: Path | str,
    modality: str | None = None,
    *,
    batch: int = 32,
    gap_correct: bool = False,
    keep: Sequence[str] = (),
    workers: int | None = None,
) -> Encoded:
    """Encode files into the folder `out`, setting bad ones aside; the same call continues an interrupted run.

    Args:
        space: a saved space.
        sources: paths of one modality (folders are searched), or records of a manifest.
        out: folder to write; an older encoding there is replaced at the end.
        modality: of bare paths; for records, encode only those of this modality.
        batch: files per forward pass.
        gap_correct: store embeddings without their modality's mean, for image-to-image search only.
        keep: further fields of the records to store (e.g. "id", "label"); none by default: they may identify people.
        workers: decoding threads; default one per core, at most 4.

    Raises:
        ConfigError: nothing to encode, no modality given, a field no record has, or `out` is something else.
        UnknownNameError: the space does not hold a modality.
        SpaceError: the space was never saved, or holds no mean for the gap correction.
        DiskError: the file system refused; finished shards stay.
    """
    out = Path(os.path.abspath(out))
    guard_folder(out, MARKER, "an encoded archive")
    rows = _rows(sources, modality, keep)
    for name in sorted({row["modality"] for row in rows}):
        space.model(name)
        if gap_correct:
            space.image_mean(name)
    job = [space.fingerprint, str(batch), str(gap_correct), *sorted(keep)]
    store = out.with_name(f".{out.name}.parts")
    shards = [_Shard(job, rows[start : start + SHARD], store) for start in range(0, len(rows), SHARD)]
    identity = sha256_text(*(shard.name for shard in shards))
    if (out / MARKER).exists() and read_json(out / MARKER).get("job") == identity:
        return open_encoded(out)
    todo = [shard for shard in shards if not shard.path.exists()]
    done = len(rows) - sum(len(shard.rows) for shard in todo)
    workers = workers or min(4, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool, progress(f"encode into {out.name}", len(rows), done=done) as bar:
        encoder = _Encoder(space, batch, gap_correct, pool, bar)
        for shard in todo:
            encoder.run(shard)
    _publish(space, out, shards, identity, gap_correct, keep)
    shutil.rmtree(store, ignore_errors=True)
    return open_encoded(out)


def collect(folder: Path | str, modality: str) -> list[Path]:
    """All a modality could read below a folder, sorted (hidden files left out); see `modalities._files`.

    Raises:
        UnknownNameError: no such modality.
    """
    return sorted(files_below(folder, [modality]))


def _rows(sources: Sequence[Path | str | Item], modality: str | None, keep: Sequence[str]) -> list[dict[str, str]]:
    """One mapping of texts per item: modality, path and what is kept."""
    rows: list[dict[str, str]] = []
    for source in sources:
        if not isinstance(source, str | Path):
            if modality in (None, source.modality):
                absent = [name for name in keep if not hasattr(source, name)]
                if absent:
                    raise ConfigError(f"keep: records have no field {absent[0]!r}")
                kept = {name: str(getattr(source, name)) for name in keep}
                rows.append({"modality": source.modality, "path": str(source.path), **kept})
            continue
        if modality is None:
            raise ConfigError(f"which modality is {source}? Give modality=, or a manifest")
        files = collect(source, modality) if Path(source).is_dir() else [source]
        rows += [{"modality": modality, "path": str(path)} for path in files]
    if not rows:
        raise ConfigError("nothing to encode: no files given or found" + (f" for {modality}" if modality else ""))
    once: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        once.setdefault((row["modality"], row["path"]), row)
    return list(once.values())


def _version(row: Mapping[str, str]) -> str:
    """Size and time stamp of a file, so that a changed file is encoded again."""
    stats = []
    path = Path(row["path"])
    parts = sorted(path.iterdir()) if path.is_dir() else [path, Path(f"{path}.hea"), Path(f"{path}.dat")]
    for part in parts:
        try:
            stat = part.stat()
        except OSError:
            continue
        stats.append(f"{stat.st_size}|{stat.st_mtime_ns}")
    return ",".join(stats)


class _Shard:
    """Consecutive items of a job and the file that holds them once they are encoded."""

    def __init__(self, job: Sequence[str], rows: Sequence[Mapping[str, str]], store: Path) -> None:
        self.rows = rows
        self.name = sha256_text(*job, json.dumps(rows), *map(_version, rows))
        self.path = store / f"{self.name}.safetensors"

    def write(self, embeddings: Array, index: NDArray[np.int64], bad: Mapping[int, str]) -> None:
        """`embeddings` (m, d) of the items at `index` (m,), and the reasons of the others."""
        with atomic_path(self.path) as temporary:
            save_file({"rows": embeddings, "index": index}, temporary, metadata={"bad": json.dumps(bad)})

    def read(self) -> tuple[Array, NDArray[np.int64], dict[int, str]]:
        """What `write` wrote."""
        with safe_open(self.path, "np") as file:
            bad = json.loads(file.metadata()["bad"])
            return file.get_tensor("rows"), file.get_tensor("index"), {int(key): why for key, why in bad.items()}


class _Encoder:
    """Encodes shards: decoding in threads, a batch ahead of the towers."""

    def __init__(self, space: Space, batch: int, gap_correct: bool, pool: ThreadPoolExecutor, bar: Progress) -> None:
        self.space, self.batch, self.gap_correct, self.pool, self.bar = space, batch, gap_correct, pool, bar
        self._bad = 0  # in this run

    def run(self, shard: _Shard) -> None:
        """Encode one shard and write it."""
        embeddings = np.zeros((len(shard.rows), self.space.dim), np.float32)
        bad: dict[int, str] = {}
        for modality, positions, decoded in self._decoded(shard.rows):
            inputs: dict[int, Tensor] = {}
            for position, value in zip(positions, decoded):
                if isinstance(value, str):
                    bad[position] = value
                else:
                    inputs[position] = value
            bad |= self._embed(modality, inputs, embeddings)
            self.bar.advance(len(positions), note=f"{self._bad + len(bad)} bad")
        index = np.array([position for position in range(len(shard.rows)) if position not in bad], np.int64)
        if self.gap_correct:
            for name, members in _by_modality([shard.rows[position] for position in index]).items():
                at = index[members]
                embeddings[at] = correct_gap(embeddings[at], self.space.image_mean(name))
        self._bad += len(bad)
        shard.write(embeddings[index], index, bad)

    def _decoded(self, rows: Sequence[Mapping[str, str]]) -> Iterator[tuple[str, list[int], list[Decoded]]]:
        """(modality, positions, inputs or reasons) of each batch; the next one is being decoded meanwhile."""
        batches = [
            (modality, members[start : start + self.batch])
            for modality, members in _by_modality(rows).items()
            for start in range(0, len(members), self.batch)
        ]

        def submit(number: int) -> list[Future[Decoded]]:
            if number >= len(batches):
                return []
            modality, members = batches[number]
            return [self.pool.submit(self._decode, rows[position]["path"], modality) for position in members]

        ahead = submit(0)
        for number, (modality, members) in enumerate(batches):
            now, ahead = ahead, submit(number + 1)
            yield modality, members, [future.result() for future in now]

    def _decode(self, path: str, modality: str) -> Decoded:
        """The input, or why there is none. Decoders of foreign formats raise anything."""
        try:
            return self.space.read(path, modality)
        except Exception as error:
            return _reason(error)

    def _embed(self, modality: str, inputs: Mapping[int, Tensor], out: Array) -> dict[int, str]:
        """Write the embeddings of one batch into `out`; reasons of those that have none."""
        if not inputs:
            return {}
        try:
            out[list(inputs)] = self.space.encode_inputs(list(inputs.values()), modality)
            return {}
        except (M3BindError, RuntimeError, ValueError) as error:
            if len(inputs) == 1:
                return dict.fromkeys(inputs, _reason(error))
        bad: dict[int, str] = {}
        for position, value in inputs.items():  # one of them is at fault
            bad |= self._embed(modality, {position: value}, out)
        return bad


def _by_modality(rows: Sequence[Mapping[str, str]]) -> dict[str, list[int]]:
    """Positions of the rows of each modality."""
    groups: dict[str, list[int]] = {}
    for position, row in enumerate(rows):
        groups.setdefault(row["modality"], []).append(position)
    return groups


def _reason(error: Exception) -> str:
    """One line that says why a file cannot be used, without its path."""
    text = error.reason if isinstance(error, ReadError) else str(error)
    if not isinstance(error, M3BindError):
        text = f"{type(error).__name__}: {text}"
    return " ".join(text.split())[:300]


def _publish(
    space: Space, out: Path, shards: Sequence[_Shard], identity: str, gap_correct: bool, keep: Sequence[str]
) -> None:
    """Put the shards together and replace `out` as a whole."""
    parts = [shard.read()[1:] for shard in shards]
    good = [shard.rows[position] for shard, (index, _) in zip(shards, parts) for position in index]
    bad = [
        {**_named(shard.rows[at]), "reason": why}
        for shard, (_, b) in zip(shards, parts)
        for at, why in sorted(b.items())
    ]
    with atomic_path(out, directory=True) as temporary:
        table = temporary / "embeddings.npy"
        _write_table(table, shards, len(good), space.dim)
        items = pd.DataFrame(good, columns=["modality", "path", *keep], dtype=str).fillna("")
        items.insert(0, "row", np.arange(len(good), dtype=np.int64))
        items.to_parquet(temporary / "items.parquet", index=False)
        pd.DataFrame(bad, columns=["path", "modality", "reason"]).to_csv(temporary / "quarantine.csv", index=False)
        content = {
            "format": "m3bind-encoded",
            "version": 1,
            "job": identity,
            "space": space.fingerprint,
            "synthetic_space": space.synthetic,
            "dim": space.dim,
            "done": len(good),
            "bad": len(bad),
            "modalities": {name: len(members) for name, members in _by_modality(good).items()},
            "gap_corrected": gap_correct,
            "files": {name: sha256_file(temporary / name) for name in FILES},
        }
        write_json(temporary / MARKER, content)


def _named(row: Mapping[str, str]) -> dict[str, str]:
    return {"path": row["path"], "modality": row["modality"]}


def _write_table(path: Path, shards: Sequence[_Shard], n: int, dim: int) -> None:
    """(n, dim) float32 in .npy, one shard in memory at a time."""
    with open(path, "wb") as handle:
        header = {"descr": "<f4", "fortran_order": False, "shape": (n, dim)}
        np.lib.format.write_array_header_1_0(handle, header)
        for shard in shards:
            handle.write(np.ascontiguousarray(shard.read()[0], "<f4").data)


def open_encoded(folder: Path | str) -> Encoded:
    """Open what `encode_files` wrote, after verifying its hashes.

    Raises:
        SpaceError: not an encoded archive, or damaged; names the file.
    """
    folder = Path(folder)
    return read_whole(folder, MARKER, lambda: _open(folder))


def _open(folder: Path) -> Encoded:
    try:
        content = read_json(folder / MARKER)
        hashes = {name: content["files"][name] for name in FILES}
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SpaceError(f"{folder}: not an encoded archive, it holds no {MARKER}; run encode first") from error
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(folder / MARKER, "encode again into a new folder") from error
    for name, digest in hashes.items():
        if not (folder / name).is_file() or sha256_file(folder / name) != digest:
            raise damaged(folder / name, "encode again into a new folder")
    embeddings = np.load(folder / "embeddings.npy", mmap_mode="r" if content["done"] else None)
    items = pd.read_parquet(folder / "items.parquet")
    return Encoded(
        folder,
        embeddings,
        items,
        content["space"],
        content["gap_corrected"],
        content["bad"],
        content["modalities"],
    )
