"""A data set in its published layout -> a manifest.

* `Benchmark`: a data set's metadata (licence, access, layout, known counts) and its rows; `get`, `names`, `known_as`.
* `BenchmarkItem`, `Fault`: a row of the manifest, or a quarantined one. `PublishedFile`: a file that can be downloaded.
* `prepare`: checks the folder, writes `manifest.csv` and `prepared.json`; returns a `PreparedDataset`.
* `read_table`: rows of a CSV, TSV or Excel file with their line numbers.

A prepared folder:
    manifest.csv     see m3bind.data.manifest; paths begin with files/
    prepared.json    counts, differences from the published ones, quarantined rows, hash
    files            link to the data set's own folder, or the images extracted from its containers
"""

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from m3bind.core.files import atomic_path, sha256_text, write_json, write_text
from m3bind.core.progress import progress
from m3bind.core.registry import Registry
from m3bind.data.records import SPLITS, BadRow, format_bad_rows
from m3bind.data.tables import csv_text, most_unpacked, read_rows
from m3bind.errors import ManifestError
from m3bind.privacy import NOT_UTF8, is_utf8, printable

COLUMNS = ("id", "modality", "set", "path", "label", "labels", "caption", "patient", "split", "visit", "rescale")
MAX_CELLS = 5_000_000  # of an Excel sheet
NOTHING_FOUND = "no finding"  # label of a row without findings in a multi-label set


@dataclass(frozen=True)
class BenchmarkItem:
    """One row of the manifest to be written."""

    path: str  # relative to the data set's folder, or to `out` if the benchmark extracts; "/" between parts
    split: str  # train | valid | test
    modality: str
    patient: str = ""  # as published; "" if unknown: then the id
    id: str = ""  # default: the path
    label: str = ""  # the class, if a file has one
    labels: tuple[str, ...] = ()  # all findings
    caption: str = ""  # report or caption
    visit: str = ""  # rows of one visit are right answers to each other
    rescale: str = ""  # "slope;intercept" that a CT's values still need
    write: Callable[[], None] | None = None  # writes the extracted image; called if the row is used


@dataclass(frozen=True)
class Fault:
    """A quarantined row of a table, or a quarantined file."""

    row: int  # line of the table, 0 without a table
    reason: str
    path: str = ""
    kind: str = ""  # type of fault, common to several rows


@dataclass(frozen=True)
class PublishedFile:
    """A file of an open data set. An archive is unpacked without its top folder, and only as far as needed."""

    name: str  # in the data set's folder
    url: str
    sum: str = ""  # "md5:...", "sha256:..."; "": none is published
    size: int = 0  # bytes, as listed by others; 0: not known before the download
    unpack: tuple[str, ...] = ()  # of a zip archive: patterns of the members that are needed
    sums: tuple[str, str] = ("", "")  # of a zip archive: its member that lists SHA-256 sums, and that member's own sum


class Benchmark(ABC):
    """A data set. One subclass per data set in this package; `name` registers it."""

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""  # display name: "MESSIDOR-2"
    modalities: ClassVar[tuple[str, ...]] = ()
    role: ClassVar[Literal["evaluation", "training", "both"]] = "evaluation"
    licence: ClassVar[str] = ""
    url: ClassVar[str] = ""
    access: ClassVar[str] = ""  # how to obtain it
    files: ClassVar[tuple[PublishedFile, ...]] = ()  # for `m3bind prepare NAME --download`; empty: not open
    layout: ClassVar[str] = ""  # the official tree, shown if a file is missing
    needs: ClassVar[tuple[str, ...]] = ()  # files or glob patterns below the folder that must exist
    extracts: ClassVar[bool] = False  # images are extracted from containers (HDF5, npz) into the prepared folder
    classes: ClassVar[tuple[str, ...]] = ()  # label names in official order
    known: ClassVar[Mapping[str, int]] = {}  # counts of the full set: by split, "split/label", and "patients"
    notes: ClassVar[str] = ""  # splits, text rules and special cases

    @abstractmethod
    def items(self, root: Path, out: Path) -> Iterator[BenchmarkItem | Fault]:
        """Rows of the data set in `root`, in a fixed order. Extracted images are written below `out`.

        Raises:
            ManifestError: a table lacks a column or cannot be read.
        """

    def check(self, root: Path) -> None:
        """Check that the folder exists and is complete.

        Raises:
            ManifestError: with the layout and how to get the data.
        """
        help_text = f"\n{self.title} is laid out like this:\n{self.layout.rstrip()}\n{self.access}\n{self.url}"
        if not root.is_dir():
            raise ManifestError(f"{root}: no such folder; give the folder of {self.title} with --root.{help_text}")
        missing = [pattern for pattern in self.needs if next(root.glob(pattern), None) is None]
        if missing:
            raise ManifestError(f"{root}: {self.title} is not complete, missing: {', '.join(missing)}.{help_text}")


