"""The small MIMIC-IV-ECG."""

from evaluate.benchmarks.trees.mimic_iv_ecg import make

__all__ = ["make"]
