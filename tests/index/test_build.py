"""From an encoded archive to an index, by the function and by the command."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from index.made import items, names, vectors
from m3bind.cli import app
from m3bind.core.files import write_json
from m3bind.encode.encoded import Encoded
from m3bind.encode.job import encode_files
from m3bind.errors import ConfigError, SpaceError
from m3bind.index import build_index, open_index
from m3bind.index.build import BUILDING
from m3bind.index.embedded import EmbeddedIndex
from m3bind.space.bundle import save_space
from space import tiny


def archive(folder, n=100, start=0, seed=1, **settings):
    """An encoded archive as `open_encoded` returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "encoded.json", {"n": n, "start": start, "seed": seed})
    table = items(names(start, n), seed)
    table.insert(0, "row", np.arange(n))
    return Encoded(
        folder, vectors(n, seed), table, **{"fingerprint": "space", "gap_corrected": False, "bad": 0} | settings
    )


def test_an_archive_becomes_an_index_and_another_joins_it(tmp_path):
    first, second = archive(tmp_path / "a"), archive(tmp_path / "b", 50, 90, 2)
    with build_index(first, tmp_path / "index", rows=30) as index:
        assert (
            len(index) == 100 and index.pending == 0 and BUILDING not in index.metadata and "row" not in index.columns
        )
        np.testing.assert_array_equal(index.vectors(names(0, 100)), first.embeddings)
        assert index.items(names(0, 100)).equals(first.items.drop(columns="row"))
    with pytest.raises(ConfigError, match="add to it"):
        build_index(second, tmp_path / "index")
    with build_index(second, tmp_path / "index", add=True, rows=30) as index:
        assert len(index) == 140
        np.testing.assert_array_equal(index.vectors(names(90, 50)), second.embeddings)


def test_another_space_or_gap_correction_is_refused(tmp_path):
    build_index(archive(tmp_path / "a"), tmp_path / "index").close()
    for wrong in ({"fingerprint": "other"}, {"gap_corrected": True}):
        with pytest.raises(SpaceError, match="another space"):
            build_index(archive(tmp_path / "b", **wrong), tmp_path / "index", add=True)


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_stopped_anywhere_it_resumes_to_the_same_index(tmp_path, monkeypatch, at):
    whole, calls = archive(tmp_path / "a"), []
    with build_index(whole, tmp_path / "once", rows=40) as index:
        once = index.search(vectors(3, 9), 100)
    for name in ("upsert", "commit"):
        original = getattr(EmbeddedIndex, name)

        def stopping(self, *arguments, original=original):
            calls.append(len(arguments))
            if len(calls) == at + 1:
                raise KeyboardInterrupt
            return original(self, *arguments)

        monkeypatch.setattr(EmbeddedIndex, name, stopping)
    with pytest.raises(KeyboardInterrupt):
        build_index(whole, tmp_path / "index", rows=40)
    if at:
        with pytest.raises(ConfigError, match="add to it"):
            build_index(archive(tmp_path / "b", 9, 500), tmp_path / "index")
    with build_index(whole, tmp_path / "index", rows=40) as index:
        again = index.search(vectors(3, 9), 100)
        assert again.ids == once.ids and len(index) == 100 and BUILDING not in index.metadata
    assert len(calls) == 5  # three blocks and a publish; what was stopped was done again, nothing else


def test_command(tmp_path):
    run = CliRunner().invoke
    space = tiny.make_space()
    save_space(space, tmp_path / "space")
    paths = tiny.pictures(tmp_path / "in", 12)
    encode_files(space, paths[:8], tmp_path / "a", "grey")
    encode_files(space, paths[8:], tmp_path / "b", "other")
    out = ["--out", str(tmp_path / "index")]
    assert "grey: 8" in run(app, ["index", str(tmp_path / "a"), *out], catch_exceptions=False).output
    assert isinstance(run(app, ["index", str(tmp_path / "b"), *out]).exception, ConfigError)
    shown = run(app, ["index", str(tmp_path / "b"), *out, "--add", "--json", str(tmp_path / "about.json")])
    assert "12 items of 8 numbers" in shown.output and "other: 4" in shown.output
    about = json.loads((tmp_path / "about.json").read_text())
    assert about["modalities"] == {"grey": 8, "other": 4} and about["space"] == space.fingerprint
    with open_index(tmp_path / "index") as index:
        ids, _ = index.sample(3)
    (tmp_path / "gone.txt").write_text("\n".join([*ids, "nobody"]))
    gone = run(app, ["index", *out, "--delete-ids", str(tmp_path / "gone.txt"), "--commit"], catch_exceptions=False)
    assert "3 of 4 items deleted" in gone.output and "9 items" in gone.output and "beside" not in gone.output
    assert "nothing is damaged" in run(app, ["index", *out, "--repair"], catch_exceptions=False).output
