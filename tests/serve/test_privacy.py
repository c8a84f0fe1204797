"""Planted identifiers in ids, paths, labels, queries, file names and files; none in logs, metrics and errors."""

import logging

import numpy as np
import pandas as pd
import pytest

from m3bind.index import create_index
from m3bind.serve.app import make_app
from serve.conftest import client_of, upload
from space import archives

SECRET = "Quillfeather"


@pytest.fixture
def planted(world, tmp_path):
    folder = tmp_path / f"{SECRET}-1961"
    folder.mkdir()
    rng = np.random.default_rng(0)
    good = archives.png(folder / f"{SECRET}_a", rng)
    bad = archives.BAD["cut PNG"](folder / f"{SECRET}_b", rng)
    lines = [
        {"id": f"{SECRET}/1", "modality": "xray", "path": str(good), "patient": SECRET, "label": f"{SECRET} label"},
        {"id": f"{SECRET}/2", "modality": "xray", "path": str(bad)},
        {"id": f"{SECRET}/3", "modality": "ct", "path": str(folder / "gone.nii")},
        {"id": f"{SECRET}/4", "modality": "ct"},
    ]
    with create_index(tmp_path / "index", 8, world.space.fingerprint) as index:
        index.upsert(world.rows[:4], pd.DataFrame(lines))
    return tmp_path / "index", bad


def requests(client, bad):
    """Requests with identifiers in every form, valid and invalid."""
    item = f"/api/items/{SECRET}/"
    said = {"kind": "text", "value": f"{SECRET} pneumonia"}
    yield from (client.get(f"{item}{n}{end}") for n in range(1, 6) for end in ("", "/thumbnail", "/picture", "/signal"))
    yield client.get(f"{item}1/texts?k={SECRET}")
    yield client.get(f"/{SECRET}?q={SECRET}")
    yield client.get(f"/static/{SECRET}.js")
    yield client.get("/api/about", headers={"Host": SECRET})
    yield client.get("/api/about", headers={"Origin": f"http://{SECRET}", "User-Agent": SECRET, "Referer": SECRET})
    yield client.post("/api/login", json={"token": SECRET})
    yield client.post("/api/search", json={"parts": [said, {**said, "weight": -1}]})
    yield client.post("/api/search", json={"parts": [said], "where": {"patient": [SECRET], "label": [SECRET]}})
    yield client.post("/api/search", json={"parts": [said], "where": {"modality": [SECRET]}})
    yield client.post("/api/search", json={"parts": [{"kind": "item", "value": SECRET}]})
    yield client.post("/api/search", json={"parts": [said], "k": SECRET, "rank": SECRET})
    yield client.post("/api/search", content=f'{{"{SECRET}', headers={"Content-Type": "application/json"})
    yield client.post("/api/zero-shot", json={"source": {"kind": "item", "value": SECRET}, "labels": [SECRET, "b"]})
    yield client.post("/api/uploads", files={SECRET: (f"{SECRET}.png", SECRET.encode())})
    yield client.post("/api/uploads", files={"file": (f"{SECRET}.png", SECRET.encode())}, data={"modality": SECRET})
    yield upload(client, bad)


def test_no_identifier_is_disclosed(world, planted, caplog, capfd):
    index, bad = planted
    caplog.set_level(logging.DEBUG, logger="m3bind")
    with client_of(make_app(world.space, index)) as client:
        answers = list(requests(client, bad))
        metrics = client.get("/metrics").text
    failed = [answer for answer in answers if answer.status_code >= 400]
    assert len(failed) > 20 and not any(answer.status_code >= 500 for answer in answers)
    assert [answer.text for answer in failed if SECRET in answer.text] == []
    assert SECRET not in metrics and "Quill" not in metrics
    logged = "\n".join(f"{record.name} {record.getMessage()} {record.exc_text}" for record in caplog.records)
    printed = "".join(capfd.readouterr())
    assert logged.count("m3bind.serve.access") >= len(answers)
    assert SECRET not in logged and SECRET not in printed


def test_no_path_is_ever_shown(world, client):
    answers = [
        client.get("/api/about"),
        client.post("/api/search", json={"parts": [{"kind": "item", "value": "i005"}], "k": 60}),
        *(client.get(f"/api/items/i00{n}") for n in range(5)),
    ]
    assert all(answer.status_code == 200 for answer in answers)
    assert not any(str(world.folder) in answer.text or '"path"' in answer.text for answer in answers)


def test_an_unexpected_error_is_logged_without_its_words(world, client, caplog, monkeypatch):
    def fail(*_):
        raise RuntimeError(f"about {SECRET}")

    monkeypatch.setattr(client.app.service.questions, "text", fail)
    with caplog.at_level(logging.DEBUG):
        answer = client.post("/api/search", json={"parts": [{"kind": "text", "value": SECRET}]})
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "internal"
    assert "RuntimeError at test_privacy.py" in caplog.text and SECRET not in caplog.text + answer.text
