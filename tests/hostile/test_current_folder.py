"""Every command that reads files gives the same result in a folder full of module names as elsewhere."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file

from core.test_children import _folders, _python_files
from hostile.makers import compact, space_of
from m3bind.core.files import sha256_file

SETTINGS = """
data: {manifest: MANIFEST}
modalities:
  xray: {model: compact_2d, settings: {joint_dim: 8, image_size: 32, widths: [8, 8], max_tokens: 24}}
  retina: {model: compact_2d, settings: {joint_dim: 8, image_size: 32, widths: [8, 8], max_tokens: 24}}
"""
GRADES = "image_id,adjudicated_dr_grade,adjudicated_dme,adjudicated_gradable\n"


# Several commands in one process, started as the installed script is; the output and exit code of each.
SCRIPT = """
import sys
del sys.path[0]
import json
from m3bind.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv[:] = ["m3bind", *words]
    try:
        main()
    except SystemExit as stop:
        print("exit code", stop.code, flush=True)
"""


@dataclass
class Inputs:
    """What the commands read, and the folders in which they run."""

    folder: Path
    few: list[list[str]]
    rest: list[list[str]]  # need what the few wrote

    def run(self, here: str, commands: list[list[str]]) -> str:
        """What commands say in one of the current folders; OUT stands for a folder of its own."""
        out = self.folder / f"out of {here}" / str(len(commands))
        words = [[word.replace("OUT", str(out)) for word in command] for command in commands]
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, json.dumps(words)], cwd=self.folder / here, capture_output=True, text=True,
            env={**kept, "M3BIND_TEST_HARM": str(self.folder / "harm")}, timeout=400, check=False,
        )  # fmt: skip
        assert done.stdout.count("exit code 0") == len(commands), done.stdout + done.stderr
        return re.sub(r"\d[\d.,]*( ?(ms|min|s|GB|MB|GFLOP/s)|/s)\b", "N", done.stdout.replace(str(out), "OUT"))

    def harmed(self) -> str:
        """What ran of the files in the current folders."""
        return (self.folder / "harm").read_text() if (self.folder / "harm").exists() else ""


@pytest.fixture(scope="module")
def inputs(
    tmp_path_factory: pytest.TempPathFactory, make_picture: Callable[..., Path], make_volume: Callable[..., Path]
) -> Inputs:
    folder = tmp_path_factory.mktemp("here")
    for name in ("empty", "received", "folders", "scans"):
        (folder / name).mkdir()
    _python_files(folder / "received")
    _folders(folder / "folders")
    space = space_of(compact(folder / "scratch"), folder / "space", folder / "scratch")
    scans = folder / "scans"
    rows = ["path,modality,label,patient,split"]
    for number in range(14):
        split = "test" if number > 9 else "train"
        for kind in ("xray", "retina"):
            make_picture(scans / f"{kind}{number}.png", kind, number)
            rows.append(f"{kind}{number}.png,{kind},{('normal', 'effusion')[number % 2]},{number},{split}")
    (scans / "m.csv").write_text("\n".join(rows) + "\n")
    mixed = folder / "mixed"
    make_picture(mixed / "a.png", "xray")
    make_volume(mixed / "b.nii.gz")
    (mixed / "d.dcm").write_bytes(Path(get_testdata_file("CT_small.dcm")).read_bytes())
    settings = folder / "settings.yaml"
    settings.write_text(SETTINGS.replace("MANIFEST", str(scans / "m.csv")))
    messidor = folder / "messidor"
    make_picture(messidor / "IMAGES" / "a.png", "retina")
    (messidor / "messidor_data.csv").write_text(GRADES + "a.png,2,0,1\n")
    encoded, index, measured = "OUT/encoded", "OUT/index", str(scans / "m.csv")
    of_space = ["--space", str(space)]
    few = [
        ["encode", *(f"{scans}/xray{n}.png" for n in range(8)), *of_space, "--out", encoded, "--modality", "xray"],
        ["index", encoded, "--out", index],
        ["search", index, *of_space, "--file", f"{scans}/xray3.png:xray"],
        ["search", index, *of_space, "--text", "effusion"],
    ]
    rest = [
        ["check", str(mixed)],
        ["prepare", str(settings), "--out", "OUT/runs"],
        ["prepare", "messidor2", "--root", str(messidor), "--out", "OUT/runs"],
        ["export", encoded, "--to", "npz", "--out", "OUT/table"],
        ["evaluate", str(space), "--manifest", measured],
        ["leaks", measured],
    ]
    return Inputs(folder, few, rest)


@pytest.mark.whole
def test_commands_do_the_same_among_files_called_like_modules(inputs: Inputs) -> None:
    wanted = inputs.run("empty", inputs.few)
    assert inputs.run("received", inputs.few) == wanted
    assert inputs.harmed() == ""
    made = [inputs.folder / f"out of {place}" / "4" / "encoded" / "embeddings.npy" for place in ("empty", "received")]
    assert len({sha256_file(path) for path in made}) == 1


@pytest.mark.whole
def test_so_do_all_commands_that_read_files_and_among_such_folders(inputs: Inputs) -> None:
    every = [*inputs.few, *inputs.rest]
    wanted = inputs.run("empty", every)
    for place in ("received", "folders"):
        assert inputs.run(place, every) == wanted
        assert inputs.harmed() == ""
    assert inputs.run("received", [["plan", *inputs.rest[1][1:]]])  # its values are measured
    assert inputs.harmed() == ""
