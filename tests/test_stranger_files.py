"""Files that m3bind wrote beside data, replaced by links or pipes: refused, without blocking."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from m3bind.core.files import LOCK, only_one, open_lock
from m3bind.data.tables import open_table
from m3bind.errors import ConfigError, DiskError, ManifestError
from m3bind.evaluate.prompt_files import load_prompts
from m3bind.evaluate.tables import load_tables
from m3bind.index import roots


def _link(path: Path) -> None:
    path.with_name("precious").write_text("mine")
    path.symlink_to(path.with_name("precious"))


def _dangling(path: Path) -> None:
    path.symlink_to(path.with_name("not made"))


LOCKS: dict[str, Callable[[Path], None]] = {
    "a link": _link, "a link to nothing": _dangling, "a pipe": os.mkfifo, "a folder": Path.mkdir,
    "a device": lambda path: path.symlink_to("/dev/zero"),
}  # fmt: skip


@pytest.mark.parametrize("kind", LOCKS)
def test_a_lock_file_that_is_none_is_refused_and_what_it_leads_to_stays(tmp_path: Path, kind: str) -> None:
    LOCKS[kind](tmp_path / LOCK)
    with pytest.raises(DiskError), only_one(tmp_path, "run"):
        pass
    with pytest.raises(OSError):
        open_lock(tmp_path / LOCK, 0o600)
    assert not (tmp_path / "not made").exists()
    if kind == "a link":
        assert (tmp_path / "precious").read_text() == "mine"


def test_a_valid_lock_is_taken_again(tmp_path: Path) -> None:
    for _ in range(2):
        with only_one(tmp_path, "run"):
            assert str(os.getpid()) in (tmp_path / LOCK).read_text()


@pytest.mark.parametrize("kind", ["pipe", "device", "deep", "digits", "huge", "folder", "twice"])
def test_remembered_folders_that_are_no_file_of_ours_are_none(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    made = tmp_path / "made"
    made.mkdir()
    roots.remember(made, [tmp_path])
    assert roots.remembered(made) == [tmp_path.resolve()]
    file = made / roots.NAME
    sound = file.read_text()
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "folder":
        file.mkdir()
    elif kind == "huge":
        file.write_text(sound)
        os.truncate(file, 1 << 31)
    else:
        texts = {
            "deep": "[" * 100_000,
            "digits": '{"roots": ' + "9" * 10_000 + "}",
            "twice": sound[:-2] + ', "seal": 1}',
        }
        file.write_text(texts[kind])
    assert roots.remembered(made) == []


@pytest.mark.parametrize("name", ["p.yaml", "t.toml"])
@pytest.mark.parametrize("kind", ["bytes", "huge", "deep"])
def test_settings_of_prompts_and_tables_are_bounded(tmp_path: Path, name: str, kind: str) -> None:
    file = tmp_path / name
    file.write_bytes({"bytes": b"\xff\xfe\x00", "huge": b"", "deep": b"a = " + b"[" * 100_000}[kind])
    if kind == "huge":
        os.truncate(file, 1 << 31)
    with pytest.raises(ConfigError, match=name):
        (load_prompts if name == "p.yaml" else load_tables)(file)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_a_table_is_a_plain_file(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "m.csv"
    {"pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "folder": Path.mkdir}[kind](file)
    with pytest.raises(ManifestError, match="not a plain file"), open_table(file):
        pass
