"""`listen` killed repeatedly with SIGKILL: every acknowledged object is in the index once, or in the list."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

pytest.importorskip("pynetdicom", reason="needs the extra `hospital`")

from hospital.killed import NAMES, UNREADABLE, embedding
from hospital.planted import radiograph, series
from hospital.test_listener import associate
from m3bind.hospital.spool import Spool
from m3bind.index import open_index

KILLS = int(os.environ.get("M3BIND_TEST_KILLS") or 200)
SLICES, SERIES, PICTURES = 6, 4, 6  # of a cycle of 50 lives


class Lives:
    """The process that is killed and restarted."""

    def __init__(self, folder: Path, quiet: float) -> None:
        command = [sys.executable, str(Path(__file__).with_name("killed.py")), str(folder), "--quiet", str(quiet)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def begin(self, calls: int) -> tuple[int, int]:
        """Number and port of a new life; port 0 where it died before it had one."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{calls}\n")
        self.process.stdin.flush()
        said: dict[str, int] = {}
        while len(said) < 2:
            word, number = self._line().split()
            said[word] = int(number)
        return said["life"], said.get("port", 0)

    def _line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline()

    def ended(self) -> int:
        """Wait for the end of a life; its exit code."""
        while "dead" not in (line := self._line()):
            assert line, "the process that begins lives has ended"
        return int(line.split()[1])

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(30)
        if self.process.stdout:
            self.process.stdout.close()


def objects(cycle: int) -> list[Any]:
    """Series of slices that all differ, some images, and some unreadable files."""
    found: list[Any] = []
    for number in range(SERIES):
        scan = series(Path("/nowhere"), None, SLICES)
        for place, one in enumerate(scan):
            pixels = np.random.default_rng((cycle, number, place)).integers(0, 2000, 32 * 32)
            one.PixelData = pixels.astype("<i2").tobytes()
        found += scan
    for number in range(PICTURES):
        found.append(radiograph(1000 * cycle + number, 32))
    found[-1].PixelData = bytes([UNREADABLE]) * len(found[-1].PixelData)
    return found


def send_until_it_dies(port: int, waiting: list[Any], acknowledged: dict[str, Any], pause: float) -> None:
    """Send the remaining objects, like a sender that retries."""
    association = associate(port)
    with contextlib.suppress(RuntimeError, ValueError):
        while association.is_established and waiting:
            status = association.send_c_store(waiting[0])
            if status.get("Status") != 0:
                break
            one = waiting.pop(0)
            acknowledged[NAMES.names.key("object", str(one.SOPInstanceUID))] = one
            time.sleep(pause)
        association.release()


def kill_again_and_again(folder: Path, kills: int, seed: int) -> dict[str, int]:
    """Processes that end at a random moment: a time, or a call that changes the disk. Returns the outcome."""
    print("seed", seed)
    draw, acknowledged, waiting, ends = random.Random(seed), dict[str, Any](), list[Any](), [0, 0]
    lives = Lives(folder, 0.05)
    try:
        for life in range(kills):
            if not waiting:
                waiting = objects(life)
                draw.shuffle(waiting)
            calls = draw.randint(1, 250) if draw.random() < 0.6 else 0
            number, port = lives.begin(calls)
            timer = threading.Timer(draw.uniform(0.0, 1.5) if not calls else 2.0, _kill, (number,))
            timer.start()
            if port:
                send_until_it_dies(port, waiting, acknowledged, draw.choice((0, 0, 0.01, 0.1)))
                assert lives.ended() == -signal.SIGKILL
            timer.cancel()
            ends[not calls] += 1
        number, port = lives.begin(0)
        assert port
        while waiting:
            send_until_it_dies(port, waiting, acknowledged, 0)
        os.kill(number, signal.SIGTERM)
        assert lives.ended() == 0
    finally:
        lives.close()
    return {**found(folder, acknowledged), "by calls": ends[0], "by time": ends[1]}


def _kill(number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(number, signal.SIGKILL)


def found(folder: Path, acknowledged: dict[str, Any]) -> dict[str, int]:
    """The place of every acknowledged object; nothing else may be stored."""
    counts = {"acknowledged": len(acknowledged), "in the index": 0, "listed": 0, "items": 0}
    with Spool(folder / "spool", quiet=1e9) as spool, open_index(folder / "index") as index:
        assert spool.waiting() == 0 and not any(spool.work.iterdir()) and not any(spool.incoming.iterdir())
        listed = (folder / "spool" / "aside.csv").read_text() if (folder / "spool" / "aside.csv").exists() else ""
        in_items: dict[str, str] = {}
        for unit in index.sample(len(index))[0]:
            names = spool.database.done(unit)
            assert names and not names.keys() & in_items.keys()  # each object is in one item
            in_items |= dict.fromkeys(names, unit)
            held = sorted((spool.held.folder / unit).glob("*.dcm"))
            if held:  # of a series: its embedding is that of all its objects
                assert {file.stem for file in held} == names.keys()
                np.testing.assert_allclose(index.vectors([unit])[0], embedding(held), atol=1e-5)
            counts["items"] += 1
        aside = {file.stem: file for file in spool.aside.glob("*/*.dcm")}
        for key, sent in acknowledged.items():
            assert (key in in_items) != (key in aside), "lost, or there twice"
            if key in in_items:
                counts["in the index"] += 1
                if (file := spool.held.folder / in_items[key] / f"{key}.dcm").exists():
                    assert pydicom.dcmread(file).PixelData == sent.PixelData
            else:
                counts["listed"] += 1
                assert aside[key].parent.name in listed
                assert pydicom.dcmread(aside[key]).PixelData == sent.PixelData
    return counts


def test_killed_at_random_moments(tmp_path: Path) -> None:
    counts = kill_again_and_again(tmp_path, 6, seed=int(time.time()))
    assert counts["acknowledged"] > 5, counts


@pytest.mark.slow
def test_killed_200_times(tmp_path: Path) -> None:
    """Prints the outcome. M3BIND_TEST_KILLS: another number."""
    counts = kill_again_and_again(tmp_path, KILLS, seed=int(time.time()))
    print(counts)
    assert counts["listed"] and counts["in the index"] > counts["items"] > 10
