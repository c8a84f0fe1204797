"""A small space of the package's five modalities, an index of a few files, and a service with both."""

import socket
import threading
import time

import numpy as np
import pandas as pd
import pytest
from starlette.testclient import TestClient

from known import only
from m3bind.index import create_index
from m3bind.space.bundle import Space, load, save_space
from space import archives, tiny


@pytest.fixture(autouse=True, scope="module")
def _registered():
    with only(archives.register):
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A saved space with a student, files of five modalities, and an index of 60 items, some with these files."""
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
        index.commit()
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
    from m3bind.serve.app import make_app

    with client_of(make_app(world.space, world.index)) as made:
        until(lambda: made.get("/readyz").status_code == 200)  # the warm-up runs in the background
        yield made


def upload(client, *files, **fields):
    parts = [("file", (path.name, path.read_bytes())) for path in files]
    return client.post("/api/uploads", files=parts, data=fields)


class Live:
    """The application at a port of this machine, in a thread."""

    def __init__(self, app, settings):
        from m3bind.serve.run import make_server

        begun, self.app = threading.Event(), app
        self.server, listener = make_server(app, "127.0.0.1", 0, settings, lambda _: begun.set())
        self.port = listener.getsockname()[1]
        self.thread = threading.Thread(target=self.server.run, args=([listener],), daemon=True)
        self.thread.start()
        assert begun.wait(20)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def socket(self, seconds=20):
        return socket.create_connection(("127.0.0.1", self.port), seconds)

    def stop(self):
        self.server.should_exit = True
        self.thread.join(30)


@pytest.fixture
def live(world):
    """`live(settings, **options of make_app)` starts one; all are stopped at the end."""
    from m3bind.serve.app import make_app
    from m3bind.serve.settings import ServiceSettings

    made = []

    def start(settings=None, **options):
        settings = settings or ServiceSettings()
        made.append(Live(make_app(world.space, world.index, settings=settings, **options), settings))
        return made[-1]

    yield start
    for one in made:
        one.stop()


def until(condition, seconds=20):
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)
