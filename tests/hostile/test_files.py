"""Folders with special files, weights with false headers, unlimited tokenizers."""

from pathlib import Path

import pytest

from hostile import files
from hostile.audit import faults, run


@pytest.mark.whole
@pytest.mark.timeout(1800)
def test_hostile_files_of_models(tmp_path: Path) -> None:
    actions = list(files.items(tmp_path / "in"))
    assert len(actions) >= 250
    assert faults(actions, run(actions, tmp_path, files.LIBRARIES)) == []
