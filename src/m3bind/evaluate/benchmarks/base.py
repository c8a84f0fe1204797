"""A data set as its publisher distributes it -> a manifest that everything else reads.

* `Benchmark`: what a data set's file states (licence, how to get it, layout, known counts) and its rows.
* `BenchmarkItem`, `Fault`: a row of the manifest, or one that was set aside.
* `prepare`: checks the folder, writes `manifest.csv` and `prepared.json`; `Prepared.report` says what was found.
* `read_table`: rows of a CSV, TSV or Excel file with their line numbers.

A prepared folder:
    manifest.csv     see m3bind.data.manifest; paths begin with files/
    prepared.json    counts, differences from the published ones, what was set aside, hash
    files            link to the data set's own folder, or the images taken out of its containers
"""

import csv
import io
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from m3bind.core.files import atomic_path, sha256_text, write_json, write_text
from m3bind.core.progress import progress
from m3bind.core.registry import Registry
from m3bind.data.records import SPLITS, BadRow, format_bad_rows
from m3bind.data.tables import most_unpacked, read_rows
from m3bind.errors import ManifestError
from m3bind.privacy import NOT_UTF8, is_utf8, printable

COLUMNS = ("id", "modality", "set", "path", "label", "labels", "caption", "patient", "split", "visit", "rescale")
MOST_CELLS = 5_000_000  # of an Excel sheet
NOTHING_FOUND = "no finding"  # label of a row of a multi-label set on which nothing was found


@dataclass(frozen=True)
class BenchmarkItem:
    """One row of the manifest to be written."""

    path: str  # relative to the data set's folder, or to `out` where the benchmark extracts; "/" between parts
    split: str  # train | valid | test
    modality: str
    patient: str = ""  # as published; "" where it is not known: then the id
    id: str = ""  # default: the path
    label: str = ""  # the class, where a file has one
    labels: tuple[str, ...] = ()  # all findings
    caption: str = ""  # report or caption
    visit: str = ""  # rows of one visit are right answers to each other
    rescale: str = ""  # "slope;intercept" that a CT's values still need


@dataclass(frozen=True)
class Fault:
    """A row of a table, or a file, that was set aside."""

    row: int  # line of the table, 0 where there is none
    reason: str
    path: str = ""
    kind: str = ""  # the same for all with one sort of fault


class Benchmark(ABC):
    """A data set. One subclass per data set in this package; `name` registers it."""

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""  # for people: "MESSIDOR-2"
    modalities: ClassVar[tuple[str, ...]] = ()
    role: ClassVar[Literal["evaluation", "training", "both"]] = "evaluation"
    licence: ClassVar[str] = ""
    url: ClassVar[str] = ""
    access: ClassVar[str] = ""  # how a person gets it
    layout: ClassVar[str] = ""  # the official tree, shown when something is missing
    needs: ClassVar[tuple[str, ...]] = ()  # files or glob patterns below the folder that must exist
    extracts: ClassVar[bool] = False  # images are taken out of containers (HDF5, npz) into the prepared folder
    classes: ClassVar[tuple[str, ...]] = ()  # label names in official order
    known: ClassVar[Mapping[str, int]] = {}  # counts of the full set: by split, "split/label", and "patients"
    notes: ClassVar[str] = ""  # odd cases a reader must know

    @abstractmethod
    def items(self, root: Path, out: Path) -> Iterator[BenchmarkItem | Fault]:
        """Rows of the data set in `root`, in a fixed order. What is extracted is written below `out`.

        Raises:
            ManifestError: a table lacks a column or cannot be read.
        """

    def check(self, root: Path) -> None:
        """See that the folder is there and complete.

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
    """What a data set is called: its name, and its title where it is one of these."""
    return (name, get(name).title) if name in names() else (name,)


@dataclass
class PreparedDataset:
    """What `prepare` found and wrote."""

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
        """Counts, differences and what was set aside, for people."""
        splits = ", ".join(f"{self.counts[split]:,} {split}" for split in SPLITS if self.counts.get(split))
        lines = [f"{self.benchmark}: {splits}; {self.counts.get('patients', 0):,} patients"]
        lines += [f"  differs from the published set: {text}" for text in self.differences]
        return "\n".join(lines + ([format_bad_rows(self.faults)] if self.faults else []))


def prepare(benchmark: Benchmark, root: Path, out: Path, limit: int | None = None) -> PreparedDataset:
    """Write the manifest of the data set in `root` to the folder `out`, at most `limit` rows per split.

    A count that differs from the published one is said, not refused: a part of a data set is of use, too.

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
            rows.append(_row(benchmark.name, item))
            patients.add(item.patient or item.id or item.path)
            counts.update([item.split, *(f"{item.split}/{name}" for name in {item.label, *item.labels} if name)])
    if not rows:
        raise ManifestError(f"{root}: no usable row of {benchmark.title}; {format_bad_rows(faults)}")
    counts["patients"] = len(patients)
    text = _csv(rows)
    write_text(out / "manifest.csv", text)
    known = {} if limit else benchmark.known
    wrong = [f"{key}: {counts[key]:,}, published {count:,}" for key, count in known.items() if counts[key] != count]
    done = PreparedDataset(benchmark.name, out, dict(sorted(counts.items())), wrong, faults, sha256_text(text))
    write_json(
        out / "prepared.json",
        {
            "benchmark": benchmark.name,
            "counts": done.counts,
            "differences": wrong,
            "faults": [{"row": f.row, "reason": f.reason, "kind": f.kind} for f in faults],
            "hash": done.hash,
        },
    )
    return done


def _link(link: Path, root: Path) -> None:
    """`link` -> `root`, replacing an older link."""
    if link.is_symlink() and os.readlink(link) == str(root):
        return
    if link.exists() and not link.is_symlink():
        raise ManifestError(f"{link} exists and is no link; prepare into another folder (--out)")
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
        return Fault(0, f"split {item.split!r} is none of {', '.join(SPLITS)}", item.path, "of unknown split")
    there = place.exists() or any(place.with_name(place.name + ending).exists() for ending in (".hea", ".mat"))
    return None if there else Fault(0, "no such file", item.path, "with a missing file")


def _row(name: str, item: BenchmarkItem) -> dict[str, str]:
    said = item.label or item.labels or item.caption
    return {
        "id": item.id or item.path,
        "modality": item.modality,
        "set": name,
        "path": f"files/{item.path}",
        "label": item.label if said else NOTHING_FOUND,
        "labels": "|".join(item.labels),
        "caption": item.caption,
        "patient": item.patient,
        "split": item.split,
        "visit": item.visit,
        "rescale": item.rescale,
    }


def _csv(rows: Sequence[Mapping[str, str]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


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
        rows = enumerate(_not_endless(path, book.worksheets[0].iter_rows(values_only=True)), 1)
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
    except Exception as error:  # openpyxl raises many kinds for what is no workbook
        raise ManifestError(f"{path}: not an Excel file, or a damaged one; get it again") from error


def _not_endless(path: Path, rows: Iterator[tuple[object, ...]]) -> Iterator[tuple[object, ...]]:
    """Rows of a sheet, whose empty cells up to the last one that is named cost nothing in the file.

    Raises:
        ManifestError: more cells than any of the tables has.
    """
    left = MOST_CELLS
    for row in rows:
        left -= 1 + len(row)  # a row that is not in the file is empty
        if left < 0:
            raise ManifestError(f"{path}: more than {MOST_CELLS:,} cells; save it as CSV")
        yield row
