"""Paths and values that a stranger's folder names."""

import pytest

from m3bind.stored import StoredFileError, inside, parse_json, plain


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


def nested(levels):
    value = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (nested(100), "nested"),
        ({"a": float("nan")}, "no number"),
        ("x" * (2 << 20), "characters"),
        ([0] * 3_000_000, "values"),
    ],
)
def test_values_without_measure_are_refused(value, reason):
    plain(nested(20))
    with pytest.raises(ValueError, match=reason):
        plain(value)


def test_a_key_stands_once_in_an_object():
    with pytest.raises(StoredFileError, match="'a' stands twice"):
        parse_json('{"b": {"a": 1, "a": 2}}', "x.json")
