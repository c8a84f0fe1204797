"""Splits and the texts of a data set record by record, as they were before columns: oracles."""

from collections import Counter, defaultdict
from dataclasses import replace
from itertools import combinations

import numpy as np

from m3bind.data.batching import rng
from m3bind.data.records import SPLITS
from m3bind.data.splits import patient_position
from m3bind.data.texts import concept_phrases


class Table:
    """Distinct texts and their indices."""

    def __init__(self):
        self.texts, self._index = [], {}

    def ids(self, texts):
        for text in texts:
            if self._index.setdefault(text, len(self.texts)) == len(self.texts):
                self.texts.append(text)
        return np.array([self._index[text] for text in texts], np.int64)


def phrases_of(record):
    """All phrases of the concepts of a record."""
    return [phrase for concept in record.concepts for phrase in concept_phrases(concept)]


def make_dataset(records, names, texts, seed, held_out):
    """Groups, table, pools and held-out texts."""
    table = Table()
    grouped = {m: {"train": [], "valid": [], "test": []} for m in names}
    for record in records:
        if record.modality in grouped:
            grouped[record.modality][record.split].append(record)
    training: dict[str, set[str]] = {}
    for m in names:
        training[m] = {text for r in grouped[m]["train"] for text in (*r.captions, *phrases_of(r))}
    seen: set[str] = set().union(*training.values())
    pool: dict[str, list[int]] = {}
    candidates: list[list[str]] = []
    for m in names:
        further = sorted(set(texts.get(m, ())) - seen)
        unseen = {c for split in ("valid", "test") for r in grouped[m][split] for c in r.captions} - seen
        random = rng(seed, "held out", m)
        order = [further[i] for i in random.permutation(len(further))]
        spare = order[: len(order) // 4]
        candidates.append([*(sorted(unseen)[i] for i in random.permutation(len(unseen))), *spare])
        pool[m] = [*table.ids(sorted(training[m])), *table.ids(sorted(set(order[len(spare) :]) - unseen))]
    chosen: list[str] = []
    taken: set[str] = set()
    for row in range(max(map(len, candidates), default=0)):  # evenly from all modalities
        for queue in candidates:
            if row < len(queue) and len(chosen) < held_out and queue[row] not in taken:
                chosen.append(queue[row])
                taken.add(queue[row])
    for m in names:  # a text held out through one modality must not be in the pool of another
        pool[m] = [i for i in pool[m] if table.texts[i] not in taken]
    ids = {m: np.array(pool[m], dtype=np.int64) for m in names}
    return grouped, table, ids, table.ids(chosen)


def carve_valid(records, fraction: float = 0.15, seed: int = 0):
    """The records in their order, with about `fraction` of the train patients moved to valid.

    Only (modality, set) pairs without any valid record are split; a selected patient moves with all train records.
    Patients are grouped by the rarest (modality, set, label) they have; from each group its share is selected in hash
    order, rounded so that the total is met (largest remainder).

    Raises:
        ConfigError: `fraction` outside [0, 1).
    """
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


def _strata(records) -> dict[tuple[str, str, str], set[str]]:
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


def leak_check(records) -> list[str]:
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
