"""Embedded files with their labels, for the report's plots and gallery.

* `Points`: the files of one modality.
* `same_patient`, `same_concept`: which files of two modalities match.

Shapes: n files of a modality, m of another, d dimension of the space.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m3bind.errors import ConfigError

Mask = NDArray[np.bool_]
_LISTS = ("labels", "patients", "concepts", "paths")


@dataclass(frozen=True)
class Points:
    """Embedded files of one modality: `vectors` (n, d) unit rows; the lists have one entry per row or are empty.

    An entry of `concepts` maps each concept of the file to its class: {"normality": "abnormal"}.
    """

    vectors: NDArray[np.floating]
    labels: Sequence[str] = ()
    patients: Sequence[str] = ()
    concepts: Sequence[Mapping[str, str]] = ()
    paths: Sequence[str | Path] = ()

    def __post_init__(self) -> None:
        for name in _LISTS:
            given = len(getattr(self, name))
            if given not in (0, len(self.vectors)):
                raise ConfigError(
                    f"report: {given} {name} for {len(self.vectors)} embeddings; give one per row or none."
                )

    def subset(self, index: NDArray[np.int64]) -> "Points":
        """The rows `index`."""
        chosen = {}
        for name in _LISTS:
            values = getattr(self, name)
            chosen[name] = [values[i] for i in index] if len(values) else ()
        return Points(self.vectors[index], **chosen)

    def findings(self) -> list[str]:
        """The class of each row's first concept, or else its label, or ""."""
        labels = self.labels or [""] * len(self.vectors)
        known = self.concepts or [{}] * len(self.vectors)
        return [next(iter(classes.values()), label) for classes, label in zip(known, labels)]


def same_patient(a: Points, b: Points) -> tuple[Mask, Mask]:
    """(n, m) whether two files are of one patient, and whether both patients are known and the modalities share any."""
    if not (set(a.patients) & set(b.patients)) - {""}:
        return _false(a, b), _false(a, b)
    ours, theirs = np.asarray(a.patients)[:, None], np.asarray(b.patients)
    return (ours == theirs) & (ours != ""), (ours != "") & (theirs != "")


def same_concept(a: Points, b: Points) -> tuple[Mask, Mask]:
    """(n, m) whether two files agree in a common concept, and whether they have a common concept."""
    same, comparable = _false(a, b), _false(a, b)
    if not a.concepts or not b.concepts:
        return same, comparable
    for name in {name for classes in a.concepts for name in classes}:
        ours = np.array([classes.get(name, "") for classes in a.concepts])[:, None]
        theirs = np.array([classes.get(name, "") for classes in b.concepts])
        both = (ours != "") & (theirs != "")
        same |= both & (ours == theirs)
        comparable |= both
    return same, comparable


def _false(a: Points, b: Points) -> Mask:
    return np.zeros((len(a.vectors), len(b.vectors)), dtype=bool)
