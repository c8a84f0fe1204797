"""A small clinic for tests of the page: an index of five kinds of generated files, and a real service for it.

* `make_space`, `make_index`: forty items with label, patient and date.
* `Server`: the service in a thread on a free port.
"""

import contextlib
import socket
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pandas as pd
import uvicorn

from m3bind.index.uri import create_index
from m3bind.space.bundle import Space, load, save_space
from space import archives, tiny

LABELS = {
    "xray": ["pneumonia", "normal", "pleural_effusion|cardiomegaly", "<img src=x onerror=alert(1)>"],
    "ct": ["pulmonary embolism", "normal"],
    "ecg": ["atrial_fibrillation", "left_bundle_branch_block"],
    "retina": ["diabetic retinopathy", "normal"],
    "pathology": ["adenocarcinoma", "normal"],
}
MAKERS = {
    "xray": archives.png,
    "ct": archives.nifti,
    "ecg": archives.wfdb,
    "retina": archives.jpeg,
    "pathology": archives.slide,
}
EACH = 8


def make_space(folder: Path):
    """A saved space of the five kinds, with a student for texts."""
    parts = archives.make_space()._contents
    save_space(Space(parts.models, parts.bridges, parts.means, tiny.student(8)), folder / "space")
    return load(folder / "space")


def make_files(folder: Path, seed=0):
    """`EACH` files of each kind: modality -> paths."""
    made = {}
    for kind, (name, make) in enumerate(MAKERS.items()):
        (folder / name).mkdir(parents=True)
        rngs = [np.random.default_rng([seed, kind, number]) for number in range(EACH)]
        made[name] = [make(folder / name / f"{number:02d}", rng) for number, rng in enumerate(rngs)]
    return made


def make_index(folder: Path, space, seed=0):
    """The index of `make_files`; returns its folder and the files."""
    files = make_files(folder / "files", seed)
    rows, lines = [], []
    for name, paths in files.items():
        rows.append(space.encode_image(paths, name))
        for number, path in enumerate(paths):
            lines.append(
                {
                    "id": f"{name}-{number:02d}",
                    "modality": name,
                    "path": str(path),
                    "label": LABELS[name][number % len(LABELS[name])],
                    "patient": f"p{number}",
                    "date": f"20{18 + number}-03-0{number + 1}",
                }
            )
    index = create_index(folder / "index", space.dim, space.fingerprint)
    index.upsert(np.concatenate(rows), pd.DataFrame(lines))
    index.close()
    return folder / "index", files


class Server:
    """The service on a port of the loopback, in a thread of this process; a context manager."""

    def __init__(self, app):
        self.port = _free_port()
        config = uvicorn.Config(app, port=self.port, log_level="error", lifespan="on")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self.url = f"http://127.0.0.1:{self.port}/"

    def __enter__(self):
        self._thread.start()
        until = time.monotonic() + 30
        while time.monotonic() < until:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}readyz", timeout=5):
                return self
            time.sleep(0.05)
        raise TimeoutError("the service did not become ready")

    def __exit__(self, *_):
        self._server.should_exit = True
        self._thread.join(20)


def _free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
