"""Finished shards -> an encoded archive (`encoded`).

* `assemble`: shards of one `Journal`. * `merge`: those of several, from several machines.

The folder appears (or is replaced) as a whole. One shard is in memory at a time.
Shapes: n items, p parts, d dimension of the space.
"""

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NotRequired

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field
from typing_extensions import TypedDict

from m3bind.core.files import atomic_path, sha256_file, sha256_text, write_json
from m3bind.core.stored import checked
from m3bind.encode.encoded import DOUBTS, FILES, MARKER, PART_ROWS, PARTS, Encoded, npy_header, open_encoded
from m3bind.encode.journal import JOB, Decision, Journal, Shard, head_of, read_shard
from m3bind.errors import ConfigError
from m3bind.models.embedding import Array
from m3bind.space.folder import guard_folder
from m3bind.space.unlike import UNLIKE

GROUP = 1 << 16  # rows of a table written at once


class _JobSettings(TypedDict):
    """The settings of a job that are stored in the archive; there are more."""

    space: str
    synthetic_space: bool
    dim: Annotated[int, Field(gt=0, le=1 << 16)]
    keep: list[str]
    gap_correct: bool
    batch: dict[str, Any]
    cut: dict[str, Any]
    unlike: NotRequired[bool]


class _Rows:
    """Writes (n, d) float32 to a .npy file in blocks; n is known at the end."""

    def __init__(self, path: Path, dim: int) -> None:
        self.count, self._dim = 0, dim
        self._file: BinaryIO = open(path, "wb")  # noqa: SIM115  see close
        self._file.write(npy_header(self.count, self._dim))

    def add(self, rows: Array) -> None:
        self._file.write(np.ascontiguousarray(rows, "<f4").data)
        self.count += len(rows)

    def close(self) -> None:
        self._file.seek(0)
        self._file.write(npy_header(self.count, self._dim))
        self._file.close()


class _Table:
    """Writes a Parquet table in groups of rows."""

    def __init__(self, path: Path, columns: dict[str, pa.DataType]) -> None:
        self._schema = pa.schema(list(columns.items()))
        self._writer = pq.ParquetWriter(path, self._schema)
        self._rows: list[dict[str, object]] = []

    def add(self, rows: list[dict[str, object]]) -> None:
        self._rows += rows
        while len(self._rows) >= GROUP:
            self._write(GROUP)

    def _write(self, count: int) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows[:count], self._schema))
        del self._rows[:count]

    def close(self) -> None:
        if self._rows:
            self._write(len(self._rows))
        self._writer.close()


def assemble(store: Journal, out: Path, others: Sequence[Journal] = ()) -> None:
    """Concatenate finished shards and replace `out` as a whole; shards missing in `store` are taken from `others`.

    Raises:
        ConfigError: a shard is missing or damaged, or `out` is not an encoded archive.
        DiskError: the file system refused.
    """
    guard_folder(out, MARKER, "an encoded archive")
    _remove_leftovers(out)
    settings = checked(_JobSettings, store.job["settings"], store.folder / JOB)
    decisions = _same_decisions([store, *others])
    files = [_shard_file(number, [store, *others]) for number in range(len(store.job["shards"]))]
    modalities: Counter[str] = Counter()
    counts, versions = Counter(done=0, bad=0, parts=0, doubted=0), []
    with atomic_path(out, directory=True) as temporary:
        columns = ["id", "modality", "path", *([UNLIKE] if settings.get("unlike") else [])]
        texts = [*columns, *(name for name in settings["keep"] if name not in columns)]
        rows = _Rows(temporary / FILES[0], settings["dim"])
        table = _Table(temporary / FILES[1], {"row": pa.int64(), **dict.fromkeys(texts, pa.string())})
        parts = _Table(temporary / PARTS, {"row": pa.int64(), **dict.fromkeys(("x", "y", "seconds"), pa.float64())})
        part_rows = _Rows(temporary / PART_ROWS, settings["dim"])
        pd.DataFrame(columns=["path", "modality", "reason"]).to_csv(temporary / FILES[2], index=False)
        for file in files:
            shard = read_shard(file, settings["dim"])
            table.add([{"row": rows.count + at, **item} for at, item in enumerate(shard.items)])
            parts.add([_part(rows.count, shard, at) for at in range(len(shard.places))])
            rows.add(shard.rows)
            part_rows.add(shard.part_rows)
            bad = pd.DataFrame(shard.bad, columns=["path", "modality", "reason"])
            bad.to_csv(temporary / FILES[2], index=False, mode="a", header=False)
            doubts = pd.DataFrame(shard.doubts, columns=["path", "modality", "doubt"])
            if len(doubts):
                doubts.to_csv(temporary / DOUBTS, index=False, mode="a", header=not counts["doubted"])
            modalities.update(item["modality"] for item in shard.items)
            counts.update(done=len(shard.items), bad=len(shard.bad), parts=len(shard.places))
            counts.update(doubted=doubts["path"].nunique())
            versions.append(shard.version)
        for writer in (rows, table, parts, part_rows):
            writer.close()
        for name, count in ((PARTS, counts["parts"]), (PART_ROWS, part_rows.count)):
            if not count:
                (temporary / name).unlink()
        content = {
            "format": "m3bind-encoded",
            "version": 2,
            "job": archive_hash(store, versions),
            "space": settings["space"],
            "synthetic_space": settings["synthetic_space"],
            "dim": settings["dim"],
            **counts,
            "modalities": dict(sorted(modalities.items())),
            "gap_corrected": settings["gap_correct"],
            "precision": {name: decision["dtype"] for name, decision in sorted(decisions.items())},
            "batch": settings["batch"],
            "cut": settings["cut"],
            "files": {path.name: sha256_file(path) for path in sorted(temporary.iterdir())},
        }
        write_json(temporary / MARKER, content)


