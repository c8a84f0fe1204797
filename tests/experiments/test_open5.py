"""`make demo-real` from a local server: download, fit, report and every table of the suite, on small files."""

import json

import pytest

from evaluate.benchmarks.served_files import serve_open5
from m3bind.cli import app
from m3bind.evaluate.results import ResultTable

pytestmark = pytest.mark.whole
QUICK = {
    "pretrain.steps": 3, "pretrain.batch": 8, "align.steps": 3, "align.batch": 8, "align.shared_batch": 8,
    "align.dim": 32, "distill.steps": 3, "distill.steps_b": 3, "distill.batch": 8, "distill.shared_batch": 8,
    "pretrain.per_modality": "{}", "evaluate.bootstrap": 20,
}  # fmt: skip


def test_open5_end_to_end(tmp_path, monkeypatch, capsys):
    pytest.importorskip("pooch", reason="needs the extra download")
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        return app([*map(str, arguments)], standalone_mode=False)

    with serve_open5(tmp_path, monkeypatch, 60) as server:
        code = run("prepare", "open5", "--download", "--accept-licences", "--mirror", server.url, "--limit", 30)
        assert code == 1  # the generated PTB-XL has rows to quarantine
    settings = [part for key, value in QUICK.items() for part in ("--set", f"{key}={value}")]
    assert not run("fit", "open5", *settings)
    rows = ResultTable.load(tmp_path / "runs" / "open5" / "results.json")
    assert {row.modality for row in rows.where(protocol="zero_shot")} == {"xray", "ct", "retina", "pathology", "ecg"}
    assert {row.task for row in rows.where(protocol="image_to_image")} == {"normality", "malignancy"}
    assert (tmp_path / "runs" / "open5" / "report.html").is_file()
    small = ["--set", "seeds=[0]", "--set", "bootstrap=20"]
    code = run("evaluate", "--suite", "open5", *small, "--json", "cells.json")
    cells = json.loads((tmp_path / "cells.json").read_text())
    assert code == 0 and {cell["missing"] for cell in cells} == {""} and all(cell["ours"] for cell in cells)
    assert {cell["table"] for cell in cells} == {1, 2, 3, 4}
    assert (tmp_path / "runs" / "suite-open5" / "tables.html").is_file()
