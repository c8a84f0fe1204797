"""Commands around experiments: data sets, comparing runs."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from evaluate.benchmarks.prepared import make
from experiments.test_suite import run
from m3bind.core.files import write_json
from m3bind.errors import ConfigError
from m3bind.evaluate import benchmarks
from m3bind.evaluate.benchmarks import _listing
from m3bind.evaluate.classification import accuracy
from m3bind.evaluate.confidence import Resampling
from m3bind.evaluate.results import Context, ResultTable
from m3bind.experiments.commands import compare_runs
from paper_suite import make_models, make_space

DOCS = Path(__file__).parents[2] / "docs" / "experiments.md"


def a_run(folder: Path, right: np.ndarray, lam: float, version: str) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"align": {"mse_weight": lam}, "name": "x"}))
    write_json(folder / "provenance.json", {"versions": {"torch": version}})
    rows = [
        Context(dataset="d", modality=m, stage="aligned", text_encoder="teacher").row(
            "zero_shot", "accuracy", accuracy(np.ones(len(hits)), hits, Resampling(None, 300, 0))
        )
        for m, hits in (("xray", right), ("ct", np.arange(100) % 2))
    ]
    ResultTable(rows).save(folder / "results.json")
    return folder


def test_compare_reports_what_changed_and_what_is_significant(tmp_path: Path) -> None:
    first = a_run(tmp_path / "a", np.arange(100) % 2, 1.0, "2.1")
    second = a_run(tmp_path / "b", np.arange(100) % 10 > 0, 10.0, "2.2")
    text, rows = compare_runs(first, second)
    assert "align.mse_weight: 1.0 then, 10.0 now" in text
    assert "versions.torch: '2.1' then, '2.2' now" in text
    (line,) = [line for line in text.splitlines() if "zero_shot xray" in line]
    assert re.search(r"0\.500 +0\.900 +\+0\.400 .*better$", line)
    assert "zero_shot ct" not in text
    assert "2 metrics in both, 1 shown, 1 differ significantly" in text
    assert rows[0]["p"] < 0.05
    assert "zero_shot ct" in compare_runs(first, second, everything=True)[0]
    with pytest.raises(ConfigError, match="holds no run"):
        compare_runs(first, tmp_path)


def test_a_saved_space_is_evaluated_and_bad_files_are_quarantined(
    tmp_path: Path, make_picture: Callable[..., Path], monkeypatch, capsys
) -> None:
    space = make_space(tmp_path / "space", make_models(tmp_path / "models"))
    for number in range(8):
        make_picture(tmp_path / f"{number}.png", "xray", seed=number)
    (tmp_path / "7.png").write_bytes(b"broken")
    rows = [f"xray,{i}.png,{['normal', 'opacity'][i % 2]},p{i},test" for i in range(8)]
    (tmp_path / "m.csv").write_text("\n".join(["modality,path,label,patient,split", *rows]) + "\n")
    arguments = ("evaluate", str(space), "--manifest", str(tmp_path / "m.csv"), "--json", str(tmp_path / "out.json"))
    assert run(*arguments, monkeypatch=monkeypatch) == 1
    assert "1 rows quarantined" in capsys.readouterr().out
    table = ResultTable.load(tmp_path / "out.json")
    assert {row.n for row in table.where(protocol="zero_shot")} == {7}
    (tmp_path / "7.png").unlink()
    make_picture(tmp_path / "7.png", "xray", seed=7)
    assert run(*arguments, monkeypatch=monkeypatch) == 0
    own = tmp_path / "own.yaml"
    own.write_text("tasks: {mine: {modality: xray, classes: {normal: [clear], opacity: [an opacity]}}}")
    for given in (["--prompts", str(own)], ["--set", f"evaluate.tasks=[{own}]", "--set", "evaluate.bootstrap=7"]):
        assert run(*arguments, *given, monkeypatch=monkeypatch) == 0
        table = ResultTable.load(tmp_path / "out.json")
        assert {row.task for row in table.where(protocol="zero_shot")} == {"mine"}
    capsys.readouterr()
    assert run(*arguments, "--prompts", str(own), "--set", "evaluate.tasks=[mini5]", monkeypatch=monkeypatch) == 2
    own.write_text(own.read_text().replace("opacity:", "opacitiy:"))
    assert run(*arguments, "--prompts", str(own), monkeypatch=monkeypatch) == 2
    assert "did you mean 'opacity'" in capsys.readouterr().err


def test_prepare_writes_a_manifest_and_reports_what_differs(tmp_path: Path, monkeypatch, capsys) -> None:
    root = make("sicapv2", tmp_path)
    assert run("prepare", "sicapv2", "--root", str(root), "--out", str(tmp_path / "runs"), monkeypatch=monkeypatch) == 1
    text = capsys.readouterr().out
    assert "published 2,122" in text
    assert "rows quarantined" in text  # the tree has some
    assert (tmp_path / "runs" / "data" / "sicapv2" / "manifest.csv").is_file()
    assert run("prepare", "sicapv2", monkeypatch=monkeypatch) == 2
    assert "--root" in capsys.readouterr().err
    assert run("prepare", "sicapv3", "--root", str(root), monkeypatch=monkeypatch) == 2
    assert "sicapv2" in capsys.readouterr().err


def test_docs_list_every_data_set_as_it_is(tmp_path: Path) -> None:
    copy = tmp_path / "experiments.md"
    copy.write_text(DOCS.read_text(encoding="utf-8"), encoding="utf-8")
    _listing.update_document(copy)
    assert copy.read_text(encoding="utf-8") == DOCS.read_text(encoding="utf-8"), "run make docs"


@pytest.mark.parametrize("name", benchmarks.names())
def test_every_data_set_states_its_required_facts(name: str) -> None:
    one = benchmarks.get(name)
    assert one.title
    assert one.licence
    assert one.access
    assert re.match("https?://", one.url)
    assert one.layout.strip()
    assert all(key.split("/")[0] in ("train", "valid", "test", "patients") for key in one.known)
    assert one.layout.strip().splitlines()[0].strip() in _listing.describe(name)
