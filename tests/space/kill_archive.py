"""A mixed archive encoded once as a whole and once under random kills: is the result the same, byte for byte?

    python tests/space/kill_archive.py FOLDER [--files 20000] [--kills 30] [--seed 0]

Run by test_encode_archive.py in small. Prints one line of JSON; exit code 0 only when everything is as it must be: the
same bytes, the bad files exactly those that were made bad, no file lost or twice.
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

from m3bind.space import encode
from m3bind.space.bundle import load, save_space
from space import archives


def attempt(folder: Path, name: str, seconds: float | None) -> bool:
    """Encode in a child, killed after `seconds`; whether it was killed."""
    child = os.fork()  # before anything is computed here, so that each attempt starts at once
    if child == 0:
        status = 1
        try:
            encode.encode_files(load(folder / "space"), [folder / "in"], folder / name, workers=2)
            status = 0
        finally:
            os._exit(status)
    if seconds is not None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return _judge(status)
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
    return _judge(os.waitpid(child, 0)[1])


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
    parser.add_argument("--shard", type=int, default=encode.SHARD)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    encode.SHARD = options.shard
    archives.register()
    folder = options.folder
    expected = archives.make_archive(folder / "in", options.files, options.seed)
    save_space(archives.make_space(), folder / "space")
    start = time.monotonic()
    attempt(folder, "whole", None)
    whole = time.monotonic() - start
    shards = -(-options.files // options.shard)
    kills, progressed = 0, set()
    while kills < options.kills:
        if not attempt(folder, "killed", random.uniform(0.02, 0.12) * whole + random.uniform(0, 2)):
            break  # it was through
        kills += 1
        progressed.add(len(list((folder / "killed.parts").glob("*.safetensors"))))
        if progressed and max(progressed) >= shards and kills < options.kills:
            _forget_some(folder / "killed.parts")
    attempt(folder, "killed", None)
    items = pd.read_parquet(folder / "killed" / "items.parquet")
    bad = pd.read_csv(folder / "killed" / "quarantine.csv")
    result = {
        "files": options.files,
        "kills": kills,
        "shards finished at the kills": sorted(progressed),
        "seconds of the whole run": round(whole, 1),
        "same bytes": content(folder / "whole") == content(folder / "killed"),
        "quarantine exact": sorted(bad["path"]) == sorted(map(str, expected)),
        "each file once": len(set(items["path"]) | set(bad["path"])) == len(items) + len(bad) == options.files,
        "bad": len(bad),
    }
    print(json.dumps(result))
    return 0 if all(result[key] for key in ("same bytes", "quarantine exact", "each file once")) else 1


def _forget_some(parts: Path) -> None:
    """Remove half of the finished shards, so that there is something left to be killed in."""
    found = sorted(parts.glob("*.safetensors"))
    for path in random.sample(found, len(found) // 2):
        path.unlink()


if __name__ == "__main__":
    sys.exit(main())
