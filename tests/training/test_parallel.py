"""Two processes (gloo) give the losses and weights of one process with the same global batch, in every stage."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from m3bind.core.device import CPU
from m3bind.errors import M3BindError
from m3bind.training import pairs, parallel
from toys import toy_pairs

SCRIPT = Path(__file__).with_name("two_processes.py")


def launch(folder: Path, processes: int) -> None:
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    base = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1]), "OMP_NUM_THREADS": "1", "M3BIND_PROGRESS": "off"}
    running = []
    for rank in range(processes):
        env = dict(base)
        if processes > 1:
            env |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(processes),
                "ACCELERATE_USE_CPU": "true",
            }
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, str(SCRIPT), str(folder)]
        running.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    for process in running:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors[-2000:]


def losses(folder: Path) -> np.ndarray:
    rows = [
        json.loads(line) for name in ("pretrain", "align", "a", "b") for line in (folder / name / "log.jsonl").open()
    ]
    assert len(rows) == 80
    return np.array([[row["loss"], row["gradient_norm"]] for row in rows])


def test_processes_compute_the_rows_of_the_same_texts(monkeypatch):
    """They share that computation, which waits for all: other texts on each, or none on one, would never end."""
    for rank in range(2):
        monkeypatch.setattr(pairs, "share", lambda items, rank=rank: items[rank::2])
        texts = toy_pairs({"a": 20}, text="embedding")["a"].texts
        asked, compute = [], texts._compute
        texts._compute = lambda ids, asked=asked, compute=compute: (asked.append(ids.tolist()), compute(ids))[1]
        assert len(texts.load(np.array([5, 2, 9, 5]))["rows"]) == 2 - rank
        assert asked == [[2, 5, 9]]


TOGETHER = """
import os
import sys
from pathlib import Path
from unittest import mock
from m3bind import cli
from m3bind.core.device import CPU
from m3bind.errors import ConfigError
from m3bind.training.parallel import agree, join, wait, world
join(CPU)
rank = world()[0]
agree("the same", lambda: "a")
try:
    agree("rows", lambda: "b" * rank)
except ConfigError as error:
    print(error)
if rank == 0:
    with mock.patch.object(sys.modules["m3bind.cli.app"], "app", lambda **_: wait()):
        cli.main()
sys.stdout.flush()
os._exit(0)  # lost at once: torch's threads may abort an orderly end while the other one waits
"""


def test_processes_with_other_data_and_the_end_of_one_are_reported(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    group = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [
        subprocess.Popen([sys.executable, "-c", TOGETHER], env=group | {"RANK": str(rank)}, cwd=tmp_path, **pipes)
        for rank in range(2)
    ]
    shown = [process.communicate(timeout=120) for process in running]
    assert all(out.startswith("rows: not the same in processes 0 and 1; start all") for out, _ in shown), shown
    assert [process.returncode for process in running] == [1, 0]
    assert "another process of this run ended" in shown[0][1] and "Traceback" not in shown[0][1]


def test_a_port_in_use_is_reported(monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        for name, value in (("RANK", 0), ("WORLD_SIZE", 2), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port)):
            monkeypatch.setenv(name, str(value))
        with pytest.raises(
            M3BindError, match=rf"process 0 of 2.* cannot join the others at 127.0.0.1:{port} \(.*in use"
        ):
            parallel.join(CPU)


@pytest.mark.whole
def test_two_processes_equal_one(tmp_path):
    launch(tmp_path / "one", 1)
    launch(tmp_path / "two", 2)
    assert int(np.load(tmp_path / "two" / "world.npy")) == 2
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5, atol=1e-5)
    one, two = load_file(tmp_path / "one" / "weights.safetensors"), load_file(tmp_path / "two" / "weights.safetensors")
    assert one.keys() == two.keys()
    for name in one:
        if name.endswith("key.bias"):  # softmax does not see it: its gradient is rounding, which AdamW makes large
            continue
        assert torch.allclose(one[name], two[name], atol=1e-5, rtol=1e-5), name
