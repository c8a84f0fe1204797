"""Rules across the rows of a manifest, on columns; each returns the faults of rows by position, or changes a column.

* `unique_ids`: an id occurs once. * `one_modality`: a file belongs to one modality. * `one_split`: patients and files
  belong to one split. * `fill_splits`: rows without a split. * `one_label`: labels that differ in case or spaces.
* `doubtful_names`: patients that may be identical. * `file_numbers`: files by device and inode.

Only rows that break a rule are handled one by one. Shapes: n rows.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from m3bind.data.batching import IntArray, distinct_ids
from m3bind.data.cells import one_spelling
from m3bind.data.manifest_rows import Fault
from m3bind.data.manifest_table import UNSTATED
from m3bind.data.ragged import Ragged
from m3bind.data.records import SPLITS, Coded, Codes
from m3bind.data.splits import split_numbers
from m3bind.data.text_table import TextTable

Splits = NDArray[np.int8]


def unique_ids(numbers: IntArray, ids: pa.Array, paths: pa.Array) -> tuple[pa.Array, dict[int, Fault]]:
    """The id of each row, made of its path if absent, and the faults of rows with the id of an earlier row."""
    names = pc.if_else(pc.equal(ids, ""), paths, ids)
    distinct = names.dictionary_encode()
    codes = distinct.indices.to_numpy()
    several = np.bincount(codes, minlength=len(distinct.dictionary)) > 1
    if not several.any():
        return names, {}
    repeated = set(distinct.dictionary.filter(pa.array(several)).to_pylist())
    numbered = pc.match_substring_regex(distinct.dictionary, r"(?s)#\d+$").to_numpy(zero_copy_only=False)
    for code in np.flatnonzero(numbered & ~several).tolist():  # the id "a#2" may meet one made of the path "a"
        several[code] = _made_of(distinct.dictionary[code].as_py(), repeated)
    at = np.flatnonzero(several[codes])
    seen: dict[str, int] = {}
    counts: dict[str, int] = {}
    faults, used = {}, []
    rows = zip(at.tolist(), ids.take(pa.array(at)).to_pylist(), paths.take(pa.array(at)).to_pylist())
    for row, name, path in rows:
        if name in seen and name:
            faults[row] = ("with a duplicate id", f"same id as row {seen[name]}")
        elif not name:
            name, count = path, counts.get(path, 1)
            while name in seen:
                count += 1
                name = f"{path}#{count}"
            counts[path] = count
        used.append(name)
        seen.setdefault(name, int(numbers[row]))
    mask = np.zeros(len(names), bool)
    mask[at] = True
    return pc.replace_with_mask(names, pa.array(mask), pa.array(used, pa.large_string())), faults


def _made_of(name: str, paths: set[str]) -> bool:
    """Whether a name is one of `paths` with numbers after it."""
    while match := re.fullmatch(r"(?s)(.*)#[0-9]+", name):
        name = match[1]
        if name in paths:
            return True
    return False


def file_numbers(files: NDArray[np.uint64]) -> IntArray:
    """(n,) a number for each distinct file of (n, 2) devices and inodes."""
    _, device = np.unique(files[:, 0], return_inverse=True)
    inodes, inode = np.unique(files[:, 1], return_inverse=True)
    _, numbers = np.unique(device * len(inodes) + inode, return_inverse=True)
    return np.asarray(numbers, np.int64)


def one_modality(numbers: IntArray, file: IntArray, modality: Coded) -> dict[int, Fault]:
    """All rows of a file that is listed under two modalities, since the right one is unknown."""
    pairs = distinct_ids(file * len(modality.names) + modality.codes) // len(modality.names)
    shared = pairs[1:][pairs[1:] == pairs[:-1]]
    at = np.flatnonzero(np.isin(file, shared))
    first: dict[int, dict[str, int]] = defaultdict(dict)
    names = modality.take(at).strings()
    for row, name in zip(at.tolist(), names):
        first[int(file[row])].setdefault(name, int(numbers[row]))
    faults = {}
    for row, name in zip(at.tolist(), names):
        other, number = next((m, number) for m, number in first[int(file[row])].items() if m != name)
        reason = f"the same file is {other} in row {number} and {name} here"
        faults[row] = ("in two modalities", reason)
    return faults


def one_label(label: Coded, labels: Codes, lists: Ragged) -> tuple[Codes, Ragged, list[str]]:
    """(n,) codes of labels and the lists of labels with one spelling for each, and a sentence on each group."""
    counts: dict[str, int] = {}
    order = _label_order(label, labels, lists)
    for code, count in order:
        counts[label.names[code]] = count
    use, notes = one_spelling(counts)
    number = {name: code for code, name in enumerate(label.names)}
    instead = np.array([number[use.get(name, name)] for name in label.names], np.int32)
    merged = Ragged.of(list(dict.fromkeys(instead[entry].tolist())) for entry in lists) if use else lists
    return instead[label.codes], merged, notes


def _label_order(label: Coded, labels: Codes, lists: Ragged) -> list[tuple[int, int]]:
    """(code, rows) of each label that is not "", in the order of first appearance: by rows, `label` before `labels`."""
    first: dict[int, tuple[int, int]] = {}
    counts: dict[int, int] = defaultdict(int)
    for code, row, count in _appearances(label.codes):
        first[code], counts[code] = (row, 0), count
    for entry, row, count in _appearances(labels):
        for place, code in enumerate(lists[entry].tolist(), 1):
            first[code] = min(first.get(code, (row, place)), (row, place))
            counts[code] += count
    return [(code, counts[code]) for code in sorted(first, key=first.__getitem__) if label.names[code]]


def _appearances(codes: Codes) -> Iterator[tuple[int, int, int]]:
    """(code, first row, number of rows) of each code."""
    distinct, first, count = np.unique(codes, return_index=True, return_counts=True)
    return zip(distinct.tolist(), first.tolist(), count.tolist())


def doubtful_names(patient: IntArray, people: TextTable, shortened: NDArray[np.bool_]) -> list[str]:
    """Sentences on patients that may be identical or may be several, without naming one."""
    used = distinct_ids(patient)
    starts = people.matching(r"^0", used)
    others = people.find(text.lstrip("0") for text in people.at(starts) if text.isdigit())
    zeros = int(np.isin(others, used).sum())
    short = int(shortened.sum())
    notes = []
    if zeros:
        notes.append(f"{zeros} patients differ from another one only by leading zeros; treated as different")
    if short:
        notes.append(f"{short} rows name their patient as a shortened number (1.23E+11): several may look the same")
    return notes


def fill_splits(
    split: Splits, patient: IntArray, people: TextTable, fractions: Mapping[str, float], seed: int
) -> Splits:
    """Rows without a split follow their patient's other rows, or the hash split.

    Raises:
        ConfigError: invalid fractions.
    """
    open_ = split == UNSTATED
    home = np.full(len(people), UNSTATED, np.int8)
    np.maximum.at(home, patient[~open_], split[~open_])
    waiting = distinct_ids(patient[open_])
    waiting = waiting[home[waiting] == UNSTATED]
    home[waiting] = split_numbers(people.at(waiting), fractions, seed)
    return np.where(open_, home[patient], split)


def one_split(numbers: IntArray, split: Splits, patient: IntArray, file: IntArray) -> dict[int, Fault]:
    """Rows whose patient, or whose file, is also in a split with precedence."""
    faults: dict[int, Fault] = {}
    for what, owner in (("patient", patient), ("file", file)):
        home = np.full(owner.max(initial=-1) + 1, UNSTATED, np.int8)
        np.maximum.at(home, owner, split)
        settled = np.flatnonzero(split == home[owner])
        first = np.zeros(len(home), np.int64)
        first[owner[settled[::-1]]] = settled[::-1]  # the last assignment is that of the first row
        for row in np.flatnonzero(split != home[owner]).tolist():
            name, number = SPLITS[home[owner[row]]], numbers[first[owner[row]]]
            mine = SPLITS[split[row]]
            reason = f"leak: its {what} is in {name} too (row {number}); this {mine} row is quarantined"
            faults.setdefault(row, ("that would leak", reason))
    return faults
