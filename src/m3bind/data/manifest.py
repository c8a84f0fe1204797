"""Manifests: tables of files with their texts -> validated records; bad rows are quarantined with a reason.

* `read_manifest`: the records of a manifest. `usable_modalities`: modalities with enough training records.

Formats: CSV (also with semicolons, tabs or a line "sep=;", UTF-8 or UTF-16), Parquet, JSONL. Cells are normalised by
`cells.py`: "nan" and "NULL" are empty, 10001.0 is the patient 10001. Columns (others are ignored):
    id         unique; the path if absent
    modality   a registered name (xray, ct, retina, ecg, pathology, ...)            required
    set        data set of the file; determines the templates; the modality if absent
    path       relative to the manifest's folder or to `root`; ECG records without extension     required
    label      the main class;  labels: all findings, "|" between them;  caption (or text): the report     one of these
               labels that differ only in case or spaces are merged, in the spelling that most rows use
    patient    the person, across modalities and sets; the id if absent; stored as a salted hash (see m3bind.privacy)
    split      train, valid or test; by a hash of the patient if absent (80 / 10 / 10 %)
    visit      rows of one visit belong together, e.g. an X-ray and the ECG of the same stay; stored as a salted hash
    rescale    "slope;intercept" that a CT's values still need to be Hounsfield units
    licence    not read

Rules across rows: an id occurs once; a file belongs to one modality; a patient belongs to one split. For a patient in
two splits, test takes precedence over valid and valid over train, and the patient's other rows are quarantined.
Reasons name rows and columns, never report texts or patients.
"""

import contextlib
import gc
import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m3bind.core.files import sha256_texts
from m3bind.data import manifest_rules as rules
from m3bind.data.batching import IntArray, distinct_ids
from m3bind.data.descriptions import Described, Labelled, describe_rows
from m3bind.data.manifest_rows import Fault, read_blocks
from m3bind.data.manifest_table import ManifestReader, ManifestTable, rescale_of
from m3bind.data.ragged import Ragged
from m3bind.data.records import BadRow, Coded, Codes, Manifest, Record, RecordColumns, Records, format_bad_rows
from m3bind.data.splits import FRACTIONS
from m3bind.data.text_table import Strings
from m3bind.errors import ManifestError, UnknownNameError
from m3bind.modalities.base import get
from m3bind.privacy import patient_keys

log = logging.getLogger(__name__)


def read_manifest(
    path: Path | str,
    root: Path | str | None = None,
    sets: Collection[str] | None = None,
    modalities: Collection[str] | None = None,
    *,
    fractions: Mapping[str, float] = FRACTIONS,
    seed: int = 0,
    templates: Path | str | None = None,
) -> Manifest:
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
    folder = Path(os.path.abspath(templates)) if templates is not None else None
    reader = ManifestReader(base, sets, modalities)
    with _millions_of_strings():
        for block in read_blocks(path):
            reader.add(block)
        for name in sets or ():
            if name not in reader.seen_sets:
                raise UnknownNameError(f"set in {path.name}", name, reader.seen_sets)
        found = _records(reader.table(), base, folder, fractions, seed) if reader.count else (None, [], [])
    records, bad, notes = found
    for note in notes:
        log.warning("%s: %s", path.name, note)
    bad = sorted([*reader.bad, *bad], key=lambda fault: fault.row)
    if not records:
        raise ManifestError(f"{path}: no usable row; " + (format_bad_rows(bad) if bad else "the table is empty"))
    return Manifest(records, bad, path, notes)


@contextlib.contextmanager
def _millions_of_strings() -> Iterator[None]:
    """Without garbage collection, which strings without cycles would start again and again (a fifth of the time), and
    with Arrow's memory from the allocator that returns it to the system (a tenth less at the peak)."""
    collects, pool = gc.isenabled(), pa.default_memory_pool()
    gc.disable()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(pool)
        if collects:
            gc.enable()


def _records(
    table: ManifestTable, base: Path, folder: Path | None, fractions: Mapping[str, float], seed: int
) -> tuple[Records, list[BadRow], list[str]]:
    """The rules across rows: the records, the quarantined rows, and the sentences of `Manifest.notes`."""
    bad: list[BadRow] = []
    rows = np.arange(len(table.number))  # those without a fault

    def quarantine(faults: Mapping[int, Fault]) -> None:
        """Remove rows by their positions in `rows`."""
        nonlocal rows
        bad.extend(table.bad_rows({int(rows[at]): fault for at, fault in faults.items()}))
        rows = np.delete(rows, list(faults))

    described = _described(table, rows, folder, {})
    quarantine(_without_text(table, described))
    ids, faults = rules.unique_ids(table.number[rows], _at(table.id, rows), _at(table.path, rows))
    named = rows
    quarantine(faults)
    rescale, faults = _rescale(table, rows)
    quarantine(faults)
    file = rules.file_numbers(table.file)
    quarantine(rules.one_modality(table.number[rows], file[rows], table.modality.take(rows)))
    label, lists, notes = rules.one_label(table.label.take(rows), table.labels[rows], table.label_lists)
    described = _merged(table, described, rows, label, lists, folder)
    notes += rules.doubtful_names(table.patient[rows], table.people, table.shortened[rows])
    table.split[rows] = rules.fill_splits(table.split[rows], table.patient[rows], table.people, fractions, seed)
    quarantine(rules.one_split(table.number[rows], table.split[rows], table.patient[rows], file[rows]))
    patient, visit = _without_names(table, rows)
    all_ids = np.full(len(table.number), 0, np.int64)
    all_ids[named] = np.arange(len(named))
    columns = RecordColumns(
        ids.take(pa.array(all_ids)) if len(ids) else table.id,
        _below(base, table),
        os.fsencode(base).rstrip(b"/") + b"/",
        table.modality,
        table.set,
        table.label,
        table.label_lists.take(table.labels),
        table.texts,
        described.captions,
        described.concepts,
        list(described.names),
        patient,
        visit,
        rescale,
        table.number,
    )
    return Records(columns, rows, table.split[rows]), bad, notes


