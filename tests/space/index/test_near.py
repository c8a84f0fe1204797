"""Which approximate search a publish writes, and what it says of it."""

import numpy as np
import pytest

from m3bind.space.index import create_index, graph, lists, near, open_index
from m3bind.stored import read_json
from space.index.made import DIM, items, names, unit, vectors


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Publish 900 rows; the index, and what near.json says."""
    monkeypatch.setattr(near, "CODES_FROM", 200)
    monkeypatch.setattr(near, "NEAR_FROM", 400)

    def run():
        with create_index(tmp_path / "index", DIM, "space") as index:
            index.upsert(vectors(900, 1), items(names(0, 900), 1))
            index.publish()
        return open_index(tmp_path / "index"), read_json(next((tmp_path / "index").rglob(near.NEAR)))

    return run


def test_the_graph_where_it_finds_enough(publish):
    index, said = publish()
    assert isinstance(index._near, graph.Graph) and index._near.width == said["width"]
    assert said["form"] == "graph" and said["recall"] >= near.RECALL
    assert not list(index.store.folder.rglob(lists.LISTS))


def test_lists_where_the_graph_misses_too_many(publish, monkeypatch):
    widen = near.widen
    monkeypatch.setattr(near, "widen", lambda made, *more: 0.5 if isinstance(made, graph.Graph) else widen(made, *more))
    index, said = publish()
    assert isinstance(index._near, lists.Lists) and said["form"] == "lists" and said["recall"] >= near.RECALL
    assert not list(index.store.folder.rglob(graph.GRAPH))
    queries = unit(vectors(900, 1)[::20] + 0.1 * vectors(45, 6))
    rough, exact = (index.search(queries, 10, exact=exact).ids for exact in (False, True))
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rough, exact)]) >= 0.98
    assert index.search(queries, 10, exact=True).ids == exact


def test_it_says_when_no_form_finds_enough(publish, monkeypatch, caplog):
    monkeypatch.setattr(near, "RECALL", 1.1)
    _, said = publish()
    assert said["form"] == "lists" and 0.9 < said["recall"] <= 1 and "exact=True finds all" in caplog.text
