"""The whole pipeline from the command line: killed and resumed, interrupted, with invalid input."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from m3bind.cli import main
from m3bind.core import sums
from m3bind.core.files import only_one
from m3bind.pipeline import run as run_module
from m3bind.pipeline.stored_inputs import FileReader
from pipeline.projects import write_project

MODEL = {
    "model": "compact_2d",
    "settings": {
        "joint_dim": 8,
        "image_size": 32,
        "widths": [8, 16],
        "max_tokens": 24,
        "text_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
    },
}
SETTINGS = {
    "name": "small",
    "data": {"manifest": "manifest.csv", "valid_fraction": 0},
    "modalities": {"xray": MODEL, "retina": {**MODEL, "settings": {**MODEL["settings"], "joint_dim": 12}}},
    "pretrain": {"steps": 16, "batch": 8, "lr": 0.01, "checkpoint_steps": 4},
    "align": {"dim": 12, "steps": 12, "batch": 8, "shared_batch": 8, "pool": 64, "lr": 0.01, "checkpoint_steps": 4},
    "distill": {
        "steps": 8,
        "steps_b": 8,
        "batch": 8,
        "checkpoint_steps": 4,
        "student": {"text": "bert", "settings": {"config": MODEL["settings"]["text_config"], "max_tokens": 24}},
    },
    "evaluate": {"bootstrap": 20, "agreement_texts": 8},
}
ENV = {**os.environ, "HF_HUB_OFFLINE": "1", "M3BIND_PROGRESS": "off", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def project(tmp_path_factory, make_picture: Callable[..., Path]) -> Path:
    """A folder with 48 pictures of two modalities, a manifest and settings."""
    return write_project(tmp_path_factory.mktemp("project"), make_picture, 48, SETTINGS)


def start(project: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "m3bind", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=project, env=ENV, text=True, preexec_fn=_hear_interrupts, **pipes)


def _hear_interrupts() -> None:
    """A shell's background job ignores Ctrl-C and hands that on to its children; a person's command does not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(project: Path, *arguments: str) -> tuple[int, str]:
    process = start(project, *arguments)
    out, err = process.communicate(timeout=280)
    return process.returncode, out + err


