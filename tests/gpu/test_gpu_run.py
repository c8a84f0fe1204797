"""A whole run on the device beside one on the CPU: losses of every stage, resume, the space, encode and search."""

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import m3bind
from m3bind.cli import main
from m3bind.encode.job import open_encoded
from m3bind.models.layers import text_encoder
from m3bind.training.checkpoint import Checkpoints
from pipeline.test_run import SETTINGS

STEP_ONE, STEPS = 1e-4, 2e-2  # relative difference of a stage's first loss, and of its later ones
METRICS = 0.05  # mean difference of results between devices


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, make_picture: Callable[..., Path]) -> Path:
    """A folder with 64 pictures of two modalities, a manifest and settings."""
    folder = tmp_path_factory.mktemp("gpu_run")
    rows = ["modality,path,label,caption,patient,split"]
    for number in range(64):
        kind, finding = ("xray", "retina")[number % 2], ("normal", "large opacity", "small lesion")[number % 3]
        make_picture(folder / f"{kind}{number}.png", kind, seed=number)
        split = "test" if number % 8 < 2 else "train"
        caption = f"{kind} image with {finding} number {number % 5}"
        rows.append(f"{kind},{kind}{number}.png,{finding},{caption},p{number},{split}")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    settings = copy.deepcopy(SETTINGS)
    for stage in ("pretrain", "align", "distill"):
        settings[stage]["lr"] = 1e-3  # small steps: rounding grows slowly
    settings["align"] |= {"text": "lora", "image": "lora", "post": {"gap": "rotate"}, "micro_batch": 4}
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    return folder


def call(project: Path, *arguments: str | Path | torch.device) -> int:
    """The exit code of the command line inside this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.setenv("M3BIND_PROGRESS", "off")
        patch.setattr(sys, "argv", ["m3bind", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0)


def fit(project: Path, name: str, device: torch.device, *more: str) -> Path:
    """A finished run in a folder (and cache) of its own."""
    options = ("--out", name, "--name", "run", "--set", f"compute.device={device}", *more)
    assert call(project, "fit", "settings.yaml", *options) == 0
    return project / name / "run"


@pytest.fixture(scope="module")
def on_cpu(project: Path) -> Path:
    return fit(project, "cpu", torch.device("cpu"), "--set", "compute.precision=float32")


@pytest.fixture(scope="module")
def on_device(project: Path, device: torch.device) -> Path:
    return fit(project, "device", device, "--set", "compute.precision=float32")


def losses(run: Path) -> dict[str, list[dict[str, float]]]:
    """The rows of every stage's log."""
    found = {}
    for path in sorted(run.rglob("log.jsonl")):
        found[str(path.relative_to(run))] = [json.loads(line) for line in path.read_text().splitlines()]
    return found


def compare_losses(run: Path, other: Path, first: float, later: float) -> None:
    mine, theirs = losses(run), losses(other)
    assert mine.keys() == theirs.keys() and len(mine) >= 5  # two of stage 0, stage 1, two phases of stage 2
    for stage, rows in theirs.items():
        assert len(mine[stage]) == len(rows) > 1
        for number, (a, b) in enumerate(zip(mine[stage], rows)):
            for name in (name for name in b if name.partition("/")[0] in ("loss", "clip", "mse", "kd")):
                tolerance = first if number == 0 and stage.startswith("pretrain") else later
                assert abs(a[name] - b[name]) <= tolerance * max(1, abs(b[name])), (stage, number, name, a, b)


def test_losses_of_every_stage_are_those_of_the_cpu(on_cpu: Path, on_device: Path) -> None:
    compare_losses(on_device, on_cpu, STEP_ONE, STEPS)


