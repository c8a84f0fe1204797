import sys

import numpy as np
import pytest

from index.made import DIM, items, names, vectors
from index.test_embedded import CONDITIONS
from m3bind.errors import ConfigError, SpaceError, UnknownNameError
from m3bind.index import Where, create_index, open_index
from m3bind.index.milvus_client import parse_uri

pytest.importorskip("milvus_lite", reason="the extra `milvus` is not installed")


def test_milvus_and_a_folder_give_the_same_hits(tmp_path):
    uri = f"milvus:{tmp_path / 'index.db'}#items"
    with create_index(uri, DIM, "space") as ours, create_index(tmp_path / "index", DIM, "space") as plain:
        assert len(ours) == 0 and ours.search(vectors(1), 5).ids == [[]]
        for index in (ours, plain):
            index.upsert(vectors(300, 1), items(names(0, 300), 1))
            index.upsert(vectors(120, 2), items(names(250, 120), 2))
            assert index.delete([*names(10, 20), "nobody"]) == 20
            index.upsert(np.repeat(vectors(1, 3), 9, axis=0), items([f'odd "{i}\\' for i in range(9)], 3))  # equal rows
            index.set_metadata("calibration", {"ct": 1.5})
            index.commit()
        compare(ours, plain)
        with pytest.raises(ConfigError, match="exists already"):
            create_index(uri, DIM, "space")
    with open_index(uri) as ours, open_index(tmp_path / "index") as plain:
        compare(ours, plain)
        with pytest.raises(ConfigError, match="writable"):
            ours.delete(["a"])
        with pytest.raises(UnknownNameError, match="unknown id"):
            ours.vectors(["nobody"])
        with pytest.raises(UnknownNameError, match="colour"):
            ours.counts("colour")
    with pytest.raises(SpaceError, match="no index"):
        open_index(uri.replace("#items", "#others"))


def compare(ours, plain):
    queries = np.concatenate([vectors(6, 9), vectors(1, 3)])
    assert len(ours) == len(plain) == 359
    assert (ours.counts(), ours.counts("label")) == (plain.counts(), plain.counts("label"))
    assert (ours.dim, ours.fingerprint, ours.gap_corrected, ours.metadata) == (DIM, "space", False, plain.metadata)
    for where in (*CONDITIONS, Where(not_ids=('odd "3\\',))):
        for k in (1, 4, 400):
            a, b = ours.search(queries, k, where), plain.search(queries, k, where)
            assert a.ids == b.ids
            np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)
    ids, rows = plain.sample(40, Where(modality="ct"), seed=2)
    assert ours.sample(40, Where(modality="ct"), seed=2)[0] == ids
    np.testing.assert_array_equal(ours.vectors(ids), rows)
    assert ours.items(ids)[plain.columns].equals(plain.items(ids))


def test_possible_incompleteness_is_recorded_as_in_a_folder(tmp_path):
    """A column that only some items have comes with them, is forgotten with them, and may be changed alone."""
    uri = f"milvus:{tmp_path / 'index.db'}#items"
    table, rows = items(names(0, 6), 1), vectors(6, 1)
    part = table.iloc[2:4].assign(incomplete=["2 numbers missing between 1 and 8", 'its "sender" was gone\\'])
    found = []
    for place in (uri, tmp_path / "index"):
        with create_index(place, DIM, "space") as index:
            index.upsert(rows[:2], table.iloc[:2])
            index.upsert(rows[2:4], part)
            index.upsert(rows[4:], table.iloc[4:])
            said = index.items(index.sample(9)[0])
            index.upsert(rows[2:3], table.iloc[2:3])  # whole now
            one = index.items(list(table["id"][3:4])).assign(incomplete="1 object could not be read")
            index.upsert(index.vectors(list(one["id"])), one)
        with open_index(place) as index:
            again = index.items(list(table["id"]))
            conditions = [index.counts("incomplete"), list(again["incomplete"]), sorted(said["incomplete"])]
            found.append([*conditions, again[sorted(again.columns)].to_dict("records")])
    assert found[0] == found[1]
    assert found[0][1] == ["", "", "", "1 object could not be read", "", ""]
    assert found[0][2] == ["", "", "", "", *part["incomplete"]]


def test_long_metadata_is_stored_whole(tmp_path):
    uri = f"milvus:{tmp_path / 'index.db'}#items"
    long, short = {"ids": [f"{i:032x}" for i in range(5000)]}, {"ids": ["ä"]}
    with create_index(uri, DIM, "space") as index:
        index.set_metadata("calibration", long)
    with open_index(uri, writable=True) as index:
        assert index.metadata == {"calibration": long}
        index.set_metadata("calibration", short)
    with open_index(uri) as index:
        assert index.metadata == {"calibration": short}


def test_what_milvus_refuses_is_an_error_of_ours_without_the_texts(tmp_path, caplog):
    uri = f"milvus:{tmp_path / 'index.db'}#items"
    with create_index(uri, DIM, "space") as index:
        table = items(names(0, 3), 1)
        table.loc[1, "path"] = "secret/" * 700
        with pytest.raises(ConfigError, match=r"row 1, column 'path': 4900 bytes") as found:
            index.upsert(vectors(3), table)
        assert "secret" not in str(found.value) and len(index) == 0
        index._client.drop_collection(index._name)
        with pytest.raises(SpaceError, match="Milvus could not do search") as found:
            index.search(vectors(1), 3, Where(patient="secret"))
        assert "secret" not in str(found.value) and "secret" not in caplog.text


def test_uris():
    assert parse_uri("milvus:a/b.db#x") == ("a/b.db", "x", True)
    assert parse_uri("milvus:b.db") == ("b.db", "m3bind", True)
    assert parse_uri("milvus+https://host:19530#x") == ("https://host:19530", "x", False)
    for wrong in ("milvus:folder", "milvus+ftp://host", "milvus:b.db#a-b"):
        with pytest.raises(ConfigError, match="milvus:FILE"):
            parse_uri(wrong)


def test_without_the_extra_the_error_names_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(ConfigError, match=r"m3bind\[milvus\]"):
        create_index(f"milvus:{tmp_path / 'index.db'}", DIM, "space")