@pytest.fixture
def call(project: Path, monkeypatch, capsys) -> Callable[..., tuple[int, str]]:
    """The command line inside this process: what a command exits with and what it prints."""

    def called(*arguments: str) -> tuple[int, str]:
        monkeypatch.chdir(project)
        monkeypatch.setenv("M3BIND_PROGRESS", "off")
        monkeypatch.setattr(sys, "argv", ["m3bind", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out + shown.err

    return called


def weights(folder: Path) -> dict[str, bytes]:
    """The weights of a finished run's space, by file name (which is their hash), and every final state."""
    found = {p.name: p.read_bytes() for p in (folder / "space" / "weights").glob("*.safetensors")}
    return found | {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("final.safetensors")}


@pytest.fixture(scope="module")
def finished(project: Path) -> Path:
    """The folder of an uninterrupted run."""
    code, shown = run(project, "fit", "settings.yaml", "--name", "whole", "--out", "a")
    assert code == 0, shown[-3000:]
    return project / "a" / "whole"


def assert_same_bits(finished: Path, broken: Path) -> None:
    one, two = weights(finished), weights(broken)
    assert one.keys() == two.keys()
    assert all(one[name] == two[name] for name in one)
    assert (finished / "results.json").read_text() == (broken / "results.json").read_text()


def test_robustness_of_a_finished_run(finished, call):
    code, shown = call("evaluate", str(finished), "--robustness", "--json", "robust.json")
    assert code == 0 and "quarter resolution" in shown, shown[-3000:]
    rows = json.loads((finished / "robustness.json").read_text())
    assert {row["modality"] for row in rows} == {"xray", "retina"} and {row["protocol"] for row in rows} == {
        "robustness"
    }
    shipped = {(r["modality"], r["task"]): r for r in rows if r["variant"] == "as shipped" and r["metric"] != "ece"}
    results = json.loads((finished / "results.json").read_text())
    for (modality, task), row in shipped.items():
        if task:
            own = {"protocol": "zero_shot", "stage": "distilled", "text_encoder": "student"}
            own |= {"modality": modality, "task": task, "metric": row["metric"]}
            assert [r["value"] for r in results if own.items() <= r.items()] == [pytest.approx(row["value"], abs=1e-6)]
    assert len(shipped) > 2
    assert 'id="robustness"' in (finished / "report.html").read_text()
    assert call("evaluate", str(finished), "--robustness")[0] == 0
    assert json.loads((finished / "robustness.json").read_text()) == rows
    code, shown = call("evaluate", str(finished / "space"), "--manifest", "manifest.csv", "--robustness")
    assert code == 2 and "--robustness has no effect" in shown


def test_temperatures_without_a_valid_split(finished):
    stored = json.loads((finished / "space" / "space.json").read_text())["temperatures"]
    assert set(stored) == {"xray", "retina"} and min(stored.values()) >= 1
    assert (finished / "calibration" / "xray" / "final.safetensors").is_file()
    steps = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    assert sum(step["stage"] == "pretrain xray" for step in steps) == SETTINGS["pretrain"]["steps"]


def kill_and_resume(project: Path, finished: Path, kills: int, seed: int, longest: float) -> None:
    """Kill fit `kills` times at random moments, resume each time, and compare with an uninterrupted run.

    A run that finishes before its kill is compared too; the next kills are then those of a new run.
    """
    moments = random.Random(seed)
    done, runs = 0, 1
    while done < kills:
        command = ("fit", "settings.yaml", "--name", f"broken{runs}", "--out", f"b{seed}")
        process = start(project, *command)
        try:
            _, shown = process.communicate(timeout=moments.uniform(0.5, longest))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            done += 1
        else:
            assert process.returncode == 0, shown[-3000:]
            assert_same_bits(finished, project / f"b{seed}" / f"broken{runs}")
            runs += 1
    print(f"killed {done} times over {runs} run(s)")
    code, shown = run(project, "fit", "settings.yaml", "--name", f"broken{runs}", "--out", f"b{seed}")
    assert code == 0, shown[-3000:]
    assert_same_bits(finished, project / f"b{seed}" / f"broken{runs}")


@pytest.mark.whole
def test_killed_twice_gives_the_same_bits(project, finished):
    kill_and_resume(project, finished, kills=2, seed=0, longest=14)


@pytest.mark.slow
def test_killed_twenty_times_gives_the_same_bits(project, finished):
    kill_and_resume(project, finished, kills=20, seed=1, longest=14)


@pytest.mark.whole
def test_a_finished_run_is_shown_reported_and_opened_again(project, call, finished):
    before = (finished / "report.html").read_bytes()
    (finished / "report.html").unlink()
    code, shown = call("report", "a/whole")
    assert code == 0, shown[-2000:]
    assert abs(len((finished / "report.html").read_bytes()) - len(before)) < 0.05 * len(before)
    code, shown = call("evaluate", "a/whole", "--json", "shown.json")
    assert code == 0 and "zero shot" in shown
    assert len(json.loads((project / "shown.json").read_text())) == len(
        json.loads((finished / "results.json").read_text())
    )
    script = (
        "import sys, m3bind; s = m3bind.load('a/whole/space'); print(s.modalities, s.encode_text(['normal']).shape); "
    )
    script += "print([m for m in sys.modules if m.startswith(('m3bind.training', 'm3bind.align', 'm3bind.distill'))])"
    opened = subprocess.run(
        [sys.executable, "-c", script], cwd=project, env=ENV, capture_output=True, text=True, timeout=120
    )
    assert opened.stdout.splitlines() == ["('retina', 'xray') (1, 12)", "[]"], opened.stderr[-2000:]


@pytest.mark.whole
def test_interrupt_is_one_clear_line(project):
    process = start(project, "fit", "settings.yaml", "--name", "interrupted", "--set", "pretrain.steps=100000")
    deadline = time.monotonic() + 240
    while not list(project.glob("runs/interrupted/pretrain/*/step_*")) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "resumes from the last checkpoint" in err and "Traceback" not in err
    assert list(project.glob("runs/interrupted/pretrain/*/step_*.safetensors"))


def test_other_settings_in_the_same_folder_are_refused(call):
    assert call("prepare", "settings.yaml", "--name", "pinned")[0] == 0
    code, shown = call("prepare", "settings.yaml", "--name", "pinned", "--set", "align.mse_weight=3")
    assert code == 2 and "align.mse_weight: 10.0 then, 3.0 now" in shown and "Traceback" not in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fit", "nothing.yaml"], "unknown preset or settings file 'nothing.yaml'"),
        (["fit", "dem"], "did you mean 'demo'"),
        (["fit", "settings.yaml", "--set", "align.mse_weigh=1"], "did you mean mse_weight"),
        (["fit", "settings.yaml", "--set", "align.steps=many"], "setting 'align.steps'"),
        (["fit", "settings.yaml", "--set", "data.manifest=absent.csv", "--name", "x1"], "absent.csv"),
        (
            ["fit", "settings.yaml", "--set", "modalities.xray.model=compact_3x", "--name", "x2"],
            "did you mean 'compact_3d'",
        ),
        (["fit", "settings.yaml", "--set", "modalities.xary={model: compact_2d}", "--name", "x3"], "xary"),
        (["fit", "settings.yaml", "--set", "align.method=m3bnd", "--name", "x4"], "did you mean 'm3bind'"),
        (["search", "encoded", "--space", "nowhere", "--text", "a"], "nowhere"),
        (["evaluate", "nowhere"], "nowhere"),
        (["encode", "a.png", "--space", "nowhere", "--out", "o"], "nowhere"),
    ],
)
def test_wrong_use_is_one_clear_line(call, arguments, said):
    code, shown = call(*arguments)
    assert code in (1, 2) and said in shown and "Traceback" not in shown


