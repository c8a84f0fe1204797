"""Downloads from a local server: whole, continued, killed, of a wrong sum, from mirrors; archives; open5 as one."""

import hashlib
import itertools
import os
import subprocess
import sys
import time
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from evaluate.benchmarks.served_files import FileServer, pack, serve_open5
from m3bind.cli import app
from m3bind.core.files import only_one
from m3bind.data.manifest import read_manifest
from m3bind.errors import BusyError, ConfigError, DownloadError
from m3bind.evaluate.benchmarks import _download, get, names
from m3bind.evaluate.benchmarks._collections import COLLECTIONS
from m3bind.evaluate.benchmarks._download import download, files_text
from m3bind.evaluate.benchmarks.base import Benchmark, PublishedFile

pytest.importorskip("pooch", reason="needs the extra download")
SIZE = 300_000


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("pooch.core.time.sleep", lambda _: None)  # between two tries


class Open(Benchmark):
    """A data set of one file, not registered."""

    title = "Open"
    files: ClassVar = ()

    def __init__(self, *files):
        self.files = files

    def items(self, root, out):
        yield from ()


@pytest.fixture
def content(tmp_path):
    (tmp_path / "served").mkdir()
    content = np.random.default_rng(0).bytes(SIZE)
    (tmp_path / "served" / "a.npz").write_bytes(content)
    return content


def file_at(url, content, **values):
    digest = hashlib.md5(content).hexdigest()
    return PublishedFile(**{"name": "a.npz", "url": f"{url}/record/a.npz?download=1", "sum": f"md5:{digest}", **values})


@pytest.mark.parametrize(("ranges", "stop_after", "part"), itertools.product([True, False], [0, 100_000], [0, 70_000]))
def test_a_download_is_continued_where_it_stopped(tmp_path, content, ranges, stop_after, part):
    folder = tmp_path / "out"
    folder.mkdir()
    if part:  # of a killed process
        (folder / "a.npz.part").write_bytes(content[:part])
    with FileServer(tmp_path / "served", ranges, stop_after) as server:
        download(Open(file_at(server.url, content)), folder)
        assert (folder / "a.npz").read_bytes() == content
        assert not (folder / "a.npz.part").exists()
        begun = [f"bytes={part}-"] if part else [""]
        kept = stop_after // _download.CHUNK * _download.CHUNK  # whole chunks
        again = [f"bytes={(part if ranges else 0) + kept}-"] if stop_after else []
        assert [asked for _, asked in server.asked] == begun + again
        if ranges:
            assert server.sent["a.npz"] - (SIZE - part) == stop_after - kept  # nothing else was sent twice
        download(Open(file_at(server.url, content)), folder)  # nothing is left to do
        assert len(server.asked) == len(begun + again)


def test_a_complete_part_is_taken_and_a_foreign_one_thrown_away(tmp_path, content):
    folder = tmp_path / "out"
    folder.mkdir()
    with FileServer(tmp_path / "served") as server:
        for rest in (content, content + b"more", b"x" * 50_000, b"x" * SIZE):
            (folder / "a.npz").unlink(missing_ok=True)
            (folder / "a.npz.part").write_bytes(rest)
            download(Open(file_at(server.url, content)), folder)
            assert (folder / "a.npz").read_bytes() == content


def test_a_wrong_sum_is_an_error_and_nothing_is_left(tmp_path, content):
    with FileServer(tmp_path / "served") as server:
        wrong = file_at(server.url, b"other")
        with pytest.raises(DownloadError, match=r"another sum(.|\n)*--mirror"):
            download(Open(wrong), tmp_path / "out")
    assert not list((tmp_path / "out").glob("a.npz*"))
    (tmp_path / "out" / "a.npz").write_bytes(b"damaged on disk")
    with FileServer(tmp_path / "served") as server:
        download(Open(file_at(server.url, content)), tmp_path / "out")
    assert (tmp_path / "out" / "a.npz").read_bytes() == content


