"""The interface of a few-shot method: samples with labels in, a function from samples to scores out.

* `Samples`: features, embeddings, truth, patients and ids of some files. `FewShotProblem`: class texts and the rest.
* `Adapter`: one method; `get`, `names`: the registered ones. `quality`: the criterion for settings.

Shapes: n samples, f features before the projection, d joint dimension, c classes or labels.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from m3bind.core.registry import Registry
from m3bind.evaluate.classification import auroc, balanced_accuracy
from m3bind.evaluate.confidence import Floats, Resampling


@dataclass(frozen=True)
class Samples:
    """Files as input of a method; all fields are in the same order."""

    features: NDArray[np.floating]  # (n, f) of the image trunk, before the projection; without them the embeddings
    embeddings: NDArray[np.floating]  # (n, d) unit rows
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
        patients, ids = [self.patients[i] for i in at], [self.ids[i] for i in at]
        return Samples(self.features[at], self.embeddings[at], self.labels[at], patients, ids)

    def known(self) -> "Samples":
        """The samples with a known class or at least one known label."""
        return self.take((self.labels >= 0).any(1) if self.several else self.labels >= 0)


@dataclass(frozen=True)
class FewShotProblem:
    """Inputs of a method besides samples."""

    classes: Floats  # (c, d) class texts; their products with image embeddings are the text scores
    scale: float = 100.0  # factor on these products
    modality: str = ""
    seed: int = 0


Scorer = Callable[[Samples], Floats]  # -> (n, c), larger is more likely


class Adapter(ABC):
    """One few-shot method; `name` (or `names`, for one method with several settings) registers it."""

    name: ClassVar[str] = ""
    names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, method: str = "") -> None:
        """`method`: the requested one of `names`."""
        self.method = method or self.name

    @abstractmethod
    def fit(self, train: Samples, valid: Samples | None, problem: FewShotProblem) -> Scorer:
        """Train on `train`, with settings chosen on `valid` if it is given.

        Raises:
            M3BindError: the samples do not suffice for training.
        """


def quality(y: NDArray[np.int64], scores: Floats) -> float:
    """Criterion for settings: balanced accuracy, or AUROC with several labels; -1 if a score is NaN."""
    if np.isnan(scores).any():
        return -1.0
    none = Resampling(resamples=0)
    metric = auroc(y, scores, none) if y.ndim == 2 else balanced_accuracy(y, scores.argmax(1), draw=none)
    return float(np.nan_to_num(metric.value, nan=-1.0))


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
