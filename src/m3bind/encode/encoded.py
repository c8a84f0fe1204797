"""An encoded archive on disk.

    OUT/embeddings.npy        (n, d) float32 unit rows
    OUT/items.parquet         row, id, modality, path, unlike (why an item is unlike the training data, if the space
                              measures it), and the fields in `keep`; one per embedding
    OUT/quarantine.csv        path, modality, reason of every unusable file
    OUT/doubts.csv            path, modality, doubt of readable files that look wrong; absent without any
    OUT/parts.parquet         row, x, y, seconds of every tile of a slide and window of a recording, if any
    OUT/part_embeddings.npy   (p, d) float32 unit rows of those, with `part_embeddings`
    OUT/encoded.json          space, how it was computed, counts, hash of each file

* `open_encoded`: opens it, memory-mapped -> `Encoded`. `assemble` writes it, as a whole.

Shapes: n items, p parts, d dimension of the space.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, NotRequired

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field
from typing_extensions import TypedDict

from m3bind.core.columns import text_columns
from m3bind.core.files import sha256_file
from m3bind.core.stored import StoredFileError, checked, read_json, read_parquet
from m3bind.errors import ConfigError, SpaceError
from m3bind.models.embedding import Array
from m3bind.space.reader import damaged, read_whole
from m3bind.space.unlike import UNLIKE

MARKER = "encoded.json"
_REMEDY = "encode again into a new folder"
FILES = ("embeddings.npy", "items.parquet", "quarantine.csv")
PARTS, PART_ROWS, DOUBTS = "parts.parquet", "part_embeddings.npy", "doubts.csv"
_HEAD = 128  # bytes of a .npy file before its values
_KINDS = {pa.string(), pa.large_string(), pa.int64(), pa.float64(), pa.null()}
_MAX_TABLE_BYTES = 16 << 30
Count = Annotated[int, Field(ge=0, lt=1 << 40)]
_Name = Literal[
    "embeddings.npy", "items.parquet", "quarantine.csv", "parts.parquet", "part_embeddings.npy", "doubts.csv"
]


class _Content(TypedDict):
    """The schema of `encoded.json`; other keys are allowed."""

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
    precision: dict[str, str] = field(default_factory=dict)  # dtype of each tower
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
        """path, modality, doubt of readable files that look wrong. May be empty."""
        path = self.folder / DOUBTS
        return pd.read_csv(path, dtype=str) if path.exists() else pd.DataFrame(columns=["path", "modality", "doubt"])

    def unlike_text(self) -> str:
        """How many items are unlike the training data, and the most frequent reason, in a line; "" without any."""
        reasons = [reason for reason in self.items.get(UNLIKE, ()) if reason]
        if not reasons:
            return ""
        most = Counter(re.sub(r" \(.*", "", reason) for reason in reasons).most_common(1)[0]
        return (
            f"{len(reasons)} files are unlike the training data, column {UNLIKE} of {self.folder / FILES[1]}; "
            f"most often: {most[1]} x {most[0]}"
        )

    def doubts_text(self, maximum: int = 3) -> str:
        """The most frequent doubts, one per line, grouped regardless of numbers in them; "" without any."""
        if not self.doubted:
            return ""
        texts = self.doubts["doubt"].tolist()
        kinds = [re.sub(r"[-\d.]*\d", "#", text) for text in texts]
        lines = [f"  {count} x {texts[kinds.index(kind)]}" for kind, count in Counter(kinds).most_common(maximum)]
        return "\n".join([f"{self.doubted} files read with doubts, all in {self.folder / DOUBTS}; most often:", *lines])

    @property
    def parts(self) -> pd.DataFrame:
        """row of the item; x, y (left and top of a tile, level-0 pixels); seconds (start of a window). May be empty."""
        path, columns = self.folder / PARTS, ["row", "x", "y", "seconds"]
        if not path.exists():
            return pd.DataFrame({"row": np.empty(0, np.int64), **dict.fromkeys(columns[1:], np.empty(0))})
        table = read_table(path, self.part_count)
        if list(table.columns) != columns:
            raise StoredFileError(path, f"does not have the columns {', '.join(columns)}")
        return table

    @property
    def part_embeddings(self) -> Array:
        """(p, d) unit rows in the order of `parts`, memory-mapped.

        Raises:
            ConfigError: they were not stored.
        """
        path = self.folder / PART_ROWS
        if not path.exists():
            raise ConfigError(f"{self.folder} holds no embeddings of parts; encode with part_embeddings")
        return read_rows(path, self.embeddings.shape[1], self.part_count)


def open_encoded(folder: Path | str) -> Encoded:
    """Open an archive that `encode_files` wrote, after verifying its hashes.

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
        StoredFileError: its size or header differs.
    """
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    if head != npy_header(count, dim) or path.stat().st_size != _HEAD + 4 * count * dim:
        raise StoredFileError(path, f"does not hold {count} rows of {dim} numbers")
    if not count:
        return np.empty((0, dim), np.float32)
    return np.memmap(path, "<f4", mode="r", offset=_HEAD, shape=(count, dim))


def read_table(path: Path, count: int) -> pd.DataFrame:
    """A Parquet table of `count` rows of text and numeric columns.

    Raises:
        StoredFileError: other columns or rows, or larger than allowed when decompressed.
    """
    try:
        with pq.ParquetFile(path) as file:
            kinds = dict(zip(file.schema_arrow.names, file.schema_arrow.types, strict=True))
            if len(kinds) < len(file.schema_arrow.names) or not set(kinds.values()) <= _KINDS:
                raise StoredFileError(path, "has columns that are neither text nor numbers, or duplicate column names")
            if file.metadata.num_rows != count:
                raise StoredFileError(path, f"holds {file.metadata.num_rows} rows, not {count}")
        return pd.DataFrame(read_parquet(path, _MAX_TABLE_BYTES).to_pandas())
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, StoredFileError):
            raise
        raise StoredFileError(path, "not a readable Parquet table") from error


def npy_header(count: int, dim: int) -> bytes:
    """The first `_HEAD` bytes of a .npy file of (count, dim) float32."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({count}, {dim}), }}".ljust(_HEAD - 11) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()
