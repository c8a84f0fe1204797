"""The small CheXpert: CheXpert 5x200 is drawn from it."""

from evaluate.benchmarks.trees.chexpert import make

__all__ = ["make"]
