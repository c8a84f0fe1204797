"""The lines that run on a GPU, on the CPU and on the pretend device: they must work there at first try."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def environment(device: str) -> dict[str, str]:
    return {**os.environ, "M3BIND_TEST_DEVICE": device, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "pretend:0"])
def test_the_tests(device: str) -> None:
    """All but the published models in full size, which test_models_on_a_device.py has with fewer layers."""
    chosen = ("-k", "not test_gpu_models or compact_1d or compact_2d or ecg_clip or clip_any")
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu", "-p", "no:cacheprovider", *chosen]
    done = subprocess.run(command, cwd=ROOT, env=environment(device), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.slow
def test_the_script(tmp_path: Path) -> None:
    """benchmarks/gpu.sh with one test: every section has rows, and the tables are written."""
    settings = {"OUT": str(tmp_path), "PYTHON": sys.executable, "DEVICE": "cpu", "TINY": "1"}
    tests = "tests/gpu/test_gpu_text.py::test_bfloat16_is_close"
    command = ["bash", "benchmarks/gpu.sh"]
    variables = {**environment("cpu"), **settings, "TESTS": tests}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert not result["failed"] and all(section["rows"] for section in result["sections"].values())
    assert "| m3bind | " in (tmp_path / "speed.md").read_text()
