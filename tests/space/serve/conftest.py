"""A small space of the package's five modalities, an index of a few files, and the service of both."""

import numpy as np
import pandas as pd
import pytest
from starlette.testclient import TestClient

from m3bind import modalities
from m3bind.models import registry
from m3bind.space.bundle import Space, load, save_space
from m3bind.space.index import create_index
from space import archives, tiny


@pytest.fixture(autouse=True, scope="module")
def _registered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry._registry, "_classes", None)
        patch.setattr(modalities.base._registry, "_classes", None)
        archives.register()
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A saved space with a student, files of five modalities, and an index of 60 items of which those have files."""
    return make_world(tmp_path_factory.mktemp("served"))


def make_world(folder, items=60):
    parts = archives.make_space()._contents
    save_space(Space(parts.models, parts.bridges, parts.means, tiny.student(8)), folder / "space")
    space = load(folder / "space")
    rng = np.random.default_rng(0)
    makers = {"xray": archives.png, "retina": archives.jpeg, "ct": archives.nifti, "ecg": archives.wfdb}
    files = {name: make(folder / name, rng) for name, make in makers.items()}
    files["pathology"] = archives.slide(folder / "pathology", rng)
    rows = rng.normal(size=(items, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    names = list(files)
    lines = []
    for number in range(items):
        modality = names[number % 5]
        path = str(files[modality]) if number < 10 else ""
        label = ("normal", "pneumonia", "normal|pleural_effusion")[number % 3]
        lines.append({"id": f"i{number:03d}", "modality": modality, "path": path, "label": label,
                      "patient": f"P{number // 5}", "date": f"20{number % 20:02d}-01-01"})  # fmt: skip
    with create_index(folder / "index", 8, space.fingerprint) as index:
        index.upsert(rows, pd.DataFrame(lines))
        index.publish()
    return World(folder, space, files, rows, lines)


class World:
    def __init__(self, folder, space, files, rows, lines):
        self.folder, self.space, self.files, self.rows, self.lines = folder, space, files, rows, lines
        self.index = folder / "index"


def client_of(app, **options):
    """Within a `with`: the application runs."""
    return TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False, **options)


@pytest.fixture(scope="module")
def client(world):
    from m3bind.space.serve.app import make_app

    with client_of(make_app(world.space, world.index)) as made:
        yield made


def upload(client, *files, **fields):
    parts = [("file", (path.name, path.read_bytes())) for path in files]
    return client.post("/api/uploads", files=parts, data=fields)
