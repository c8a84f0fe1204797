import pytest

from m3bind.space.index import embedded, near


@pytest.fixture(params=near.FORMS)
def small(request, monkeypatch):
    """Codes and each form of approximate search from a few hundred rows, so that small tests meet them; the form."""
    monkeypatch.setattr(near, "FORMS", {request.param: near.FORMS[request.param]})
    monkeypatch.setattr(near, "CODES_FROM", 200)
    monkeypatch.setattr(near, "NEAR_FROM", 400)
    monkeypatch.setattr(embedded, "SMALL", 200)
    monkeypatch.setattr(embedded, "RUN", 5)
    return request.param
