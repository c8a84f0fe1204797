"""The content of a manifest: `Records` (usable rows, in columns), `BadRow` (a quarantined one), `Manifest` (all rows).

* `Record`: one usable row. * `Records`: any number of them; columns for many at a time, a `Record` when indexed.
* `RecordColumns`: what several selections of records share. * `Coded`: a column of repeated strings.

Shapes: N records of a selection, R rows of the columns.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from m3bind.data.batching import IntArray
from m3bind.data.ragged import Ragged
from m3bind.data.text_table import TextTable
from m3bind.privacy import redact_path

SPLITS = ("train", "valid", "test")  # by ascending precedence: a patient in two splits belongs to the later one
BLOCK = 4096  # records made at a time
Codes = NDArray[np.int32]


@dataclass(frozen=True)
class Record:
    """One file with its texts. `captions[0]` is the canonical text; `concepts` are shared across modalities."""

    id: str
    modality: str
    path: Path
    label: str
    labels: tuple[str, ...]
    captions: tuple[str, ...]
    concepts: tuple[str, ...]
    patient: str
    split: str
    set: str
    visit: str = ""  # files of one visit belong together; "" if unknown
    rescale: tuple[float, float] | None = None  # slope and intercept that a CT's values still need
    row: int = field(default=0, compare=False)  # of the manifest, as in `BadRow`


@dataclass(frozen=True)
class Coded:
    """A column of strings that repeat: value i is `names[codes[i]]`."""

    codes: Codes
    names: Sequence[str]

    @classmethod
    def of(cls, strings: Iterable[str]) -> "Coded":
        """Names in the order of their first appearance."""
        numbers: dict[str, int] = {}
        codes = [numbers.setdefault(text, len(numbers)) for text in strings]
        return cls(np.array(codes, np.int32), list(numbers))

    def take(self, rows: Any) -> "Coded":
        """The values at positions or of a mask."""
        return Coded(self.codes[rows], self.names)

    def strings(self) -> list[str]:
        """The values."""
        names = self.names
        return [names[code] for code in self.codes.tolist()]

    def equals(self, name: str) -> NDArray[np.bool_]:
        """(N,) where the value is `name`."""
        return np.equal(self.codes, self.names.index(name) if name in self.names else -1)

    def present(self) -> list[str]:
        """The distinct values, in the order of their first appearance."""
        codes, first = np.unique(self.codes, return_index=True)
        return [self.names[code] for code in codes[np.argsort(first)].tolist()]


@dataclass(frozen=True)
class RecordColumns:
    """All columns of R rows but the split, which may change."""

    id: pa.Array  # large_string
    path: pa.Array  # large_binary, as `os.fsencode` gives it: names of files need not be UTF-8
    folder: bytes  # what precedes each path
    modality: Coded
    set: Coded
    label: Coded
    labels: Ragged  # of codes in `label.names`
    texts: TextTable
    captions: Ragged  # of indices in `texts`
    concepts: Ragged  # of indices in `concept_names`
    concept_names: Sequence[str]
    patient: Coded
    visit: Coded
    rescale: dict[int, tuple[float, float]]  # of the rows that have one
    row: IntArray

    @classmethod
    def of(cls, records: Sequence[Record]) -> "RecordColumns":
        """The columns of single records."""
        texts = TextTable()
        label = Coded.of(name for r in records for name in (r.label, *r.labels))
        entries = Ragged.by_lengths([1 + len(r.labels) for r in records], label.codes.astype(np.int64))
        first = entries.offsets[:-1]
        concept = Coded.of(name for r in records for name in r.concepts)
        return cls(
            pa.array([r.id for r in records], pa.large_string()),
            pa.array([os.fsencode(r.path) for r in records], pa.large_binary()),
            b"",
            Coded.of(r.modality for r in records),
            Coded.of(r.set for r in records),
            label.take(first),
            Ragged.by_lengths(entries.lengths - 1, np.delete(entries.values, first)),
            texts,
            Ragged.by_lengths([len(r.captions) for r in records], texts.ids(c for r in records for c in r.captions)),
            Ragged.by_lengths([len(r.concepts) for r in records], concept.codes.astype(np.int64)),
            concept.names,
            Coded.of(r.patient for r in records),
            Coded.of(r.visit for r in records),
            {i: r.rescale for i, r in enumerate(records) if r.rescale},
            np.array([r.row for r in records], np.int64),
        )


class Records(Sequence[Record]):
    """N records: a selection of the rows of columns, with a split for each. Nothing is copied by selecting."""

    def __init__(self, columns: RecordColumns, rows: IntArray, splits: NDArray[np.int8]) -> None:
        """`rows` (N,) and `splits` (N,), the number in `SPLITS` of each."""
        self.columns, self.rows, self.splits = columns, rows, splits

    @classmethod
    def of(cls, records: Sequence[Record]) -> "Records":
        """Any sequence of records; `records` itself if it is one already."""
        if isinstance(records, Records):
            return records
        splits = np.array([SPLITS.index(r.split) for r in records], np.int8)
        return cls(RecordColumns.of(records), np.arange(len(records)), splits)

    @classmethod
    def concatenate(cls, parts: "Sequence[Records]") -> "Records":
        """Selections of the same columns, at least one, one after the other."""
        rows, splits = np.concatenate([p.rows for p in parts]), np.concatenate([p.splits for p in parts])
        return cls(parts[0].columns, rows, splits)

    # ---- selections

    def take(self, at: Any) -> "Records":
        """The records at positions (n,), or of a mask (N,)."""
        return Records(self.columns, self.rows[at], self.splits[at])

    def where(self, modality: str | None = None, split: str | None = None) -> "Records":
        """The records of a modality and a split."""
        mask = np.ones(len(self), bool) if modality is None else self.modality.equals(modality)
        return self.take(mask if split is None else mask & (self.splits == SPLITS.index(split)))

    def with_splits(self, splits: NDArray[np.int8]) -> "Records":
        """The same records in other splits (N,)."""
        return Records(self.columns, self.rows, splits)

    # ---- columns

    @property
    def modality(self) -> Coded:
        """Modality of each record."""
        return self.columns.modality.take(self.rows)

    @property
    def set(self) -> Coded:
        """Data set of each record."""
        return self.columns.set.take(self.rows)

    @property
    def label(self) -> Coded:
        """Main label of each record, "" for none."""
        return self.columns.label.take(self.rows)

    @property
    def patient(self) -> Coded:
        """Patient of each record."""
        return self.columns.patient.take(self.rows)

    @property
    def visit(self) -> Coded:
        """Visit of each record, "" if unknown."""
        return self.columns.visit.take(self.rows)

    @property
    def labels(self) -> Ragged:
        """Labels of each record as codes in `label.names`."""
        return self.columns.labels.take(self.rows)

    @property
    def texts(self) -> TextTable:
        """The captions of these and other records."""
        return self.columns.texts

    @property
    def captions(self) -> Ragged:
        """Captions of each record as indices in `texts`, the canonical one first."""
        return self.columns.captions.take(self.rows)

    @property
    def concepts(self) -> Ragged:
        """Concepts of each record as indices in `columns.concept_names`."""
        return self.columns.concepts.take(self.rows)

    @property
    def ids(self) -> list[str]:
        """Id of each record."""
        ids: list[str] = self.columns.id.take(pa.array(self.rows)).to_pylist()
        return ids

    @property
    def paths(self) -> list[str]:
        """Absolute path of each record."""
        folder = self.columns.folder
        return [os.fsdecode(folder + path) for path in self.columns.path.take(pa.array(self.rows)).to_pylist()]

    @property
    def rescale(self) -> list[tuple[float, float] | None]:
        """Slope and intercept of each record, None for most."""
        known = self.columns.rescale
        return [known.get(row) for row in self.rows.tolist()] if known else [None] * len(self)

    # ---- single records

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> "Records": ...
    def __getitem__(self, index: int | slice) -> "Record | Records":
        if isinstance(index, slice):
            return self.take(index)
        at = range(len(self))[index]
        return next(iter(self.take(slice(at, at + 1))))

    def __iter__(self) -> Iterator[Record]:
        for start in range(0, len(self), BLOCK):
            yield from self.take(slice(start, start + BLOCK))._block()

    def _block(self) -> Iterator[Record]:
        columns = self.columns
        names, concepts, captions = columns.label.names, self.concepts, self.captions
        texts = columns.texts.take(captions.values)
        ends = captions.offsets.tolist()
        fields = zip(
            self.ids, self.modality.strings(), self.paths, self.label.strings(), self.labels, concepts,
            self.patient.strings(), self.splits.tolist(), self.set.strings(), self.visit.strings(), self.rescale,
            columns.row[self.rows].tolist(), ends, ends[1:],
        )  # fmt: skip
        for id, modality, path, label, labels, shared, patient, split, of, visit, rescale, row, start, end in fields:
            yield Record(
                id, modality, Path(path), label, tuple(names[i] for i in labels), tuple(texts[start:end]),
                tuple(columns.concept_names[i] for i in shared), patient, SPLITS[split], of, visit, rescale, row,
            )  # fmt: skip

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other))

    def __repr__(self) -> str:
        return f"Records({len(self)})"


@dataclass(frozen=True)
class BadRow:
    """A quarantined row. `row` is its line in the file (CSV, JSONL; the header is 1) or its count (Parquet)."""

    row: int
    reason: str
    path: str = ""
    kind: str = ""  # type of fault, common to several rows


@dataclass
class Manifest:
    """The content of a manifest: usable records and quarantined rows."""

    records: Records
    bad: list[BadRow]
    path: Path = field(default_factory=Path)
    notes: list[str] = field(default_factory=list)  # merged labels, and patients that may be identical

    def counts(self) -> dict[str, dict[str, int]]:
        """Number of records: modality -> split -> count."""
        table: dict[str, dict[str, int]] = {}
        column = self.records.modality
        counts = np.zeros((len(column.names), len(SPLITS)), np.int64)
        np.add.at(counts, (column.codes, self.records.splits), 1)
        for name in column.present():
            table[name] = dict(zip(SPLITS, counts[column.names.index(name)].tolist()))
        return table

    def report(self, limit: int = 20) -> str:
        """Counts by modality, then the quarantined rows (`format_bad_rows`)."""
        lines = [f"{self.path.name}: {len(self.records)} usable rows"]
        for modality, splits in self.counts().items():
            lines.append(f"  {modality}: " + ", ".join(f"{n} {split}" for split, n in splits.items() if n))
        lines += [f"  ! {note}" for note in self.notes]
        return "\n".join(lines + ([format_bad_rows(self.bad, limit)] if self.bad else []))


def format_bad_rows(bad: Sequence[BadRow], limit: int = 20) -> str:
    """The first `limit` quarantined rows with their reasons, and the number of each kind."""
    if not bad:
        return "no bad rows"
    counts = Counter(row.kind or "other" for row in bad)
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    lines = [f"{len(bad)} rows quarantined ({kinds})"]
    for row in sorted(bad, key=lambda row: row.row)[:limit]:
        lines.append(f"  row {row.row}: {row.reason}" + (f"  [{redact_path(row.path)}]" if row.path else ""))
    if len(bad) > limit:
        lines.append(f"  ... and {len(bad) - limit} more")
    return "\n".join(lines)
