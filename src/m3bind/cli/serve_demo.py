"""Data for serve-demo: virtual patients, a small space, and an index of their files.

* `prepare`: makes what is missing.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from m3bind.core.stored import read_json
from m3bind.errors import SpaceError
from m3bind.index import open_index
from m3bind.space.folder import MANIFEST

if TYPE_CHECKING:
    from m3bind.config import RunConfig
    from m3bind.core.device import Compute

PRESET = "quick"
KEEP = ("label", "patient", "split")  # of virtual patients, who have no privacy


def prepare(out: Path, compute: "Compute") -> Path:
    """The folder of the run, with `space` and `index` in it; finished parts are reused.

    Raises:
        M3BindError: what training, encoding and building an index raise.
    """
    from m3bind.config import load_config

    config = load_config(PRESET, [f"compute.device={compute.device}", f"compute.workers={compute.workers}"])
    folder = out / config.name
    if not _is_whole(folder):
        print("making virtual patients and a small space, about 2 minutes; the next start takes seconds", flush=True)
        _make(folder, config, out, compute)
    return folder


def _make(folder: Path, config: "RunConfig", out: Path, compute: "Compute") -> None:
    """Train unless the space exists, then encode and build the index."""
    from m3bind.data.manifest import read_manifest
    from m3bind.encode.job import encode_files
    from m3bind.index import build_index
    from m3bind.pipeline.outputs import finish
    from m3bind.pipeline.run import Run
    from m3bind.space.bundle import load

    run = Run(config, folder, cache=out / "cache")
    if not (folder / "space" / MANIFEST).is_file():
        finish(run, "distill")
    space = load(folder / "space", compute.device)
    found = read_manifest(run.find_manifest(), modalities=space.modalities)
    encoded = encode_files(space, found.records, folder / "encoded", keep=KEEP, workers=compute.workers)
    shutil.rmtree(folder / "index", ignore_errors=True)  # of an older space, or unfinished
    build_index(encoded, folder / "index").close()


def _is_whole(folder: Path) -> bool:
    """Whether there is a space and a finished index of it."""
    try:
        wanted = read_json(folder / "space" / MANIFEST)["fingerprint"]
        with open_index(folder / "index") as index:
            return index.fingerprint == wanted and index.metadata.get("building") is None and len(index) > 0
    except (OSError, ValueError, KeyError, SpaceError):
        return False
