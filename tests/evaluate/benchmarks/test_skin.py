"""Kriegsmann's skin tiles: names, splits, locations of the tiles."""

import os

import pytest

from evaluate.benchmarks._checks import assert_few_shot, made, run
from evaluate.benchmarks.prepared import assert_incomplete, kinds, make
from m3bind.errors import ManifestError
from m3bind.evaluate.benchmarks.skin import NAMES, Skin


def test_classes_and_faults(tmp_path):
    done, records = made("skin", tmp_path)
    assert len(Skin.classes) == 16 and Skin.classes[-4:] == (
        "squamous-cell carcinoma", "melanoma in-situ", "basal-cell carcinoma", "naevus",
    )  # fmt: skip
    assert_few_shot(records, Skin.classes)
    assert kinds(done) == {"of unknown class": 1, "with a missing file": 1}
    for record in records.values():
        assert NAMES[record.path.parent.name] == record.label  # the tree's folders are the published names
    assert {r.split for r in records.values()} == {"train", "valid", "test"}


def test_tiles_beside_the_table(tmp_path):
    root = make("skin", tmp_path)
    (root / "tiles").rename(root / "data" / "tiles")
    os.mkfifo(root / "a.csv")  # opened, it would wait for ever
    (root / "b.csv").mkdir()
    done, records = run("skin", root, tmp_path / "out")
    assert kinds(done)["with a missing file"] == 1 and len(records) == 16 * 6


def test_incomplete(tmp_path):
    root = make("skin", tmp_path)
    assert_incomplete("skin", tmp_path, ("data",))
    table = root / "data" / "tiles-v2.csv"
    table.write_text(table.read_text().replace("malignicy", "m", 1).replace(",class,", ",klasse,", 1))
    with pytest.raises(ManifestError, match="file, class, set"):
        run("skin", root, tmp_path / "out")
