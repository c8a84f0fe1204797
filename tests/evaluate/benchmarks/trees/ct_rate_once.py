"""The tree of CT-RATE: this benchmark takes one reconstruction per scan out of it."""

from evaluate.benchmarks.trees.ct_rate import make

__all__ = ["make"]
