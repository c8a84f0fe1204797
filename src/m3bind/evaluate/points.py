"""Embedded files with what is known of them, as the report's plots and gallery take them.

* `Points`: the files of one modality.
* `same_patient`, `same_concept`: which files of two modalities belong together.

Shapes: n files of a modality, m of another, d dimension of the space.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3bind.errors import ConfigError

Mask = NDArray[np.bool_]
_LISTS = ("labels", "patients", "concepts", "paths")


@dataclass(frozen=True)
class Points:
    """Embedded files of one modality: `vectors` (n, d) unit rows; the lists have one entry per row or are empty.

    An entry of `concepts` maps each concept that the file is part of to its class: {"normality": "abnormal"}.
    """

    vectors: NDArray[Any]
    labels: Sequence[str] = ()
    patients: Sequence[str] = ()
    concepts: Sequence[Mapping[str, str]] = ()
    paths: Sequence[Any] = ()

    def __post_init__(self) -> None:
        for name in _LISTS:
            given = len(getattr(self, name))
            if given not in (0, len(self.vectors)):
                raise ConfigError(
                    f"report: {given} {name} for {len(self.vectors)} embeddings; give one per row or none."
                )

    def subset(self, index: NDArray[Any]) -> "Points":
        """The rows `index`."""
        lists = {n: [getattr(self, n)[i] for i in index] if len(getattr(self, n)) else () for n in _LISTS}
        return Points(self.vectors[index], **lists)

    def findings(self) -> list[str]:
        """Of each row the class of its first concept, or else its label, or ""."""
        labels = self.labels or [""] * len(self.vectors)
        known = self.concepts or [{}] * len(self.vectors)
        return [next(iter(classes.values()), label) for classes, label in zip(known, labels)]


def same_patient(a: Points, b: Points) -> tuple[Mask, Mask]:
    """(n, m) whether two files are of one patient, and whether that can be told: the modalities share patients."""
    if not (set(a.patients) & set(b.patients)) - {""}:
        return _nothing(a, b), _nothing(a, b)
    ours, theirs = np.asarray(a.patients)[:, None], np.asarray(b.patients)
    return (ours == theirs) & (ours != ""), (ours != "") & (theirs != "")


def same_concept(a: Points, b: Points) -> tuple[Mask, Mask]:
    """(n, m) whether two files agree in a concept both are part of, and whether there is such a concept at all."""
    same, comparable = _nothing(a, b), _nothing(a, b)
    if not a.concepts or not b.concepts:
        return same, comparable
    for name in {name for classes in a.concepts for name in classes}:
        ours = np.array([classes.get(name, "") for classes in a.concepts])[:, None]
        theirs = np.array([classes.get(name, "") for classes in b.concepts])
        both = (ours != "") & (theirs != "")
        same |= both & (ours == theirs)
        comparable |= both
    return same, comparable


def _nothing(a: Points, b: Points) -> Mask:
    return np.zeros((len(a.vectors), len(b.vectors)), dtype=bool)
