"""Splits by patient, so that no patient is in both training and test data.

* `patient_splits`: patient -> train / valid / test by a hash; adding patients never moves another one.
* `carve_valid`: a valid split out of train, by patient, stratified by label as well as possible.
* `leak_check`: patients, and files, that are in more than one split.
"""

import hashlib
import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, combinations

from m3bind.data.records import SPLITS, Record
from m3bind.errors import ConfigError

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
    if not set(fractions) <= set(SPLITS) or min(fractions.values(), default=-1) < 0:
        raise ConfigError(f"fractions {dict(fractions)}: need values >= 0 for {', '.join(SPLITS)}")
    if not math.isclose(sum(fractions.values()), 1.0, abs_tol=1e-6):
        raise ConfigError(f"fractions {dict(fractions)} add up to {sum(fractions.values()):g}; they must add up to 1")
    used = [name for name, fraction in fractions.items() if fraction > 0]
    edges = list(accumulate(fractions[name] for name in used))
    places = {patient: bisect_right(edges, patient_position(patient, seed)) for patient in patients}
    return {patient: used[min(place, len(used) - 1)] for patient, place in places.items()}


def carve_valid(records: "Sequence[Record]", fraction: float = 0.15, seed: int = 0) -> "list[Record]":
    """The records in their order, with about `fraction` of the train patients moved to valid.

    Only (modality, set) pairs without any valid record are split; a selected patient moves with all train records.
    Patients are grouped by the rarest (modality, set, label) they have; from each group its share is selected in hash
    order, rounded so that the total is met (largest remainder).

    Raises:
        ConfigError: `fraction` outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"valid fraction {fraction}: must be at least 0 and below 1")
    complete = {(r.modality, r.set) for r in records if r.split == "valid"}
    train = [r for r in records if r.split == "train" and (r.modality, r.set) not in complete]
    fixed = {r.patient for r in records if r.split == "train" and (r.modality, r.set) in complete}
    strata = _strata([r for r in train if r.patient not in fixed])
    shares = {key: len(patients) * fraction for key, patients in strata.items()}
    quota = {key: int(share) for key, share in shares.items()}
    left = round(sum(shares.values())) - sum(quota.values())
    by_rest = sorted(shares, key=lambda key: (quota[key] - shares[key], key))
    for key in by_rest[: max(0, left)]:
        quota[key] += 1
    chosen = set()
    for key, patients in strata.items():
        chosen |= set(sorted(patients, key=lambda patient: patient_position(patient, seed))[: quota[key]])
    return [replace(r, split="valid") if r.split == "train" and r.patient in chosen else r for r in records]


def _strata(records: "Sequence[Record]") -> dict[tuple[str, str, str], set[str]]:
    """Patients by the rarest (modality, set, label) among their records."""
    count = Counter((r.modality, r.set, r.label) for r in records)
    keys: dict[str, tuple[str, str, str]] = {}
    for r in records:
        key = (r.modality, r.set, r.label)
        if r.patient not in keys or (count[key], key) < (count[keys[r.patient]], keys[r.patient]):
            keys[r.patient] = key
    strata = defaultdict(set)
    for patient, key in keys.items():
        strata[key].add(patient)
    return dict(sorted(strata.items()))


def leak_check(records: "Sequence[Record]") -> list[str]:
    """Problems, one sentence each (no identifiers); empty if every patient and file is in one split only."""
    problems = []
    owners = (("patient", lambda r: r.patient), ("file", lambda r: str(r.path)))
    for what, owner in owners:
        where: dict[str, Counter[str]] = defaultdict(Counter)
        for r in records:
            where[owner(r)][r.split] += 1
        for a, b in combinations(SPLITS, 2):
            both = [counts for counts in where.values() if counts[a] and counts[b]]
            if both:
                rows = sum(counts[a] + counts[b] for counts in both)
                subject = f"{len(both)} {what}{'s are' if len(both) > 1 else ' is'}"
                problems.append(f"{subject} in both {a} and {b} ({rows} records)")
    return problems