def test_results_are_close_to_those_of_the_cpu(on_cpu: Path, on_device: Path) -> None:
    def values(run: Path) -> dict[str, float]:
        rows = json.loads((run / "results.json").read_text())
        keys = ("protocol", "dataset", "modality", "text_encoder", "metric")
        return {"/".join(str(row.get(key)) for key in keys): float(row["value"]) for row in rows}

    mine, theirs = values(on_device), values(on_cpu)
    assert mine.keys() == theirs.keys() and len(mine) > 10
    differences = [abs(mine[name] - theirs[name]) for name in mine]
    assert float(np.nanmean(differences)) <= METRICS


def test_a_killed_run_resumes_on_the_device(
    project: Path, device: torch.device, on_device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after its third checkpoint, the run ends as the uninterrupted one."""
    save, saved = Checkpoints.save, []

    def stop(self: Checkpoints, *arguments: object) -> Path:
        path = save(self, *arguments)  # type: ignore[arg-type]
        saved.append(path)
        if len(saved) in (3, 9):
            raise KeyboardInterrupt
        return path

    monkeypatch.setattr(Checkpoints, "save", stop)
    options = ("--out", "killed", "--name", "run", "--set", f"compute.device={device}")
    command = ("fit", "settings.yaml", *options, "--set", "compute.precision=float32")
    assert [call(project, *command) for _ in range(3)] == [130, 130, 0]
    compare_losses(project / "killed" / "run", on_device, STEP_ONE, STEPS)


def test_the_default_precision_trains_as_well(project: Path, device: torch.device, on_cpu: Path) -> None:
    compare_losses(fit(project, "auto", device), on_cpu, 2e-2, 1e-1)


def test_a_compiled_run(project: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without dropout, of which compiled towers draw other numbers."""
    monkeypatch.setattr(text_encoder, "_DROPOUT", dict.fromkeys(text_encoder._DROPOUT, 0.0))
    options = ("--set", "compute.precision=float32", "--set", "align.lora.dropout=0")
    plain = fit(project, "plain", device, *options)
    compare_losses(fit(project, "compiled", device, *options, "--set", "compute.compile=true"), plain, 1e-3, STEPS)


def test_a_space_encodes_on_the_device_as_on_the_cpu(project: Path, device: torch.device, on_device: Path) -> None:
    texts = ["normal", "a retina image with large opacity", "small lesion number 3 " * 4]
    here, there = (m3bind.load(on_device / "space", device=str(d)) for d in ("cpu", device))
    for encoder in here.text_encoders:
        assert cosines(here.encode_text(texts, encoder), there.encode_text(texts, encoder)).min() >= 0.999
    for modality in here.modalities:
        files = sorted(project.glob(f"{modality}*.png"))[:5]
        assert cosines(here.encode_image(files, modality), there.encode_image(files, modality)).min() >= 0.9999
        labels = ["normal", "large opacity"]
        a, b = (space.classify(files, modality, labels=labels) for space in (here, there))
        assert np.abs(a - b).max() <= 0.02


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_encode_and_search(project: Path, device: torch.device, on_device: Path) -> None:
    pytest.importorskip("faiss")
    folder = on_device / "space"
    rows = {}
    for name, where in (("cpu", torch.device("cpu")), ("device", device)):
        out = project / f"encoded-{name}"
        command = ("encode", "manifest.csv", "--space", folder, "--out", out, "--workers", "2")
        assert call(project, *command, "--device", where, "--precision", "float32") == 0
        rows[name] = np.asarray(open_encoded(out).embeddings)
    assert np.abs(rows["cpu"] - rows["device"]).max() <= 1e-4
    assert call(project, "index", project / "encoded-device", "--out", "index") == 0
    found = []
    for where in ("cpu", device):
        command = ("search", "index", "--space", folder, "--text", "large opacity", "--json", f"{where}.json")
        assert call(project, *command, "--device", where) == 0
        found.append(json.loads((project / f"{where}.json").read_text()))
    a, b = found
    assert {hit["id"] for hit in a["hits"][:3]} == {hit["id"] for hit in b["hits"][:3]}
