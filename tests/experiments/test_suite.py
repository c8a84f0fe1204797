"""The paper's suite from end to end on generated data sets, resumed, with missing parts reported."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

import paper_suite
from m3bind.cli import main
from m3bind.core.device import pick
from m3bind.errors import ConfigError, UnknownNameError
from m3bind.evaluate.confidence import mean_estimate
from m3bind.evaluate.protocols import find_task
from m3bind.evaluate.results import Context
from m3bind.evaluate.tables import load_tables, printed
from m3bind.experiments import paper_tables
from m3bind.experiments.commands import report_suite
from m3bind.experiments.evaluated_model import EvaluatedModel, ModelSource, open_evaluated, source_hash
from m3bind.experiments.suite import Suite, TableCell, load_suite
from pretend.device import DEVICE, pretend_device


def run(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["m3bind", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All data sets of the paper in small, prepared, small models, and suite.yaml."""
    folder = tmp_path_factory.mktemp("paper")
    paper_suite.make_suite(folder, seeds=[0, 1])
    return folder


@pytest.fixture
def classifiers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models answer as if they had been trained on labels."""

    def scores(self: EvaluatedModel, records):  # type: ignore[no-untyped-def]
        names = [spec.name for spec in find_task("ct_rate", Suite_data["ct_rate"]).classes]
        return tuple(names), self.images(records)[:, :1] * np.arange(1.0, len(names) + 1)

    monkeypatch.setattr(EvaluatedModel, "label_scores", scores)


Suite_data: dict[str, object] = {}


@pytest.mark.whole
def test_every_cell_of_the_paper_is_computed_once(world: Path, classifiers: None, capsys, monkeypatch) -> None:
    suite = Suite(load_suite(str(world / "suite.yaml")), world / "runs" / "suite-suite")
    Suite_data["ct_rate"] = suite.dataset("ct_rate")
    arguments = ("evaluate", "--suite", str(world / "suite.yaml"), "--out", str(world / "runs"))
    assert run(*arguments, monkeypatch=monkeypatch) == 0
    text = capsys.readouterr().out
    assert "296 of 296 cells computed" in text
    cells = suite.cells()
    assert all(done == total for done, total in paper_tables.coverage(cells).values())
    assert all(np.isfinite(cell.rows[0].value) for cell in cells if cell.column.metric != "auroc")
    page = (suite.folder / "tables.html").read_text(encoding="utf-8")
    assert "Table 5" in page
    assert "<script" not in page
    assert "data:image/png" in page  # Figure 3
    assert "Calibration of zero-shot" in page
    assert ">change</th>" not in page  # columns are models, not stages
    assert {row.metric for row in suite.calibration()} >= {"ece", "coverage", "answered_accuracy", "temperature"}
    assert paper_tables.contaminated([replace(cells[0], seen=("Some set",))]) == ["CLIP, messidor2: Some set"]

    cells_there = [path for path in (suite.folder / "cells").iterdir() if path.name != "sums.json"]
    written = {path: path.stat().st_mtime_ns for path in cells_there}
    (gone,) = [path for path in written if path.name.endswith(".json") and ".rows" not in path.name][:1]
    gone.unlink()
    before = json.loads(gone.with_suffix(".rows.json").read_text())
    assert run(*arguments, monkeypatch=monkeypatch) == 0
    changed = {path.name.split(".")[0] for path, at in written.items() if path.stat().st_mtime_ns != at}
    assert changed == {gone.stem}
    assert json.loads(gone.with_suffix(".rows.json").read_text()) == before


ON_A_DEVICE = [["plip", "pcam"], ["m3bind", "zero shot odir200x3 odir200x3_naive"], ["m3bind", "cross modal"]]


@pytest.mark.whole
def test_models_of_a_suite_compute_on_the_device(world: Path, tmp_path: Path) -> None:
    tree = yaml.safe_load((world / "suite.yaml").read_text())
    tree["seeds"], tree["bootstrap"] = [0], 5
    values: dict[str, dict[str, float]] = {}
    with pretend_device(float64=False) as log:
        for device in ("cpu", DEVICE):
            tree["cache"] = str(tmp_path / device / "cache")
            (tmp_path / "suite.yaml").write_text(yaml.safe_dump(tree))
            suite = Suite(load_suite(str(tmp_path / "suite.yaml")), tmp_path / device, pick(device, workers=1))
            before = log.operations.total()
            assert not any(suite.run(only) for only in ON_A_DEVICE)
            assert (log.operations.total() > before) == (device == DEVICE)
            values[device] = {f"{c.title} {row.metric}": row.value for c in suite.cells() for row in c.rows}
    assert len(values["cpu"]) > 4
    assert values[DEVICE] == pytest.approx(values["cpu"], abs=1e-6, nan_ok=True)


@pytest.mark.whole
def test_missing_data_and_weights_are_reported_and_the_rest_continues(world: Path, tmp_path: Path) -> None:
    tree = yaml.safe_load((world / "suite.yaml").read_text())
    tree["models"]["clip"] = {"model": "clip"}
    tree["models"]["plip"] = {"model": "plip", "checkpoint": str(tmp_path / "none.bin")}
    tree["data"] = str(tmp_path / "data")
    shutil.copytree(world / "data" / "sicapv2", tmp_path / "data" / "sicapv2", symlinks=True)
    (tmp_path / "some.yaml").write_text(yaml.safe_dump(tree))
    suite = Suite(load_suite(str(tmp_path / "some.yaml")), tmp_path / "out")
    failed = suite.run(["table=1", "zero shot", "sicapv2"])
    assert set(failed) == {"clip: zero shot sicapv2 sicapv2", "plip: zero shot sicapv2 sicapv2"}
    assert "no weights of clip" in failed["clip: zero shot sicapv2 sicapv2"]
    cells = {(c.line.model, c.column.name): c for c in suite.cells() if c.table.number == 1}
    assert cells["quiltnet", "SICAPv2"].rows
    assert "m3bind prepare pcam --root" in cells["quiltnet", "Camelyon"].missing
    assert "none.bin" in cells["plip", "SICAPv2"].missing
    assert cells["m3bind", "SICAPv2"].missing == "" or cells["m3bind", "SICAPv2"].rows


def test_report_of_nothing_shows_every_printed_value(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = report_suite(None)
    assert "0 of 296 cells computed" in text
    for value in ("0.237", "35.27", "44.01 [!]", "95.50", "0.648 [!]", "0.642 ± 0.050 [!]", "89.30 ± 0.16", "12.86"):
        assert value in text
    assert "printed 0648" in text
    assert "its authors published no weights" in text
    with pytest.raises(ConfigError, match="holds no suite"):
        report_suite(tmp_path)


def test_transcription_has_every_row_of_the_tables() -> None:
    tables = load_tables("paper")
    count = {table.number: sum(len(b.rows) * len(b.columns) for b in table.block) for table in tables.table}
    assert count == {1: 20 + 15 + 16 + 20 + 40, 2: 30 + 30 + 24 + 30 + 30, 3: 9, 4: 12, 5: 8 + 12}
    rows = {(t.number, b.name, r.method): (b, r) for t in tables.table for b in t.block for r in b.rows}
    block, row = rows[2, "Retina", "M3Bind"]
    found = printed(row, block.columns, 5)
    assert found is not None
    assert (found.value, found.std) == (0.903, 0.03)
    assert "89.2" in found.conflict
    block, row = rows[1, "X-ray", "GLoRIA"]
    assert printed(row, block.columns, 2).value == pytest.approx(0.4401)  # type: ignore[union-attr]
    assert Counter(bool(r.conflicts) for _, r in rows.values())[True] == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [("seeds=[]", "seeds"), ("models.mine={}", "mine"), ("nonsense=1", "nonsense"), ("data", "section.key=value")],
)
def test_bad_suite_settings_are_named(change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_suite("paper", [change])


def test_unknown_suite_offers_the_packaged_ones() -> None:
    with pytest.raises(UnknownNameError, match="paper"):
        load_suite("papr")


def test_a_run_that_is_not_finished_is_not_trained_by_opening_it(tmp_path: Path) -> None:
    settings = {"data": {"manifest": "nowhere.csv"}, "modalities": {"xray": {"model": "compact_2d"}}}
    run_folder = tmp_path / "runs" / "half"
    run_folder.mkdir(parents=True)
    (run_folder / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ConfigError, match=r"half is not finished \(.*pretrain/xray holds no weights\)"):
        open_evaluated("mine", ModelSource(run=str(run_folder)), "xray", tmp_path / "cache")
    with pytest.raises(ConfigError, match="no runs of base"):
        open_evaluated("mine", ModelSource(ablation=str(tmp_path)), "xray", tmp_path / "cache")


def test_an_evaluated_model_is_identified_only_by_all_its_weights(tmp_path: Path) -> None:
    weights = tmp_path / "model" / "pytorch_model.bin"
    weights.parent.mkdir()
    weights.write_bytes(b"one")
    model = ModelSource(model="plip", checkpoint=str(weights.parent))
    first = source_hash(model)
    weights.write_bytes(b"other")
    assert source_hash(model) != first

    for variant in ("base", "two"):
        (tmp_path / "ablation" / "seed0" / variant).mkdir(parents=True)
        (tmp_path / "ablation" / "seed0" / variant / "final.safetensors").write_bytes(b"weights")
    run_of = ModelSource(ablation=str(tmp_path / "ablation"), variant="base")
    first = source_hash(run_of)
    (tmp_path / "ablation" / "seed0" / "two" / "final.safetensors").write_bytes(b"changed")
    assert source_hash(run_of) == first
    (tmp_path / "ablation" / "seed0" / "base" / "final.safetensors").write_bytes(b"changed")
    assert source_hash(run_of) != first


def test_few_shot_plots_keep_the_tasks_of_a_data_set_apart() -> None:
    cells = []
    for table in load_tables("mini5").table:
        for block in table.block:
            for line in block.rows:
                for column in block.columns:
                    row = Context(dataset=column.dataset).row("few_shot", column.metric, mean_estimate([0, 1], 0.5))
                    cells.append(TableCell(table, block, line, column, None, (row,)))
    assert set(paper_tables.few_shot_plots(cells)) == {
        "mini5, retina disease, balanced accuracy",
        "mini5, xray pneumonia, auc",
        "mini5, pathology tissue, balanced accuracy",
        "mini5, ecg normal, auc",
        "mini5, ct nodule malignancy, auc",
    }
