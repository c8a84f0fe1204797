"""`--device` and `--workers`: on every command that computes, checked, and passed on to what computes."""

import logging
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import typer

from m3bind.cli import app
from m3bind.config import load_config
from m3bind.core import device
from m3bind.core.device import Compute
from m3bind.errors import ConfigError
from m3bind.pipeline import doctor
from m3bind.pipeline.plan.tower_cost import host
from space import tiny

COMMANDS = typer.main.get_command(app).commands
PLAIN = {  # no network computes in these commands
    "datasets", "compare", "merge", "index", "check", "phantom", "plan", "models", "convert", "doctor",
}  # fmt: skip
RUNS = {  # arguments, and what gets the settings
    "demo": ([], "m3bind.pipeline.run.Run"),
    "fit": (["quick"], "m3bind.pipeline.run.Run"),
    "prepare": (["quick"], "m3bind.pipeline.run.Run"),
    "pretrain": (["quick"], "m3bind.pipeline.run.Run"),
    "align": (["quick"], "m3bind.pipeline.run.Run"),
    "distill": (["quick"], "m3bind.pipeline.run.Run"),
    "ablate": (["quick"], "m3bind.experiments.ablation.ablate"),
    "ablate --methods": (["quick", "--methods"], "m3bind.experiments.method_comparison.compare_methods"),
}
SPACE, RECEIVE = ["--space", "space"], ["--space", "space", "--index", "index"]
OTHERS = {  # arguments, and what gets device and workers
    "evaluate": (["run"], "m3bind.core.device.pick"),
    "evaluate --manifest": (["s", "--manifest", "m.csv"], "m3bind.experiments.commands.evaluate_space"),
    "evaluate --suite": (["--suite", "paper"], "m3bind.experiments.commands.Suite"),
    "leaks": (["m.csv"], "m3bind.experiments.leaks.leak_report"),
    "report": (["run"], "m3bind.pipeline.outputs.open_run"),
    "encode": (["a", *SPACE, "--out", "o"], "m3bind.encode.job.encode_files"),
    "encode --shard": (["a", *SPACE, "--out", "o", "--shard", "1/2"], "m3bind.encode.job.encode_share"),
    "search": (["index", *SPACE, "--text", "t"], "m3bind.search.searcher.Searcher"),
    "serve": (RECEIVE, "m3bind.serve.app.make_app"),
    "serve-demo": ([], "m3bind.cli.serve_demo.prepare"),
    "listen": (RECEIVE, "m3bind.hospital.encoder.SpoolEncoder"),
    "pull": (["http://127.0.0.1:1", *RECEIVE], "m3bind.hospital.encoder.SpoolEncoder"),
    "send-results": (
        ["index", *SPACE, "--labels", "a,b", "--item", "i", "--json", "--out", "o"],
        "m3bind.hospital.results.findings",
    ),
    "export": (["s", "--to", "onnx", "--out", "o", "--manifest", "m.csv"], "m3bind.export.samples.read_inputs"),
    "check-model": (["compact_2d"], "m3bind.models.weights.check.check_model"),
}
NO_FILES = {"send-results", "check-model"}  # nothing is read there: workers are checked only


class Reached(Exception):
    """The function that computes was called."""


def run(name, *arguments):
    app([name.split()[0], *arguments], standalone_mode=False)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_that_computes_has_both_options(name):
    options = {parameter.name for parameter in COMMANDS[name].params}
    assert {"device", "workers"} <= options if name not in PLAIN else not {"device", "workers"} & options
    assert name in PLAIN or name in RUNS or name in OTHERS


@pytest.mark.parametrize("name", RUNS)
def test_options_become_settings_of_a_run(name, monkeypatch):
    arguments, target = RUNS[name]

    def reached(config, *_, **__):
        assert (config.compute.device, config.compute.workers) == ("cuda:7", 3)
        raise Reached

    monkeypatch.setattr(target, reached)
    with pytest.raises(Reached):
        run(name, *arguments, "--device", "cuda:7", "--workers", "3", "--set", "compute.device=mps")
    with pytest.raises(ConfigError, match=r"compute\.workers"):
        run(name, *arguments, "--workers", "many")


