"""Splits by patient, so that no patient is in both training and test data.

* `patient_splits`: patient -> train / valid / test by a hash; adding patients never moves another one.
* `carve_valid`: a valid split out of train, by patient, stratified by label as well as possible.
* `leak_check`: patients, and files, that are in more than one split.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, combinations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from m3bind.data.batching import IntArray
from m3bind.data.records import SPLITS, Codes, Record, Records
from m3bind.errors import ConfigError

TRAIN, VALID = SPLITS.index("train"), SPLITS.index("valid")
FRACTIONS: Mapping[str, float] = {"train": 0.8, "valid": 0.1, "test": 0.1}


def patient_position(patient: str, seed: int = 0) -> float:
    """A number in [0, 1) that depends on the patient and the seed only."""
    digest = hashlib.sha256(f"{seed}\x00{patient}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big") / 2.0**56


def patient_splits(
    patients: Iterable[str], fractions: Mapping[str, float] = FRACTIONS, seed: int = 0
) -> dict[str, str]:
    """Assign each distinct patient to a split: [0, 1) is cut at the cumulative fractions, in their order.

    Each patient's place is independent of the others, so sizes meet the fractions only on average.

    Raises:
        ConfigError: unknown split, negative fraction, or a sum other than 1.
    """
    names = list(dict.fromkeys(patients))
    return dict(zip(names, (SPLITS[number] for number in split_numbers(names, fractions, seed).tolist())))


def split_numbers(
    patients: Iterable[str], fractions: Mapping[str, float] = FRACTIONS, seed: int = 0
) -> NDArray[np.int8]:
    """(n,) the split of each patient, as its number in SPLITS; see `patient_splits`."""
    if not set(fractions) <= set(SPLITS) or min(fractions.values(), default=-1) < 0:
        raise ConfigError(f"fractions {dict(fractions)}: need values >= 0 for {', '.join(SPLITS)}")
    if not math.isclose(sum(fractions.values()), 1.0, abs_tol=1e-6):
        raise ConfigError(f"fractions {dict(fractions)} add up to {sum(fractions.values()):g}; they must add up to 1")
    used = [name for name, fraction in fractions.items() if fraction > 0]
    edges = list(accumulate(fractions[name] for name in used))
    places = np.searchsorted(edges, [patient_position(patient, seed) for patient in patients], side="right")
    numbers = np.array([SPLITS.index(name) for name in used], np.int8)
    return numbers[np.minimum(places, len(used) - 1)]


def carve_valid(records: Sequence[Record], fraction: float = 0.15, seed: int = 0) -> Records:
    """The records in their order, with about `fraction` of the train patients moved to valid.

    Only (modality, set) pairs without any valid record are split; a selected patient moves with all train records.
    Patients are grouped by the rarest (modality, set, label) they have; from each group its share is selected in hash
    order, rounded so that the total is met (largest remainder).

    Raises:
        ConfigError: `fraction` outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"valid fraction {fraction}: must be at least 0 and below 1")
    records = Records.of(records)
    of_pair = records.modality.codes.astype(np.int64) * len(records.set.names) + records.set.codes
    train, patient = records.splits == TRAIN, records.patient
    complete = np.isin(of_pair, of_pair[records.splits == VALID])
    fixed = patient.codes[train & complete]
    patients, keys, groups = _strata(records.take(train & ~complete & ~np.isin(patient.codes, fixed)))
    sizes = np.bincount(groups, minlength=len(keys)).tolist()
    shares = [size * fraction for size in sizes]
    quota = [int(share) for share in shares]
    left = round(sum(shares)) - sum(quota)
    for key in sorted(range(len(keys)), key=lambda key: (quota[key] - shares[key], key))[: max(0, left)]:
        quota[key] += 1
    positions = [patient_position(patient.names[code], seed) for code in patients.tolist()]
    order = np.lexsort((np.array(positions), groups))
    rank = np.arange(len(order)) - (np.cumsum(sizes) - sizes)[groups[order]]
    chosen = patients[order[rank < np.array(quota)[groups[order]]]]
    moved = train & np.isin(patient.codes, chosen)
    return records.with_splits(np.where(moved, VALID, records.splits).astype(np.int8))


def _strata(records: Records) -> tuple[Codes, list[tuple[str, str, str]], IntArray]:
    """Codes of patients, the sorted (modality, set, label) of records, and for each patient its rarest of these."""
    columns = records.modality, records.set, records.label
    code = np.zeros(len(records), np.int64)
    for column in columns:
        code = code * len(column.names) + column.codes
    distinct, first, inverse, counts = np.unique(code, return_index=True, return_inverse=True, return_counts=True)
    keys = list(zip(*(column.take(first).strings() for column in columns)))
    by_name = sorted(range(len(distinct)), key=keys.__getitem__)
    place = np.empty(len(distinct), np.int64)  # among sorted keys
    place[by_name] = np.arange(len(distinct))
    rarity = np.empty(len(distinct), np.int64)  # rarest first, then by name
    by_rarity = np.lexsort((place, counts))
    rarity[by_rarity] = np.arange(len(distinct))
    patients, owner = np.unique(records.patient.codes, return_inverse=True)
    rarest = np.full(len(patients), len(distinct))
    np.minimum.at(rarest, owner, rarity[inverse])
    return patients, [keys[at] for at in by_name], place[by_rarity[rarest]]


def leak_check(records: Sequence[Record]) -> list[str]:
    """Problems, one sentence each (no identifiers); empty if every patient and file is in one split only."""
    records = Records.of(records)
    files = records.columns.path.take(pa.array(records.rows)).dictionary_encode().indices.to_numpy()
    problems = []
    for what, owner in (("patient", records.patient.codes), ("file", files)):
        counts = np.zeros((owner.max(initial=-1) + 1, len(SPLITS)), np.int64)
        np.add.at(counts, (owner, records.splits), 1)
        for a, b in combinations(range(len(SPLITS)), 2):
            both = counts[(counts[:, a] > 0) & (counts[:, b] > 0)]
            if len(both):
                subject = f"{len(both)} {what}{'s are' if len(both) > 1 else ' is'}"
                rows = both[:, a].sum() + both[:, b].sum()
                problems.append(f"{subject} in both {SPLITS[a]} and {SPLITS[b]} ({rows} records)")
    return problems
