"""Something to serve without data: virtual patients, a small space, and an index of their files.

* `prepare`: makes what is not there yet.
"""

from pathlib import Path

from m3bind.data.manifest import read_manifest
from m3bind.errors import SpaceError
from m3bind.space.bundle import Space, load
from m3bind.space.encode import encode_files
from m3bind.space.folder import MANIFEST
from m3bind.space.index import build_index, open_index

PRESET = "quick"
KEEP = ("label", "patient", "split")  # of virtual patients, who have no privacy


def prepare(out: Path) -> Path:
    """The folder of the run, with `space` and `index` in it; what is finished already is used again.

    Raises:
        M3BindError: what training, encoding and building an index raise.
    """
    from m3bind.config import load_config
    from m3bind.finish import finish
    from m3bind.fit import Run

    config = load_config(PRESET, [])
    run = Run(config, out / config.name, cache=out / "cache")
    if not (run.folder / "space" / MANIFEST).is_file():
        print("making virtual patients and a small space, about 2 minutes; the next start takes seconds", flush=True)
        finish(run, "distill")
    space = load(run.folder / "space")
    if not _is_of(run.folder / "index", space):
        found = read_manifest(run.manifest_path, modalities=space.modalities)
        encoded = encode_files(space, found.records, run.folder / "encoded", keep=KEEP)
        build_index(encoded, run.folder / "index").close()
    return run.folder


def _is_of(folder: Path, space: Space) -> bool:
    """Whether there is an index of this space; one of an older space is removed."""
    if not folder.exists():
        return False
    try:
        with open_index(folder) as index:
            whole = index.fingerprint == space.fingerprint and index.notes.get("building") is None and len(index) > 0
    except SpaceError:
        whole = False
    if not whole:
        import shutil

        shutil.rmtree(folder)
    return whole
