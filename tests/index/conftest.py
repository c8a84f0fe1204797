import pytest

from m3bind.index import ann, embedded


@pytest.fixture(params=ann.FORMS)
def small(request, monkeypatch):
    """Codes and each form of approximate search from a few hundred rows, so that small tests meet them; the form."""
    monkeypatch.setattr(ann, "FORMS", {request.param: ann.FORMS[request.param]})
    monkeypatch.setattr(ann, "CODES_FROM", 200)
    monkeypatch.setattr(ann, "NEAR_FROM", 400)
    monkeypatch.setattr(embedded, "SMALL", 200)
    monkeypatch.setattr(embedded, "RUN", 5)
    return request.param


from space.conftest import _registered, start  # noqa: E402, F401
