"""A writer is killed at random moments: the index opens at the last acknowledged change or at the one after it."""

import copy
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from index import killed
from m3bind.index import open_index
from m3bind.index.uri import exists
from reference.search import NaiveIndex

KILLS = int(os.environ.get("M3BIND_INDEX_KILLS", "10"))  # 200 to prove it


class Writers:
    """Starts writers quickly: a process that has imported everything and forks."""

    def __init__(self, folder, seed):
        tests = str(Path(__file__).parents[1])
        environment = {**os.environ, "PYTHONPATH": tests, "M3BIND_PROGRESS": "off"}
        command = [sys.executable, "-m", "index.killed", str(folder), str(seed)]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def killed_after(self, seconds, first):
        """Numbers of the changes that a writer, beginning with change `first`, acknowledged before it was killed."""
        self.process.stdin.write(f"{first}\n")
        words = self.process.stdout.readline().split()  # the process, which writes before its writer does
        time.sleep(seconds)
        os.kill(int(words[1]), signal.SIGKILL)
        lines = iter(self.process.stdout.readline, "end\n")
        return [int(line) for line in lines]


def content(index):
    """(id, row, metadata) of everything that is in, by id."""
    ids, rows = index.sample(10**9)
    assert len(set(ids)) == len(ids) == len(index), "an item is doubled"
    table = index.items(ids).to_dict("records")
    return {name: (row.tobytes(), line) for name, row, line in zip(ids, rows, table)}


def expected(oracle):
    return {name: (row.astype(np.float32).tobytes(), line) for name, (row, line) in oracle.kept.items()}


@pytest.mark.timeout(60 + 5 * KILLS)
def test_killed_writer_loses_and_doubles_nothing(tmp_path):
    folder, seed = tmp_path / "index", 5
    oracle, done = NaiveIndex(), 0
    rng, writers = np.random.default_rng(seed), Writers(folder, seed)
    moments = {"old": 0, "new": 0}
    for _ in range(KILLS):
        for number in writers.killed_after(float(rng.uniform(0, 1.0)), done):
            assert number == done
            killed.change(oracle, seed, done)
            done += 1
        if not exists(folder):
            assert not done
            continue
        with open_index(folder) as reader:
            found = content(reader)
        if found == expected(oracle):
            moments["old"] += 1
            continue
        ahead = copy.deepcopy(oracle)
        killed.change(ahead, seed, done)
        assert found == expected(ahead), "neither the old nor the new state"
        oracle, done = ahead, done + 1
        moments["new"] += 1
    writers.process.stdin.close()
    assert writers.process.wait() == 0 and done
    print(moments, done, "changes")
    with open_index(folder, writable=True) as index:  # what the killed writers left behind goes
        listed = {entry["name"] for entry in index.store.state.parts}
        assert {path.name for path in (folder / "parts").iterdir()} == listed
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]
