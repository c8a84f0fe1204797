"""Paired comparison of metrics: against naive resampling, and laws."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3bind.evaluate.compare import compare_rows, holm, paired
from m3bind.evaluate.confidence import Resampling, mean_estimate
from m3bind.evaluate.results import Context, ResultTable, Row


def rows_of(hits: np.ndarray, seed: int = 0, **context: str) -> Row:
    patients = [str(i // 2) for i in range(len(hits))]
    return Context(dataset="d", modality="xray", seed=seed, **context).row(
        "zero_shot", "accuracy", mean_estimate(hits, 0.5, Resampling(patients, 400, 0))
    )


def test_difference_is_that_of_a_bootstrap_of_paired_patients() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(200) < 0.6, rng.random(200) < 0.7
    found = paired([rows_of(a)], [rows_of(b)])
    draw = np.random.default_rng(1)
    by_patient = (b.astype(float) - a).reshape(100, 2).sum(1)
    naive = [by_patient[draw.integers(0, 100, 100)].sum() / 200 for _ in range(4000)]
    assert found.change == pytest.approx(b.mean() - a.mean())
    assert found.low == pytest.approx(np.quantile(naive, 0.025), abs=0.02)
    assert found.high == pytest.approx(np.quantile(naive, 0.975), abs=0.02)


def test_equal_runs_do_not_differ_and_a_clear_difference_is_found() -> None:
    hits = np.arange(200) % 3 > 0
    same = paired([rows_of(hits)], [rows_of(hits)])
    assert same.change == 0
    assert not same.significant
    clear = paired([rows_of(np.zeros(200))], [rows_of(np.ones(200))])
    assert clear.significant
    assert clear.better
    assert clear.p == pytest.approx(2 / 401)


def test_several_seeds_are_resampled_too() -> None:
    rng = np.random.default_rng(0)
    hits = rng.random(400) < 0.5
    first = [rows_of(hits, seed) for seed in range(4)]
    second = [rows_of(hits, 0), rows_of(~hits, 1), rows_of(hits, 2), rows_of(~hits, 3)]
    spread = paired(first, second)
    assert spread.high - spread.low > 0.02
    assert not spread.significant


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"n": 7}, "not about the same files"),
        ({"gallery": 5}, "not about the same files"),
        ({"replicates": None}, "no resampled values"),
    ],
)
def test_what_cannot_be_paired_has_a_reason(change: dict[str, object], why: str) -> None:
    row = rows_of(np.ones(20))
    found = paired([row], [replace(row, **change)])  # type: ignore[arg-type]
    assert why in found.why
    assert math.isnan(found.p)
    assert "2 seeds against 1" in paired([row, row], [row]).why


def test_compare_takes_common_metrics_and_survives_saving(tmp_path) -> None:
    hits = np.arange(100) % 4 > 0
    first = [rows_of(hits, task="a"), rows_of(hits, task="b")]
    second = [rows_of(~hits, task="a"), rows_of(hits, task="c")]
    for name, rows in (("one", first), ("two", second)):
        ResultTable(rows).save(tmp_path / f"{name}.json")
    loaded = [ResultTable.load(tmp_path / f"{name}.json") for name in ("one", "two")]
    found = compare_rows(*loaded)
    assert [d.row.task for d in found] == ["a"]
    assert found[0].significant
    assert not found[0].better


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_order_and_never_lowers(values: list[float]) -> None:
    corrected = holm(values)
    assert all(new >= old for new, old in zip(corrected, values))
    assert all(p <= 1 for p in corrected)
    order = np.argsort(values, kind="stable")
    assert (np.diff(np.array(corrected)[order]) >= 0).all()
    assert min(corrected) == pytest.approx(min(1, min(values) * len(values)))


def test_holm_leaves_what_is_undefined_out() -> None:
    assert holm([0.01, float("nan"), 0.04])[0] == pytest.approx(0.02)
    assert math.isnan(holm([0.01, float("nan")])[1])
