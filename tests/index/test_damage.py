"""Every flipped bit and every truncation is detected when an index is opened; repairable damage is repaired."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from index.made import DIM, items, names, vectors
from m3bind.errors import SpaceError
from m3bind.index import create_index, open_index
from m3bind.index.repair import repair

FLIPS = int(os.environ.get("M3BIND_INDEX_FLIPS", "150"))  # 2000 to prove it
CUTS = int(os.environ.get("M3BIND_INDEX_CUTS", "30"))  # 200 to prove it


@pytest.fixture
def whole(tmp_path, small):
    """An index with every kind of file: published part, later rows, deletions, a note."""
    with create_index(tmp_path / "index", DIM, "space") as index:
        index.upsert(vectors(600, 1), items(names(0, 600), 1))
        index.commit()
        index.upsert(vectors(250, 2), items(names(500, 250), 2))
        index.delete(names(0, 30))
        index.set_metadata("calibration", {"ct": 1.5})
    return tmp_path / "index"


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def content(folder):
    with open_index(folder) as index:
        ids, rows = index.sample(10**9)
        return {name: row.tobytes() for name, row in zip(ids, rows)}, index.items(sorted(ids)), dict(index.metadata)


def test_every_kind_of_file_is_there(whole, small):
    assert {path.name for path in files(whole)} == {
        "CURRENT", "CURRENT.copy", "vectors.f32", "items.arrow", "keys.u64", "gone.i64",
        "codes.faiss", "codes.json", f"{small}.faiss", "near.json",
    }  # fmt: skip


def test_every_flipped_bit_is_noticed(whole):
    rng, there = np.random.default_rng(0), files(whole)
    for number in range(FLIPS):
        path = there[number % len(there)]
        data = path.read_bytes()
        place, bit = int(rng.integers(len(data))), int(rng.integers(8))
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
        with pytest.raises(SpaceError) as error:
            open_index(whole)
        assert path.name in str(error.value) and f"m3bind index --out {whole} --repair" in str(error.value)
        path.write_bytes(data)
    content(whole)


def test_every_cut_is_noticed(whole):
    rng, there = np.random.default_rng(1), files(whole)
    for number in range(CUTS):
        path = there[number % len(there)]
        data = path.read_bytes()
        path.write_bytes(data[: int(rng.integers(len(data)))])
        with pytest.raises(SpaceError, match="--repair"):
            open_index(whole)
        path.unlink()
        with pytest.raises(SpaceError, match="--repair"):
            open_index(whole)
        path.write_bytes(data)
    content(whole)


@pytest.mark.parametrize("what", ["flip", "cut", "gone"])
def test_repair_retains_all_that_can_be_read(whole, what):
    rows, table, notes = content(whole)
    for path in [path.relative_to(whole) for path in files(whole)]:
        copy = whole.with_name("copy")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(whole, copy)
        data = bytearray((copy / path).read_bytes())
        if what == "flip":
            data[len(data) // 2] ^= 4
        (copy / path).write_bytes(data[: len(data) // 2] if what == "cut" else data)
        if what == "gone":
            (copy / path).unlink()
        report = repair(copy)
        assert report.damaged == [path.as_posix()]
        now, lines, kept = content(copy)
        assert kept == notes
        if path.name == "items.arrow" or path.name == "vectors.f32":
            assert report.lost == len(rows) - len(now) > 0
            assert now.items() <= rows.items()
        elif path.name == "gone.i64":
            assert report.revived and now.items() >= rows.items()  # deletions are lost, nothing is doubled
        else:
            assert report.lost == 0 and now == rows and lines.equals(table)
        assert not repair(copy).damaged


def test_without_any_list_of_parts_the_index_must_be_built_again(whole):
    for name in ("CURRENT", "CURRENT.copy"):
        (whole / name).write_text("?")
    with pytest.raises(SpaceError, match="build the index again"):
        repair(whole)


def test_repair_works_from_another_process_after_the_first_ended(whole, small):
    path = next(path for path in files(whole) if path.name == f"{small}.faiss")
    path.write_bytes(path.read_bytes()[:-1])
    done = subprocess.run(
        [sys.executable, "-m", "m3bind", "index", "--out", str(whole), "--repair"], capture_output=True, text=True
    )
    assert done.returncode == 0 and path.name in done.stdout and "no item lost" in done.stdout
    content(whole)
