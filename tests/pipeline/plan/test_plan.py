"""The estimates of `m3bind plan` before a run."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from m3bind.cli import app
from m3bind.config import RunConfig, load_config
from m3bind.errors import ConfigError, UnknownNameError
from m3bind.pipeline.plan import GPUS, RunPlan, Work, machine_of, make_plan, work_of
from m3bind.pipeline.plan.table import as_text, duration
from pipeline.plan.conftest import without_timing

SMALL = ["data.phantom.patients=20", "data.minimum=2", "align.steps=10", "distill.steps=4", "distill.steps_b=6",
         "modalities.ct=null", "modalities.retina=null", "modalities.pathology=null"]  # fmt: skip


def plan_of(config: RunConfig, folder: Path, cache: Path | None = None, **machine) -> tuple[Work, RunPlan]:
    notes: list[str] = []
    work, assets = work_of(config, folder / "run", cache or folder / "cache", notes)
    return work, make_plan(config, assets, work, machine_of(config, **machine), notes, machine.get("gpu", ""))


@pytest.fixture(scope="module", params=["untimed", pytest.param("timed", marks=pytest.mark.whole)])
def planned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("plan")
    config = load_config("quick", [*SMALL, "align.text=lora", "align.image=lora", "align.micro_batch=4"])
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "untimed":
            without_timing(patch)
        return config, *plan_of(config, folder, gpu="a100-80gb", gpus=2, cores=4, disk=0.5)


def test_a_number_of_gpus_without_their_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="--gpus 8 needs the kind of GPU"):
        machine_of(load_config("quick"), gpus=8)


@pytest.mark.parametrize("disk", ["inf", "nan", "0"])
def test_a_disk_without_a_finite_speed_is_refused(disk: str) -> None:
    result = CliRunner().invoke(app, ["plan", "quick", "--disk", disk])
    assert result.exit_code == 2 and "--disk" in str(result.exception) + result.output


def test_every_tower_and_stage_is_there(planned) -> None:
    config, work, plan = planned
    assert work.known and [t.modality for t in plan.towers] == list(config.modalities)
    for tower in plan.towers:
        assert tower.pairs == work.pairs[tower.modality] > 0 and tower.files > tower.pairs
        assert tower.trained < tower.parameters
        assert tower.image.training > tower.image.forward > 0 and tower.text.training > 0
        assert tower.image.peak >= tower.image.stored > 0 and tower.image.training_flops > 2 * tower.image.flops > 0
        assert tower.align.batch <= tower.pairs and tower.micro == 4 and tower.align.captions <= tower.align.batch
        assert tower.decode.seconds > 0 and "files of the manifest" in tower.decode.source
        assert tower.pretrain and (tower.pretrain.image_level, tower.pretrain.text_level) == ("input", "features")
    names = [stage.name for stage in plan.stages]
    expected = [f"ingest {m}" for m in config.modalities] + ["texts"] + [f"pretrain {m}" for m in config.modalities]
    expected += ["embed before binding", "closed form", "align", "embed after stage 1", "teachers' texts"]
    assert names == [*expected, "distill a", "distill b"]
    steps = dict(zip(names, (s.steps for s in plan.stages)))
    assert (steps["ingest xray"], steps["align"], steps["distill a"], steps["distill b"]) == (
        work.files["xray"],
        10,
        4,
        6,
    )


def test_a_stage_takes_as_long_as_what_binds_it(planned) -> None:
    _, _, plan = planned
    for stage in plan.stages:
        decode, disk = stage.decode / 4, stage.disk / 0.5e9
        step = max(stage.compute + stage.augmenting + decode, disk)
        assert stage.seconds == pytest.approx(stage.start + stage.steps * step)
        assert (stage.start > 0) <= stage.name.startswith("ingest")
        spans = {"compute": stage.gpu_compute, "decode": decode + stage.augmenting / 4, "disk": disk}
        assert stage.gpu_seconds == pytest.approx(stage.start + stage.steps * max(spans.values()))
        assert (spans | {"-": 0.0})[stage.gpu_binds] == max(spans.values())
    by_name = {stage.name: stage for stage in plan.stages}
    assert by_name["ingest xray"].binds == by_name["ingest xray"].gpu_binds == "decode"
    assert by_name["align"].gpu_memory < by_name["align"].memory  # activations are divided, weights are not


def test_stage_0_is_counted_twice_without_valid_samples(tmp_path: Path, untimed_networks: None) -> None:
    config, notes = load_config("quick", SMALL), []
    work, assets = work_of(config, tmp_path / "run", tmp_path / "cache", notes)
    assert work.valid["ecg"] > 0
    work.valid["ecg"] = 0
    plan = make_plan(config, assets, work, machine_of(config), notes)
    by_name = {stage.name: stage for stage in plan.stages}
    assert "calibration xray" not in by_name
    assert by_name["calibration ecg"].seconds == by_name["pretrain ecg"].seconds > 0
    assert "ecg: stage 0 runs twice" in as_text(plan)


def test_printed_with_what_is_assumed(planned) -> None:
    text = as_text(planned[2])
    assert "an estimate from its published 312 TFLOP/s at 35%" in text and "on this machine" in text
    assert all(word in text for word in ("compute", "decode", "disk", "memory", "binds", "2 x a100-80gb", "distill b"))
    assert "decoding on 4 cores, disk at 0.5 GB/s" in text and "written to disk" in text


def test_inputs_above_the_limit_are_decoded_in_every_step(planned, untimed_networks: None, tmp_path: Path) -> None:
    config, _, stored = planned
    config = config.model_copy(deep=True)
    config.data.inputs_gb = 0.0
    _, live = plan_of(config, tmp_path)
    assert "xray inputs" in stored.disk and "xray inputs" not in live.disk
    before, after = ({stage.name: stage for stage in plan.stages} for plan in (stored, live))
    for name in ("pretrain xray", "embed before binding", "align", "embed after stage 1"):
        assert before[name].decode == 0 < after[name].decode and before[name].disk > 0
    batch, decode = live.towers[0].align.batch, [t.decode for t in live.towers]
    costs = sum(d.decoding + d.preprocessing for d in decode)
    assert after["align"].decode == pytest.approx(batch * costs) or len({t.align.batch for t in live.towers}) > 1
    assert any("data.inputs_gb=1 stores them" in note for note in live.notes)


def test_unknown_gpu_and_no_modality(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="a100-80gb"):
        machine_of(load_config("quick"), gpu="a100-80g")
    assert all(gpu.tflops > 0 and gpu.memory > 0 and gpu.bandwidth > 0 for gpu in GPUS.values())
    with pytest.raises(ConfigError, match="no modalities"):
        work_of(RunConfig(), tmp_path, tmp_path, [])


def test_command_writes_json(untimed_networks: None, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    sets = [argument for change in SMALL for argument in ("--set", change)]
    result = CliRunner().invoke(app, ["plan", "quick", *sets, "--out", str(tmp_path), "--json", str(out)])
    assert result.exit_code == 0, result.output
    assert {"towers", "stages", "disk", "notes", "machine"} <= json.loads(out.read_text()).keys()
    assert not (tmp_path / "quick").exists()  # the run's own folder is left alone


def test_durations() -> None:
    assert [duration(s) for s in (3.21, 600, 7200, 1e6)] == ["3.21 s", "10 min", "2 h", "11.6 days"]
