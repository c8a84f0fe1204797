"""A modality, a model and a data set dropped in as a file each go through fit, tables and search, nothing else touched.

The package is copied into a temporary folder, the two files are added there, and the command line runs from that copy.
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

MODALITY = '''
"""Thermal images: 8-bit grey PNG, hot is bright."""

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from m3bind.errors import ReadError
from m3bind.modalities.base import Modality, Sample


class Thermal(Modality):
    """Surface temperature as a grey picture."""

    name = "thermal"
    title = "Thermal image"
    color = "#aa5500"
    suffixes = (".png",)

    def read(self, path: Path | str) -> Sample:
        """(H, W) float32, 0..1."""
        try:
            with Image.open(path) as image:
                array = np.asarray(image.convert("L"), dtype=np.float32) / 255
        except (OSError, UnidentifiedImageError) as error:
            raise ReadError(path, "not a readable PNG", "export it again") from error
        return Sample("thermal", array, steps=["8-bit grey / 255"])

    def thumbnail(self, sample: Sample, size: int = 160) -> Image.Image:
        """The picture itself."""
        image = Image.fromarray((sample.array * 255).astype(np.uint8)).convert("RGB")
        image.thumbnail((size, size))
        return image
'''

MODEL = '''
"""A dual encoder of two linear towers: 8x8 pixels, bag of letters."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3bind.modalities.base import Sample
from m3bind.models.base import DualEncoder, ModelCard, Tokens


class Letters(nn.Module):
    """Mean of letter vectors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(28, width)
        self.value = nn.Linear(width, width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask[..., None].float()
        return self.value((self.table(input_ids) * mask).sum(1) / mask.sum(1).clamp(min=1))


class Linear(DualEncoder):
    """Linear in both towers."""

    name = "dropped_in"
    card = ModelCard("a test", "Apache-2.0", "Apache-2.0", 12, "64 pixels", lora_text=("value",))

    def __init__(self, modality: str = "", joint_dim: int = 12, assets: Any = None) -> None:
        super().__init__()
        self.modality, self.joint_dim, self.max_tokens = modality, joint_dim, 64
        self.image_trunk, self.image_head = nn.Linear(64, 32), nn.Linear(32, joint_dim, bias=False)
        self.text_trunk, self.text_head = Letters(24), nn.Linear(24, joint_dim, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(2.0))

    @property
    def logit_scale(self) -> Tensor:
        return self.log_scale.exp()

    def preprocess(self, sample: Sample) -> Tensor:
        grey = torch.from_numpy(sample.array).reshape(1, *sample.array.shape[:2], -1).mean(-1)
        return F.adaptive_avg_pool2d(grey, 8).reshape(64)

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        rows = [[ord(c) - 96 if "a" <= c <= "z" else 27 for c in text.lower()[:64]] or [27] for text in texts]
        ids = torch.tensor([row + [0] * (max(map(len, rows)) - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}

    def text_features(self, tokens: Tokens) -> Tensor:
        return self.text_trunk(**tokens)

    def settings(self) -> dict[str, Any]:
        return {"modality": self.modality, "joint_dim": self.joint_dim}
'''

SETTINGS = """
name: dropped
data: {manifest: MANIFEST}
modalities:
  thermal: {model: dropped_in}
  xray: {model: dropped_in, settings: {joint_dim: 10}}
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

from m3bind.evaluate.benchmarks.base import Benchmark, Fault, Item, read_table


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

    def items(self, root: Path, out: Path) -> Iterator[Item | Fault]:
        """Rows of the table."""
        for _, cells in read_table(root / "table.csv", ("file", "state", "set")):
            yield Item(cells["file"], cells["set"], "thermal", label=cells["state"])
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
rows = [{method = "ours", subject = "ours", values = [0.5, [0.5, 0.1]]}]
"""

SUITE = """
tables: tables.toml
subjects: {ours: {run: runs/dropped}}
seeds: [0, 1]
bootstrap: 20
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dropped")
    shutil.copytree(
        Path(m3bind.__file__).parent, folder / "src" / "m3bind", ignore=shutil.ignore_patterns("__pycache__")
    )
    (folder / "src/m3bind/modalities/thermal.py").write_text(MODALITY)
    (folder / "src/m3bind/models/dropped_in.py").write_text(MODEL)
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


def test_fit_evaluate_encode_and_search_know_them(project):
    assert len(MODALITY.strip().splitlines()) <= 40
    assert len(MODEL.strip().splitlines()) <= 60
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
    assert {r["stage"] for r in rows} == {"unbound", "closed_form", "bound", "distilled"}
    assert any(
        r["modality"] == "thermal" and r["protocol"] == "zero_shot" and r["text_path"] == "student" for r in rows
    )
    again = {
        (r["task"], r["modality"], r["text_path"], r["metric"]): r["value"]
        for r in json.loads((project / "again.json").read_text())
        if r["protocol"] == "zero_shot"
    }
    first = {
        (r["task"], r["modality"], r["text_path"], r["metric"]): r["value"]
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
