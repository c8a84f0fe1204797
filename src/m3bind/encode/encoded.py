"""An encoded archive on disk: put together from finished shards, and opened.

    OUT/embeddings.npy        (n, d) float32 unit rows
    OUT/items.parquet         row, id, modality, path (and what `keep` asked for), one per embedding
    OUT/quarantine.csv        path, modality, reason of every file that could not be used
    OUT/doubts.csv            path, modality, doubt of files that were read although something looks wrong, if any
    OUT/parts.parquet         row, x, y, seconds of every tile of a slide and window of a recording, where there are any
    OUT/part_embeddings.npy   (p, d) float32 unit rows of those, where they were asked for
    OUT/encoded.json          which space, how it was computed, counts, hash of each file

* `open_encoded`: opens it, memory-mapped -> `Encoded`.
* `assemble`: shards of one `Journal` -> that folder. * `merge`: those of several, from several machines.

OUT appears (or is replaced) as a whole. One shard is in memory at a time.
Shapes: n items, p parts, d dimension of the space.
"""

import os
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, NotRequired

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field
from typing_extensions import TypedDict

from m3bind.core.columns import text_columns
from m3bind.core.files import atomic_path, sha256_file, sha256_text, write_json
from m3bind.core.stored import StoredFileError, checked, read_json, read_parquet
from m3bind.encode.journal import JOB, Journal, head_of, read_shard
from m3bind.errors import ConfigError, SpaceError
from m3bind.models.embedding import Array
from m3bind.space.folder import guard_folder
from m3bind.space.reader import damaged, read_whole

MARKER = "encoded.json"
_REMEDY = "encode again into a new folder"
FILES = ("embeddings.npy", "items.parquet", "quarantine.csv")
PARTS, PART_ROWS, DOUBTS = "parts.parquet", "part_embeddings.npy", "doubts.csv"
GROUP = 1 << 16  # rows of a table written at once
_HEAD = 128  # bytes of a .npy file before its numbers
_KINDS = {pa.string(), pa.large_string(), pa.int64(), pa.float64(), pa.null()}
_MOST_TABLE = 16 << 30  # bytes of a table
Count = Annotated[int, Field(ge=0, lt=1 << 40)]
_Name = Literal[
    "embeddings.npy", "items.parquet", "quarantine.csv", "parts.parquet", "part_embeddings.npy", "doubts.csv"
]


class _Content(TypedDict):
    """What `encoded.json` says; more is allowed."""

    format: Literal["m3bind-encoded"]
    space: str
    dim: Annotated[int, Field(gt=0, le=1 << 16)]
    done: Count
    bad: Count
    gap_corrected: bool
    parts: NotRequired[Count]
    doubted: NotRequired[Count]
    modalities: dict[str, Count]
    precision: NotRequired[dict[str, str]]
    files: dict[_Name, str]


@dataclass
class Encoded:
    """An encoded archive, opened."""

    folder: Path
    embeddings: Array  # (n, d), memory-mapped
    items: pd.DataFrame  # row, id, modality, path, ...
    fingerprint: str  # of the space
    gap_corrected: bool
    bad: int  # files in quarantine.csv
    modalities: dict[str, int] = field(default_factory=dict)  # items per modality
    precision: dict[str, str] = field(default_factory=dict)  # number format of each tower
    doubted: int = 0  # items with a doubt in doubts.csv
    part_count: int = 0  # tiles and windows

    def __len__(self) -> int:
        return len(self.embeddings)

    def __repr__(self) -> str:
        counts = ", ".join(f"{name} {n}" for name, n in self.modalities.items())
        doubted = f", {self.doubted} with doubts" if self.doubted else ""
        return f"Encoded({self.folder}: {len(self)} done ({counts}), {self.bad} bad{doubted})"

    @property
    def doubts(self) -> pd.DataFrame:
        """path, modality, doubt: what looked wrong in files that were read. May be empty."""
        path = self.folder / DOUBTS
        return pd.read_csv(path, dtype=str) if path.exists() else pd.DataFrame(columns=["path", "modality", "doubt"])

    def doubts_text(self, most: int = 3) -> str:
        """The most frequent doubts for people, one a line, whatever numbers they hold; "" without any."""
        if not self.doubted:
            return ""
        texts = self.doubts["doubt"].tolist()
        kinds = [re.sub(r"[-\d.]*\d", "#", text) for text in texts]
        lines = [f"  {count} x {texts[kinds.index(kind)]}" for kind, count in Counter(kinds).most_common(most)]
        return "\n".join([f"{self.doubted} files read with doubts, all in {self.folder / DOUBTS}; most often:", *lines])

    @property
    def parts(self) -> pd.DataFrame:
        """row of the item; x, y (left and top of a tile, level-0 pixels); seconds (start of a window). May be empty."""
        path, columns = self.folder / PARTS, ["row", "x", "y", "seconds"]
        if not path.exists():
            return pd.DataFrame({"row": np.empty(0, np.int64), **dict.fromkeys(columns[1:], np.empty(0))})
        found = read_table(path, self.part_count)
        if list(found.columns) != columns:
            raise StoredFileError(path, f"does not have the columns {', '.join(columns)}")
        return found

    @property
    def part_embeddings(self) -> Array:
        """(p, d) unit rows in the order of `parts`, memory-mapped.

        Raises:
            ConfigError: they were not kept.
        """
        path = self.folder / PART_ROWS
        if not path.exists():
            raise ConfigError(f"{self.folder} holds no embeddings of parts; encode with part_embeddings")
        return read_rows(path, self.embeddings.shape[1], self.part_count)


