"""Records of a prepared tree by their ids, and whether they allow few-shot learning; see `prepared` for the rest."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from evaluate.benchmarks.prepared import make
from m3bind.data.manifest import read_manifest
from m3bind.data.records import Record
from m3bind.evaluate.benchmarks import PreparedDataset, get, prepare


def run(name: str, root: Path, out: Path) -> tuple[PreparedDataset, dict[str, Record]]:
    """The tree at `root` prepared in `out`, and its records by id; no row of the manifest is bad."""
    done = prepare(get(name), root, out)
    found = read_manifest(done.manifest)
    assert found.bad == []
    return done, {record.id: record for record in found.records}


def made(name: str, folder: Path, **options: Any) -> tuple[PreparedDataset, dict[str, Record]]:
    """A new tree in `folder`/data, prepared in `folder`/out."""
    return run(name, make(name, folder, **options), folder / "out")


def assert_few_shot(records: dict[str, Record], classes: Iterable[str]) -> None:
    """Every class has training files of three patients and test files of two."""
    for name in classes:
        for split, least in (("train", 3), ("test", 2)):
            people = {r.patient for r in records.values() if r.split == split and name in (r.label, *r.labels)}
            assert len(people) >= least, (name, split)
