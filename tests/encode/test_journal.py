"""The folder of parts: one job at a time, with any number of processes."""

import pytest

from m3bind.encode import journal
from m3bind.encode.journal import Journal
from m3bind.errors import ConfigError


def store(folder, batch, rows="a"):
    made = Journal(folder)
    made.plan({"batch": batch}, 1, [rows])
    return made


def test_another_job_waits_or_is_refused_and_spoils_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "PATIENCE", 0.3)
    first, second = store(tmp_path, 1), store(tmp_path, 2)
    with first.begun():
        first.path(0).write_bytes(b"finished")
        with pytest.raises(ConfigError, match="another --out"), second.begun():
            pass
        with store(tmp_path, 1).begun():  # the same job: two processes share it
            assert first.path(0).exists()
    assert first.path(0).exists()
    with second.begun():
        assert not first.path(0).exists()  # of no use to the new job
        monkeypatch.setattr(journal, "PATIENCE", 0.0)
        with pytest.raises(ConfigError), first.begun():
            pass


def test_the_lock_ends_with_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), store(tmp_path, 1).begun():
        1 / 0  # noqa: B018
    with store(tmp_path, 2).begun():
        pass


def test_without_locks_work_continues(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(journal.fcntl, "flock", refuse)
    with store(tmp_path, 1).begun(), store(tmp_path, 1).begun():
        pass
