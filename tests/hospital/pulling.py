"""`m3bind pull` in processes forked from one with all imports done, for the tests that kill a pull.

Each line of stdin is a JSON object {"arguments", "log", "phase"}; the answers are the process id and, at its end, the
status. A stub replaces the networks: the vector of an item encodes its number of objects (`count_of`), and an object of
33 rows cannot be read. `phase` is a file of one byte: the last phase of the process.
"""

import importlib
import json
import math
import mmap
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

DIM, TURN = 8, 100.0
BAD = 33  # rows
EARLY = ("httpx", "pandas", "torch", "typer.testing", "pydicom.encaps", "m3bind.cli", "m3bind.cli.hospital",
         "m3bind.hospital.dicomweb", "m3bind.hospital.encoder", "m3bind.hospital.tls", "m3bind.space.bundle",
         "m3bind.index.embedded", "m3bind.index.uri")  # fmt: skip
PHASES = b"-fsei"  # nothing yet, fetch, spool, encode, index


def count_of(vector: Any) -> int:
    """The number of objects of an item."""
    return round(math.atan2(vector[1], vector[0]) * TURN)


class StandIn:
    """The parts of a space that a pull needs."""

    modalities, dim, fingerprint = ("xray", "ct"), DIM, "stand-in"

    def examine_inputs(self, inputs: list[int], modality: str) -> Any:
        found = np.zeros((len(inputs), DIM), np.float32)
        found[:, 0], found[:, 1] = np.cos(np.array(inputs) / TURN), np.sin(np.array(inputs) / TURN)
        return found, [""] * len(inputs)


def stand_in_ahead(space: Any, rows: Any, *_: Any) -> Iterator[tuple[str, Any]]:
    """In place of decoding: the number of files."""
    from m3bind.encode.decode_pool import DecodedItem

    for unit, row in rows:
        path = Path(row["path"])
        files = sorted(path.glob("*.dcm")) if path.is_dir() else [path]
        time.sleep(0.01)  # as long as a picture may take
        bad = any(pydicom.dcmread(file, stop_before_pixels=True).Rows == BAD for file in files)
        reason = "cannot be read, says the stand-in" if bad else ""
        yield unit, DecodedItem(row["modality"], [len(files)], reason=reason)


def marked(phase: mmap.mmap, letter: bytes, function: Callable[..., Any], then: bytes = b"") -> Callable[..., Any]:
    """`function`, which reports that it is running, and the next step."""

    def call(*arguments: Any, **named: Any) -> Any:
        phase[:1] = letter
        try:
            return function(*arguments, **named)
        finally:
            if then:
                phase[:1] = then

    return call


def prepare(phase: mmap.mmap) -> None:
    """Install the stand-in, and make each step report that it is running."""
    import m3bind.space.bundle
    from m3bind.hospital import encoder
    from m3bind.hospital.dicomweb import Pull
    from m3bind.hospital.spool import Spool
    from m3bind.index.embedded import EmbeddedIndex

    m3bind.space.bundle.load = lambda *_, **__: StandIn()
    encoder.ahead = stand_in_ahead
    Pull._fetch = marked(phase, b"f", Pull._fetch)
    Spool.put = marked(phase, b"s", Spool.put, b"f")
    encoder.SpoolEncoder._take = marked(phase, b"e", encoder.SpoolEncoder._take)
    EmbeddedIndex.upsert = marked(phase, b"i", EmbeddedIndex.upsert)
    EmbeddedIndex.commit = marked(phase, b"i", EmbeddedIndex.commit)


def child(asked: dict[str, Any]) -> int:
    """One pull; its exit code."""
    from typer.testing import CliRunner

    from m3bind.cli import app

    with open(asked["phase"], "r+b") as handle:
        prepare(mmap.mmap(handle.fileno(), 1))
    done = CliRunner().invoke(app, asked["arguments"])
    Path(asked["log"]).write_text(done.output + str(done.exception or ""), encoding="utf-8")
    return done.exit_code


def main() -> None:
    import httpx  # noqa: F401

    for name in EARLY:
        importlib.import_module(name)
    for line in sys.stdin:
        process = os.fork()
        if not process:
            code = 99
            try:
                code = child(json.loads(line))
            finally:
                os._exit(code)
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
