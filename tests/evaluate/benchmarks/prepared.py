"""Preparing a generated tree, and the messages about a missing or incomplete one."""

import importlib
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from m3bind.data.manifest import Manifest, read_manifest
from m3bind.errors import ManifestError
from m3bind.evaluate.benchmarks import PreparedDataset, get, prepare


def make(name: str, place: Path, /, **options: Any) -> Path:
    """The generated tree of a data set, in `place`/data."""
    importlib.import_module(f"evaluate.benchmarks.trees.{name}").make(place / "data", **options)
    return place / "data"


def prepared(name: str, folder: Path) -> tuple[PreparedDataset, Manifest]:
    """The tree in `folder`/data prepared and its manifest read; no row may be bad there."""
    done = prepare(get(name), folder / "data", folder / "out")
    manifest = read_manifest(done.manifest)
    assert manifest.bad == []
    return done, manifest


def kinds(done: PreparedDataset) -> Counter[str]:
    """Number of quarantined rows by kind."""
    return Counter(fault.kind for fault in done.faults)


def assert_incomplete(name: str, folder: Path, parts: Sequence[str]) -> None:
    """Without the folder, or without one of its parts, the message shows the layout and says how to get the data."""
    benchmark = get(name)
    with pytest.raises(ManifestError, match="no such folder") as absent:
        prepare(benchmark, folder / "nowhere", folder / "out")
    assert benchmark.layout.strip() in str(absent.value) and benchmark.access in str(absent.value)
    for part in parts:
        half = folder / "half"
        shutil.copytree(folder / "data", half)
        shutil.rmtree(half / part) if (half / part).is_dir() else (half / part).unlink()
        with pytest.raises(ManifestError) as incomplete:
            prepare(benchmark, half, folder / "out")
        assert benchmark.layout.strip() in str(incomplete.value), part
        shutil.rmtree(half)
