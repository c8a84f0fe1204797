"""Scores that can be compared across modalities.

Cosines between modalities have different means and spreads, and one question is nearer to all X-rays than to all ECGs:
merged by cosine, hits are of one modality. So each modality of an index has a fixed sample of its items, the reference,
and a hit of modality m with cosine s to the question is judged among the cosines of that question to R_m:

    calibrated  z = (s - mean_{r in R_m} <q, r>) / sd_{r in R_m} <q, r>
    percentile    = 100 * share of R_m with <q, r> < s

This holds for any question: text, file, or a weighted sum of several. Compared with a mean and spread per pair of
modalities, merged by percentile, and merged by cosine: docs/search.md.

* `Calibration`: the reference of an index. * `calibrate`: draw it and keep it with the index.
  `calibration_of`: the kept one, or a new one where there is none or the index has changed too much.

Shapes: q queries, r items of a reference, d dimension.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict

from m3bind.core.files import sha256_text
from m3bind.core.stored import StoredFileError, checked
from m3bind.errors import UnknownNameError
from m3bind.index.base import Array, Index, Where

NOTE = "calibration"
REFERENCE = 500  # items per modality: percentiles in steps of 0.2, and ids that fit into a note
STALE = 0.2  # share of a modality that may come or go before a new reference is drawn
FEW = 20  # items of a modality that say what is usual for it
FLAT = 1e-4  # least spread: below it all items are equally near

log = logging.getLogger(__name__)


class _Note(TypedDict):
    """The reference as it is stored with an index."""

    ids: dict[str, list[str]]
    counts: dict[str, int]
    hash: str


@dataclass(frozen=True)
class Calibration:
    """The reference of each modality, and what the index was like when it was drawn."""

    ids: Mapping[str, list[str]]  # of the items, per modality
    rows: Mapping[str, Array]  # (r, d) of the same
    counts: Mapping[str, int]  # items per modality at that time
    hash: str  # of all this; names the calibration

    @classmethod
    def draw(cls, index: Index, size: int = REFERENCE, seed: int = 0) -> "Calibration":
        """A new reference: `size` items of each modality by lot (all where there are fewer)."""
        counts = index.counts()
        drawn = {name: index.sample(size, Where(modality=name), seed) for name in counts}
        ids = {name: names for name, (names, _) in drawn.items()}
        digest = sha256_text(index.fingerprint, str(counts), *(name for names in ids.values() for name in names))
        return cls(ids, {name: rows for name, (_, rows) in drawn.items()}, counts, digest)

    def calibrate_scores(
        self, queries: Array, modality: str, scores: Array
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Calibrated scores and percentiles (q, m) of cosines (q, m) of hits of one modality.

        A modality of which there are fewer than `FEW` items is judged among those of all modalities together.
        """
        rows = self.rows[modality]
        if len(rows) < FEW:
            rows = np.concatenate(list(self.rows.values()))
        near = np.sort(queries.astype(np.float64) @ rows.T.astype(np.float64), axis=1)
        spread = np.maximum(near.std(axis=1, keepdims=True), FLAT)
        below = np.stack([np.searchsorted(line, score - 1e-6) for line, score in zip(near, scores)])
        return (scores - near.mean(axis=1, keepdims=True)) / spread, 100 * below / near.shape[1]


def calibrate(index: Index, size: int = REFERENCE, seed: int = 0) -> Calibration:
    """Draw the reference of an index and keep it as a note of the index (ids and counts only).

    Raises:
        ConfigError: the index is open for reading only.
    """
    made = Calibration.draw(index, size, seed)
    index.set_metadata(NOTE, {"ids": made.ids, "counts": made.counts, "hash": made.hash})
    return made


def calibration_of(index: Index) -> Calibration:
    """The kept reference of an index; a new one, not kept, where there is none or it is out of date (said in the log).

    Out of date: more than a fifth of a modality came or went since, or of its reference is gone.
    """
    stored = index.metadata.get(NOTE)
    if stored is None:
        return Calibration.draw(index)
    try:
        note = checked(_Note, stored, f"{index.uri}, note {NOTE!r}")
        if set(note["ids"]) != set(note["counts"]):
            raise StoredFileError(index.uri, "counts and ids are of other modalities")
    except StoredFileError as error:
        log.warning(
            "the calibration of %s cannot be used (%s); m3bind index --commit makes one", index.uri, error.reason
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
    log.warning("the calibration of %s is out of date (%s); m3bind index --commit makes one", index.uri, reason)
    return Calibration.draw(index)


def _sizes(ids: Mapping[str, list[str]]) -> dict[str, int]:
    return {name: len(names) for name, names in ids.items()}


def _changed(before: Mapping[str, int], now: Mapping[str, int]) -> str:
    """Why counts differ by more than a share; "" where they do not."""
    for name in sorted({*before, *now}):
        old, new = before.get(name, 0), now.get(name, 0)
        if abs(new - old) > STALE * old:
            return f"{name}: {old} items then, {new} now"
    return ""


def _present(index: Index, ids: list[str]) -> list[str]:
    """Those ids that the index still has: asked for together, and in halves where one is missing."""
    try:
        index.items(ids)
        return ids
    except UnknownNameError:
        half = len(ids) // 2
        return _present(index, ids[:half]) + _present(index, ids[half:]) if half else []
