"""Schemathesis sends whatever the OpenAPI description allows: no answer is a server error or of another schema."""

import itertools
import os

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from serve.conftest import until

EXAMPLES = 6


def ask_everything(served, examples):
    """Call every operation; returns their names."""
    import schemathesis
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

    schema = schemathesis.openapi.from_url(f"{served.url}/api/openapi.json")
    checks = [not_a_server_error, status_code_conformance, response_schema_conformance]
    asked, turn = set(), itertools.count()
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(
            max_examples=examples, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy())
        def ask(case):
            asked.add(case.operation.label)
            if next(turn) % 2 and case.operation.path.startswith("/api/items/"):
                case.path_parameters["id"] = f"i00{next(turn) % 5}"  # one that is there
            case.call_and_validate(checks=checks)

        ask()
    return asked


@pytest.fixture
def ready(live):
    served = live()
    until(lambda: served.app.service.layout._points is not None, 60)
    return served


def test_no_server_error(ready):
    asked = ask_everything(ready, EXAMPLES)
    assert {"POST /api/search", "POST /api/uploads", "GET /api/items/{id}/picture", "POST /api/zero-shot"} <= asked
    assert len(asked) >= 20


@pytest.mark.slow
def test_no_server_error_at_length(ready):
    ask_everything(ready, int(os.environ.get("M3BIND_EXAMPLES", "400")))