def open_encoded(folder: Path | str) -> Encoded:
    """Open what `encode_files` wrote, after verifying its hashes.

    Raises:
        SpaceError: not an encoded archive, or damaged; names the file.
    """
    folder = Path(folder)
    try:
        return read_whole(folder, MARKER, lambda: _open(folder))
    except StoredFileError as error:
        raise SpaceError(f"{error}; damaged: copy it again, or {_REMEDY}") from error


def _open(folder: Path) -> Encoded:
    try:
        content = checked(_Content, read_json(folder / MARKER), folder / MARKER)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SpaceError(f"{folder}: not an encoded archive, it holds no {MARKER}; run encode first") from error
    hashes = content["files"]
    if absent := set(FILES) - set(hashes):
        raise SpaceError(f"{folder / MARKER}: lists no {min(absent)}; {_REMEDY}")
    for name, digest in hashes.items():
        if not (folder / name).is_file() or sha256_file(folder / name) != digest:
            raise damaged(folder / name, _REMEDY)
    embeddings = read_rows(folder / FILES[0], content["dim"], content["done"])
    table = read_table(folder / FILES[1], content["done"])
    if absent := {"row", "id", "modality", "path"} - set(table.columns):
        raise StoredFileError(folder / FILES[1], f"has no column {min(absent)!r}")
    items = pd.concat([table[["row"]], text_columns(table.drop(columns="row"))], axis=1)
    return Encoded(
        folder,
        embeddings,
        items,
        fingerprint=content["space"],
        gap_corrected=content["gap_corrected"],
        bad=content["bad"],
        modalities=content["modalities"],
        precision=content.get("precision", {}),
        doubted=content.get("doubted", 0),
        part_count=content.get("parts", 0),
    )


def read_rows(path: Path, dim: int, count: int) -> Array:
    """(count, dim) float32 of a .npy file, memory-mapped.

    Raises:
        StoredFileError: it holds something else.
    """
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    if head != _header(count, dim) or path.stat().st_size != _HEAD + 4 * count * dim:
        raise StoredFileError(path, f"does not hold {count} rows of {dim} numbers")
    if not count:
        return np.empty((0, dim), np.float32)
    return np.memmap(path, "<f4", mode="r", offset=_HEAD, shape=(count, dim))


def read_table(path: Path, count: int) -> pd.DataFrame:
    """A Parquet table of `count` rows of texts and numbers.

    Raises:
        StoredFileError: it holds something else, or unpacks to more than it may.
    """
    try:
        with pq.ParquetFile(path) as file:
            kinds = dict(zip(file.schema_arrow.names, file.schema_arrow.types, strict=True))
            if len(kinds) < len(file.schema_arrow.names) or not set(kinds.values()) <= _KINDS:
                raise StoredFileError(path, "has columns that are neither texts nor numbers, or two of one name")
            if file.metadata.num_rows != count:
                raise StoredFileError(path, f"holds {file.metadata.num_rows} rows, not {count}")
        return pd.DataFrame(read_parquet(path, _MOST_TABLE).to_pandas())
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, StoredFileError):
            raise
        raise StoredFileError(path, "not a Parquet table that can be read") from error


