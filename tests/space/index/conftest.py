import pytest

from m3bind.space.index import embedded, graph


@pytest.fixture
def small(monkeypatch):
    """Codes and graph from a few hundred rows, so that small tests go through them."""
    monkeypatch.setattr(graph, "CODES_FROM", 200)
    monkeypatch.setattr(graph, "GRAPH_FROM", 400)
    monkeypatch.setattr(embedded, "SMALL", 200)
    monkeypatch.setattr(embedded, "RUN", 5)
