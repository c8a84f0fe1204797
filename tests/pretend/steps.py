"""How often each training step makes the host wait, and whether two runs logged the same losses.

* `counted_steps`: the number of syncs of every step inside. * `assert_same_losses`: of two runs' log.jsonl.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest

from m3bind.training import loop
from pretend.device import Log

NOT_LOSSES = {"stage", "step", "lr", "gradient_norm"}


@contextmanager
def counted_steps(log: Log) -> Iterator[list[int]]:
    """Syncs of each training step, in order; those of checkpoints between the steps do not count."""
    counts: list[int] = []
    original = loop._Run.step

    def step(run: loop._Run, *args: object) -> object:
        before = log.syncs.total()
        result = original(run, *args)  # type: ignore[arg-type]
        counts.append(log.syncs.total() - before)
        return result

    with patch.object(loop._Run, "step", step):
        yield counts


def assert_same_losses(ours: Path, theirs: Path) -> None:
    """Every loss of two files log.jsonl agrees to 1e-6."""
    rows, expected = ([json.loads(line) for line in path.read_text().splitlines()] for path in (ours, theirs))
    assert len(rows) == len(expected) > 0
    for row, same in zip(rows, expected, strict=True):
        names = [name for name in same if name == "loss" or "/" in name or (name in row and name not in NOT_LOSSES)]
        values = {name: row[name] for name in names}
        assert values == pytest.approx({name: same[name] for name in names}, rel=1e-6, abs=1e-6), same
