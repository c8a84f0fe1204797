"""A manifest read row by row, as it was before it was read in columns: the oracle of `m3bind.data.manifest`."""

import csv
import json
import math
import os
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from m3bind.core.files import sha256_text
from m3bind.core.stored import StoredFileError, read_parquet
from m3bind.data.cells import column, identifier, lost_digits, one_spelling, path_spellings, plain
from m3bind.data.records import SPLITS, BadRow, Record
from m3bind.data.splits import FRACTIONS, patient_splits
from m3bind.data.tables import layout, lines_of, most_unpacked, open_table
from m3bind.data.texts import ALIASES, MAX_TEXT, describe
from m3bind.errors import ManifestError, UnknownNameError
from m3bind.modalities.base import get, names
from m3bind.privacy import patient_key

COLUMNS = ("id", "modality", "set", "path", "label", "labels", "caption", "patient", "split", "visit",
            "rescale", "licence")  # fmt: skip
_OTHER_NAMES = {"text": "caption", "report": "caption", "file": "path", "image": "path", "dataset": "set",
                "patient_id": "patient", "subject_id": "patient", "license": "licence"}  # fmt: skip
_REQUIRED = ("modality", "path")
_NAMES = ("id", "patient", "visit")  # columns whose cells are identifiers
_PARQUET, _JSON_LINES = (".parquet", ".pq"), (".jsonl", ".ndjson")
SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", *_PARQUET, *_JSON_LINES)
_SURROGATE = re.compile("[\ud800-\udfff]")  # represents a byte that is not UTF-8
_MAX_LINES, _MAX_LETTERS = 500, 1 << 21  # of the quoted cells of a row


@dataclass(frozen=True)
class ManifestRow:
    """One row: its cells by column name, or the fault (kind, reason) that makes it unusable."""

    number: int
    cells: dict[str, str]
    fault: tuple[str, str] | None = None
    shortened: bool = False  # the patient is a number of which a spreadsheet dropped digits


def read_rows(path: Path) -> Iterator[ManifestRow]:
    """The rows of a CSV (.csv, .tsv, also .gz), JSONL (.jsonl, .ndjson) or Parquet file.

    Raises:
        ManifestError: missing, unreadable, of another type, or without the required columns.
    """
    name = path.name.lower()
    if not path.exists():
        raise ManifestError(f"{path}: no such manifest; check the path")
    if name.endswith(_PARQUET):
        yield from _parquet_rows(path)
        return
    with open_table(path) as handle:
        lines = list(lines_of(path, handle))
    if name.endswith(_JSON_LINES):
        yield from _json_rows(path, lines)
    else:
        yield from _csv_rows(path, lines, "\t" if ".tsv" in name else ",")


def _parquet_rows(path: Path) -> Iterator[ManifestRow]:
    try:
        table = read_parquet(path, most_unpacked(path)).to_pandas()
    except StoredFileError as error:
        raise ManifestError(f"{error}; malicious, or the same again and again: save it as CSV") from error
    except Exception as error:  # pyarrow raises many types
        raise ManifestError(f"{path}: cannot be read (not a Parquet table, or damaged); export it again") from error
    columns = _columns(path, [str(name) for name in table.columns])
    for number, values in enumerate(table.itertuples(index=False, name=None), 1):
        yield _checked(number, dict(zip(columns, map(_cell, values))), None)


