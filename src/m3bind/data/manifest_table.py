"""The rows of a manifest that are valid by themselves, in columns, before the rules across rows.

* `ManifestReader`: checks blocks of rows; bad ones are quarantined with a reason. * `ManifestTable`: the other rows.

Shapes: n rows of a block, R rows of the table.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from m3bind.data.batching import IntArray
from m3bind.data.locate import locate
from m3bind.data.manifest_rows import Fault, RowBlock, quoted
from m3bind.data.ragged import Ragged
from m3bind.data.records import SPLITS, BadRow, Coded, Codes
from m3bind.data.text_table import TextTable
from m3bind.data.texts import ALIASES, MAX_TEXT, informative_texts
from m3bind.errors import UnknownNameError
from m3bind.modalities.base import names

_SPLIT_NAMES = {"train": "train", "training": "train", "valid": "valid", "val": "valid", "validation": "valid",
                "validate": "valid", "dev": "valid", "test": "test", "testing": "test"}  # fmt: skip
UNSTATED = -1  # no split


@dataclass
class ManifestTable:
    """R rows. Texts, patients and visits are indices of tables, -1 for no caption."""

    number: IntArray  # in the file
    id: pa.Array  # large_string; "" if absent
    path: pa.Array  # large_string, as in the file
    file: NDArray[np.uint64]  # (R, 2) device and inode
    elsewhere: dict[int, Path]  # absolute paths other than base/path
    modality: Coded
    set: Coded
    label: Coded
    labels: Codes  # of lists in `label_lists`
    label_lists: Ragged  # of codes in `label.names`
    caption: IntArray
    texts: TextTable
    patient: IntArray
    visit: IntArray
    people: TextTable  # names of patients and visits
    split: NDArray[np.int8]  # number in SPLITS, or UNSTATED
    rescale: Coded  # cells
    shortened: NDArray[np.bool_]  # the patient is a number of which a spreadsheet dropped digits

    def bad_rows(self, faults: Mapping[int, Fault]) -> list[BadRow]:
        """The quarantined rows of faults by position."""
        return _bad_rows(self.number, self.path, faults)


class _Numbers:
    """Distinct texts, numbered as they come."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}

    def of(self, name: str) -> int:
        number = self._numbers.setdefault(name, len(self.names))
        if number == len(self.names):
            self.names.append(name)
        return number

    def codes(self, cells: pa.Array) -> Codes:
        return _by_distinct(cells, lambda texts: np.array([self.of(text) for text in texts], np.int32))


def _by_distinct(cells: pa.Array, function: Callable[[list[str]], NDArray[Any]]) -> NDArray[Any]:
    """An array of the distinct cells, spread to all cells."""
    distinct = cells.dictionary_encode()
    values = function(distinct.dictionary.to_pylist())
    return np.asarray(values[distinct.indices.to_numpy()])


def _bad_rows(numbers: IntArray, paths: pa.Array, faults: Mapping[int, Fault]) -> list[BadRow]:
    cells = paths.take(pa.array(list(faults), pa.int64())).to_pylist()
    rows = zip(faults.items(), cells, strict=True)
    return [BadRow(int(numbers[at]), reason, cell[:200], kind) for (at, (kind, reason)), cell in rows]


