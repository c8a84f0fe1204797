"""What training reports: trackers, pace, profile."""

import json
from dataclasses import replace

import pytest
import torch
from accelerate import tracking
from torch import nn

from m3bind.cli.app import config_of
from m3bind.config import TrainConfig, load_config
from m3bind.core.device import Compute
from m3bind.errors import ConfigError
from m3bind.training import monitor
from m3bind.training.loop import ParameterGroup, train

SETTINGS = TrainConfig(steps=12, lr=0.1)


class Slope:
    """One weight that is drawn to zero."""

    name = "slope"

    def __init__(self) -> None:
        self.layer = nn.Linear(1, 1, bias=False)

    def groups(self):
        return [ParameterGroup("slope", list(self.layer.parameters()))]

    def modules(self):
        return {"layer": self.layer}

    def batch(self, step):
        return {"items": 5, "x": torch.ones(5, 1)}

    def losses(self, batch):
        return {"loss": self.layer(batch["x"]).square().mean()}


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_named(monkeypatch, tmp_path, name):
    monkeypatch.setattr(tracking, f"is_{name}_available", lambda: False)
    with pytest.raises(ConfigError, match=f"pip install {name}"):
        train(Slope(), SETTINGS, tmp_path, 0, Compute(trackers=(name,)))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_ends_a_command_before_files_are_read(monkeypatch, name):
    monkeypatch.setattr(tracking, f"is_{name}_available", lambda: False)
    with pytest.raises(ConfigError, match=f"pip install {name}"):
        config_of("quick", [f"compute.trackers=[tensorboard, {name}]"])


@pytest.mark.parametrize(("name", "kind"), [("wandb", "WandBTracker"), ("mlflow", "MLflowTracker")])
def test_trackers_get_losses_and_the_settings_of_the_loop_only(monkeypatch, tmp_path, name, kind):
    got = {"config": [], "rows": [], "finished": 0}

    class Tracker:
        def __init__(self, project, **settings):
            assert project == "m3bind"

        def store_init_configuration(self, values):
            got["config"].append(values)

        def log(self, values, step):
            got["rows"].append((step, values))

        def finish(self):
            got["finished"] += 1

    monkeypatch.setattr(tracking, f"is_{name}_available", lambda: True)
    monkeypatch.setattr(tracking, kind, Tracker)
    train(Slope(), SETTINGS, tmp_path, 0, Compute(trackers=("tensorboard", name)))
    assert [step for step, _ in got["rows"]] == list(range(1, 13)) and got["finished"] == 1
    assert got["rows"][0][1]["slope/items_per_second"] > 0 and "slope/loss" in got["rows"][0][1]
    assert got["config"] == [{"stage": "slope", **SETTINGS.model_dump(mode="json")}]
    assert list((tmp_path / "tensorboard").iterdir())


def test_one_setting_writes_a_profile(tmp_path):
    train(Slope(), SETTINGS, tmp_path, 0, Compute(profile=True))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert any("AdamW" in str(event.get("name")) for event in events)
    assert load_config("quick", ["compute.profile=true"]).compute.pick().profile


def test_the_progress_line_shows_items_waiting_and_memory(monkeypatch):
    times = iter([0.0, 0.0, 2.0, 10.0, 10.0, 10.0, 10.0])
    monkeypatch.setattr(monitor.time, "monotonic", lambda: next(times))
    pace = monitor.Pace(Compute())
    monkeypatch.setattr(monitor, "memory", lambda device: (31.24e9, 80e9))
    for _ in pace.timed(iter([1])):
        pace.items += 500
        break
    assert pace.note() == "50 items/s, waiting for data 20%, 31.2 of 80 GB"


def test_the_dtype_of_a_stage_is_its_own_or_that_of_the_run():
    from m3bind.training.loop import tower_dtype

    half = replace(Compute(), dtype=torch.bfloat16)
    assert tower_dtype(TrainConfig(), half) == torch.bfloat16
    assert tower_dtype(TrainConfig(precision="fp32"), half) == torch.float32
    assert tower_dtype(TrainConfig(precision="bf16"), Compute()) == torch.bfloat16
