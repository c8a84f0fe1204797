"""Commands of m3bind in separate processes, and what tests search for in their output."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from hospital.planted import Names
from m3bind.index import open_index

SECONDS = 240.0  # on a busy machine
EVERY = {"ct": 1, "ecg": 1, "retina": 1, "xray": 1}


class Command:
    """A command in the background; its output goes to a file."""

    def __init__(self, log: Path, environment: dict[str, str], *arguments: str) -> None:
        self.log = log
        with open(log, "ab") as out:
            command = [sys.executable, "-m", "m3bind", *arguments]
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)

    def port(self) -> int:
        """Where it listens, as soon as it says so."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            found = re.search(r"127\.0\.0\.1:(\d+)", self.log.read_text())
            if found:
                return int(found[1])
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def end(self, how: int = signal.SIGTERM) -> str:
        """End it; what it said."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        self.process.wait(SECONDS)
        return self.log.read_text()


def until(condition: Callable[[], bool], seconds: float = SECONDS) -> None:
    """Wait for it."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "took too long"
        time.sleep(0.1)


def leaks(names: Names, *places: Path) -> dict[str, list[str]]:
    """Identifiers in the files below `places`, and in their names."""
    found = {}
    for place in places:
        for path in [place, *place.rglob("*")] if place.is_dir() else [place]:
            named = names.found_in(str(path.relative_to(place.parent)))
            inside = names.found_in(path.read_bytes()) if path.is_file() else []
            if named or inside:
                found[str(path)] = named + inside
    return found


def counts(index: Path) -> dict[str, int]:
    """Items of an index that may not exist yet."""
    if not (index / "CURRENT").exists():
        return {}
    with open_index(index) as opened:
        return opened.counts()
