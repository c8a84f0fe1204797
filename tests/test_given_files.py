"""Small files that options name: read to their end or refused in time, by one reader, whatever they contain."""

import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from m3bind.cli import app
from m3bind.core import stored
from m3bind.core.stored import MAX_SECRET, StoredFileError, lines_given, read_bytes, read_given
from m3bind.errors import ConfigError
from m3bind.hospital.http import authorization
from m3bind.hospital.pseudonyms import open_salt
from m3bind.serve.access import read_token

READERS: dict[str, Callable[[Path], object]] = {
    "--token-file": read_token,
    "--auth-file": authorization,
    "--salt-file": open_salt,
    "--delete-ids": lambda path: lines_given(path, "--delete-ids"),
}
TEXT = "a text that is long enough"


def _filled(path: Path) -> None:
    """A pipe that somebody writes to, slowly and for ever."""
    os.mkfifo(path)

    def write() -> None:
        with open(path, "wb", 0) as pipe:
            try:
                while True:
                    pipe.write(b"x")
                    time.sleep(0.01)
            except BrokenPipeError:
                return

    threading.Thread(target=write, daemon=True).start()


def _large(path: Path) -> None:
    path.write_bytes(b"a")
    os.truncate(path, 1 << 40)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "no such file"),
    "a folder": (Path.mkdir, "neither a plain file nor a pipe"),
    "a device without end": (lambda path: path.symlink_to("/dev/zero"), "neither a plain file nor a pipe"),
    "a pipe that is never closed": (_filled, "does not end within"),
    "a large file": (_large, "more than"),
    "a link in a circle": (lambda path: path.symlink_to(path), "symbolic links"),
}


@pytest.mark.parametrize("option", READERS)
@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_not_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, option: str) -> None:
    if option == "--salt-file" and kind in ("missing", "a link in a circle"):
        pytest.skip("made where it is missing; a link in a circle is said by the disk")
    monkeypatch.setattr(stored, "PIPE", 0.3)
    path, (make, said) = tmp_path / "given", REFUSED[kind]
    make(path)
    if option == "--salt-file":
        said += "|others may read"
        if not path.is_symlink():
            path.chmod(0o700)
    begun = time.monotonic()
    with pytest.raises(ConfigError, match=said) as found:
        READERS[option](path)
    assert time.monotonic() - begun < 5 and ("others" in str(found.value) or option in str(found.value))


@pytest.mark.parametrize("option", ["--token-file", "--auth-file", "--delete-ids"])
def test_text_is_utf_8(tmp_path: Path, option: str) -> None:
    path = tmp_path / "given"
    for data in (b"a\xff", TEXT.encode("utf-16"), b"\xe9" * 40):
        path.write_bytes(data)
        with pytest.raises(ConfigError, match="not UTF-8"):
            READERS[option](path)
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.encode() + b"\r\n")  # as Windows saves it
    assert READERS[option](path) in (TEXT, [TEXT])


@pytest.mark.parametrize("option", READERS)
def test_a_pipe_is_read_to_its_end(option: str) -> None:
    with subprocess.Popen(["sh", "-c", f"sleep .1; echo {TEXT!r}"], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert READERS[option](Path(f"/dev/fd/{writer.stdout.fileno()}")) in (TEXT, TEXT.encode(), [TEXT])


def test_bounds_are_exact(tmp_path: Path) -> None:
    path = tmp_path / "given"
    path.write_bytes(b"a" * MAX_SECRET)
    assert len(read_given(path, "--x")) == MAX_SECRET == len(read_bytes(path, MAX_SECRET))
    path.write_bytes(b"a" * (MAX_SECRET + 1))
    with pytest.raises(ConfigError, match="65,537 bytes, more than 65,536"):
        read_given(path, "--x")
    with pytest.raises(StoredFileError, match="not a plain file"):  # of a third-party folder
        os.mkfifo(tmp_path / "pipe")
        read_bytes(tmp_path / "pipe", 10)
    reader, writer = os.pipe()
    threading.Thread(target=lambda: (os.write(writer, b"a" * 99), os.close(writer)), daemon=True).start()
    with pytest.raises(ConfigError, match="more than 10 bytes"):
        read_given(Path(f"/dev/fd/{reader}"), "--x", 10)
    os.close(reader)


def test_lists_of_phrases(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    arguments = ["serve", "--space", "none", "--index", "none", "--texts", str(tmp_path / "texts")]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code and "--texts" in str(found.exception) and "neither a plain file" in str(found.exception)