def _at(values: pa.Array, rows: IntArray) -> pa.Array:
    return values.take(pa.array(rows, pa.int64()))


def _described(table: ManifestTable, rows: IntArray, folder: Path | None, concepts: dict[str, int]) -> Described:
    """Captions and concepts of some rows."""
    sizes = len(table.modality.names), len(table.label.names), len(table.label_lists)
    key = table.set.codes[rows].astype(np.int64)
    for codes, size in zip((table.modality.codes, table.label.codes, table.labels), sizes):
        key = key * size + codes[rows]
    keys, group = np.unique(key, return_inverse=True)
    groups: list[Labelled] = []
    for value in keys.tolist():
        value, entry = divmod(value, sizes[2])
        value, own = divmod(value, sizes[1])
        of, kind = divmod(value, sizes[0])
        several = tuple(table.label.names[code] for code in table.label_lists[entry])
        groups.append((table.set.names[of], table.modality.names[kind], table.label.names[own], several))
    return describe_rows(groups, group, table.caption[rows], table.texts, concepts, folder)


def _without_text(table: ManifestTable, described: Described) -> dict[int, Fault]:
    faults: dict[int, Fault] = {}
    for at in np.flatnonzero(described.captions.lengths == 0).tolist():
        labelled = table.label.names[table.label.codes[at]] or len(table.label_lists[int(table.labels[at])])
        reason = "it gives no text" if labelled else "the text is empty and labels are missing"
        faults[at] = ("without text", f"{reason}; fill caption, label or labels")
    return faults


def _rescale(table: ManifestTable, rows: IntArray) -> tuple[dict[int, tuple[float, float]], dict[int, Fault]]:
    """Slope and intercept of rows that have them, and faults by position in `rows`."""
    known: dict[int, tuple[float, float]] = {}
    faults: dict[int, Fault] = {}
    cells, kinds = table.rescale.take(rows), table.modality.take(rows)
    for at in np.flatnonzero(~cells.equals("")).tolist():
        found = rescale_of(cells.names[cells.codes[at]], kinds.names[kinds.codes[at]])
        if isinstance(found, str):
            faults[at] = ("with a bad rescale", found)
        else:
            known[int(rows[at])] = found
    return known, faults


def _merged(
    table: ManifestTable, described: Described, rows: IntArray, label: Codes, lists: Ragged, folder: Path | None
) -> Described:
    """Texts after labels got one spelling: `label` of `rows` and the `lists` of labels, which the table takes over."""
    if lists is table.label_lists:
        return described
    changed = np.array([old.tolist() != new.tolist() for old, new in zip(table.label_lists, lists)], bool)
    at = rows[(table.label.codes[rows] != label) | changed[table.labels[rows]]]
    table.label.codes[rows] = label
    table.label_lists = lists
    again = _described(table, at, folder, described.names)
    order = np.arange(len(table.number))
    order[at] = len(order) + np.arange(len(at))
    captions = Ragged.concatenate([described.captions, again.captions]).take(order)
    return Described(captions, Ragged.concatenate([described.concepts, again.concepts]).take(order), again.names)


def _below(base: Path, table: ManifestTable) -> pa.Array:
    """(R,) large_binary: paths below `base`."""
    paths = table.path.cast(pa.large_binary())
    if not table.elsewhere:
        return paths
    mask = np.zeros(len(paths), bool)
    mask[list(table.elsewhere)] = True
    others = [os.fsencode(table.elsewhere[at].relative_to(base)) for at in sorted(table.elsewhere)]
    return pc.replace_with_mask(paths, pa.array(mask), pa.array(others, pa.large_binary()))


def _without_names(table: ManifestTable, rows: IntArray) -> tuple[Coded, Coded]:
    """Patients and visits as salted hashes; the salt is M3BIND_SALT, or a hash of all patients of `rows`."""
    patients, people = distinct_ids(table.patient[rows]), table.people
    salt = os.environ.get("M3BIND_SALT") or sha256_texts(people.at(people.sorted(patients)))

    def coded(column: IntArray) -> Coded:
        used, codes = np.unique(column, return_inverse=True)
        return Coded(codes.astype(np.int32), Strings(patient_keys(people.at(used), salt)))

    return coded(table.patient), coded(table.visit)


# --- modalities -------------------------------------------------------------------------------------------------------


def usable_modalities(records: Sequence[Record], minimum: int = 2) -> tuple[tuple[str, ...], list[str]]:
    """Modalities with at least `minimum` train records, in order of appearance, and a sentence on each other one."""
    column = Records.of(records)
    usable, problems = [], []
    for modality in column.modality.present():
        train = len(column.where(modality, "train"))
        if train >= minimum:
            usable.append(modality)
        else:
            problems.append(
                f"{modality} has {train} train samples, at least {minimum} are needed; "
                "add files or leave this modality out"
            )
    return tuple(usable), problems
