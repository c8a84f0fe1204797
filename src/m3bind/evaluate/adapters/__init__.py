"""Few-shot methods on a frozen space: one file each, all from the same samples to one scorer."""

from m3bind.evaluate.adapters.base import Adapter, FewShotProblem, Samples, Scorer, get, names

__all__ = ["Adapter", "FewShotProblem", "Samples", "Scorer", "get", "names"]