def test_bad_rows_and_files_are_quarantined_and_the_rest_continues(project, call, make_picture):
    folder = project
    (folder / "broken.png").write_bytes(b"\x89PNG not really")
    make_picture(folder / "tissue.png", "pathology", seed=99)
    rows = (folder / "manifest.csv").read_text().splitlines()
    bad = [
        "xray,absent.png,normal,a text,q1,train",  # missing file
        "xary,xray1.png,normal,a text,q2,train",  # unknown modality
        "xray,tissue.png,normal,a text,q3,train",  # image of another modality
        "xray,broken.png,normal,a text,q4,train",  # damaged file
        "retina,retina0.png,,,q5,train",  # no text, no label
        "retina,xray1.png,normal,a text,q6,train",  # the same file in two modalities
        "xray,xray3.png,normal,a text,p3,weekend",  # unknown split
        "xray,,normal,a text,q8,train",  # no path
        "xray,../../etc/passwd,normal,a text,q9,train",  # outside the root
        "xray,xray5.png,normal,a text,q10,train,more,and,more",  # too many cells
    ]
    (folder / "bad.csv").write_text("\n".join(rows + bad) + "\n")
    code, shown = call("fit", "settings.yaml", "--set", "data.manifest=bad.csv", "--name", "bad", "--until", "pretrain")
    assert code == 1, shown[-2000:]
    aside = (folder / "runs/bad/quarantine.csv").read_text()
    for part in ("50,", "no such file", "51,", "'xary'", "52,", "a colour image", "53,", "'weekend'", "58,", "59,"):
        assert part in aside, part
    assert len(aside.splitlines()) - 1 >= 10
    assert "quarantined" in shown and "Traceback" not in shown
    results = json.loads((folder / "runs/bad/results.json").read_text())
    assert {"xray", "retina"} <= {row["modality"] for row in results}


def test_a_modality_with_three_samples_is_left_out_with_a_reason(project, call):
    rows = (project / "manifest.csv").read_text().splitlines()
    few = (
        [rows[0]]
        + [r for r in rows[1:] if r.startswith("xray")]
        + [r for r in rows[1:] if r.startswith("retina") and "train" in r][:3]
    )
    (project / "few.csv").write_text("\n".join(few) + "\n")
    code, shown = call("fit", "settings.yaml", "--set", "data.manifest=few.csv", "--name", "few")
    assert code == 1 and "modality retina: 3 usable training pairs" in shown, shown[-1500:]
    assert "Traceback" not in shown
    assert (project / "runs/few/results.json").exists()


def changed_manifest(project: Path, name: str, change: Callable[[str], str]) -> str:
    """`--set` of a manifest whose rows were changed."""
    header, *rows = (project / "manifest.csv").read_text().splitlines()
    (project / name).write_text("\n".join([header, *map(change, rows)]) + "\n")
    return f"data.manifest={name}"


def test_a_modality_without_test_images_is_bound_and_reported(project, call):
    manifest = changed_manifest(project, "x.csv", lambda row: row.replace(",test", ",train") if "xray" in row else row)
    code, shown = call("fit", "settings.yaml", "--name", "xtrain", "--until", "closed_form", "--set", manifest)
    assert code == 0 and "Traceback" not in shown, shown[-2000:]
    assert "of 6 test files" in (project / "runs/xtrain/report.html").read_text()


def test_a_manifest_without_training_rows_is_one_clear_line(project, call):
    manifest = changed_manifest(project, "t.csv", lambda row: row.replace(",train", ",test"))
    code, shown = call("fit", "settings.yaml", "--name", "testonly", "--set", manifest)
    assert code == 2 and "no modality has 8 usable training pairs; the reasons are in" in shown, shown[-2000:]
    assert (project / "runs/testonly/quarantine.csv").exists()


def test_other_processes_do_not_start_a_run_in_another_folder(project, call, monkeypatch):
    """They wait for the first one, which writes the settings."""
    monkeypatch.setattr(run_module, "world", lambda: (1, 2))
    code, shown = call("prepare", "settings.yaml", "--name", "elsewhere")
    assert code == 2 and "config.yaml does not exist, although the first process has written it" in shown


def test_a_full_disk_is_one_clear_line(project, call, monkeypatch):
    from m3bind.training import monitor

    class Full:
        def __getattr__(self, name: str):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(monitor, "SummaryWriter", lambda *args, **kwargs: Full())
    code, shown = call("pretrain", "settings.yaml", "--name", "full")
    assert code == 1 and "No space left on device" in shown and "Traceback" not in shown


