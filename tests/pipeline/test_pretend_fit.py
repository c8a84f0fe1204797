"""A whole run on the pretend device: nothing is mixed, losses are the CPU's, and a step hardly ever waits."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel

from m3bind.cli import main
from m3bind.evaluate.results import ResultTable
from m3bind.models.layers.bert import BertTrunk
from m3bind.models.layers.bert_padded import Padded
from m3bind.training import loop
from pipeline.projects import write_project
from pretend.device import DEVICE, pretend_device
from pretend.steps import assert_same_losses, counted_steps

pytestmark = pytest.mark.whole

STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # packed and padded texts draw differently
TEXT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, **STILL}
MODEL = {
    "model": "compact_2d",
    "settings": {"joint_dim": 8, "image_size": 32, "widths": [8, 16], "max_tokens": 24, "text_config": TEXT},
}
SETTINGS = {
    "name": "small",
    "data": {"manifest": "manifest.csv", "valid_fraction": 0},
    "modalities": {"xray": MODEL, "retina": {**MODEL, "settings": {**MODEL["settings"], "joint_dim": 12}}},
    "pretrain": {"steps": 6, "batch": 8, "lr": 0.0001, "checkpoint_steps": 2},
    "align": {
        "dim": 12,
        "bridge": "identity",
        "steps": 6,
        "batch": 8,
        "shared_batch": 8,
        "pool": 64,
        "lr": 0.0001,
        "checkpoint_steps": 2,
    },
    "distill": {
        "steps": 4,
        "steps_b": 4,
        "batch": 8,
        "checkpoint_steps": 2,
        "student": {"text": "bert", "settings": {"config": TEXT, "max_tokens": 24}},
    },
    "evaluate": {"bootstrap": 20, "agreement_texts": 8},
}
STAGES = {"pretrain/xray": 6, "pretrain/retina": 6, "align": 6, "distill/a": 4, "distill/b": 4}  # steps


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, make_picture: Callable[..., Path]) -> Path:
    """A folder with 32 pictures of two modalities, a manifest and settings."""
    return write_project(tmp_path_factory.mktemp("project"), make_picture, 32, SETTINGS)


def command(project: Path, *arguments: str) -> int:
    """The command line inside this process: its exit code."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(project)
        patched.setenv("M3BIND_PROGRESS", "off")
        patched.setattr(sys, "argv", ["m3bind", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0)


def fit(project: Path, device: str, folder: str, *more: str) -> Path:
    options = ["--device", device, "--workers", "1"]
    assert command(project, "fit", "settings.yaml", "--out", folder, *options, *more) == 0
    return project / folder / "small"


@pytest.fixture(scope="module")
def theirs(project: Path) -> Path:
    """The folder of a run on the CPU, with texts padded as on a device: packed ones are rounded differently."""
    with (
        patch.object(BertTrunk, "_layouts", lambda self, real: [(None, Padded(real))]),
        sdpa_kernel(SDPBackend.MATH),
    ):
        return fit(project, "cpu", "cpu")


@pytest.fixture(scope="module")
def ours(project: Path) -> Iterator[tuple[Path, list[int]]]:
    """The folder of a run on the device, and how often each step waited."""
    with pretend_device(float64=False) as log, counted_steps(log) as waits:
        yield fit(project, DEVICE, "device"), waits


def test_losses_are_the_cpus_and_a_step_waits_twice_at_most(theirs: Path, ours: tuple[Path, list[int]]) -> None:
    folder, waits = ours
    for stage in STAGES:
        assert_same_losses(folder / stage / "log.jsonl", theirs / stage / "log.jsonl")
    again = {f"calibration/{m}": STAGES[f"pretrain/{m}"] for m in ("xray", "retina")}  # stage 0 without some patients
    for stage in again:
        assert_same_losses(folder / stage / "log.jsonl", theirs / stage / "log.jsonl")
    assert len(waits) == sum(STAGES.values()) + sum(again.values())
    assert max(waits) <= 2


def test_results_are_the_cpus(theirs: Path, ours: tuple[Path, list[int]]) -> None:
    tables = [ResultTable.load(folder / "results.json") for folder in (ours[0], theirs)]
    values = [[row.value for row in table] for table in tables]
    assert values[0] == pytest.approx(values[1], abs=1e-3, nan_ok=True)


class Killed(BaseException):
    """The process ends here."""


def test_a_killed_run_resumes_on_the_device_to_the_same_bits(project: Path, ours: tuple[Path, list[int]]) -> None:
    done = 0
    original = loop._Run.step

    def step(run: loop._Run, *args: object) -> object:
        nonlocal done
        done += 1
        if done % 11 == 0:
            raise Killed
        return original(run, *args)  # type: ignore[arg-type]

    folder = project / "killed" / "small"
    with pretend_device(float64=False), patch.object(loop._Run, "step", step):
        for _ in range(20):
            try:
                fit(project, DEVICE, "killed")
                break
            except Killed:
                continue
    assert done > 2 * 11
    for stage in STAGES:
        name = f"{stage}/final.safetensors"
        assert (folder / name).read_bytes() == (ours[0] / name).read_bytes(), stage


def test_binding_methods_are_compared_on_the_device(project: Path) -> None:
    options = ["--methods", "--only", "procrustes", "--seeds", "1", "--out", "methods", "--device", DEVICE]
    with pretend_device(float64=False) as log:
        assert command(project, "ablate", "settings.yaml", *options, "--json", "methods.json") == 0
    assert log.operations
    rows = json.loads((project / "methods.json").read_text())["rows"]
    assert {row["method"] for row in rows} == {"procrustes", "default"}
    assert not any("skipped" in row for row in rows)
