"""The interface of a few-shot method: samples with labels in, a function from samples to scores out.

* `Samples`: features, embeddings, truth, patients and ids of some files. * `FewShotProblem`: the rest.
* `Adapter`: one method; `get`, `names`: those there are. * `quality`: what settings are chosen by.

Shapes: n samples, f features before the projection, d joint dimension, c classes or labels.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from m3bind.core.registry import Registry
from m3bind.evaluate.classification import auroc, balanced_accuracy
from m3bind.evaluate.estimate import Floats, Resampling


@dataclass(frozen=True)
class Samples:
    """Some files as a method sees them, all in one order."""

    features: NDArray[Any]  # (n, f) of the image trunk, before the projection; the embeddings where there are none
    embeddings: NDArray[Any]  # (n, d) unit rows
    labels: NDArray[np.int64]  # class numbers (n,), or labels (n, c) of 0 and 1; -1: unknown
    patients: Sequence[str]
    ids: Sequence[str]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def several(self) -> bool:
        """Whether a sample can have several labels."""
        return self.labels.ndim == 2

    def take(self, chosen: ArrayLike) -> "Samples":
        """The samples at the positions `chosen`, or where that mask is true."""
        at = np.arange(len(self))[np.asarray(chosen)]
        patients, ids = ([values[i] for i in at] for values in (self.patients, self.ids))
        return Samples(self.features[at], self.embeddings[at], self.labels[at], patients, ids)

    def known(self) -> "Samples":
        """The samples of which anything is known."""
        return self.take((self.labels >= 0).any(1) if self.several else self.labels >= 0)


@dataclass(frozen=True)
class FewShotProblem:
    """What a method is told besides samples."""

    classes: Floats  # (c, d): what an image's embedding is multiplied with to score a class by its text
    scale: float = 100.0  # factor on these products
    modality: str = ""
    seed: int = 0


Scorer = Callable[[Samples], Floats]  # -> (n, c), larger is likelier


class Adapter(ABC):
    """One few-shot method; `name` (or `names`, for one method with several settings) registers it."""

    name: ClassVar[str] = ""
    names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, method: str = "") -> None:
        """`method`: the one of `names` that was asked for."""
        self.method = method or self.name

    @abstractmethod
    def fit(self, train: Samples, valid: Samples | None, problem: FewShotProblem) -> Scorer:
        """Learn from `train`, choosing settings on `valid` where it is given.

        Raises:
            M3BindError: the samples cannot be learned from.
        """


def quality(y: NDArray[np.int64], scores: Floats) -> float:
    """What decides on settings: balanced accuracy, or AUROC with several labels; -1 for scores that are not numbers."""
    if np.isnan(scores).any():
        return -1.0
    none = Resampling(resamples=0)
    found = auroc(y, scores, none) if y.ndim == 2 else balanced_accuracy(y, scores.argmax(1), draw=none)
    return float(np.nan_to_num(found.value, nan=-1.0))


_registry: "Registry[Adapter]" = Registry("few-shot method", "m3bind.evaluate.adapters", "m3bind.adapters", Adapter)  # type: ignore[type-abstract]


def get(name: str) -> Adapter:
    """The method registered as `name`.

    Raises:
        UnknownNameError: no such method.
    """
    return _registry.get(name)(name)


def names() -> list[str]:
    """Names of all methods."""
    return _registry.names()
