"""Encodes a mixed archive once without interruption and once under random kills, and compares the results byte by byte.

    python tests/encode/kill_archive.py FOLDER [--files 20000] [--kills 30] [--seed 0]

Used by test_encode_archive.py in small. Prints one line of JSON; exit code 0 only if the bytes are the same, the bad
files are exactly those that were made bad, and no file is lost or encoded twice.
"""

import argparse
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pandas as pd

from m3bind.encode import job
from m3bind.space.bundle import load, save_space
from space import archives


def attempt(folder: Path, name: str, shards: int | None = None, seconds: float = 0) -> bool:
    """Encode in a child, killed `seconds` after so many `shards` are there; whether it was killed."""
    child = os.fork()  # before anything is computed here, so that each attempt starts at once
    if child == 0:
        status = 1
        try:
            job.encode_files(load(folder / "space"), [folder / "in"], folder / name, workers=2)
            status = 0
        finally:
            os._exit(status)
    end = None
    while shards is not None and (end is None or time.monotonic() < end):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return _judge(status)
        if end is None and finished(folder, name) >= shards:
            end = time.monotonic() + seconds
        time.sleep(0.005)
    if shards is not None:
        os.kill(child, signal.SIGKILL)
    return _judge(os.waitpid(child, 0)[1])


def finished(folder: Path, name: str) -> int:
    """Shards that are there."""
    return len(list((folder / f"{name}.parts").glob("*.safetensors")))


def _judge(status: int) -> bool:
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"encoding ended with {code}")
    return code != 0


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--shard", type=int, default=job.SHARD)
    parser.add_argument("--after", type=float, help="most seconds from a finished shard to the kill")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    job.SHARD = options.shard
    archives.register()
    folder = options.folder
    expected = archives.make_archive(folder / "in", options.files, options.seed)
    save_space(archives.make_space(), folder / "space")
    start = time.monotonic()
    attempt(folder, "whole")
    whole = time.monotonic() - start
    shards = -(-options.files // options.shard)
    reached = []
    for number in range(options.kills):  # spread over the whole job; every third while it starts again
        at = 0 if number % 3 == 2 else number * (shards - 1) // options.kills
        if attempt(folder, "killed", at, random.uniform(0, options.after or whole / shards)):
            reached.append(finished(folder, "killed"))
    kills = len(reached)
    attempt(folder, "killed")
    items = pd.read_parquet(folder / "killed" / "items.parquet")
    bad = pd.read_csv(folder / "killed" / "quarantine.csv")
    result = {
        "files": options.files,
        "kills": kills,
        "shards": shards,
        "shards finished at the kills": reached,
        "seconds of the whole run": round(whole, 1),
        "same bytes": content(folder / "whole") == content(folder / "killed"),
        "quarantine exact": sorted(bad["path"]) == sorted(map(str, expected)),
        "each file once": len(set(items["path"]) | set(bad["path"])) == len(items) + len(bad) == options.files,
        "bad": len(bad),
    }
    print(json.dumps(result))
    return 0 if all(result[key] for key in ("same bytes", "quarantine exact", "each file once")) else 1


if __name__ == "__main__":
    sys.exit(main())
