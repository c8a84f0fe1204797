"""The files to encode: paths, folders and records of a manifest as one stream of rows, each file once.

* `rows_of`: sources -> rows. * `Listing`: the rows in a temporary file, read shard by shard, any number of times.
* `version_of`: hash of size and time of rows' files, to detect changed files.

A row is a mapping of texts: path, modality ("" if it must be recognised), fault ("" or why the file is unusable), and
the fields in `keep`. Only a short hash of each row is in memory, to detect duplicates.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Protocol

from m3bind.core.files import sha256_text
from m3bind.data.records import BadRow
from m3bind.errors import ConfigError
from m3bind.modalities.formats.files import files_below
from m3bind.privacy import NOT_UTF8, is_utf8, printable

Row = dict[str, str]
_RECORD = (".hea", ".dat", ".mat")  # files of a WFDB record


class Item(Protocol):
    """A row of a manifest."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def modality(self) -> str:
        """Its modality."""


Source = Path | str | Item | BadRow


def rows_of(
    sources: Iterable[Source], modality: str | None, keep: Sequence[str], modalities: Sequence[str]
) -> Iterator[Row]:
    """One row per file, in the order of the sources; folders are searched for files that `modalities` could read.

    Raises:
        ConfigError: a field that a record does not have.
    """
    seen: set[bytes] = set()
    for row in _all_rows(sources, modality, keep, modalities):
        key = bytes.fromhex(sha256_text(row["modality"], row["path"], row["fault"])[:16])
        if key not in seen:
            seen.add(key)
            yield row


def _all_rows(
    sources: Iterable[Source], modality: str | None, keep: Sequence[str], modalities: Sequence[str]
) -> Iterator[Row]:
    for source in sources:
        if isinstance(source, str | Path):
            names = [modality] if modality else modalities
            for path in files_below(source, names) if Path(source).is_dir() else [source]:
                fault = "" if is_utf8(path) else NOT_UTF8
                text = printable(str(path)) if fault else str(path)
                yield {"path": text, "modality": modality or "", "fault": fault, **dict.fromkeys(keep, "")}
        elif isinstance(source, BadRow):
            fault = f"row {source.row} of the manifest: {source.reason}"
            yield {"path": source.path, "modality": "", "fault": fault, **dict.fromkeys(keep, "")}
        elif modality in (None, source.modality):
            absent = [name for name in keep if not hasattr(source, name)]
            if absent:
                raise ConfigError(f"keep: records have no field {absent[0]!r}")
            fields = {name: _text(getattr(source, name)) for name in keep}
            yield {"path": str(source.path), "modality": source.modality, "fault": "", **fields}


def _text(value: object) -> str:
    """A field as text; several values are joined by "|", as in a manifest."""
    if value is None:
        return ""
    return "|".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def version_of(rows: Iterable[Row]) -> str:
    """Hash of size and time of all files of the rows."""
    return sha256_text(*chain.from_iterable(_stamps(Path(row["path"])) for row in rows))


def _stamps(path: Path) -> Iterator[str]:
    """Size and time of each file that is read with `path`."""
    if path.is_dir():
        parts = sorted(path.iterdir())
    else:
        stem = path.with_suffix("") if path.suffix in _RECORD else path
        parts = list(dict.fromkeys([path, *(Path(f"{stem}{ending}") for ending in _RECORD)]))
    for part in parts:
        try:
            stat = part.stat()
        except OSError:
            continue
        yield f"{stat.st_size}|{stat.st_mtime_ns}"


class Listing:
    """Rows in a temporary file. Use as a context manager."""

    def __init__(self, rows: Iterable[Row], shard: int) -> None:
        """Read all `rows`; `shards` yields `shard` of them at a time."""
        self._shard, self.modalities = shard, set[str]()
        self.names: list[str] = []  # hash of the rows of each shard
        self._file = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  closed with the listing
        stream = iter(rows)
        self.count = 0
        while block := list(islice(stream, shard)):
            lines = [json.dumps(row) for row in block]
            self._file.writelines(f"{line}\n" for line in lines)
            self.names.append(sha256_text(*lines)[:32])
            self.count += len(block)
            self.modalities |= {row["modality"] for row in block if not row["fault"]}

    def __enter__(self) -> "Listing":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()

    def size(self, number: int) -> int:
        """Rows of a shard."""
        return min(self._shard, self.count - number * self._shard)

    def shards(self) -> Iterator[tuple[int, list[Row]]]:
        """(number, rows) of each shard."""
        self._file.seek(0)
        for number in range(len(self.names)):
            yield number, [json.loads(line) for line in islice(self._file, self._shard)]
