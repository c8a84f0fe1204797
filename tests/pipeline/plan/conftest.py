"""Plans without the time that measuring takes."""

import pytest

from m3bind.pipeline import plan
from m3bind.pipeline.plan import step_cost, tower_cost
from m3bind.pipeline.plan.cost import Side


def without_timing(patch: pytest.MonkeyPatch) -> None:
    """Networks are built but not timed."""
    side = Side(1e-3, 3e-3, 1e6, 2e6, 1e9, 3e9)
    patch.setattr(tower_cost, "time_side", lambda *_, **__: side)
    patch.setattr(step_cost, "_per_step", lambda run: 0.1)
    patch.setattr(plan, "update_seconds", lambda: 1e-9)


@pytest.fixture
def untimed_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """See `without_timing`."""
    without_timing(monkeypatch)
