"""No file outside the folders given to the service is shown, whatever an index and links name."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from m3bind.index import create_index
from m3bind.index.roots import NAME, Roots, folder_of, remember, remembered
from serve.conftest import client_of


@pytest.fixture(autouse=True)
def settings(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))


@pytest.fixture
def strange(world, tmp_path, monkeypatch):
    """A third-party index: item -> whether it may be shown. Its own folder holds files and links."""
    private, folder = tmp_path / "private", tmp_path / "index"
    private.mkdir()
    own = {name: shutil.copy(path, private) for name, path in world.files.items() if name in ("xray", "ct")}
    for ending in (".hea", ".dat"):
        shutil.copy(world.files["ecg"].with_suffix(ending), private)
    ecg = private / world.files["ecg"].name
    with create_index(folder, 8, world.space.fingerprint) as index:
        (inside := folder / "files").mkdir()
        shutil.copy(own["xray"], inside / "ours.png")
        (inside / "link.png").symlink_to(own["xray"])
        (inside / "folder").symlink_to(private)
        (inside / "series").mkdir()
        (inside / "series" / "1.dcm").symlink_to(own["ct"])
        shutil.copy(ecg.with_suffix(".hea"), inside / ecg.with_suffix(".hea").name)
        (inside / ecg.with_suffix(".dat").name).symlink_to(ecg.with_suffix(".dat"))
        monkeypatch.chdir(tmp_path)
        rows = {
            "absolute": ("xray", own["xray"], False),
            "upwards": ("xray", str(inside / ".." / ".." / "private" / os.path.basename(own["xray"])), False),
            "relative": ("xray", f"private/{os.path.basename(own['xray'])}", False),
            "link": ("xray", str(inside / "link.png"), False),
            "through a link": ("xray", str(inside / "folder" / os.path.basename(own["xray"])), False),
            "volume": ("ct", own["ct"], False),
            "series": ("ct", str(inside / "series"), False),
            "record": ("ecg", str(ecg.with_suffix(".hea")), False),
            "record of links": ("ecg", str(inside / ecg.with_suffix("").name), False),
            "null": ("xray", "a\0b.png", False),
            "own": ("xray", str(inside / "ours.png"), True),
        }
        vectors = np.random.default_rng(0).normal(size=(len(rows), 8)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        lines = [{"id": name, "modality": kind, "path": path} for name, (kind, path, _) in rows.items()]
        index.upsert(vectors, pd.DataFrame(lines))
    return folder, {name: shown for name, (_, _, shown) in rows.items()}, private


def shown(client, names):
    """The items with an image, by each route."""
    found = {}
    for name in names:
        ways = [client.get(f"/api/items/{name}/{what}").status_code for what in ("thumbnail", "picture", "signal")]
        about = client.get(f"/api/items/{name}").json()
        assert (200 in ways) == about["picture"] and (200 in ways or set(ways) == {404})
        found[name] = about["picture"]
    return found


def test_a_third_party_index_shows_none_of_our_files(world, strange):
    from m3bind.serve.app import make_app

    folder, names, private = strange
    with client_of(make_app(world.space, folder, roots=[folder])) as client:
        assert shown(client, names) == names
        parts = [{"kind": "text", "value": "x"}]
        hits = client.post("/api/search", json={"parts": parts, "k": 50}).json()["hits"]
        pictures = {hit["id"] for hit in hits if hit["picture"]}
        assert pictures <= {"own", "series", "record of links"}  # for these two, the files inside are checked later
        assert str(private) not in json.dumps(hits)
    with client_of(make_app(world.space, folder, roots=[folder, private])) as client:
        assert shown(client, names) == {name: name not in ("null", "series") for name in names}  # no DICOM is in series


def test_a_seal_is_this_users(tmp_path, monkeypatch):
    (made := tmp_path / "index").mkdir()
    data, other = tmp_path / "data", tmp_path / "data" / "below"
    other.mkdir(parents=True)
    assert remembered(made) == []
    remember(made, [data, other, "/"])
    assert remembered(made) == [data]
    text = (made / NAME).read_text()
    for spoiled in (text.replace(str(data), "/etc"), "{}", "[]", "", text[:-20], json.dumps({"roots": 3, "seal": 4})):
        (made / NAME).write_text(spoiled)
        assert remembered(made) == []
    (made / NAME).write_text(text)
    assert remembered(made) == [data]
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "of another user"))
    assert remembered(made) == []
    remember(made, [other])
    assert remembered(made) == [other]
    (tmp_path / "of another user" / "m3bind" / "key").chmod(0o644)
    assert remembered(made) == []
    remember("milvus:x.db", [data])
    assert remembered("milvus:x.db") == [] and folder_of(data) == data and folder_of(data / "a.png") == data


def test_any_file_may_be_shown_if_no_folder_is_given(tmp_path):
    assert Roots(None).allow_all("/etc/hostname") and not Roots([]).allow("/etc/hostname")


def test_commands_remember_what_they_were_given(world, tmp_path, monkeypatch):
    """encode -> index -> serve shows images without further options, and none outside --files."""
    from m3bind.cli import app
    from m3bind.serve import run

    (data := tmp_path / "data").mkdir()
    shutil.copy(world.files["xray"], data / "a.png")
    (elsewhere := tmp_path / "elsewhere").mkdir()
    encoded, index, space = str(tmp_path / "encoded"), str(tmp_path / "index"), str(world.folder / "space")
    made = []
    monkeypatch.setattr(run, "serve", lambda app, *_: made.append(app))
    monkeypatch.setattr(run, "log_to_stderr", lambda level: None)  # it would silence the loggers of later tests
    for command in (
        ["encode", str(data), "--modality", "xray", "--space", space, "--out", encoded],
        ["index", encoded, "--out", index],
        ["serve", "--space", space, "--index", index],
        ["serve", "--space", space, "--index", index, "--files", str(elsewhere)],
        ["serve", "--space", space, "--index", encoded],
    ):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
    wanted = [(index, data), (index, elsewhere), (encoded, data)]
    assert [one.service.roots.folders for one in made] == [sorted(map(Path, pair)) for pair in wanted]