_registry: "Registry[Benchmark]" = Registry("data set", "m3bind.evaluate.benchmarks", "m3bind.benchmarks", Benchmark)  # type: ignore[type-abstract]


def get(name: str) -> Benchmark:
    """The data set registered as `name`.

    Raises:
        UnknownNameError: no such data set.
    """
    return _registry.get(name)()


def names() -> list[str]:
    """Names of all data sets."""
    return _registry.names()


def known_as(name: str) -> tuple[str, ...]:
    """Names of a data set: `name`, and its title if it is registered."""
    return (name, get(name).title) if name in names() else (name,)


@dataclass
class PreparedDataset:
    """Result of `prepare`."""

    benchmark: str
    folder: Path
    counts: dict[str, int]  # keys as in `Benchmark.known`
    differences: list[str]  # from the published counts
    faults: list[BadRow] = field(default_factory=list)
    hash: str = ""  # of the manifest's content

    @property
    def manifest(self) -> Path:
        """The manifest."""
        return self.folder / "manifest.csv"

    def report(self) -> str:
        """Counts, differences and quarantined rows as text."""
        splits = ", ".join(f"{self.counts[split]:,} {split}" for split in SPLITS if self.counts.get(split))
        lines = [f"{self.benchmark}: {splits}; {self.counts.get('patients', 0):,} patients"]
        lines += [f"  differs from the published set: {text}" for text in self.differences]
        return "\n".join(lines + ([format_bad_rows(self.faults)] if self.faults else []))


def prepare(benchmark: Benchmark, root: Path, out: Path, limit: int | None = None) -> PreparedDataset:
    """Write the manifest of the data set in `root` to the folder `out`, with a maximum of `limit` rows per split.

    Counts that differ from the published ones are reported, not refused, since part of a data set is useful, too.

    Raises:
        ManifestError: the folder is missing or incomplete, a table cannot be read, or no row is usable.
    """
    root = Path(os.path.abspath(root))
    benchmark.check(root)
    out.mkdir(parents=True, exist_ok=True)
    files = out / "files"
    if benchmark.extracts:
        files.mkdir(exist_ok=True)
    else:
        _link(files, root)
    rows: list[dict[str, str]] = []
    faults: list[BadRow] = []
    counts: Counter[str] = Counter()
    patients: set[str] = set()
    base = files if benchmark.extracts else root
    with progress(f"prepare {benchmark.name}") as bar:
        for item in benchmark.items(root, files):
            bar.advance()
            if isinstance(item, BenchmarkItem) and limit and counts[item.split] >= limit:
                continue
            fault = _fault(item, base)
            if fault:
                faults.append(BadRow(fault.row, fault.reason, fault.path, fault.kind))
                continue
            assert isinstance(item, BenchmarkItem)
            if item.write is not None:
                item.write()
            rows.append(_row(benchmark.name, item))
            patients.add(item.patient or item.id or item.path)
            counts.update([item.split, *(f"{item.split}/{name}" for name in {item.label, *item.labels} if name)])
    if not rows:
        raise ManifestError(f"{root}: no usable row of {benchmark.title}; {format_bad_rows(faults)}")
    counts["patients"] = len(patients)
    text = csv_text(COLUMNS, rows)
    write_text(out / "manifest.csv", text)
    known = {} if limit else benchmark.known
    wrong = [f"{key}: {counts[key]:,}, published {count:,}" for key, count in known.items() if counts[key] != count]
    prepared = PreparedDataset(benchmark.name, out, dict(sorted(counts.items())), wrong, faults, sha256_text(text))
    stored = {
        "benchmark": benchmark.name,
        "counts": prepared.counts,
        "differences": wrong,
        "faults": [{"row": f.row, "reason": f.reason, "kind": f.kind} for f in faults],
        "hash": prepared.hash,
    }
    write_json(out / "prepared.json", stored)
    return prepared