def _part(first: int, shard: Shard, at: int) -> dict[str, object]:
    """A part as a row of its table; `first` is the row of the shard's first item."""
    x, y = shard.places[at].tolist()
    place = {"x": None, "y": None, "seconds": x} if np.isnan(y) else {"x": x, "y": y, "seconds": None}
    return {"row": first + int(shard.part_of[at]), **place}


def archive_hash(store: Journal, versions: Sequence[str]) -> str:
    """Identifies a finished archive: hash of its job and the versions of the shards' files."""
    return sha256_text(store.identity(), *versions)


def _remove_leftovers(out: Path) -> None:
    """Remove temporary folders that killed processes left beside `out`."""
    for path in out.parent.glob(f".{out.name}.*.tmp"):
        number = path.name.removeprefix(f".{out.name}.").removesuffix(".tmp")
        if path.is_dir() and number.isdigit() and not Path(f"/proc/{number}").exists():
            shutil.rmtree(path, ignore_errors=True)


def merge(folders: Sequence[Path | str], out: Path | str) -> Encoded:
    """Merge what `encode --shard` wrote on one or several machines; the same bytes as one run.

    Args:
        folders: folders of parts (OUT.parts). They are left unchanged.
        out: folder to write.

    Raises:
        ConfigError: the parts are of different jobs or were computed differently, or shards are missing.
        DiskError: the file system refused.
    """
    stores = [Journal(Path(os.path.abspath(folder))) for folder in folders]
    if not stores:
        raise ConfigError("nothing to merge: name the folders of parts that encode --shard wrote")
    for store in stores:
        if store.job != stores[0].job:
            raise ConfigError(
                f"{store.folder} and {stores[0].folder} are parts of different jobs; encode with the same command, "
                "space and files everywhere"
            )
    out = Path(os.path.abspath(out))
    assemble(stores[0], out, stores[1:])
    return open_encoded(out)


def _shard_file(number: int, stores: Sequence[Journal]) -> Path:
    """The file of a shard.

    Raises:
        ConfigError: it is missing.
    """
    for store in stores:
        if head_of(path := store.path(number)):
            return path
    raise ConfigError(
        f"{stores[0].folder}: shard {number + 1} of {len(stores[0].job['shards'])} is missing; run the same encode "
        "command again, or name the other folders of parts as well"
    )


def _same_decisions(stores: Sequence[Journal]) -> dict[str, Decision]:
    """How each tower computed, by modality.

    Raises:
        ConfigError: the machines differ.
    """
    decisions: dict[str, Decision] = {}
    for store in stores:
        for modality, decision in store.decisions().items():
            if decisions.setdefault(modality, decision) != decision:
                raise ConfigError(
                    f"{store.folder}: computed {modality} as {decision}, another machine as {decisions[modality]}; "
                    "encode again with --precision float32 everywhere"
                )
    return decisions
