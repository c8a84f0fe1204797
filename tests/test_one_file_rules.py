"""A modality, a model and a data set, added as one file each, work in fit, tables and search without other changes.

The package is copied into a temporary folder, the files are added there, and the command line runs from that copy.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import m3bind

PLUGIN = Path(__file__).parent.parent / "examples" / "plugin"
MODALITY, MODEL = (PLUGIN / "src/m3bind_thermal" / f"{name}.py" for name in ("modality", "model"))

SETTINGS = """
name: dropped
data: {manifest: MANIFEST}
modalities:
  thermal: {model: thermal_linear}
  xray: {model: thermal_linear, settings: {joint_dim: 10}}
pretrain: {steps: 30, batch: 16, lr: 0.01}
align: {dim: 16, steps: 10, batch: 16, shared_batch: 8, pool: 64, lr: 0.01}
distill:
  steps: 5
  steps_b: 5
  batch: 16
  student:
    text: bert
    settings: {config: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}}
evaluate: {bootstrap: 20, agreement_texts: 8}
"""


BENCHMARK = '''
"""Thermal pictures of pipes: one folder, one table."""

from collections.abc import Iterator
from pathlib import Path

from m3bind.evaluate.benchmarks.base import Benchmark, BenchmarkItem, Fault, read_table


class Pipes(Benchmark):
    """Hot and even pipes."""

    name = "pipes"
    title = "Pipes"
    modalities = ("thermal",)
    licence = "CC0"
    url = "https://example.org/pipes"
    access = "Open."
    layout = "table.csv    file, state, set"
    needs = ("table.csv",)
    classes = ("even", "hot")
    known = {"test": 12}

    def items(self, root: Path, out: Path) -> Iterator[BenchmarkItem | Fault]:
        """Rows of the table."""
        for _, cells in read_table(root / "table.csv", ("file", "state", "set")):
            yield BenchmarkItem(cells["file"], cells["set"], "thermal", label=cells["state"])
'''

PROMPTS = """
tasks:
  pipes:
    dataset: [pipes]
    modality: thermal
    metric: balanced_accuracy
    classes: {even: {names: [even temperature]}, hot: {names: [a hot spot]}}
