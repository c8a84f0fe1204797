"""The index changes while served: another process adds, commits, damages; running requests finish on the old one."""

import shutil

import numpy as np
import pandas as pd
import pytest

from m3bind.index import create_index, open_index
from m3bind.serve.app import make_app
from m3bind.serve.index_reload import ServedIndex
from m3bind.serve.settings import ServiceSettings
from serve.conftest import client_of, until

EAGER = ServiceSettings(check_seconds=0.0)


@pytest.fixture
def copied(world, tmp_path):
    return shutil.copytree(world.index, tmp_path / "index")


def add(place, space, name="new", commit=True):
    row = space.encode_text("a lung")
    with open_index(place, writable=True) as index:
        index.upsert(row, pd.DataFrame({"id": [name], "modality": ["ecg"], "label": ["brand new"]}))
        if commit:
            index.commit()


def test_new_items_are_found_without_a_restart(world, copied):
    with client_of(make_app(world.space, copied, settings=EAGER)) as client:

        def first():
            body = {"parts": [{"kind": "text", "value": "a lung"}], "k": 1}
            return client.post("/api/search", json=body).json()["hits"][0]["id"]

        assert first() != "new"
        add(copied, world.space)
        until(lambda: first() == "new")
        about = client.get("/api/about").json()
        assert about["items"] == 61 and "brand new" in about["labels"]["ecg"]
        assert client.get("/api/items/new").json()["modality"] == "ecg"
        until(lambda: len(client.get("/api/map").json()["points"]["id"]) == 61, 60)
        with open_index(copied, writable=True) as index:
            index.delete(["new"])
        until(lambda: first() != "new")
        assert client.get("/api/items/new").status_code == 404
        assert "m3bind_index_items 60.0" in client.get("/metrics").text


def test_readers_in_flight_finish_on_the_old_index(world, copied):
    archive = ServedIndex(world.space, copied, 0.0)
    with archive.lease() as old:
        add(copied, world.space)

        def seen():
            with archive.lease() as state:
                return len(state.index)

        until(lambda: seen() == 61)
        assert len(old.index) == 60
        np.testing.assert_allclose(old.index.vectors(["i003"])[0], world.rows[3], atol=1e-6)
        found = old.searcher.nearest(world.rows[3:4], 3)[0]
        assert len(found) == 3 and old.index.parts
    assert not old.index.parts  # closed with its last reader
    archive.close()


def test_a_damaged_index_leaves_the_last_good_one_in_service(world, copied):
    with client_of(make_app(world.space, copied, settings=EAGER)) as client:
        client.get("/api/about")
        current = copied / "CURRENT"
        good = current.read_bytes()
        current.write_bytes(good[:-9] + b"nonsense\n")
        until(lambda: "m3bind_index_stale 1.0" in (client.get("/api/about") and client.get("/metrics").text))
        assert client.get("/api/about").json()["items"] == 60
        current.write_bytes(good)
        until(lambda: "m3bind_index_stale 0.0" in (client.get("/api/about") and client.get("/metrics").text))


def test_an_index_without_items_answers(world, tmp_path):
    from m3bind.index import create_index

    create_index(tmp_path / "empty", 8, world.space.fingerprint).close()
    with client_of(make_app(world.space, tmp_path / "empty")) as client:
        about = client.get("/api/about").json()
        assert about["items"] == 0 and not about["pictures"] and about["labels"]["ct"] == []
        body = {"parts": [{"kind": "text", "value": "a lung"}]}
        assert client.post("/api/search", json=body).json()["hits"] == []
        until(lambda: client.get("/api/map").json()["state"] == "ready", 60)
        assert client.post("/api/map/place", json=body).json()["error"]["code"] == "empty"


def test_a_gap_corrected_index_refuses_texts_and_takes_items(world, tmp_path):
    from m3bind.index import create_index

    with create_index(tmp_path / "gap", 8, world.space.fingerprint, True) as index:
        index.upsert(world.rows, pd.DataFrame(world.lines))
    with client_of(make_app(world.space, tmp_path / "gap")) as client:
        told = client.post("/api/search", json={"parts": [{"kind": "text", "value": "a lung"}]})
        assert told.status_code == 400 and told.json()["error"]["code"] == "gap_corrected"
        assert str(tmp_path) not in told.text
        assert client.post("/api/search", json={"parts": [{"kind": "item", "value": "i001"}]}).json()["hits"]
        assert client.get("/api/items/i001/texts").json()["texts"] == []


def test_items_replaced_in_milvus_are_noticed_though_their_number_stays(world, tmp_path):
    pytest.importorskip("milvus_lite", reason="needs the extra milvus")
    uri = f"milvus:{tmp_path / 'items.db'}"
    table = pd.DataFrame(world.lines)[["id", "modality", "label"]]
    with create_index(uri, 8, world.space.fingerprint) as index:
        index.upsert(world.rows, table)
        index.commit()
        archive = ServedIndex(world.space, uri, check_seconds=0)
        with archive.lease() as state:
            assert "rare" not in state.labels["ct"] and "site" not in state.index.columns
        mark = index.mark
        assert index.mark == mark
        index.upsert(world.rows, table.assign(label="rare", site="north"))
        assert index.mark != mark

        def seen():
            with archive.lease() as state:
                return state.labels["ct"] == ["rare"] and "site" in state.index.columns

        until(seen)
        with archive.lease() as state:
            assert sum(state.counts.values()) == len(world.rows)
        archive.close()
