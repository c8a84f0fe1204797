"""A whole fit on 2 and 3 processes equals that of one: augmentation, kills, another number of processes, waiting."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from pipeline.projects import write_project

pytestmark = pytest.mark.whole
SCRIPT = Path(__file__).with_name("counting_fit.py")
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip
SIZES = {"joint_dim": 8, "image_size": 32, "widths": [8, 16], "max_tokens": 24, "text_config": TEXT}
SETTINGS = {
    "name": "small",
    "data": {"manifest": "manifest.csv", "valid_fraction": 0},
    "modalities": {m: {"model": "compact_2d", "settings": SIZES} for m in ("xray", "retina")},
    "pretrain": {"steps": 6, "batch": 7, "lr": 0.001, "augment": True},
    "align": {"dim": 12, "steps": 6, "batch": 7, "shared_batch": 5, "pool": 64, "lr": 0.001, "checkpoint_steps": 2,
              "image": "lora", "lora": {"dropout": 0.0}, "micro_batch": 2, "micro_tokens": 40},
    "distill": {"steps": 4, "steps_b": 4, "batch": 7, "lr": 0.001, "shared_batch": 5, "checkpoint_steps": 2,
                "affinity": 0.5, "student": {"text": "bert", "settings": {"config": TEXT, "max_tokens": 24}}},
    "evaluate": {"bootstrap": 20, "agreement_texts": 8},
    "compute": {"device": "cpu", "precision": "float32", "workers": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory, make_picture: Callable[..., Path]) -> Path:
    """A folder with 36 pictures of two modalities, one damaged picture, a manifest and settings."""
    folder = write_project(tmp_path_factory.mktemp("processes"), make_picture, 36, SETTINGS)
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with (folder / "manifest.csv").open("a") as manifest:
        manifest.write("xray,bad.png,normal,xray image of nothing,p99,train\n")
    return folder


def fit(project: Path, out: str, processes: int, **extra: str) -> int:
    log = project / out / "decoded"
    log.mkdir(parents=True, exist_ok=True)
    paths = f"{SCRIPT.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "M3BIND_PROGRESS": "off", "PYTHONPATH": paths, "LOG": str(log)}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), str(SCRIPT), "fit", "settings.yaml", "--out", out]
    done = subprocess.run(command, cwd=project, env=env | extra, capture_output=True, text=True, timeout=500)
    assert done.returncode or processes > 1 or not done.stderr.count("Traceback"), done.stderr[-3000:]
    if not extra.get("DIE") and not (project / out / "small/results.json").exists():
        raise AssertionError(done.stderr[-3000:])
    return done.returncode


def decoded(project: Path, out: str) -> list[str]:
    return sorted(name for path in (project / out / "decoded").iterdir() for name in path.read_text().split())


def assert_equal(project: Path, one: str, other: str) -> None:
    for path in (project / one / "small").rglob("final.safetensors"):
        a, b = load_file(path), load_file(project / other / path.relative_to(project / one))
        assert a.keys() == b.keys()
        for name in a:
            if not name.endswith("key.bias"):  # softmax does not see it: its gradient is rounding
                np.testing.assert_allclose(b[name], a[name], rtol=1e-5, atol=1e-5, err_msg=f"{path.parent.name} {name}")
    for path in (project / one / "small").rglob("log.jsonl"):
        logs = [(project / out / path.relative_to(project / one)).read_text().splitlines() for out in (one, other)]
        losses = [
            [[json.loads(line)[key] for key in ("step", "loss", "gradient_norm")] for line in log] for log in logs
        ]
        np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5, err_msg=path.parent.name)
    rows = [json.loads((project / out / "small/results.json").read_text()) for out in (one, other)]
    assert len(rows[0]) == len(rows[1]) > 0
    for a, b in zip(*rows, strict=True):
        assert (a["protocol"], a["task"], a["metric"]) == (b["protocol"], b["task"], b["metric"])


@pytest.fixture(scope="module")
def alone(project: Path) -> str:
    """The run of one process."""
    assert fit(project, "one", 1) == 1  # a file is quarantined
    return "one"


def test_one_process_decodes_each_file_once(project, alone):
    assert decoded(project, alone) == sorted(path.name for path in project.glob("*.png"))


def test_two_processes_equal_one_and_wait_for_an_evaluation_longer_than_the_timeout(project, alone):
    fit(project, "two", 2, SLOW="15")
    assert_equal(project, alone, "two")
    assert decoded(project, "two") == decoded(project, alone)
    counts = [len(path.read_text().split()) for path in (project / "two/decoded").iterdir()]
    assert len(counts) == 1 or sum(counts) == 37  # 37 files are less than two blocks of a share


def test_three_processes_killed_and_resumed_as_two_equal_one(project, alone):
    fit(project, "three", 3, DIE="4")
    assert not (project / "three/small/align/final.safetensors").exists()
    fit(project, "three", 2)
    assert_equal(project, alone, "three")
    assert decoded(project, "three") == decoded(project, alone)
