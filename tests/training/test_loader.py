"""Batches from worker processes: the same in the same order, errors that arrive, memory that is not exceeded."""

import os
from dataclasses import replace

import pytest
import torch

from m3bind.core.device import Compute
from m3bind.errors import M3BindError, ReadError
from m3bind.training import loader

TWO = Compute(workers=2, prefetch=2)


class Counting:
    """A stage that reads files, whose batch is its step and the process that prepared it."""

    reads_files = True

    def __init__(self, bad: int = -1, die: int = -1) -> None:
        self.bad, self.die = bad, die

    def batch(self, step: int):
        if step == self.bad:
            raise ReadError("x.png", "its end is missing", "copy it again")
        if step == self.die:
            os._exit(1)
        return {"step": torch.tensor(step), "process": os.getpid(), "nested": [{"rows": torch.full((3,), float(step))}]}


@pytest.mark.parametrize("start", [0, 4])
def test_workers_give_the_batches_of_each_step_in_order(start):
    found = list(loader.batches(Counting(), start, 9, TWO))
    assert [int(batch["step"]) for batch in found] == list(range(start, 9))
    assert all(float(batch["nested"][0]["rows"][2]) == int(batch["step"]) for batch in found)
    assert found[0]["process"] == os.getpid()
    assert len({batch["process"] for batch in found[1:]} - {os.getpid()}) == 2


def test_nothing_is_prepared_without_steps():
    assert not list(loader.batches(Counting(bad=3), 3, 3, TWO))


@pytest.mark.parametrize("bad", [0, 1, 5])
def test_an_error_of_a_batch_arrives_as_it_was(bad):
    found = []
    with pytest.raises(ReadError, match="its end is missing"):
        for batch in loader.batches(Counting(bad=bad), 0, 8, TWO):
            found.append(int(batch["step"]))
    assert found == list(range(bad))


def test_a_worker_that_dies_is_a_clear_error():
    with pytest.raises(M3BindError, match=r"lower compute\.workers"):
        list(loader.batches(Counting(die=3), 0, 8, TWO))


@pytest.mark.parametrize(
    ("device", "reads", "workers"), [("cpu", False, 0), ("cpu", True, 2), ("cuda", False, 2), ("meta", False, 2)]
)
def test_workers_are_used_where_they_help(device, reads, workers):
    stage = Counting()
    stage.reads_files = reads
    assert loader.worker_count(stage, replace(TWO, device=torch.device(device))) == workers


@pytest.mark.parametrize(
    ("room", "expected"), [(1000, (4, 2)), (70, (4, 1)), (30, (3, 1)), (20, (2, 1)), (19, (0, 0)), (0, (0, 0))]
)
def test_batches_that_wait_fit_into_memory(room, expected):
    assert loader.fitted(4, 2, 10, room) == expected


def test_a_small_shared_memory_is_reported(monkeypatch, caplog):
    monkeypatch.setattr(loader, "_room", lambda: 50.0)
    assert len(list(loader.batches(Counting(), 0, 3, TWO))) == 3
    assert "shm-size" in caplog.text and "2 instead of 2" in caplog.text
