"""Hostile archives given to the commands that read files."""

from pathlib import Path

import pytest

from hostile import archives, folders
from hostile.audit import faults, run
from known import only


@pytest.mark.timeout(600)
@pytest.mark.whole
def test_hostile_archives_are_checked(tmp_path: Path) -> None:
    actions = list(archives.items(tmp_path / "in"))
    assert len(actions) >= 80
    assert faults(actions, run(actions, tmp_path, ("m3bind.cli",))) == []


@pytest.mark.whole
def test_hostile_archives_are_encoded(tmp_path: Path) -> None:
    with only(folders.register):
        space = folders.make_files(tmp_path / "sound")
    actions = list(archives.items(tmp_path / "in", Path(space)))
    assert faults(actions, run(actions, tmp_path)) == []
