"""The estimates of `m3bind plan` before a run."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from m3bind.cli import app
from m3bind.config import load_config
from m3bind.errors import UnknownNameError
from m3bind.pipeline.plan import GPUS, as_text, duration, make_plan
from m3bind.pipeline.tower_cost import _tokens, work_of
from space import tiny

SMALL = ["data.phantom.patients=20", "data.minimum=2", "align.steps=10", "distill.steps=4", "distill.steps_b=6",
         "modalities.ct=null", "modalities.retina=null", "modalities.pathology=null"]  # fmt: skip


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("plan")
    config = load_config("quick", [*SMALL, "align.text=lora", "align.image=lora", "align.micro_batch=4"])
    work, assets = work_of(config, folder / "run", folder / "cache")
    return config, work, make_plan(config, assets, work, "a100-80gb")


def test_every_tower_and_stage_is_there(planned) -> None:
    config, work, plan = planned
    assert work.known and [t.modality for t in plan.towers] == list(config.modalities)
    for tower in plan.towers:
        assert tower.pairs == work.pairs[tower.modality] > 0
        assert tower.trained < tower.parameters
        assert tower.image.training > tower.image.forward > 0 and tower.text.training > 0
        assert tower.image.kept > 0 and tower.image.flops > 0
        assert tower.batch <= tower.pairs and tower.micro == 4 and tower.captions <= tower.batch
    names = [stage.name for stage in plan.stages]
    assert names[-4:] == ["align", "embed for distillation", "distill a", "distill b"]
    for stage in plan.stages:
        assert stage.seconds == pytest.approx(stage.seconds_per_step * stage.steps)
        assert stage.memory >= 4 * sum(t.parameters for t in plan.towers) and stage.gpu_seconds > 0
    assert dict(zip(names, (s.steps for s in plan.stages)))["distill b"] == 6


def test_printed_with_what_is_assumed(planned) -> None:
    text = as_text(planned[2])
    assert "estimate from its published 312 TFLOP/s at 35%" in text and "time here" in text
    assert "distill b" in text and "cached on disk" in text


def test_without_a_manifest_the_papers_sizes_are_used(tmp_path: Path) -> None:
    config = load_config("paper", [])
    work, _ = work_of(config, tmp_path, tmp_path)
    assert not work.known and work.pairs["ct"] == 47149 and work.sample == {}


def test_unknown_gpu(planned) -> None:
    config, work, _ = planned
    with pytest.raises(UnknownNameError, match="a100-80gb"):
        make_plan(config, Path(), work, "a100-80g")
    assert all(gpu.tflops > 0 and gpu.memory > 0 for gpu in GPUS.values())


def test_command_writes_json(tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    sets = [argument for change in SMALL for argument in ("--set", change)]
    result = CliRunner().invoke(app, ["plan", "quick", *sets, "--out", str(tmp_path), "--json", str(out)])
    assert result.exit_code == 0, result.output
    assert {"towers", "stages", "disk", "notes"} <= json.loads(out.read_text()).keys()
    assert not (tmp_path / "quick").exists()  # the run's own folder is left alone


def test_durations() -> None:
    assert [duration(s) for s in (3.21, 600, 7200, 1e6)] == ["3.21 s", "10 min", "2 h", "11.6 days"]


def test_tokens_are_those_of_the_smallest_vocabulary() -> None:
    model = tiny.Tiny()
    tokens = _tokens(model, 100)
    assert tokens["input_ids"].shape[1] == model.max_tokens and int(tokens["input_ids"].max()) < 128
    model.encode_text(tokens)