def test_a_run_begun_before_a_setting_existed_resumes(project: Path, tmp_path: Path) -> None:
    from m3bind.config import load_config
    from m3bind.errors import ConfigError
    from m3bind.pipeline.run import Run

    config = load_config(str(project / "settings.yaml"))
    Run(config, tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    tree = yaml.safe_load(path.read_text())
    del tree["align"]["mse_weight"], tree["evaluate"]["gap_correction"]  # as if an older version had written it
    path.write_text(yaml.safe_dump(tree))
    sums.record(tmp_path / "run", "config.yaml")
    Run(config, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"align.mse_weight: 10.0 then, 1.0 now"):
        Run(load_config(str(project / "settings.yaml"), ["align.mse_weight=1"]), tmp_path / "run")


SPOILED = {
    "altered": lambda data: data.replace(b"0.", b"1.", 1) if b"0." in data else data[:-1] + b" ",
    "cut short": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "missing": None,
}


@pytest.mark.parametrize("name", ["results.json", "results.npz", "config.yaml", "provenance.json"])
@pytest.mark.parametrize("how", sorted(SPOILED))
def test_a_file_of_a_finished_run_that_is_not_as_written_is_named(
    project: Path, finished: Path, call, tmp_path: Path, name: str, how: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    change = SPOILED[how]
    if change is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(change((folder / name).read_bytes()))
    for command in (
        ["evaluate", folder],
        ["report", folder],
        ["compare", folder, finished],
        ["compare", finished, folder],
    ):
        code, shown = call(*map(str, command))
        assert code == 1 and name in shown and "Traceback" not in shown, (command, shown)


@pytest.mark.parametrize("gone", ["results.json", "align", "distill/b", "pretrain/xray"])
def test_a_received_run_that_is_not_finished_is_not_trained_by_its_report(
    project: Path, finished: Path, call, tmp_path: Path, gone: str
) -> None:
    folder = tmp_path / "received"
    shutil.copytree(finished, folder)
    (shutil.rmtree if (folder / gone).is_dir() else Path.unlink)(folder / gone)
    sums.record(folder, gone)  # its writer reports nothing about it
    before = sorted(folder.rglob("*"))
    code, shown = call("report", str(folder))
    assert code == 2 and "is not finished" in shown and "m3bind fit" in shown, shown
    assert [path for path in sorted(folder.rglob("*")) if "step_" in path.name or path not in before] == []


def test_two_fits_on_one_folder_and_missing_settings(project: Path, finished: Path, call, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "whole"
    shutil.copytree(finished, folder)
    again = ("fit", "settings.yaml", "--name", "whole", "--out", str(tmp_path / "a"))
    with only_one(folder, "run"):
        code, shown = call(*again)
    assert code == 2 and f"process {os.getpid()}" in shown and "at work on this run" in shown
    (folder / "config.yaml").unlink()
    code, shown = call(*again, "--set", "align.lr=0.5")
    assert code == 1 and "config.yaml is missing" in shown and not (folder / "config.yaml").exists()
    code, shown = call(*again)
    assert code == 0 and (folder / "config.yaml").read_bytes() == (finished / "config.yaml").read_bytes()
    for place in ("align", "pretrain/xray", "distill/a"):
        spoiled = folder / place / "final.safetensors"
        good = spoiled.read_bytes()
        spoiled.write_bytes(good[:-4] + b"\x00\x00\x00\x01")  # still a whole file of weights
        code, shown = call(*again)
        assert code == 1 and "final.safetensors is not as it was written" in shown
        spoiled.write_bytes(good)


@pytest.mark.whole
def test_a_fit_decodes_each_file_once(project, call, monkeypatch):
    """Stages, embeddings, evaluation and a second run; unreadable files too. A report opens the few files it shows."""
    decoded: Counter[str] = Counter()
    read = FileReader.read
    monkeypatch.setenv("M3BIND_ISOLATION", "off")
    monkeypatch.setattr(
        FileReader, "read", lambda self, path, *how: decoded.update([Path(path).name]) or read(self, path, *how)
    )
    (project / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    rows = (project / "manifest.csv").read_text() + "xray,broken.png,normal,an image,p99,train\n"
    (project / "once.csv").write_text(rows)
    short = [f"{name}=2" for name in ("pretrain.steps", "align.steps", "distill.steps", "distill.steps_b")]
    settings = [word for setting in ("data.manifest=once.csv", *short) for word in ("--set", setting)]
    for name in ("once", "again"):
        code, shown = call("fit", "settings.yaml", "--name", name, "--out", "once", *settings)
        assert code == 1 and "1 rows quarantined" in shown, shown[-2000:]
    assert len(decoded) == 49 and set(decoded.values()) == {1}
