"""m3bind check: finding, recognising, reporting, contact sheets."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from PIL import Image

from m3bind.core.files import write_json
from m3bind.errors import ConfigError, ReadError, UnknownNameError
from m3bind.modalities.base import Sample
from m3bind.modalities.formats.detect import recognise
from m3bind.pipeline import check
from m3bind.space.bundle import Space

Make = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path, make_picture: Make) -> Path:
    for kind in ("xray", "retina", "pathology"):
        make_picture(tmp_path / "scans" / f"{kind}1.png", kind)
    (tmp_path / "scans" / "notes.txt").write_text("nothing to read")
    (tmp_path / "scans" / ".hidden.png").write_bytes(b"x")
    (tmp_path / "scans" / "image2.png").write_bytes(b"\x89PNG broken")
    return tmp_path / "scans"


def test_a_folder_is_read_recognised_and_reported(folder: Path) -> None:
    answers = check.check_items(check.find_items([folder]))
    found = {answer.path: (answer.status, answer.modality) for answer in answers}
    assert found == {
        "scans/image2.png": ("refused", ""),
        "scans/pathology1.png": ("read", "pathology"),
        "scans/retina1.png": ("read", "retina"),
        "scans/xray1.png": ("read", "xray"),
    }
    text = check.as_text(answers)
    assert "3 read" in text and "1 refused" in text and "recognised as retina" in text


def test_a_volume_that_is_not_in_hounsfield_units_is_doubted(tmp_path: Path) -> None:
    import nibabel

    values = np.random.default_rng(0).random((40, 40, 8)).astype(np.float32)
    for name, factor in (("probability", 1), ("mr", 4095), ("grey", 255), ("pet", 60000)):
        nibabel.save(nibabel.Nifti1Image(values * factor, np.diag([4.0, 4, 4, 1])), tmp_path / f"{name}.nii.gz")
    answers = check.check_items(check.find_items([tmp_path]))
    assert [answer.kind for answer in answers] == ["doubt"] * 4
    assert all("-1000" in " ".join(answer.warnings) for answer in answers)
    assert "values from 0" in check.as_text(answers)


def test_a_given_modality_is_used(folder: Path) -> None:
    (answer,) = check.check_items(check.find_items([folder / "xray1.png"], "ct"))
    assert (answer.status, answer.modality) == ("read", "ct") and answer.warnings
    (answer,) = check.check_items(check.find_items([folder / "retina1.png"], "xray"))
    assert answer.status == "refused" and "colour" in answer.reason


def test_a_manifest_names_files_and_modalities(folder: Path) -> None:
    rows = ["path,modality,caption", "xray1.png,xray,a clear chest", "retina1.png,retina,healthy macula"]
    (folder / "m.csv").write_text("\n".join([*rows, "gone.png,xray,a clear chest"]) + "\n")
    items = check.find_items([folder / "m.csv"])
    assert [(item.path.name, item.modality) for item in items] == [
        ("xray1.png", "xray"),
        ("retina1.png", "retina"),
        ("gone.png", ""),
    ]
    *_, last = check.check_items(items)
    assert last.status == "refused" and "row 4 of the manifest" in last.reason


def test_wrong_use_is_reported(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        check.find_items([folder / "gone.png"])
    with pytest.raises(UnknownNameError):
        check.find_items([folder], "xrai")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no file that any modality reads"):
        check.find_items([tmp_path / "empty"])
    (tmp_path / "a.xyz").write_text("?")
    with pytest.raises(ReadError, match="not a file that any modality reads"):
        recognise(tmp_path / "a.xyz")


def test_the_contact_sheet_has_a_frame_for_every_file(folder: Path, tmp_path: Path) -> None:
    answers = check.check_items(check.find_items([folder]), thumbnails=True)
    check.contact_sheet(answers, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    frames = [sheet[8:176, 8 + i * 176 : 176 + i * 176] for i in range(4)]
    assert np.ptp(frames[0][4:-4, 4:-4]) == 0  # refused: empty
    assert all(np.ptp(frame[4:-4, 4:-4]) > 50 for frame in frames[1:])
    check.contact_page(answers, tmp_path / "sheet.html")
    page = (tmp_path / "sheet.html").read_text()
    assert page.count("<article") == 4 and page.count("data:image/jpeg") == 3 and "http" not in page


def test_a_sheet_of_many_files_shows_some_evenly() -> None:
    assert list(check.on_sheet(0)) == [] and list(check.on_sheet(3)) == [0, 1, 2]
    assert len(check.on_sheet(check.MOST)) == check.MOST
    many = check.on_sheet(10 * check.MOST + 7)
    assert many.step == 11 and len(many) <= check.MOST


def test_json_and_exit_code(folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    import sys

    from m3bind.cli import main

    out = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", ["m3bind", "check", str(folder), "--json", str(out), "-q"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1  # one was refused
    files = json.loads(out.read_text())["files"]
    assert set(files[0]) == {"path", "status", "reason", "modality", "steps", "warnings"}
    assert [file["status"] for file in files] == ["refused", "read", "read", "read"]
    monkeypatch.setattr(sys, "argv", ["m3bind", "check", str(folder / "xray1.png")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0 and "ok" in capsys.readouterr().out


def test_file_names_of_people_are_masked(folder: Path, make_picture: Make) -> None:
    make_picture(folder / "DOE_JANE_1950.png", "xray")
    text = json.dumps([answer.as_dict() for answer in check.check_items(check.find_items([folder]))])
    assert "DOE" not in text and "JANE" not in text and "~" in text


NAMES = [b"R\xf6ntgen.png", b"\xff\xfe.png", b"new\nline.png", "\u202e.png".encode(), b"M\xfcller/img1.png"]


@pytest.mark.parametrize("shows", ["", "show"])
def test_names_that_are_not_utf8_end_nothing(
    tmp_path: Path, make_picture: Make, shows: str, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("M3BIND_IDENTIFIERS", shows)
    source = make_picture(tmp_path / "source.png", "xray").read_bytes()
    for name in NAMES:
        target = Path(os.fsdecode(os.fsencode(tmp_path / "scans") + b"/" + name))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source)
    answers = check.check_items(check.find_items([tmp_path / "scans"], "xray"), thumbnails=True)
    assert [answer.status for answer in answers] == ["read"] * 5
    assert sum("not UTF-8" in text for answer in answers for text in answer.warnings) == 3
    write_json(tmp_path / "c.json", [answer.as_dict() for answer in answers])
    check.contact_page(answers, tmp_path / "c.html")
    check.contact_sheet(answers, tmp_path / "c.png")
    assert len(check.as_text(answers).encode().splitlines()) >= 9
    assert len(json.loads((tmp_path / "c.json").read_text())) == 5


class Judge:
    """The parts of a space that `check` needs."""

    measures = {"xray": None}

    def model(self, name: str) -> "Judge":
        return self

    def preprocess(self, sample: Sample) -> Sample:
        if sample.array.shape[0] == 1:
            raise ValueError("one row is too few")
        return sample

    def examine_inputs(self, inputs: list[Sample], modality: str) -> tuple[None, list[str]]:
        return None, ["" if np.ptp(sample.array) else "blank" for sample in inputs]


def test_files_unlike_the_training_data_of_a_space_are_doubted(folder: Path) -> None:
    Image.new("L", (300, 300), 90).save(folder / "xray2.png")
    items = [check.CheckItem(folder / f"{name}.png", name[:-1]) for name in ("xray1", "xray2", "retina1")]
    answers = check.check_items(items, space=cast(Space, Judge()))
    assert ["unusual: blank" in answer.warnings for answer in answers] == [False, True, False]
    assert "! unusual: blank" in check.as_text(answers)