def test_mirrors_come_first_and_the_official_address_last(tmp_path, content):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.npz").write_bytes(b"another file")
    with (
        FileServer(tmp_path / "bad") as lying,
        FileServer(tmp_path / "served", status=503) as down,
        FileServer(tmp_path / "served") as official,
    ):
        file = file_at(official.url, content)
        download(Open(file), tmp_path / "out", ["http://127.0.0.1:1/x", f"{lying.url}/x/", down.url])
        assert (tmp_path / "out" / "a.npz").read_bytes() == content
        assert len(official.asked) == 1 and lying.asked and down.asked
        download(Open(file), tmp_path / "two", [official.url])
        assert len(official.asked) == 2
        with pytest.raises(DownloadError) as failed:
            download(Open(replace(file, url=down.url)), tmp_path / "three", ["http://127.0.0.1:1", lying.url])
    text = str(failed.value)
    assert "cannot be reached" in text and "another sum" in text and "the server answers 503" in text


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from evaluate.benchmarks.test_download import Open, PublishedFile, download
download(Open(PublishedFile("a.npz", sys.argv[1], sys.argv[4])), Path(sys.argv[2]))
"""


def test_a_killed_download_resumes(tmp_path):
    (tmp_path / "served").mkdir()
    content = np.random.default_rng(1).bytes(8 << 20)
    (tmp_path / "served" / "a.npz").write_bytes(content)
    folder, digest = tmp_path / "out", f"md5:{hashlib.md5(content).hexdigest()}"
    tests = str(_tests())
    with FileServer(tmp_path / "served", pause=0.02) as server:
        command = [sys.executable, "-c", KILLED, f"{server.url}/a.npz", str(folder), tests, digest]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        part = folder / "a.npz.part"
        until = time.monotonic() + 60
        while not (part.exists() and part.stat().st_size) and time.monotonic() < until:
            time.sleep(0.01)
        process.kill()
        process.wait()
        have = part.stat().st_size
        assert 0 < have < len(content) and not (folder / "a.npz").exists()
        download(Open(PublishedFile("a.npz", f"{server.url}/a.npz", digest)), folder)
        assert server.asked[-1] == ("a.npz", f"bytes={have}-")
    assert (folder / "a.npz").read_bytes() == content


def _tests():
    return os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def test_two_processes_do_not_share_a_folder(tmp_path, content):
    with only_one(tmp_path / "out", "download"), pytest.raises(BusyError):
        download(Open(file_at("http://127.0.0.1:1", content)), tmp_path / "out")


# ---- archives --------------------------------------------------------------------------------------------------------


def zipped(url, known):
    return PublishedFile("a.zip", f"{url}/a.zip", unpack=("*.csv", "records100/*"), sums=("SHA256SUMS.txt", known))


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    for name in ("ptbxl_database.csv", "records100/00000/1.dat", "records500/00000/1.dat"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (tmp_path / "served").mkdir()
    return root


def test_an_archive_is_unpacked_as_far_as_needed(tmp_path, tree):
    known = pack(tree, tmp_path / "served" / "a.zip")
    with FileServer(tmp_path / "served", stop_after=200) as server:
        for _ in range(2):
            download(Open(zipped(server.url, known)), tmp_path / "out")
        assert len(server.asked) == 2  # the second call fetched nothing; the first was continued once
    found = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*[a-z]"))
    assert {"ptbxl_database.csv", "records100/00000/1.dat"} <= set(found) and "records500" not in str(found)
    (tmp_path / "out" / "ptbxl_database.csv").write_text("cut")
    download(Open(zipped("http://127.0.0.1:1", known)), tmp_path / "out")
    assert (tmp_path / "out" / "ptbxl_database.csv").read_text() == "ptbxl_database.csv"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"records100/00000/1.dat": b"changed"}, "has another sum"),
        ({"SHA256SUMS.txt": b"0 a"}, "not the published list"),
        ({"records100/../../out.dat": b"x"}, "leads out of the folder"),
        ({"records100/new.dat": b"x"}, "has another sum"),
    ],
)
def test_a_changed_archive_is_refused_and_removed(tmp_path, tree, change, message):
    known = pack(tree, tmp_path / "served" / "a.zip", change=change)
    with FileServer(tmp_path / "served") as server, pytest.raises(DownloadError, match=message):
        download(Open(zipped(server.url, known)), tmp_path / "out")
    assert not (tmp_path / "out" / "a.zip").exists() and not (tmp_path / "out.dat").exists()
    pack(tree, tmp_path / "served" / "a.zip")
    with FileServer(tmp_path / "served") as server:
        download(Open(zipped(server.url, known)), tmp_path / "out")
    assert (tmp_path / "out" / "records100" / "00000" / "1.dat").read_text() == "records100/00000/1.dat"


def test_a_damaged_archive_is_refused_and_removed(tmp_path, tree):
    known = pack(tree, tmp_path / "served" / "a.zip")
    whole = (tmp_path / "served" / "a.zip").read_bytes()
    for damaged in (whole[:-30], b"<html>sign in</html>", whole[:100] + b"\xff" * 40 + whole[140:]):
        (tmp_path / "served" / "a.zip").write_bytes(damaged)
        with FileServer(tmp_path / "served") as server, pytest.raises(DownloadError, match="fetches it again"):
            download(Open(zipped(server.url, known)), tmp_path / "out")
        assert not (tmp_path / "out" / "a.zip").exists()


# ---- the command -----------------------------------------------------------------------------------------------------


def run(*arguments):
    return app(["prepare", *map(str, arguments)], standalone_mode=False)


@pytest.fixture
def open5(tmp_path, monkeypatch):
    with serve_open5(tmp_path, monkeypatch) as server:
        yield server


def test_open5_is_downloaded_and_prepared_as_one(tmp_path, open5, capsys, monkeypatch):
    out = tmp_path / "runs"
    with pytest.raises(ConfigError, match="--accept-licences"):
        run("open5", "--download", "--out", out)
    shown = capsys.readouterr().out
    assert shown.count("CC BY 4.0") == 5 and "md5:" in shown and "GB" in shown and not open5.asked
    code = run("open5", "--download", "--accept-licences", "--mirror", open5.url, "--out", out, "--limit", 20)
    assert code == 1  # the generated PTB-XL has bad rows, which are quarantined
    manifest = read_manifest(out / "data" / "open5" / "manifest.csv", root=out / "data")
    assert manifest.bad == [] and len({r.id for r in manifest.records}) == len(manifest.records)
    assert {r.set for r in manifest.records} == set(COLLECTIONS["open5"])
    assert {r.modality for r in manifest.records} == {"xray", "ct", "retina", "pathology", "ecg"}
    assert {r.split for r in manifest.records} == {"train", "valid", "test"}
    assert all(r.path.exists() or r.path.with_suffix(".hea").exists() for r in manifest.records)
    assert len({(r.patient, r.set) for r in manifest.records}) == len({r.patient for r in manifest.records})
    pngs = list((out / "data" / "medmnist_pathmnist" / "files").rglob("*.png"))
    assert len(pngs) <= 3 * 20  # only rows within the limit are written
    asked = len(open5.asked)
    assert run("open5", "--root", out / "data" / "downloads", "--out", out, "--limit", 20) == 1
    assert run("open5", "--download", "--accept-licences", "--mirror", open5.url, "--out", out, "--limit", 20) == 1
    assert len(open5.asked) == asked  # what is there is not fetched again


def test_a_single_open_set_and_one_that_is_not(tmp_path, open5, monkeypatch):
    out = tmp_path / "runs"
    arguments = ("medmnist_retinamnist", "--download", "--mirror", open5.url, "--out", out)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda _: False)
    assert run(*arguments) == 1 and not open5.asked
    monkeypatch.setattr("typer.confirm", lambda _: True)
    assert run(*arguments) == 0
    assert (out / "data" / "medmnist_retinamnist" / "manifest.csv").is_file()
    with pytest.raises(ConfigError, match="cannot be downloaded by a program"):
        run("mimic_cxr", "--download", "--accept-licences")


def test_the_extra_is_named_when_it_is_missing(tmp_path, content, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"m3bind\[download\]"):
        download(Open(file_at("http://127.0.0.1:1", content)), tmp_path / "out")


def test_every_open_set_states_address_sum_and_licence():
    found = {name: file for name in names() for file in get(name).files}
    assert set(COLLECTIONS["open5"]) <= set(found) and len(found) == 8
    for name, file in found.items():
        assert file.url.startswith("https://") and (file.sum.startswith("md5:") or all(file.sums))
        assert get(name).licence in files_text([name])
    assert _download.TIMEOUT[0] > 0