def _cell(value: object) -> str:
    """A cell of a typed table as text: "" for missing values, "a|b" for lists."""
    if isinstance(value, (list, tuple, np.ndarray)):
        return "|".join(_cell(item) for item in value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return "" if value is None or str(value) in ("<NA>", "NaT", "nan") else str(value)


def _columns(path: Path, names: Sequence[str]) -> list[str]:
    """Standard column names.

    Raises:
        ManifestError: a required column is missing, or a column occurs twice.
    """
    columns = _renamed(names)
    shown = ", ".join(quoted(name) for name in names[:30])
    for name in COLUMNS:
        if columns.count(name) > 1:
            raise ManifestError(f"{path}: two columns mean {name!r}; keep one. Found {shown}")
    for name in _REQUIRED:
        if name not in columns:
            raise ManifestError(f"{path}: no column {name!r}; found {shown}")
    if not {"caption", "label", "labels"} & set(columns):
        raise ManifestError(f"{path}: none of the columns caption, label, labels; found {shown}")
    return columns


def _renamed(names: Sequence[str]) -> list[str]:
    return [_OTHER_NAMES.get(name, name) for name in map(column, names)]


def _csv_rows(path: Path, lines: Sequence[str], default: str) -> Iterator[ManifestRow]:
    """Rows of a CSV. A quotation mark that is never closed invalidates one line, not the rest of the file."""
    columns: list[str] = []
    shape = layout(lines[:20], default, _REQUIRED)
    at, delimiter = shape.skip, shape.delimiter
    odd = [line.count('"') % 2 == 1 for line in lines]
    while at < len(lines):
        first, open_, letters = at, odd[at], len(lines[at])
        while open_ and at + 1 < len(lines) and at - first < _MAX_LINES and letters < _MAX_LETTERS:
            at += 1
            open_, letters = open_ != odd[at], letters + len(lines[at])
        at += 1
        text = "".join(lines[first:at])
        fault: tuple[str, str] | None = None
        try:
            cells = next(csv.reader([text], delimiter=delimiter), [])
        except csv.Error as error:
            cells, fault = [], ("unreadable", f"not readable as CSV ({error})")
        if not any(cell.strip() for cell in cells) and not fault:
            continue
        if not columns:
            columns = _columns(path, cells)
            continue
        wrong = len(cells) != len(columns)
        if at - first > 1 and (wrong or open_):
            at = first + 1  # read the following lines again, each by itself
            fault = ("unreadable", "a quotation mark is not closed; double it or close it")
        elif wrong and not fault:
            fault = ("with wrong columns", f"{len(cells)} cells, the header has {len(columns)}; put texts in quotes")
        yield _checked(first + 1, dict(zip(columns, cells)), fault)
    if not columns:
        raise ManifestError(f"{path}: the file is empty; a header line and rows are needed")


def _json_rows(path: Path, lines: Sequence[str]) -> Iterator[ManifestRow]:
    """Rows of a JSONL file: one object per line."""
    names: dict[str, None] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            yield ManifestRow(number, {}, ("unreadable", "not a JSON object"))
            continue
        names |= dict.fromkeys(value)
        cells = dict(zip(_renamed(list(value)), map(_cell, value.values())))
        yield _checked(number, cells, None)
    _columns(path, list(names))


def _checked(number: int, cells: dict[str, str], fault: tuple[str, str] | None) -> ManifestRow:
    """The row with normalised cells, and a fault if a cell of a known column is not UTF-8."""
    for used in COLUMNS:
        if _SURROGATE.search(cells.get(used, "")):
            cells = {name: cell.encode("utf-8", "replace").decode() for name, cell in cells.items()}
            fault = fault or ("badly encoded", f"column {used} is not UTF-8; save the file as UTF-8")
    normalised = {name: _normalised(name, cell) for name, cell in cells.items()}
    return ManifestRow(number, normalised, fault, lost_digits(cells.get("patient", "")))


def _normalised(column: str, cell: str) -> str:
    if column in _NAMES:
        return identifier(cell)
    if column in ("path", "caption"):
        return cell.strip() if plain(cell) else ""
    return "|".join(filter(None, map(plain, cell.split("|")))) if column in COLUMNS else cell


def quoted(value: str) -> str:
    """A cell in quotes, unless it may be a report."""
    return repr(value) if len(value) <= 30 and value.count(" ") <= 3 else "(a long text: are the columns shifted?)"


_SPLIT_NAMES = {"train": "train", "training": "train", "valid": "valid", "val": "valid", "validation": "valid",
                "validate": "valid", "dev": "valid", "test": "test", "testing": "test"}  # fmt: skip


class _Bad(Exception):
    """Internal: a bad row; `kind` groups reasons."""

    def __init__(self, kind: str, reason: str) -> None:
        self.kind, self.reason = kind, reason


def read_manifest(
    path: Path | str,
    root: Path | str | None = None,
    sets: Collection[str] | None = None,
    modalities: Collection[str] | None = None,
    *,
    fractions: Mapping[str, float] = FRACTIONS,
    seed: int = 0,
    templates: Path | str | None = None,
) -> tuple[list[Record], list[BadRow], list[str]]:
    """Read and validate a manifest; `sets` and `modalities` select rows.

    Paths are relative to `root` (default: the manifest's folder) and must stay inside of it. `fractions` and `seed`
    determine the hash split of rows without a split. `templates` is a folder of further template files (see texts.py).

    Raises:
        ManifestError: file or `root` missing, not readable, without a required column, or without a usable row.
        UnknownNameError: an unknown name in `sets` or `modalities`.
        ConfigError: invalid fractions.
    """
    path = Path(path)
    base = Path(os.path.abspath(root if root is not None else path.parent))
    if not base.is_dir():
        raise ManifestError(f"{base}: no such folder; give the folder of the paths in {path.name} (--root, data.root)")
    for name in modalities or ():
        get(name)
    known = frozenset(names())
    folder = Path(os.path.abspath(templates)) if templates is not None else None
    bad: list[BadRow] = []
    drafts: list[_Draft] = []
    seen_sets: set[str] = set()
    seen_ids: dict[str, int] = {}
    for row in read_rows(path):
        try:
            if row.fault:
                raise _Bad(*row.fault)
            modality = _modality(row, known)
            set_name = row.cells.get("set", "") or modality
            seen_sets.add(set_name)
            if (sets is not None and set_name not in sets) or (modalities is not None and modality not in modalities):
                continue
            drafts.append(_draft(row, modality, set_name, base, folder, seen_ids))
        except _Bad as fault:
            _quarantine(row, fault.kind, fault.reason, bad)
    for name in sets or ():
        if name not in seen_sets:
            raise UnknownNameError(f"set in {path.name}", name, seen_sets)
    drafts = _one_modality_per_file(drafts, bad)
    notes = [*_one_spelling(drafts, folder), *_doubtful_names(drafts)]
    _fill_splits(drafts, fractions, seed)
    drafts = _one_split_per_patient(drafts, bad)
    bad.sort(key=lambda fault: fault.row)
    return _without_names([draft.record for draft in drafts]), bad, notes


# --- one row ----------------------------------------------------------------------------------------------------------


@dataclass
class _Draft:
    """A row that is valid by itself, before the rules across rows."""

    row: ManifestRow
    record: Record
    file: tuple[int, int]


def _modality(row: ManifestRow, known: frozenset[str]) -> str:
    value = row.cells.get("modality", "")
    if not value:
        raise _Bad("without modality", "no modality")
    name = value.casefold()
    name = name if name in known else ALIASES.get(name, name)
    if name not in known:
        hint = str(UnknownNameError("modality", name, known)).partition("; ")[2]
        raise _Bad("of unknown modality", f"unknown modality {quoted(value)}; {hint}")
    return name


def _draft(
    row: ManifestRow, modality: str, set_name: str, base: Path, folder: Path | None, ids: dict[str, int]
) -> _Draft:
    """Check one row by itself.

    Raises:
        _Bad: with the reason.
    """
    cells = row.cells
    where, file = _locate(cells.get("path", ""), modality, base)
    split = _SPLIT_NAMES.get(cells.get("split", "").casefold(), "")
    if cells.get("split", "") and not split:
        raise _Bad("of unknown split", f"unknown split {quoted(cells['split'])}; use {', '.join(SPLITS)}")
    label = cells.get("label", "")
    labels = tuple(dict.fromkeys(filter(None, cells.get("labels", "").split("|"))))
    if (length := len(cells.get("caption", ""))) > MAX_TEXT:
        raise _Bad("with an oversized text", f"the text has {length:,} characters, more than {MAX_TEXT:,}; shorten it")
    captions, concepts = describe(set_name, modality, label, labels, cells.get("caption", ""), folder)
    if not captions:
        reason = "the text is empty and labels are missing" if not label and not labels else "it gives no text"
        raise _Bad("without text", f"{reason}; fill caption, label or labels")
    identity = cells.get("id", "")
    if identity and identity in ids:
        raise _Bad("with a duplicate id", f"same id as row {ids[identity]}")
    patient = cells.get("patient", "") or identity or cells["path"]
    identity = identity or _fresh(cells["path"], ids)
    ids[identity] = row.number
    record = Record(
        identity, modality, where, label, labels, captions, concepts, patient, split, set_name,
        cells.get("visit", ""), _rescale(cells.get("rescale", ""), modality), row.number,
    )  # fmt: skip
    return _Draft(row, record, file)


def _rescale(text: str, modality: str) -> tuple[float, float] | None:
    """ "slope;intercept" as numbers.

    Raises:
        _Bad: another format, or not of a CT.
    """
    if not text:
        return None
    try:
        slope, intercept = (float(part) for part in text.split(";"))
    except ValueError:
        raise _Bad("with a bad rescale", f"rescale {quoted(text)} is not of the form slope;intercept") from None
    if modality != "ct" or not slope or not math.isfinite(slope) or not math.isfinite(intercept):
        raise _Bad("with a bad rescale", "rescale is for CT, with a finite slope that is not 0")
    return slope, intercept


def _fresh(path: str, ids: dict[str, int]) -> str:
    """An unused id made of the path."""
    name, count = path, 1
    while name in ids:
        count += 1
        name = f"{path}#{count}"
    return name


def _locate(text: str, modality: str, base: Path) -> tuple[Path, tuple[int, int]]:
    """The absolute path of a cell, and the identity (device, inode) of its file.

    The path may omit the ending if a file with one of the modality's endings exists, and may be a folder if the
    modality reads folders.
    """
    if not text:
        raise _Bad("without path", "no path")
    for spelling in path_spellings(base, text, get(modality).suffixes):
        where = Path(os.path.abspath(base / spelling))
        if not where.is_relative_to(base):
            raise _Bad(
                "with a path outside",
                "the path leads out of the data folder; give a common folder (--root, data.root)",
            )
        file = _file_at(where, modality)
        if file is not None:
            return where, file
    where = Path(os.path.abspath(base / text))
    if os.path.isdir(where):
        raise _Bad("with a folder", "the path is a folder, not a file")
    reason = "no such file" + ("" if os.path.isdir(where.parent) else "; its folder does not exist")
    if re.match(r"[A-Za-z]:[\\/]", text):
        reason = "no such file: a path of another computer; write it relative to the manifest"
    raise _Bad("with a missing file", reason)


def _file_at(where: Path, modality: str) -> tuple[int, int] | None:
    """The identity (device, inode) of the file or folder that a modality reads at a path; None if missing."""
    kind = get(modality)
    for place in (where, *(where.with_name(where.name + suffix) for suffix in kind.suffixes)):
        try:
            status = os.stat(place)
        except (OSError, ValueError):
            continue
        if stat.S_ISDIR(status.st_mode):
            if kind.folders and place == where and any(where.iterdir()):
                return status.st_dev, status.st_ino
            continue
        if kind.suffixes and not place.name.lower().endswith(kind.suffixes):
            raise _Bad("of another kind", f"{modality} reads {' '.join(kind.suffixes)}, not this kind of file")
        if status.st_size == 0:
            raise _Bad("with an empty file", "the file is empty")
        return status.st_dev, status.st_ino
    return None


# --- rules across rows ------------------------------------------------------------------------------------------------


def _quarantine(row: ManifestRow, kind: str, reason: str, bad: list[BadRow]) -> None:
    bad.append(BadRow(row.number, reason, row.cells.get("path", "")[:200], kind))


def _one_modality_per_file(drafts: list[_Draft], bad: list[BadRow]) -> list[_Draft]:
    """Quarantine all rows of a file that is listed under two modalities, since the right one is unknown."""
    first: dict[tuple[int, int], dict[str, int]] = defaultdict(dict)
    for draft in drafts:
        first[draft.file].setdefault(draft.record.modality, draft.row.number)
    remaining = []
    for draft in drafts:
        others = [(m, row) for m, row in first[draft.file].items() if m != draft.record.modality]
        if others:
            modality, row = others[0]
            reason = f"the same file is {modality} in row {row} and {draft.record.modality} here"
            _quarantine(draft.row, "in two modalities", reason, bad)
        else:
            remaining.append(draft)
    return remaining


def _one_spelling(drafts: list[_Draft], folder: Path | None) -> list[str]:
    """Unify labels that differ in case or spaces, and their texts; returns a sentence on each."""
    use, notes = one_spelling(Counter(name for d in drafts for name in (d.record.label, *d.record.labels) if name))
    for draft in drafts if use else ():
        old = draft.record
        label, labels = use.get(old.label, old.label), tuple(dict.fromkeys(use.get(name, name) for name in old.labels))
        if (label, labels) != (old.label, old.labels):
            caption = draft.row.cells.get("caption", "")
            captions, concepts = describe(old.set, old.modality, label, labels, caption, folder)
            draft.record = replace(old, label=label, labels=labels, captions=captions, concepts=concepts)
    return notes


def _doubtful_names(drafts: list[_Draft]) -> list[str]:
    """Sentences on patients that may be identical or may be several, without naming one."""
    patients = {draft.record.patient for draft in drafts}
    short = sum(draft.row.shortened for draft in drafts)
    zeros = [p for p in patients if p.isdigit() and p.startswith("0") and p.lstrip("0") in patients]
    notes = []
    if zeros:
        notes.append(f"{len(zeros)} patients differ from another one only by leading zeros; treated as different")
    if short:
        notes.append(f"{short} rows name their patient as a shortened number (1.23E+11): several may look the same")
    return notes


def _fill_splits(drafts: list[_Draft], fractions: Mapping[str, float], seed: int) -> None:
    """Rows without a split follow their patient's other rows, or the hash split."""
    stated: dict[str, str] = {}
    for record in (draft.record for draft in drafts if draft.record.split):
        stated[record.patient] = max(stated.get(record.patient, "train"), record.split, key=SPLITS.index)
    hashed = patient_splits({draft.record.patient for draft in drafts if not draft.record.split}, fractions, seed)
    for draft in drafts:
        if not draft.record.split:
            patient = draft.record.patient
            draft.record = replace(draft.record, split=stated.get(patient) or hashed[patient])


def _without_names(records: list[Record]) -> list[Record]:
    """The records with patients and visits as salted hashes; the salt is M3BIND_SALT, or a hash of all patients."""
    patients = {record.patient for record in records}
    salt = os.environ.get("M3BIND_SALT") or sha256_text(*sorted(patients))
    keys = {name: patient_key(name, salt) for name in patients | {record.visit for record in records}} | {"": ""}
    return [replace(record, patient=keys[record.patient], visit=keys[record.visit]) for record in records]


def _one_split_per_patient(drafts: list[_Draft], bad: list[BadRow]) -> list[_Draft]:
    """Quarantine rows whose patient, or whose file, is also in a split with precedence."""
    home: dict[object, tuple[str, int]] = {}
    for draft in drafts:
        for owner in (draft.record.patient, draft.file):
            old = home.get(owner)
            if old is None or SPLITS.index(draft.record.split) > SPLITS.index(old[0]):
                home[owner] = (draft.record.split, draft.row.number)
    remaining = []
    for draft in drafts:
        for what, owner in (("patient", draft.record.patient), ("file", draft.file)):
            split, row = home[owner]
            if split != draft.record.split:
                reason = f"leak: its {what} is in {split} too (row {row}); this {draft.record.split} row is quarantined"
                _quarantine(draft.row, "that would leak", reason, bad)
                break
        else:
            remaining.append(draft)
    return remaining
