"""Hostile spaces, model folders and checkpoints: no code runs, nothing is fetched, the fault is reported."""

from pathlib import Path

import pytest

from hostile import models, spaces
from hostile.audit import WARM, faults, run

LIBRARIES = (*WARM, "open_clip", "timm", "transformers.models.clip.modeling_clip", "m3bind.models.hf_clip_any")


@pytest.mark.whole
@pytest.mark.timeout(600)
def test_hostile_spaces(tmp_path: Path) -> None:
    actions = spaces.items(tmp_path / "in")
    assert len(actions) >= 80
    assert faults(actions, run(actions, tmp_path, LIBRARIES)) == []


@pytest.mark.whole
@pytest.mark.timeout(600)
def test_hostile_model_folders_and_checkpoints(tmp_path: Path) -> None:
    actions = models.items(tmp_path / "in")
    assert len(actions) >= 80
    assert faults(actions, run(actions, tmp_path, LIBRARIES)) == []
