"""The data sets of the paper and open ones: one declarative file each, from the official layout to a manifest."""

from m3bind.evaluate.benchmarks.base import (
    Benchmark,
    BenchmarkItem,
    Fault,
    PreparedDataset,
    get,
    known_as,
    names,
    prepare,
    read_table,
)

__all__ = [
    "Benchmark",
    "BenchmarkItem",
    "Fault",
    "PreparedDataset",
    "get",
    "known_as",
    "names",
    "prepare",
    "read_table",
]
