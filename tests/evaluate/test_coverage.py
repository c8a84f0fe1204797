"""Coverage of the 95 % intervals by simulation, in small (benchmarks/coverage.py measures it)."""

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "coverage.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("coverage_benchmark", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        ("value_case", "zero-shot AUC"),
        ("value_case", "R@10, 40 patients"),
        ("value_case", "concept AUC, 30 patients"),
        ("difference_case", "zero-shot AUC"),
    ],
)
def test_intervals_contain_the_truth_as_often_as_stated(bench, kind, case):
    found = bench.coverage(lambda seed, b: getattr(bench, kind)(case, seed, b), 120, 100, 120)
    assert 0.90 <= found[1] <= 0.985