def _header(count: int, dim: int) -> bytes:
    """What a .npy file of (count, dim) float32 begins with: `_HEAD` bytes whatever the numbers are."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({count}, {dim}), }}".ljust(_HEAD - 11) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


class _JobSettings(TypedDict):
    """Those of a job that putting shards together asks for; there are more."""

    space: str
    synthetic_space: bool
    dim: Annotated[int, Field(gt=0, le=1 << 16)]
    keep: list[str]
    gap_correct: bool
    batch: dict[str, Any]
    cut: dict[str, Any]


class _Rows:
    """(n, d) float32 written to a .npy row by row, n known in the end."""

    def __init__(self, path: Path, dim: int) -> None:
        self.count, self._dim = 0, dim
        self._file: BinaryIO = open(path, "wb")  # noqa: SIM115  see close
        self._file.write(_header(self.count, self._dim))

    def add(self, rows: Array) -> None:
        self._file.write(np.ascontiguousarray(rows, "<f4").data)
        self.count += len(rows)

    def close(self) -> None:
        self._file.seek(0)
        self._file.write(_header(self.count, self._dim))
        self._file.close()


class _Table:
    """A Parquet table written in groups of rows."""

    def __init__(self, path: Path, columns: dict[str, Any]) -> None:
        self._schema = pa.schema(list(columns.items()))
        self._writer = pq.ParquetWriter(path, self._schema)
        self._rows: list[dict[str, Any]] = []

    def add(self, rows: list[dict[str, Any]]) -> None:
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
    """Put finished shards together and replace `out` as a whole; what `store` lacks is looked for in `others`.

    Raises:
        ConfigError: a shard is missing or damaged, or `out` is something else.
        DiskError: the file system refused.
    """
    guard_folder(out, MARKER, "an encoded archive")
    _remove_leftovers(out)
    settings = checked(_JobSettings, store.job["settings"], store.folder / JOB)
    decisions = _same_decisions([store, *others])
    files = [_found(number, [store, *others]) for number in range(len(store.job["shards"]))]
    modalities: Counter[str] = Counter()
    counts, versions = Counter(done=0, bad=0, parts=0, doubted=0), []
    with atomic_path(out, directory=True) as temporary:
        texts = ["id", "modality", "path", *(name for name in settings["keep"] if name != "id")]
        rows, items = (
            _Rows(temporary / FILES[0], settings["dim"]),
            {"row": pa.int64(), **dict.fromkeys(texts, pa.string())},
        )
        table = _Table(temporary / FILES[1], items)
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
        for name, wanted in ((PARTS, counts["parts"]), (PART_ROWS, part_rows.count)):
            if not wanted:
                (temporary / name).unlink()
        content = {
            "format": "m3bind-encoded",
            "version": 2,
            "job": done_as(store, versions),
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


def _part(first: int, shard: Any, at: int) -> dict[str, Any]:
    """One part as a row of its table."""
    x, y = shard.places[at].tolist()
    tile = not np.isnan(y)
    place = {"x": x, "y": y, "seconds": None} if tile else {"x": None, "y": None, "seconds": x}
    return {"row": first + int(shard.part_of[at]), **place}


def done_as(store: Journal, versions: Sequence[str]) -> str:
    """What a finished archive is known by: its job, and the versions of the shards' files."""
    return sha256_text(store.identity(), *versions)


def _remove_leftovers(out: Path) -> None:
    """What a killed process left beside `out`."""
    for path in out.parent.glob(f".{out.name}.*.tmp"):
        number = path.name.removeprefix(f".{out.name}.").removesuffix(".tmp")
        if path.is_dir() and number.isdigit() and not Path(f"/proc/{number}").exists():
            shutil.rmtree(path, ignore_errors=True)


def merge(folders: Sequence[Path | str], out: Path | str) -> Encoded:
    """Put together what `encode --shard` wrote on one or several machines; the same bytes as one run.

    Args:
        folders: folders of parts (OUT.parts). They stay.
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


def _found(number: int, stores: Sequence[Journal]) -> Path:
    """The file of a shard.

    Raises:
        ConfigError: no store has it.
    """
    for store in stores:
        if head_of(path := store.path(number)):
            return path
    raise ConfigError(
        f"{stores[0].folder}: shard {number + 1} of {len(stores[0].job['shards'])} is missing; run the same encode "
        "command again, or name the other folders of parts as well"
    )


def _same_decisions(stores: Sequence[Journal]) -> dict[str, Any]:
    """How each tower computed.

    Raises:
        ConfigError: not in the same way everywhere.
    """
    found: dict[str, Any] = {}
    for store in stores:
        for modality, decision in store.decisions().items():
            if found.setdefault(modality, decision) != decision:
                raise ConfigError(
                    f"{store.folder}: computed {modality} as {decision}, another machine as {found[modality]}; "
                    "encode again with --precision float32 everywhere"
                )
    return found
