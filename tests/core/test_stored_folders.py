"""Paths and values named in a third-party folder."""

import numpy as np
import pytest

from m3bind.core.stored import StoredFileError, inside, parse_json, plain, read_parquet


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a/../../b", "", "a\\b", "link/x", "link"])
def test_a_path_that_leaves_the_folder_is_refused(name, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="the folder"):
        inside(folder, name)


def test_links_of_the_hub_s_cache_are_inside(tmp_path):
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "1").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/1")
    (snapshot / "other").symlink_to("../../../other")
    assert inside(snapshot, "config.json").read_text() == "{}"
    with pytest.raises(ValueError, match="leads out"):
        inside(snapshot, "other")


def test_a_link_to_itself_is_refused(tmp_path):
    (tmp_path / "a").symlink_to("a")
    with pytest.raises(ValueError, match="leads to itself"):
        inside(tmp_path, "a")


def nested(levels):
    value = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (nested(100), "nested"),
        ({"a": float("nan")}, "not a finite number"),
        ("x" * (2 << 20), "characters"),
        ([0] * 3_000_000, "values"),
    ],
)
def test_values_without_measure_are_refused(value, reason):
    plain(nested(20))
    with pytest.raises(ValueError, match=reason):
        plain(value)


def test_a_key_stands_once_in_an_object():
    with pytest.raises(StoredFileError, match="'a' occurs twice"):
        parse_json('{"b": {"a": 1, "a": 2}}', "x.json")


def _parquet(path, columns):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)


@pytest.mark.parametrize("kind", ["string", "large_string", "binary", "fixed"])
def test_a_text_stored_once_that_stands_in_every_row_is_refused_before_it_is_written_out(tmp_path, kind):
    import pyarrow as pa

    long, rows = "x" * 1_000_000, np.zeros(100_000, np.int32)
    kinds = {"string": pa.string(), "large_string": pa.large_string(), "binary": pa.binary(), "fixed": pa.binary(10**6)}
    value = pa.array([long.encode() if kind in ("binary", "fixed") else long], kinds[kind])
    column = (
        pa.DictionaryArray.from_arrays(rows, value) if kind != "fixed" else pa.array([long.encode()] * 200, kinds[kind])
    )
    _parquet(tmp_path / "t.parquet", {"a": column})
    assert (tmp_path / "t.parquet").stat().st_size < 2_000_000
    with pytest.raises(StoredFileError, match="unpacks"):
        read_parquet(tmp_path / "t.parquet", 1 << 27)


def test_a_valid_table_is_read_as_pyarrow_reads_it(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "text": ["a", None, "ü", "", "a"] * 30_000,
        "bytes": pa.array([b"a", b"\xff", None, b"", b"a"] * 30_000),
        "number": pa.array([1, 2, None, 4, 5] * 30_000),
        "real": pa.array([0.5, float("nan"), None, 1e300, -1.0] * 30_000),
        "flag": pa.array([True, None, False, True, False] * 30_000),
        "list": pa.array([["a", "b"], [], None, ["c"], [None]] * 30_000),
        "when": pa.array([0, 1, None, 3, 4] * 30_000, pa.timestamp("us")),
        "class": pa.array(["x", "y", None, "x", "y"] * 30_000).dictionary_encode(),
    }
    _parquet(tmp_path / "t.parquet", columns)
    wanted = pq.read_table(tmp_path / "t.parquet").replace_schema_metadata(None)
    found = read_parquet(tmp_path / "t.parquet", 1 << 30)
    assert found.schema == wanted.schema and found.num_rows == wanted.num_rows
    for name in columns:
        assert found[name].to_pylist() == wanted[name].to_pylist() or name == "real"
    np.testing.assert_array_equal(found["real"].to_numpy(), wanted["real"].to_numpy())
    _parquet(tmp_path / "none.parquet", {"a": pa.array([], pa.string())})
    assert read_parquet(tmp_path / "none.parquet", 100).num_rows == 0


def test_a_table_of_more_columns_than_any_has_and_a_pipe_are_refused(tmp_path):
    import os

    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({f"c{n}": ["x"] for n in range(5_000)}), tmp_path / "wide.parquet")
    with pytest.raises(StoredFileError, match="5,000 columns, more than 4,096"):
        read_parquet(tmp_path / "wide.parquet", 1 << 30)
    os.mkfifo(tmp_path / "pipe.parquet")
    with pytest.raises(StoredFileError, match="not a plain file"):
        read_parquet(tmp_path / "pipe.parquet", 1 << 30)
