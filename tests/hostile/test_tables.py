"""Hostile tables and roots of data sets: read, refused with a reason, or quarantined row by row."""

from pathlib import Path

import pytest

from hostile import tables
from hostile.audit import faults, run

LIBRARIES = ("m3bind.cli", "pandas", "pyarrow.parquet", "openpyxl", "h5py", "m3bind.data.manifest")


@pytest.mark.whole
def test_hostile_tables(tmp_path: Path) -> None:
    actions = list(tables.items(tmp_path / "in"))
    assert len(actions) >= 150
    assert faults(actions, run(actions, tmp_path, LIBRARIES)) == []
