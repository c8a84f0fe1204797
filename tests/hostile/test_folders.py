"""Malicious index, encoded and run folders: a typed error within seconds, and no other effect."""

from pathlib import Path

import pytest

from hostile import folders
from hostile.audit import Action, faults, run
from known import only


def _actions(folder: Path) -> list[Action]:
    with only(folders.register):
        return list(folders.items(folder))


def test_every_hostile_folder_is_opened_once(tmp_path: Path) -> None:
    first: dict[str, Action] = {}  # of all that opens the same folder
    for action in _actions(tmp_path / "in"):
        first.setdefault(action.name.rpartition(": ")[0], action)
    actions = list(first.values())
    assert len(actions) >= 100
    assert faults(actions, run(actions, tmp_path)) == []


@pytest.mark.whole
def test_every_command_that_opens_a_hostile_folder(tmp_path: Path) -> None:
    actions = _actions(tmp_path / "in")
    assert faults(actions, run(actions, tmp_path)) == []
