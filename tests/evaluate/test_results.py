"""Rows, results.json and the before-and-after table."""

import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from m3bind.errors import M3BindError
from m3bind.evaluate import compare
from m3bind.evaluate import pivot as p
from m3bind.evaluate import results as r
from m3bind.evaluate.confidence import Estimate


def make(value, stage="unbound", path="teacher", seed=0, metric="auc", **more):
    context = r.Context("nih224", "xray", text_encoder=path, stage=stage, seed=seed, task="pneumonia")
    return context.row("zero_shot", metric, Estimate(value, value - 0.05, value + 0.05, 155, 0.5), **more)


def test_rows_survive_json(tmp_path):
    table = r.ResultTable([make(0.8), make(math.nan, metric="accuracy"), make(0.7, gallery=12)])
    table.save(tmp_path / "results.json")
    text = (tmp_path / "results.json").read_text()
    assert "NaN" not in text
    contract = [
        "protocol",
        "dataset",
        "modality",
        "split",
        "text_encoder",
        "metric",
        "value",
        "ci_low",
        "ci_high",
        "n",
        "chance",
        "seed",
        "stage",
        "prompts",
    ]
    assert all(set(contract) <= set(entry) for entry in json.loads(text))
    again = r.ResultTable.load(tmp_path / "results.json")
    assert again.rows[0] == table.rows[0] and again.rows[2] == table.rows[2]
    assert math.isnan(again.rows[1].value) and again.rows[1].n == 155


def test_rows_of_another_version_load(tmp_path):
    table = r.ResultTable([make(0.8)])
    table.save(tmp_path / "results.json")
    entries = json.loads((tmp_path / "results.json").read_text())
    entries[0]["from_the_future"] = 1
    del entries[0]["variant"], entries[0]["gallery"]
    (tmp_path / "other.json").write_text(json.dumps(entries))
    assert r.ResultTable.load(tmp_path / "other.json").rows == table.rows


@pytest.mark.parametrize("text", ["{", "{}x", '[{"metric": "auc"}]', "[1]"])
def test_damaged_files_are_named(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(M3BindError, match=r"results\.json"):
        r.ResultTable.load(tmp_path / "results.json")
    with pytest.raises(M3BindError, match="cannot read"):
        r.ResultTable.load(tmp_path / "none.json")


def test_selection():
    table = r.ResultTable([make(0.8), make(0.9, stage="aligned")])
    assert table.one(stage="aligned").value == 0.9 and len(table.where(metric="auc")) == 2
    with pytest.raises(M3BindError, match="expected one"):
        table.one(metric="auc")


def test_pivot_orders_stages_and_gives_the_student_a_column():
    rows = [make(0.9, "distilled", "student"), make(0.85, "aligned"), make(0.8), make(0.88, "distilled")]
    data = p.pivot(rows)
    assert data.columns == ("unbound", "aligned", "distilled", "distilled, student text")
    (line,) = data.lines
    assert [cell.value for cell in line.cells.values()] == [0.8, 0.85, 0.88, 0.9]
    assert line.change == pytest.approx(0.1)


def test_another_towers_text_is_another_line():
    data = p.pivot([make(0.8, "aligned"), make(0.7, "aligned", "teacher:ct")])
    assert [(line.text_encoder, line.cells["aligned"].value) for line in data.lines] == [("", 0.8), ("teacher:ct", 0.7)]
    assert len(p.headline([make(0.8, "aligned"), make(0.7, "aligned", "teacher:ct")]).lines) == 1


def drawn(value, stage="unbound", seed=0, noise=0.02, metric="auc", **more):
    """A row whose replicates are those of the same patients in every row."""
    replicates = value + noise * np.random.default_rng(0).normal(size=400)
    return replace(make(value, stage, seed=seed, metric=metric), replicates=replicates, freedom=100.0, **more)


def test_seeds_are_averaged_with_spread_and_the_interval_of_their_mean():
    one = p.pivot([drawn(0.8)]).lines[0].cells["unbound"]
    cell = p.pivot([drawn(0.8), drawn(0.9, seed=1), drawn(0.7, seed=2)]).lines[0].cells["unbound"]
    assert (cell.value, cell.seeds) == (pytest.approx(0.8), 3)
    assert cell.spread == pytest.approx(0.1)
    assert cell.ci_high - cell.ci_low > 2 * (one.ci_high - one.ci_low)  # seeds differ by more than patients
    equal = p.pivot([drawn(0.8), drawn(0.8, seed=1), drawn(0.8, seed=2)]).lines[0].cells["unbound"]
    patients = compare.interval(0.8, 0.02, 100.0)
    assert (equal.ci_low, equal.ci_high) == pytest.approx(patients, abs=0.005)  # more seeds, not more patients
    stored = p.pivot([make(0.8), make(0.9, seed=1)]).lines[0].cells["unbound"]
    assert math.isnan(stored.ci_low)  # no replicates


def test_n_is_stated_as_files_and_patients():
    table = p.html_table(p.pivot([drawn(0.8, patients=100)]), "metrics")
    assert "155<small>of 100 patients</small>" in table
    assert "patients" not in p.html_table(p.pivot([drawn(0.8, patients=155)]), "metrics")


def test_headline_takes_auc_for_two_classes_and_balanced_accuracy_for_more():
    rows = [make(0.8), make(0.7, metric="balanced_accuracy")]
    assert [line.metric for line in p.headline(rows).lines] == ["auc"]
    assert [line.metric for line in p.headline([rows[1]]).lines] == ["balanced_accuracy"]


def test_console_prints_value_interval_n_and_chance():
    out = io.StringIO()
    Console(file=out, width=160).print(p.console([make(0.8), make(0.9, "aligned"), make(math.nan, metric="macro_f1")]))
    text = out.getvalue()
    for part in ("0.800", "[0.750, 0.850]", "155", "0.500", "+0.100", "–"):
        assert part in text


def test_page_calls_a_change_better_only_if_the_paired_interval_excludes_zero():
    def changed(last, metric="auc"):
        second = replace(drawn(last, "aligned", metric=metric), replicates=last + noise.normal(size=400) * 0.02)
        return p.html_table(p.pivot([drawn(0.8, metric=metric), second]), "metrics")

    noise = np.random.default_rng(1)
    assert "better" in changed(0.9) and "worse" in changed(0.7)
    assert "better" not in changed(0.82) and "worse" not in changed(0.78)
    assert "worse" in changed(0.9, "median_rank") and "better" not in changed(0.9, "cos_other")
    assert "± 0.0" in changed(0.82)  # the half-width
