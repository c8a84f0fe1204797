"""`m3bind encode` under torchrun, as docs/howto/scale.md shows it."""

import os
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from known import only
from m3bind import models
from m3bind.models.layers.text_encoder import train_wordpiece
from m3bind.space.bundle import Space, save_space
from space import archives

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "M3BIND_PROGRESS": "off"}


def make_archive_of_pictures(folder, count):
    """A space of a model of the package, and radiographs, for processes that know nothing of the tests."""
    (folder / "words").mkdir()
    train_wordpiece(["normal chest", "large heart"], 60).save(str(folder / "words" / "tokenizer.json"))
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    with only(lambda: None):
        model = models.build(
            "compact_2d", modality="xray", joint_dim=10, image_size=32, widths=[8, 8], text="bert", text_config=text,
            max_tokens=24, assets=folder / "words",
        )  # fmt: skip
        save_space(Space({"xray": model.eval()}, {"xray": np.eye(10, 16, dtype=np.float32)}), folder / "space")
    (folder / "archive").mkdir()
    for number in range(count):
        archives.png(folder / "archive" / f"{number:04d}", np.random.default_rng(number))


@pytest.mark.whole
@pytest.mark.timeout(600)
def test_torchrun_as_typed_killed_and_resumed_by_more_processes(tmp_path):
    """docs/howto/scale.md: one of two processes is killed; the same command with three gives the bytes of one."""
    make_archive_of_pictures(tmp_path, 560)  # more than one shard
    options = ["encode", "archive/", "--space", "space", "--modality", "xray", "--precision", "float32"]

    def launch(processes, out):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        return subprocess.Popen([*command, "-m", "m3bind", *options, "--out", out], cwd=tmp_path, env=ENVIRONMENT)

    launched = launch(2, "out")
    while not list(tmp_path.glob("out.parts/*.safetensors")):
        assert launched.poll() is None
        time.sleep(0.05)
    workers = [child for child in psutil.Process(launched.pid).children() if "encode" in child.cmdline()]
    workers[-1].kill()
    assert launched.wait(120) != 0 and not (tmp_path / "out").exists()  # the launcher ends the other one
    assert launch(3, "out").wait(300) == 0
    subprocess.run(
        [sys.executable, "-m", "m3bind", *options, "--out", "one"], cwd=tmp_path, env=ENVIRONMENT, check=True
    )
    assert not list(tmp_path.glob("*.parts"))
    for path in (tmp_path / "one").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name
