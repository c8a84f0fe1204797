"""The variables of a launcher: valid ones, missing ones, those of another job, and nonsense."""

import pytest

from m3bind.core import launcher
from m3bind.errors import ConfigError

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def given(monkeypatch):
    """`given(RANK="1", ...)`: only these variables are set."""

    def setting(**variables: str) -> None:
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return setting


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, (1, 2)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, (0, 1)),
        ({"RANK": "3"}, (0, 1)),  # left by another job
        ({"RANK": "", "WORLD_SIZE": ""}, (0, 1)),
    ],
)
def test_processes(given, variables, expected):
    given(**variables)
    assert launcher.processes() == expected


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2, but RANK is not set; start the command with torchrun"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK=2, but WORLD_SIZE=2: ranks are numbered from 0 to 1"),
        ({"WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE='two': not a whole number of at least 1"),
        ({"WORLD_SIZE": "0", "RANK": "0"}, "WORLD_SIZE='0': not a whole number of at least 1"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "RANK='-1': not a whole number of at least 0"),
        ({"WORLD_SIZE": "2", "RANK": "1.5"}, "RANK='1.5': not a whole number of at least 0"),
    ],
)
def test_invalid_processes(given, variables, message):
    given(**variables)
    with pytest.raises(ConfigError, match=message):
        launcher.processes()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "MASTER_ADDR is not set"),
        ({"MASTER_ADDR": "127.0.0.1"}, "MASTER_PORT is not set"),
        ({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "abc"}, "MASTER_PORT='abc': not a whole number"),
    ],
)
def test_invalid_meeting_point(given, variables, message):
    given(WORLD_SIZE="2", RANK="0", **variables)
    with pytest.raises(ConfigError, match=message):
        launcher.meeting_point()


def test_numbers_on_a_machine(given):
    given(LOCAL_RANK="3", LOCAL_WORLD_SIZE="4")
    assert (launcher.local_rank(), launcher.local_processes()) == (3, 4)
    given()
    assert (launcher.local_rank(), launcher.local_processes()) == (0, 1)
    given(LOCAL_RANK="x", LOCAL_WORLD_SIZE="0")
    for number in (launcher.local_rank, launcher.local_processes):
        with pytest.raises(ConfigError, match="unset RANK, WORLD_SIZE and LOCAL_RANK"):
            number()