"""

TABLES = """
title = "Pipes"
[[table]]
number = 1
title = "Pipes"
[[table.block]]
name = "Thermal"
modality = "thermal"
columns = [
  {name = "zero-shot", dataset = "pipes", protocol = "zero_shot", task = "pipes", metric = "balanced_accuracy"},
  {name = "1 shot", dataset = "pipes", protocol = "few_shot", task = "pipes", amount = 1, metric = "balanced_accuracy"},
]
rows = [{method = "ours", model = "ours", values = [0.5, [0.5, 0.1]]}]
"""

SUITE = """
tables: tables.toml
models: {ours: {run: runs/dropped}}
seeds: [0, 1]
bootstrap: 20
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dropped")
    shutil.copytree(
        Path(m3bind.__file__).parent, folder / "src" / "m3bind", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(MODALITY, folder / "src/m3bind/modalities/thermal.py")
    shutil.copy(MODEL, folder / "src/m3bind/models/thermal_linear.py")
    (folder / "src/m3bind/evaluate/benchmarks/pipes.py").write_text(BENCHMARK)
    (folder / "src/m3bind/evaluate/prompts/pipes.yaml").write_text(PROMPTS)
    (folder / "tables.toml").write_text(TABLES)
    (folder / "suite.yaml").write_text(SUITE)
    random = np.random.default_rng(0)
    rows = ["modality,path,label,caption,patient,split"]
    for number in range(72):
        hot = number % 2
        picture = random.integers(0, 60, (32, 32)) + 120 * hot * (np.mgrid[:32, :32][0] > 15)
        modality = "thermal" if number < 36 else "xray"
        name = f"{modality}{number}.png"
        Image.fromarray(picture.astype(np.uint8)).save(folder / name)
        split = "test" if number % 6 < 2 else "train"
        finding = "a hot spot, abnormal" if hot else "even temperature, normal"
        rows.append(
            f'{modality},{name},{"hot" if hot else "even"},"{finding}, case {number % 7}",p{number % 36},{split}'
        )
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    (folder / "settings.yaml").write_text(SETTINGS.replace("MANIFEST", str(folder / "manifest.csv")))
    return folder


PROGRAM = """
import json, sys
from m3bind.cli import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["m3bind", *arguments]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise
    print(chr(12), end="", flush=True)
"""


def run(project: Path, *commands: tuple[str, ...]) -> list[str]:
    """What commands print that one process, which knows the new files, runs one after the other."""
    env = {
        **os.environ,
        "PYTHONPATH": str(project / "src"),
        "HF_HUB_OFFLINE": "1",
        "M3BIND_PROGRESS": "off",
        "OMP_NUM_THREADS": "1",
    }
    program = [sys.executable, "-c", PROGRAM, json.dumps(commands)]
    done = subprocess.run(program, cwd=project, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    *said, rest = done.stdout.split(chr(12))
    assert len(said) == len(commands) and not rest
    return said


@pytest.mark.whole
def test_fit_evaluate_encode_and_search_know_them(project):
    assert len(MODALITY.read_text().splitlines()) <= 40
    assert len(MODEL.read_text().splitlines()) <= 60
    search = ("search", "encoded", "--space", "runs/dropped/space")
    table = [f"thermal{n}.png,{['even', 'hot'][n % 2]},{'test' if n % 6 < 2 else 'train'}" for n in range(36)]
    (project / "table.csv").write_text("\n".join(["file,state,set", *table]) + "\n")
    fitted, _, _, by_text, by_file, prepared, computed = run(
        project,
        ("fit", "settings.yaml"),
        ("evaluate", "runs/dropped/space", "--manifest", "manifest.csv", "--json", "again.json"),
        ("encode", "manifest.csv", "--space", "runs/dropped/space", "--out", "encoded"),
        (*search, "--text", "a hot spot", "--where", "modality=thermal", "-k", "5"),
        (*search, "--file", "thermal0.png:thermal", "--where", "modality=xray", "-k", "3"),
        ("prepare", "pipes", "--root", "."),
        ("evaluate", "--suite", "suite.yaml"),
    )
    assert "thermal" in fitted and (project / "runs/dropped/report.html").stat().st_size > 10_000
    rows = json.loads((project / "runs/dropped/results.json").read_text())  # the suite, which opens the run, leaves it
    assert {r["stage"] for r in rows} == {"unbound", "closed_form", "aligned", "distilled"}
    assert any(
        r["modality"] == "thermal" and r["protocol"] == "zero_shot" and r["text_encoder"] == "student" for r in rows
    )
    again = {
        (r["task"], r["modality"], r["text_encoder"], r["metric"]): r["value"]
        for r in json.loads((project / "again.json").read_text())
        if r["protocol"] == "zero_shot"
    }
    first = {
        (r["task"], r["modality"], r["text_encoder"], r["metric"]): r["value"]
        for r in rows
        if r["protocol"] == "zero_shot" and r["stage"] == "distilled"
    }
    assert again and all(again[key] == pytest.approx(first[key], abs=1e-6) for key in again if key in first)
    assert set(again) == set(first)
    assert by_text.count("thermal") >= 5 and len(by_file.splitlines()) == 2 + 3

    assert "24 train" in prepared and "12 test" in prepared and "differs" not in prepared
    assert "2 of 2 cells computed" in computed
    cells = [json.loads(path.read_text()) for path in (project / "runs/suite-suite/cells").glob("*.rows.json")]
    (zero,) = [r for rows in cells for r in rows if r["protocol"] == "zero_shot" and r["metric"] == "balanced_accuracy"]
    assert zero["n"] == 12 and zero["chance"] == 0.5 and len(zero["prompts"]) == 16


@pytest.mark.whole
def test_the_same_files_as_an_installed_distribution(tmp_path):
    shutil.copytree(PLUGIN, tmp_path / "plugin")  # a build writes beside the sources
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*install, "--target", str(tmp_path / "site"), str(tmp_path / "plugin")], check=True)
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(tmp_path / "hot.png")
    path = os.pathsep.join([str(tmp_path / "site"), str(Path(m3bind.__file__).parents[1])])
    env = {**os.environ, "PYTHONPATH": path, "M3BIND_PROGRESS": "off"}

    def said(*arguments):
        command = [sys.executable, "-m", "m3bind", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "8-bit grey / 255" in said("check", "hot.png", "--modality", "thermal")
    assert "thermal_linear" in said("models")
