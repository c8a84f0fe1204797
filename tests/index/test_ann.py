"""Which approximate search a commit writes, and what it reports."""

import numpy as np
import pytest

from index.made import DIM, items, names, unit, vectors
from m3bind.core.stored import read_json
from m3bind.index import ann, create_index, hnsw, ivf, open_index


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Publish 900 rows; the index, and what near.json says."""
    monkeypatch.setattr(ann, "CODES_FROM", 200)
    monkeypatch.setattr(ann, "NEAR_FROM", 400)

    def run():
        with create_index(tmp_path / "index", DIM, "space") as index:
            index.upsert(vectors(900, 1), items(names(0, 900), 1))
            index.commit()
        return open_index(tmp_path / "index"), read_json(next((tmp_path / "index").rglob(ann.NEAR)))

    return run


def test_the_graph_where_it_finds_enough(publish):
    index, said = publish()
    assert isinstance(index._near, hnsw.Graph) and index._near.width == said["width"]
    assert said["form"] == "graph" and said["recall"] >= ann.RECALL
    assert not list(index.store.folder.rglob(ivf.LISTS))


def test_lists_where_the_graph_misses_too_many(publish, monkeypatch):
    widen = ann.widen
    monkeypatch.setattr(ann, "widen", lambda made, *more: 0.5 if isinstance(made, hnsw.Graph) else widen(made, *more))
    index, said = publish()
    assert isinstance(index._near, ivf.Lists) and said["form"] == "lists" and said["recall"] >= ann.RECALL
    assert not list(index.store.folder.rglob(hnsw.GRAPH))
    queries = unit(vectors(900, 1)[::20] + 0.1 * vectors(45, 6))
    rough, exact = (index.search(queries, 10, exact=exact).ids for exact in (False, True))
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rough, exact)]) >= 0.98
    assert index.search(queries, 10, exact=True).ids == exact


def test_it_reports_when_no_form_finds_enough(publish, monkeypatch, caplog):
    monkeypatch.setattr(ann, "RECALL", 1.1)
    _, said = publish()
    assert said["form"] == "lists" and 0.9 < said["recall"] <= 1 and "exact=True finds all" in caplog.text
