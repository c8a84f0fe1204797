"""The stream of rows: each file once, faults of manifests, stored fields, versions."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from m3bind.data.records import BadRow
from m3bind.encode.items import Listing, rows_of, version_of
from m3bind.errors import ConfigError
from space import tiny


@dataclass(frozen=True)
class Row:
    modality: str
    path: Path
    labels: tuple[str, ...] = ()
    date: str | None = None


def test_a_file_named_twice_is_one_row_and_two_modalities_are_two(tmp_path):
    paths = tiny.pictures(tmp_path, 3)
    rows = list(rows_of([tmp_path, paths[1], Row("other", paths[1])], "grey", (), ("grey", "other")))
    assert [row["path"] for row in rows] == list(map(str, paths)) and {row["modality"] for row in rows} == {"grey"}
    both = list(rows_of([Row("grey", paths[0]), Row("other", paths[0]), Row("grey", paths[0])], None, (), ()))
    assert [row["modality"] for row in both] == ["grey", "other"]


def test_bare_paths_are_left_to_be_recognised(tmp_path):
    (path,) = tiny.pictures(tmp_path, 1)
    assert list(rows_of([path], None, (), ("grey",))) == [{"path": str(path), "modality": "", "fault": ""}]


def test_bad_rows_of_a_manifest_keep_their_reason_and_their_number(tmp_path):
    bad = [BadRow(4, "no such modality", "a.png"), BadRow(5, "no such modality", "a.png")]
    faults = [row["fault"] for row in rows_of(bad, None, ("id",), ())]
    assert faults == ["row 4 of the manifest: no such modality", "row 5 of the manifest: no such modality"]


def test_stored_fields_are_texts(tmp_path):
    row = Row("grey", tmp_path / "a.png", ("mass", "nodule"))
    (found,) = rows_of([row], None, ("labels", "date"), ())
    assert found["labels"] == "mass|nodule" and found["date"] == ""
    with pytest.raises(ConfigError, match="no field 'name'"):
        list(rows_of([row], None, ("name",), ()))


def test_a_listing_hands_out_its_rows_again_and_again():
    rows = [{"path": str(n), "modality": "grey", "fault": ""} for n in range(7)]
    with Listing(iter(rows), 3) as listing:
        for _ in range(2):
            assert [(n, len(part)) for n, part in listing.shards()] == [(0, 3), (1, 3), (2, 1)]
        assert [row for _, part in listing.shards() for row in part] == rows
        assert listing.count == 7 and [listing.size(n) for n in range(3)] == [3, 3, 1]
        assert listing.modalities == {"grey"} and len(set(listing.names)) == 3


@pytest.mark.parametrize("name", ["a", "a.hea"])
def test_the_signals_of_a_record_are_part_of_its_version(tmp_path, name):
    for ending in ("hea", "dat"):
        (tmp_path / f"a.{ending}").write_text("x")
    rows = [{"path": str(tmp_path / name)}]
    before = version_of(rows)
    assert version_of(rows) == before
    os.utime(tmp_path / "a.dat", (1, 1))
    assert version_of(rows) != before


def test_a_name_that_is_not_utf8_is_a_fault_and_the_rest_is_listed(tmp_path):
    (path,) = tiny.pictures(tmp_path, 1)
    for name in (b"R\xf6ntgen.png", b"\xff.png"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(path.read_bytes())
    rows = list(rows_of([tmp_path], "grey", (), ("grey",)))
    assert [("rename the file" in row["fault"], row["path"].isascii()) for row in rows] == [
        (False, True), (True, True), (True, True),
    ]  # fmt: skip
    with Listing(rows, 2) as listing:
        assert listing.count == 3
    assert version_of(rows)
