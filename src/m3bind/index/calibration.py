"""Scores that can be compared across modalities.

Cosines between modalities have different means and spreads, and a query may be nearer to all X-rays than to all ECGs:
merged by cosine, hits are of one modality. So each modality m of an index has a fixed sample R_m of its items, the
reference, and a hit of modality m with cosine s to the query q is compared with the cosines of q to R_m:

    calibrated  z = (s - mean_{r in R_m} <q, r>) / sd_{r in R_m} <q, r>
    percentile    = 100 * share of R_m with <q, r> < s

This applies to any query: text, file, or a weighted sum of several. docs/search.md compares it with a mean and spread
per pair of modalities, merging by percentile, and merging by cosine.

* `Calibration`: the reference of an index. * `calibrate`: draws it and stores it with the index.
* `calibration_of`: the stored one, or a new one if there is none or the index has changed too much.

Shapes: q queries, r items of a reference, d dimension.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict

from m3bind.core.files import sha256_text
from m3bind.core.stored import StoredFileError, checked
from m3bind.errors import UnknownNameError
from m3bind.index.base import Array, Index, Where

NOTE = "calibration"
REFERENCE = 500  # items per modality: percentiles in steps of 0.2; the ids fit into the metadata
STALE = 0.2  # share of a modality that may be added or removed before a new reference is drawn
FEW = 20  # minimum items of a modality for a reference of its own
FLAT = 1e-4  # minimum spread: below it all items are equally near

log = logging.getLogger(__name__)


class _Note(TypedDict):
    """The reference as it is stored with an index."""

    ids: dict[str, list[str]]
    counts: dict[str, int]
    hash: str


@dataclass(frozen=True)
class Calibration:
    """The reference of each modality, and the counts of the index when it was drawn."""

    ids: Mapping[str, list[str]]  # of the reference, per modality
    rows: Mapping[str, Array]  # (r, d) of the same
    counts: Mapping[str, int]  # items per modality at that time
    hash: str  # of the fields above; identifies the calibration

    @classmethod
    def draw(cls, index: Index, size: int = REFERENCE, seed: int = 0) -> "Calibration":
        """A new reference: `size` random items of each modality (all if there are fewer)."""
        counts = index.counts()
        drawn = {name: index.sample(size, Where(modality=name), seed) for name in counts}
        ids = {name: names for name, (names, _) in drawn.items()}
        digest = sha256_text(index.fingerprint, str(counts), *chain.from_iterable(ids.values()))
        return cls(ids, {name: rows for name, (_, rows) in drawn.items()}, counts, digest)

    def sample(self, modality: str) -> Array:
        """The reference (r, d) that hits are compared with; of all modalities if this has under `FEW` items."""
        rows = self.rows[modality]
        return rows if len(rows) >= FEW else np.concatenate(list(self.rows.values()))

    def calibrate_scores(
        self, queries: Array, modality: str, scores: Array
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Calibrated scores and percentiles (q, m) of cosines (q, m) of hits of one modality."""
        rows = self.sample(modality)
        near = np.sort(queries.astype(np.float64) @ rows.T.astype(np.float64), axis=1)
        spread = np.maximum(near.std(axis=1, keepdims=True), FLAT)
        below = np.stack([np.searchsorted(line, score - 1e-6) for line, score in zip(near, scores)])
        return (scores - near.mean(axis=1, keepdims=True)) / spread, 100 * below / near.shape[1]


def calibrate(index: Index, size: int = REFERENCE, seed: int = 0) -> Calibration:
    """Draw the reference of an index and store its ids and counts in the metadata.

    Raises:
        ConfigError: the index is open for reading only.
    """
    drawn = Calibration.draw(index, size, seed)
    index.set_metadata(NOTE, {"ids": drawn.ids, "counts": drawn.counts, "hash": drawn.hash})
    return drawn


def calibration_of(index: Index) -> Calibration:
    """The stored reference of an index; a new one, not stored, if there is none or it is out of date (logged).

    Out of date: more than a fifth of a modality was added or removed since, or of its reference was removed.
    """
    if index.metadata.get(NOTE) is None:
        return Calibration.draw(index)
    try:
        note = checked(_Note, index.metadata[NOTE], f"{index.uri}, note {NOTE!r}")
        if set(note["ids"]) != set(note["counts"]):
            raise StoredFileError(index.uri, "counts and ids have different modalities")
    except StoredFileError as error:
        log.warning(
            "the calibration of %s cannot be used (%s); m3bind index --commit draws a new one", index.uri, error.reason
        )
        return Calibration.draw(index)
    reason = _changed(note["counts"], index.counts())
    if not reason:
        ids = {name: _present(index, names) for name, names in note["ids"].items()}
        reason = _changed(_sizes(note["ids"]), _sizes(ids))
        if not reason:
            rows = {name: index.vectors(names) for name, names in ids.items()}
            return Calibration(ids, rows, note["counts"], note["hash"])
        reason = f"of its reference, {reason}"
    log.warning("the calibration of %s is out of date (%s); m3bind index --commit draws a new one", index.uri, reason)
    return Calibration.draw(index)


def _sizes(ids: Mapping[str, list[str]]) -> dict[str, int]:
    return {name: len(names) for name, names in ids.items()}


def _changed(before: Mapping[str, int], now: Mapping[str, int]) -> str:
    """Why counts differ by more than `STALE`; "" if they do not."""
    for name in sorted({*before, *now}):
        old, new = before.get(name, 0), now.get(name, 0)
        if abs(new - old) > STALE * old:
            return f"{name}: {old} items then, {new} now"
    return ""


def _present(index: Index, ids: list[str]) -> list[str]:
    """The ids that the index still has: looked up together, and in halves if one is missing."""
    try:
        index.items(ids)
        return ids
    except UnknownNameError:
        half = len(ids) // 2
        return _present(index, ids[:half]) + _present(index, ids[half:]) if half else []
