"""A file server for tests of downloads: with or without ranges, that stops early, lies, or is slow.

* `FileServer`; `pack`: an archive as PhysioNet makes it; `serve_open5`: small files of the five sets of open5.
"""

import contextlib
import hashlib
import threading
import time
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from evaluate.benchmarks.trees import medmnist, ptbxl
from m3bind.evaluate.benchmarks import get
from m3bind.evaluate.benchmarks._collections import COLLECTIONS


class FileServer:
    """Serves the files of `folder` by name, whatever the path before it."""

    def __init__(self, folder: Path, ranges: bool = True, stop_after: int = 0, status: int = 200, pause: float = 0):
        """`stop_after`: bytes after which the first answer of each file breaks off; `pause`: seconds per 64 KiB."""
        self.asked: list[tuple[str, str]] = []  # name and range of each request
        self.sent: dict[str, int] = {}  # bytes per file
        outer, stopped = self, set()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path.rstrip("/").rsplit("/", 1)[-1].partition("?")[0]
                asked = self.headers.get("Range", "")
                outer.asked.append((name, asked))
                path = folder / name
                if status != 200 or not path.is_file():
                    self.send_error(status if status != 200 else 404)
                    return
                content, begin = path.read_bytes(), 0
                if asked and ranges:
                    begin = int(asked.removeprefix("bytes=").partition("-")[0])
                    if begin >= len(content):
                        self.send_response(416)
                        self.send_header("Content-Range", f"bytes */{len(content)}")
                        self.send_header("Content-Length", "0")
                        self.end_headers()
                        return
                self.send_response(206 if asked and ranges else 200)
                if asked and ranges:
                    self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
                self.send_header("Content-Length", str(len(content) - begin))
                self.end_headers()
                end = len(content)
                if stop_after and name not in stopped:
                    stopped.add(name)
                    end = min(end, begin + stop_after)
                for at in range(begin, end, 1 << 16):
                    part = content[at : min(end, at + (1 << 16))]
                    outer.sent[name] = outer.sent.get(name, 0) + len(part)
                    self.wfile.write(part)
                    time.sleep(pause)
                self.close_connection = True

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def pack(root, target, top="ptb-xl-a-large-set-1.0.3", change=None):
    """A zip of `root` as PhysioNet makes it: a top folder, a list of sums; `change`: name -> content put in its place.

    Returns the sum of the list."""
    members = {
        path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()
    }
    lines = [f"{hashlib.sha256(data).hexdigest()} {name}" for name, data in members.items()]
    members["SHA256SUMS.txt"] = ("\n".join(lines) + "\n").encode()
    known = hashlib.sha256(members["SHA256SUMS.txt"]).hexdigest()
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in (members | (change or {})).items():
            archive.writestr(f"{top}/{name}", data)
    return known


@contextlib.contextmanager
def serve_open5(folder, monkeypatch, n=12):
    """A server with small files of the five sets, which take the place of the official ones."""
    served = folder / "served"
    served.mkdir()
    for name in COLLECTIONS["open5"][:-1]:
        stem = name.removeprefix("medmnist_")
        medmnist.make_set(stem, folder / stem, n, size=64 if stem.endswith("3d") else 32)
        kind = type(get(name))
        (path,) = (folder / stem).iterdir()
        target = served / kind.files[0].name
        path.rename(target)
        digest = hashlib.md5(target.read_bytes()).hexdigest()
        file = replace(kind.files[0], sum=f"md5:{digest}", url="http://127.0.0.1:1/x")
        monkeypatch.setattr(kind, "files", (file,))
    ptbxl.make(folder / "ptbxl", n)
    kind = type(get("ptbxl"))
    known = pack(folder / "ptbxl", served / kind.files[0].name)
    file = replace(kind.files[0], sums=("SHA256SUMS.txt", known), url="http://127.0.0.1:1/x")
    monkeypatch.setattr(kind, "files", (file,))
    with FileServer(served, stop_after=20_000) as server:
        yield server