class ManifestReader:
    """Checks rows block by block."""

    def __init__(self, base: Path, sets: Collection[str] | None, modalities: Collection[str] | None) -> None:
        """Paths are below `base`; `sets` and `modalities` select rows."""
        self.base, self.sets, self.modalities = base, sets, modalities
        self.bad: list[BadRow] = []
        self.seen_sets: set[str] = set()
        self._known = frozenset(names())
        self._columns: dict[str, list[Any]] = {}
        self.count = 0
        self._elsewhere: dict[int, Path] = {}
        self._modality, self._set, self._label, self._rescale = _Numbers(), _Numbers(), _Numbers(), _Numbers()
        self._labels = _Numbers()  # cells of labels
        self._texts, self._people = TextTable(), TextTable()

    def add(self, block: RowBlock) -> None:
        """Check a block."""
        modality, unknown = self._modalities(block.cells["modality"])
        faults = {**unknown, **block.faults}
        self.bad += _bad_rows(block.numbers, block.cells["path"], faults)
        good = np.ones(len(block.numbers), bool)
        good[list(faults)] = False
        codes = np.where(good, modality, len(self._modality.names))
        kinds = pa.array([*self._modality.names, ""], pa.large_string()).take(pa.array(codes))
        sets = pc.if_else(pc.equal(block.cells["set"], ""), kinds, block.cells["set"])
        self.seen_sets |= set(sets.filter(pa.array(good)).unique().to_pylist())
        if self.sets is not None:
            good &= _is_in(sets, self.sets)
        if self.modalities is not None:
            good &= _is_in(kinds, self.modalities)
        at = np.flatnonzero(good)
        cells = {name: column.take(pa.array(at)) for name, column in {**block.cells, "set": sets}.items()}
        self._locate(block.numbers[at], cells, modality[at], block.shortened[at])

    def _modalities(self, cells: pa.Array) -> tuple[Codes, dict[int, Fault]]:
        """(n,) codes of modalities, -1 with a fault."""
        distinct = cells.dictionary_encode()
        known = [self._modality_of(cell) for cell in distinct.dictionary.to_pylist()]
        faults = {number: found for number, found in enumerate(known) if isinstance(found, tuple)}
        indices = distinct.indices.to_numpy()
        codes = np.array([found if isinstance(found, int) else -1 for found in known], np.int32)[indices]
        return codes, {at: faults[indices[at]] for at in np.flatnonzero(codes < 0).tolist()}

    def _modality_of(self, cell: str) -> int | Fault:
        if not cell:
            return "without modality", "no modality"
        name = cell.casefold()
        name = name if name in self._known else ALIASES.get(name, name)
        if name not in self._known:
            hint = str(UnknownNameError("modality", name, self._known)).partition("; ")[2]
            return "of unknown modality", f"unknown modality {quoted(cell)}; {hint}"
        return self._modality.of(name)

    def _locate(
        self, numbers: IntArray, cells: dict[str, pa.Array], modality: Codes, shortened: NDArray[np.bool_]
    ) -> None:
        """Check the paths, splits and lengths of selected rows, and store the columns of the good ones."""
        located = locate(cells["path"], modality, self._modality.names, self.base)
        faults = dict(located.faults)
        split = _by_distinct(cells["split"], _split_codes)
        for at in np.flatnonzero(split < UNSTATED).tolist():
            reason = f"unknown split {quoted(cells['split'][at].as_py())}; use {', '.join(SPLITS)}"
            faults.setdefault(at, ("of unknown split", reason))
        lengths = pc.utf8_length(cells["caption"]).to_numpy()
        for at in np.flatnonzero(lengths > MAX_TEXT).tolist():
            reason = f"the text has {lengths[at]:,} characters, more than {MAX_TEXT:,}; shorten it"
            faults.setdefault(at, ("with an oversized text", reason))
        self.bad += _bad_rows(numbers, cells["path"], faults)
        good = np.ones(len(numbers), bool)
        good[list(faults)] = False
        place = np.cumsum(good) - 1 + self.count
        self._elsewhere |= {int(place[at]): where for at, where in located.elsewhere.items() if good[at]}
        cells = {name: column.filter(pa.array(good)) for name, column in cells.items()}
        person = pc.if_else(pc.equal(cells["id"], ""), cells["path"], cells["id"])
        patient = pc.if_else(pc.equal(cells["patient"], ""), person, cells["patient"])
        self._store(
            number=numbers[good],
            id=cells["id"],
            path=cells["path"],
            file=located.files[good],
            modality=modality[good],
            set=self._set.codes(cells["set"]),
            label=self._label.codes(cells["label"]),
            labels=self._labels.codes(cells["labels"]),
            caption=_by_distinct(cells["caption"], self._captions),
            patient=_by_distinct(patient, self._people.ids),
            visit=_by_distinct(cells["visit"], self._people.ids),
            split=split[good].astype(np.int8),
            rescale=self._rescale.codes(cells["rescale"]),
            shortened=shortened[good],
        )
        self.count += int(good.sum())

    def _captions(self, cells: Sequence[str]) -> IntArray:
        """Indices of cleaned captions, -1 for those without content."""
        cleaned = informative_texts(cells)
        ids = np.full(len(cleaned), -1, np.int64)
        given = [at for at, text in enumerate(cleaned) if text]
        ids[given] = self._texts.ids(cleaned[at] for at in given)
        return ids

    def _store(self, **columns: Any) -> None:
        for name, values in columns.items():
            self._columns.setdefault(name, []).append(values)

    def table(self) -> ManifestTable:
        """All good rows so far; the reader cannot be used again."""
        joined: dict[str, Any] = {}
        for name in list(self._columns):
            parts = self._columns.pop(name)
            joined[name] = pa.concat_arrays(parts) if isinstance(parts[0], pa.Array) else np.concatenate(parts)
        lists = []
        for cell in self._labels.names:
            lists.append([self._label.of(name) for name in dict.fromkeys(filter(None, cell.split("|")))])
        return ManifestTable(
            **joined
            | {
                "elsewhere": self._elsewhere,
                "modality": Coded(joined["modality"], self._modality.names),
                "set": Coded(joined["set"], self._set.names),
                "label": Coded(joined["label"], self._label.names),
                "label_lists": Ragged.of(lists),
                "texts": self._texts,
                "people": self._people,
                "rescale": Coded(joined["rescale"], self._rescale.names),
            }
        )


def _split_codes(cells: Iterable[str]) -> NDArray[np.int64]:
    """Numbers in SPLITS; UNSTATED for "", one less for unknown names."""
    found = (_SPLIT_NAMES.get(cell.casefold()) for cell in cells)
    codes = (SPLITS.index(name) if name else UNSTATED - 1 for name in found)
    return np.array([UNSTATED if not cell else code for cell, code in zip(cells, codes)], np.int64)


def _is_in(cells: pa.Array, names: Collection[str]) -> NDArray[np.bool_]:
    listed = pc.is_in(cells, pa.array(list(names), pa.large_string()))
    return np.asarray(listed.to_numpy(zero_copy_only=False), np.bool_)


def rescale_of(cell: str, modality: str) -> tuple[float, float] | str:
    """ "slope;intercept" as numbers, or the reason why not: another format, or not of a CT."""
    try:
        slope, intercept = (float(part) for part in cell.split(";"))
    except ValueError:
        return f"rescale {quoted(cell)} is not of the form slope;intercept"
    if modality != "ct" or not slope or not math.isfinite(slope) or not math.isfinite(intercept):
        return "rescale is for CT, with a finite slope that is not 0"
    return slope, intercept