def _link(link: Path, root: Path) -> None:
    """`link` -> `root`, replacing an older link."""
    if link.is_symlink() and os.readlink(link) == str(root):
        return
    if link.exists() and not link.is_symlink():
        raise ManifestError(f"{link} exists and is not a link; prepare into another folder (--out)")
    with atomic_path(link) as temporary:
        temporary.symlink_to(root, target_is_directory=True)


def _fault(item: BenchmarkItem | Fault, base: Path) -> Fault | None:
    if isinstance(item, Fault):
        return item
    if not is_utf8(item.path):
        return Fault(0, NOT_UTF8, printable(item.path), "with a name that is not UTF-8")
    if os.path.isabs(item.path) or os.path.normpath(item.path).startswith(".."):
        return Fault(0, "its table names a file outside the folder", item.path, "with a path outside")
    place = base / item.path
    if item.split not in SPLITS:
        return Fault(0, f"split {item.split!r} is not one of {', '.join(SPLITS)}", item.path, "of unknown split")
    names = ("", ".hea", ".mat")
    exists = item.write is not None or any(place.with_name(place.name + ending).exists() for ending in names)
    return None if exists else Fault(0, "no such file", item.path, "with a missing file")


def _row(name: str, item: BenchmarkItem) -> dict[str, str]:
    known = item.label or item.labels or item.caption
    return {
        "id": item.id or item.path,
        "modality": item.modality,
        "set": name,
        "path": f"files/{item.path}",
        "label": item.label if known else NOTHING_FOUND,
        "labels": "|".join(item.labels),
        "caption": item.caption,
        "patient": item.patient,
        "split": item.split,
        "visit": item.visit,
        "rescale": item.rescale,
    }


def read_table(path: Path, columns: Collection[str] = ()) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a .csv, .tsv (also .gz) or .xlsx file as (line number, cells by column name); a missing cell is "".

    Raises:
        ManifestError: the file is missing, unreadable or lacks one of `columns`.
    """
    if not path.is_file():
        raise ManifestError(f"{path}: no such table; the data set is not complete")
    if path.suffix == ".xlsx":
        yield from _sheet(path, columns)
    else:
        yield from read_rows(path, columns, "\t" if ".tsv" in path.name.lower() else ",")


def _sheet(path: Path, columns: Collection[str]) -> Iterator[tuple[int, dict[str, str]]]:
    import zipfile

    from openpyxl import load_workbook

    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
        if unpacked > most_unpacked(path):
            raise ManifestError(f"{path}: unpacks to {unpacked:,} bytes, which no table does; save it as CSV")
        book = load_workbook(path, read_only=True, data_only=True)
        rows = enumerate(_bounded(path, book.worksheets[0].iter_rows(values_only=True)), 1)
        head = ["" if name is None else str(name).strip() for name in next(rows, (1, ()))[1]]
        missing = [name for name in columns if name not in head]
        if missing:
            raise ManifestError(f"{path}: no column {', '.join(map(repr, missing))}; found {', '.join(head[:30])}")
        for number, values in rows:
            cells = ["" if cell is None else str(cell).strip() for cell in values]
            if any(cells):
                yield number, dict(zip(head, [*cells, *[""] * (len(head) - len(cells))]))
        book.close()
    except (ManifestError, GeneratorExit):
        raise
    except Exception as error:  # openpyxl raises many types for files that are not workbooks
        raise ManifestError(f"{path}: not an Excel file, or a damaged one; download it again") from error


def _bounded(path: Path, rows: Iterator[tuple[object, ...]]) -> Iterator[tuple[object, ...]]:
    """Rows of a sheet up to `MAX_CELLS` cells: empty cells before a stored one take no space in the file.

    Raises:
        ManifestError: more cells than that.
    """
    left = MAX_CELLS
    for row in rows:
        left -= 1 + len(row)  # a row that is not in the file is empty
        if left < 0:
            raise ManifestError(f"{path}: more than {MAX_CELLS:,} cells; save it as CSV")
        yield row
