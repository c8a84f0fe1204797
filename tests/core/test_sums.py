"""Hashes beside finished files, and only one process at a time in a folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from m3bind.core import sums
from m3bind.core.files import only_one, write_text
from m3bind.errors import BusyError, ResultError


def written(folder: Path, **texts: str) -> Path:
    names = [f"{name}.json" for name in texts]
    with sums.writing(folder, *names):
        for name, text in zip(names, texts.values()):
            write_text(folder / name, text)
    return folder


def test_files_are_as_they_were_written(tmp_path: Path) -> None:
    folder = written(tmp_path / "run", a="1", b="2")
    assert sums.changed(folder) == [] and set(sums.recorded(folder)) == {"a.json", "b.json"}
    sums.check(folder, finished=["a.json"])
    written(folder, a="3")
    sums.check(folder)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.write_text("10"), "a.json is not as it was written (2 bytes"),
        (lambda path: path.write_text(""), "a.json is not as it was written (0 bytes"),
        (lambda path: path.write_text("2"), "a.json is not as it was written (1 bytes"),
        (lambda path: path.unlink(), "a.json is missing"),
    ],
)
def test_a_changed_file_is_named(tmp_path: Path, spoil, said: str) -> None:
    folder = written(tmp_path, a="1", b="2")
    spoil(folder / "a.json")
    with pytest.raises(ResultError) as error:
        sums.check(folder)
    assert said in str(error.value) and "b.json" not in str(error.value)
    sums.check(folder, ["b.json"])
    written(folder, a="5")  # written again, all is well
    sums.check(folder)


def test_a_file_whose_writing_was_broken_off_is_not_finished(tmp_path: Path) -> None:
    folder = written(tmp_path, a="1")
    with pytest.raises(KeyboardInterrupt), sums.writing(folder, "a.json"):
        write_text(folder / "a.json", "2")
        raise KeyboardInterrupt
    sums.check(folder)  # nothing is known of it
    with pytest.raises(ResultError, match=r"a\.json is unfinished"):
        sums.check(folder, finished=["a.json"])


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', "[" * 100000, "\udc00"])
def test_damaged_sums_are_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "sums.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(ResultError, match=r"sums\.json"):
        sums.check(tmp_path)


HOLD = """
import sys
from pathlib import Path
from m3bind.core.files import only_one
with only_one(Path(sys.argv[1]), "run"):
    print("in", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_gets_the_id_of_the_first(tmp_path: Path) -> None:
    path = os.pathsep.join(sys.path)
    command = [sys.executable, "-P", "-c", HOLD, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, text=True, **pipes)
    assert process.stdout is not None and process.stdout.readline() == "in\n"
    with (
        pytest.raises(BusyError, match=f"process {process.pid} on .* is at work on this run"),
        only_one(tmp_path, "run"),
    ):
        pass
    process.kill()
    process.wait()
    with only_one(tmp_path, "run"):  # a killed process holds nothing
        pass
