"""A pull killed at random moments, repeatedly, then left alone: every object is indexed once, or listed."""

import contextlib
import csv
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("httpx", reason="needs the extra `hospital`")

from hospital.conftest import SALT
from hospital.lying import Liar
from hospital.planted import radiograph, save, series
from hospital.pulling import BAD, PHASES, count_of
from m3bind.hospital.pseudonyms import Pseudonyms
from m3bind.hospital.spool import Spool
from m3bind.index import open_index

KILLS = int(os.environ.get("M3BIND_KILLS", "200"))
NAMES = Pseudonyms(SALT.encode())
SECONDS = 120.0
IDLE = 0.1  # of the kills may come before anything is fetched


class Puller:
    """The process that forks pulls."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.began = 0.0  # when the last pull began to fetch
        command = [sys.executable, str(Path(__file__).with_name("pulling.py"))]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, folder: Path, url: str, kill_after: float | None = None, idle: bool = False) -> tuple[int, str, str]:
        """One pull, killed some seconds after it began to fetch, or, `idle`, at all; (exit code, phase, its words)."""
        assert self.process.stdin and self.process.stdout
        log, phase = folder / "log.txt", folder / "phase"
        log.unlink(missing_ok=True)
        phase.write_bytes(b"-")
        arguments = ["pull", url, "--space", "stand-in", "--index", str(folder / "index"), "--page", "2"]
        print(json.dumps({"arguments": arguments, "log": str(log), "phase": str(phase)}), file=self.process.stdin)
        self.process.stdin.flush()
        process, over = int(self.process.stdout.readline()), threading.Event()

        def kill() -> None:
            began = time.monotonic()
            while not idle and phase.read_bytes() == b"-" and not over.wait(0.001):
                began = time.monotonic()
            self.began = began
            if not over.wait(SECONDS if kill_after is None else kill_after):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        code = int(self.process.stdout.readline())
        over.set()
        killer.join()
        return code, phase.read_text(), log.read_text() if log.exists() else ""

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait(SECONDS)
        self.process.stdout.close()


@dataclass(frozen=True)
class LateObjects:
    """The server's content: unit -> objects, and the unreadable unit."""

    server: Liar
    units: dict[str, set[str]]
    bad: str


@pytest.fixture(scope="module")
def puller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Puller]:
    settings = tmp_path_factory.mktemp("settings")
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    made = Puller({**os.environ, "PYTHONPATH": path, "M3BIND_SALT": SALT, "M3BIND_PROGRESS": "off",
                   "OMP_NUM_THREADS": "1", "XDG_CONFIG_HOME": str(settings)})  # fmt: skip
    yield made
    made.close()


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LateObjects]:
    """Two CT series of 5 and 4 slices, and four radiographs, one of them unreadable."""
    made = [*series(Path("/nowhere"), None, 5), *series(Path("/nowhere"), None, 4)]
    made += [*(radiograph(k, 32) for k in range(3)), radiograph(9, BAD)]
    folder = tmp_path_factory.mktemp("held")
    data = [save(one, folder / f"{k}.dcm").read_bytes() for k, one in enumerate(made)]
    uids = [tuple(map(str, (one.StudyInstanceUID, one.SeriesInstanceUID, one.SOPInstanceUID))) for one in made]
    server = Liar(data, uids, {})
    server.kinds = {uids[0][1]: "CT", uids[5][1]: "CT"}
    units: dict[str, set[str]] = {}
    for _, one, instance in uids:
        name = NAMES.key("object", instance)
        units.setdefault(NAMES.key("series", one) if one in server.kinds else name, set()).add(name)
    yield LateObjects(server, units, NAMES.key("object", uids[-1][2]))
    server.stop()


def check(held: LateObjects, folder: Path) -> None:
    """Every object is in its item, once, or listed with its reason; nothing else is stored."""
    with open_index(folder / "index") as index:
        ids, vectors = index.sample(100)
        found = {name: count_of(vector) for name, vector in zip(ids, np.asarray(vectors), strict=True)}
        assert len(ids) == len(index)
    good = {unit: len(objects) for unit, objects in held.units.items() if unit != held.bad}
    assert found == good
    with Spool(folder / "index.spool") as spool:
        assert all(set(spool.database.done(unit)) == held.units[unit] for unit in good)
        assert spool.waiting() == 0 and not os.listdir(spool.work) and not os.listdir(spool.units)
        assert os.listdir(spool.aside) == [held.bad] and len(list(spool.aside.rglob("*.dcm"))) == 1
    with open(folder / "index.spool" / "aside.csv", newline="", encoding="utf-8") as handle:
        listed = {row["unit"]: row["reason"] for row in csv.DictReader(handle)}
    assert set(listed) == {held.bad} and "stand-in" in listed[held.bad]


def killed(puller: Puller, held: LateObjects, tmp_path: Path, kills: int) -> Counter[str]:
    """Pulls killed `kills` times in total, each up to three times before it may finish; their phases."""
    dice, phases = random.Random(20), Counter[str]()
    for name in ("warm", "first"):
        (tmp_path / name).mkdir()
        code, _, said = puller.run(tmp_path / name, held.server.url)
        length = time.monotonic() - puller.began
    assert code == 1 and "fetched 6, skipped 0, failed 0" in said and "quarantined 1" in said, said
    check(held, tmp_path / "first")
    code, _, said = puller.run(tmp_path / "first", held.server.url)  # nothing to do; the bad one is still missing
    assert code == 1 and "resumed 0, fetched 0, skipped 6, failed 0, listed before 1" in said, said
    resumed, done = 0, 0
    for number in range(3 * kills):
        folder = tmp_path / str(number)
        folder.mkdir()
        for _ in range(min(dice.randint(1, 3), kills - done)):
            code, phase, said = puller.run(folder, held.server.url, dice.uniform(0, length), dice.random() < IDLE)
            assert code in (-signal.SIGKILL, 1), said
            if code == -signal.SIGKILL:
                phases[phase] += 1
                done += 1
        code, _, said = puller.run(folder, held.server.url)
        assert code == 1 and "failed 0" in said and "waiting 0" in said, said
        told = {name: int(count) for name, count in _counts(said).items()}
        assert told["fetched"] + told["skipped"] == 6
        resumed += told["resumed"]
        check(held, folder)
        if done >= kills:
            break
    phases["resumed"] = resumed
    return phases


def _counts(said: str) -> dict[str, Any]:
    """Of the line "series: resumed 1, fetched 2, ..."."""
    line = next(line for line in said.splitlines() if line.startswith("series: "))
    return dict(part.rsplit(" ", 1) for part in line.removeprefix("series: ").split(";")[0].split(", "))


def test_killed_a_few_times(puller: Puller, held: LateObjects, tmp_path: Path) -> None:
    assert killed(puller, held, tmp_path, 3).total() >= 3


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_killed_in_every_phase(puller: Puller, held: LateObjects, tmp_path: Path) -> None:
    phases = killed(puller, held, tmp_path, KILLS)
    print("killed while it did:", dict(phases))
    assert all(phases[chr(letter)] for letter in PHASES) or KILLS < 100
