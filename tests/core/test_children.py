"""No module in the current folder is imported, neither by the commands nor by child processes."""

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file

import m3bind
from hostile.audit import HARM
from m3bind.core import children

NAMES = sorted(
    {
        *sys.stdlib_module_names,
        *(name.partition("/")[0] for name in importlib.metadata.packages_distributions()),
        *("dl", "DLFCN", "sitecustomize", "usercustomize", "cupy", "openslide", "pyvips", "gdcm", "nibabel"),
    }
    - {"m3bind"}
)
# What `python -m` imports by itself before it has found m3bind; that may come from the current folder.
BEFORE = subprocess.run(
    [sys.executable, "-c", "import runpy, pkgutil, sys; print(*sys.modules)"],
    capture_output=True,
    text=True,
    check=True,
).stdout.split()
CONSOLE = ["-P", "-c", "from m3bind.cli import main; main()"]  # as the script; 3.13 imports for -c itself
MODULE = ["-m", "m3bind"]


def _python_files(folder: Path) -> None:
    for name in NAMES:
        (folder / f"{name}.py").write_text(HARM)
    (folder / "evil.pth").write_text("import sitecustomize\n")


def _folders(folder: Path) -> None:
    for name in NAMES:
        (folder / name).mkdir()


def _check(start: list[str], here: Path, scans: Path, harm: Path) -> tuple[int, str, str]:
    """`m3bind check` of some scans, started in a folder: exit code, what was printed, what ran."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *start, "check", str(scans)], cwd=here, env={**kept, "M3BIND_TEST_HARM": str(harm)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, harm.read_text() if harm.exists() else ""


@pytest.mark.whole
def test_what_lies_in_the_current_folder_stands_in_for_nothing(
    tmp_path: Path, make_picture: Callable[..., Path], make_ecg: Callable[..., Path],
    make_volume: Callable[..., Path],
) -> None:  # fmt: skip
    scans, here, folders, empty = (tmp_path / name for name in ("scans", "received", "folders", "empty"))
    for folder in (scans, here, folders, empty):
        folder.mkdir()
    make_picture(scans / "a.png", "xray")
    make_volume(scans / "b.nii.gz")
    make_ecg(scans / "c")
    (scans / "d.dcm").write_bytes(Path(get_testdata_file("CT_small.dcm")).read_bytes())
    _python_files(here)
    _folders(folders)
    code, text, _ = _check(CONSOLE, empty, scans, tmp_path / "harm")
    assert "4 read" in text and code == 0
    for place in (here, folders):
        assert _check(CONSOLE, place, scans, tmp_path / "harm") == (code, text, "")
    for name in BEFORE:
        (here / f"{name}.py").unlink(missing_ok=True)
    assert _check(MODULE, here, scans, tmp_path / "harm") == (code, text, "")


def test_a_child_is_not_given_the_current_folder_nor_the_scripts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, beside, installed = tmp_path / "here", tmp_path / "beside", tmp_path / "installed"
    for folder in (here, beside, installed):
        folder.mkdir()
    (tmp_path / "link").symlink_to(here)
    monkeypatch.chdir(here)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(beside / "run.py"), raising=False)
    source = str(Path(m3bind.__file__).parents[1])
    entries = ["", ".", str(here), str(tmp_path / "link"), str(beside), "relative", str(installed), source]
    monkeypatch.setattr(sys, "path", entries)
    assert children.import_path() == [str(installed), source]
    assert children.environment()["PYTHONPATH"] == os.pathsep.join([str(installed), source])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", ".", str(here)]))  # named by its full name: meant
    assert children.import_path() == [str(here), str(tmp_path / "link"), str(installed), source]
    monkeypatch.delenv("PYTHONPATH")
    monkeypatch.chdir(source)
    assert children.import_path()[-1] == source, "m3bind itself came from there"


SCRIPT = """
import sys
sys.path.insert(0, {beside!r})
import mine
from m3bind import modalities
print(modalities.read(mine.Mine(), {file!r}).array.sum())
"""
MINE = """
import numpy as np
from m3bind.modalities.base import Modality, Sample
class Mine(Modality):
    name, libraries = "mine", ("nibabel", "scipy.ndimage")
    def read(self, path):
        import gdcm, pydicom
        return Sample("mine", np.ones((2, 3), np.float32))
    def thumbnail(self, sample, size=160): raise NotImplementedError
"""


def test_a_modality_beside_the_script_is_found_and_takes_no_librarys_place(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    for name in ("nibabel", "scipy", "pydicom", "gdcm", "json", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text(HARM)
    (tmp_path / "file").write_text("x")
    script = SCRIPT.format(beside=str(tmp_path), file=str(tmp_path / "file"))
    harm = tmp_path / "harm"
    # the parent has its libraries before it looks beside the script, so that only the child's imports are seen
    first = "import json, numpy, scipy, pydicom, m3bind.modalities\n"
    done = subprocess.run(
        [sys.executable, "-P", "-c", first + script], cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env={**os.environ, "M3BIND_TEST_HARM": str(harm)}, check=False,
    )  # fmt: skip
    assert done.stdout == "6.0\n", done.stderr
    assert not harm.exists()