@pytest.fixture
def place(monkeypatch, tmp_path):
    """An empty folder, a space on the device that it was opened on, and 3 workers on a device called meta."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("M3BIND_SALT", "0" * 64)
    asked = []

    def pick(name="auto", *_, workers="auto", **__):
        asked.append((name, workers))
        return Compute(torch.device("meta"), workers=3)

    def load(path, device="auto"):
        assert torch.device(device) == torch.device("meta")
        return SimpleNamespace(modalities=("xray",), dim=4, fingerprint="f")

    monkeypatch.setattr(device, "pick", pick)
    for module in ("m3bind.space.bundle", "m3bind.space"):
        monkeypatch.setattr(f"{module}.load", load, raising=False)
    monkeypatch.setattr("m3bind.index.open_index", lambda *_, **__: nullcontext())
    return asked


def values_in(arguments):
    """Devices and workers among the arguments of a call."""
    for value in arguments:
        yield from (value.device, value.workers) if isinstance(value, Compute) else [getattr(value, "decoders", value)]


@pytest.mark.parametrize("name", [name for name in OTHERS if name != "evaluate"])
def test_options_reach_what_computes(name, monkeypatch, place):
    arguments, target = OTHERS[name]

    def reached(*given, **named):
        found = list(values_in([*given, *named.values()]))
        assert 3 in found or name in NO_FILES
        assert torch.device("meta") in found or any(isinstance(value, SimpleNamespace) for value in found)
        raise Reached

    monkeypatch.setattr(target, reached)
    with pytest.raises(Reached):
        run(name, *arguments, "--device", "mine", "--workers", "5")
    assert place == [("mine", 5)]


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(
    ("options", "message"),
    [(["--device", "gpu"], "'gpu' is not a device"), (["--workers", "0"], "workers=0"), (["--workers", "x"], "'x'")],
)
def test_options_that_cannot_be_met_end_a_command(name, options, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("M3BIND_SALT", "0" * 64)
    monkeypatch.setattr("m3bind.index.open_index", lambda *_, **__: pytest.fail("opened before the options were read"))
    with pytest.raises(ConfigError, match=message):
        run(name, *OTHERS[name][0], *options)


@pytest.fixture
def unused_gpu(monkeypatch, tmp_path):
    """A GPU that is visible, and no warning of it yet in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("M3BIND_SALT", "0" * 64)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number=0: "Some GPU")
    monkeypatch.setattr("m3bind.index.open_index", lambda *_, **__: nullcontext())
    device._warn.cache_clear()
    yield
    device._warn.cache_clear()


DEFAULTS = {
    name: next(option.default for option in COMMANDS[name.split()[0]].params if option.name == "device")
    for name in OTHERS
    if name != "evaluate"
}


@pytest.mark.parametrize(
    ("name", "given"),
    [(name, given) for name in DEFAULTS for given in ([], ["--device", "cpu"]) if given or DEFAULTS[name] == "cpu"],
)
def test_a_gpu_is_reported_unused_unless_the_cpu_is_the_default(name, given, monkeypatch, unused_gpu, caplog):
    """Also by `load`, which gets the device that was chosen."""
    arguments, target = OTHERS[name]
    space = tiny.make_space(distilled=False)
    space._contents.fingerprint = "f"
    monkeypatch.setattr("m3bind.space.bundle.refuse_foreign", lambda path: None)
    monkeypatch.setattr("m3bind.space.bundle.read_folder", lambda path: space._contents)

    def reached(*_, **__):
        raise Reached

    monkeypatch.setattr(target, reached)
    with caplog.at_level(logging.WARNING), pytest.raises(Reached):
        run(name, *arguments, *given)
    reported = [record.message for record in caplog.records if record.name == device.__name__]
    assert len(reported) == (DEFAULTS[name] is None) and all("Some GPU is not used" in text for text in reported)


def test_the_doctor_reports_an_unused_gpu_once(monkeypatch, tmp_path, caplog):
    (tmp_path / "node").touch()
    monkeypatch.setattr(device, "_NODES", {str(tmp_path / "node"): "an NVIDIA GPU"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "gemm_rate", lambda dtype: 1.0)
    device._warn.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert "an NVIDIA GPU is visible but not used" in doctor.facts()["accelerator"]
    assert not caplog.records


def test_a_plan_measures_on_the_cpu_without_a_warning(unused_gpu, caplog):
    with caplog.at_level(logging.WARNING):
        assert host(load_config("quick")).device.type == "cpu"
    assert not caplog.records
