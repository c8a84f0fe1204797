"""The spool with invalid contents: each start continues with the rest, names the fault, and loses nothing."""

import csv
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hospital.killed import DIM, NAMES, StandIn, decoded, embedding
from hospital.planted import radiograph, save, series
from m3bind.errors import ConfigError, DiskError, M3BindError
from m3bind.hospital import encoder as encoding
from m3bind.hospital import late_objects as holding
from m3bind.hospital.encoder import SpoolEncoder
from m3bind.hospital.intake import Intake
from m3bind.hospital.spool import STOPPED, Spool
from m3bind.hospital.spool_files import SpoolFileError, doubts, inspect
from m3bind.index import Index, create_index

SCAN = 7


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    monkeypatch.setattr(encoding, "ahead", decoded)
    return create_index(tmp_path / "index", DIM, StandIn.fingerprint)


def fill(folder: Path, complete: bool = True) -> tuple[str, str]:
    """A spool with a series, `complete` or not, and an image, as a killed process leaves it; their units."""
    with Spool(folder) as spool:
        intake = Intake(spool, NAMES, StandIn.modalities)
        scan = [intake.take(save(one, folder.parent / "in.dcm")).unit for one in series(Path("/nowhere"), None, SCAN)]
        if complete:
            spool.complete(scan)
        return scan[0], intake.take(save(radiograph(), folder.parent / "in.dcm")).unit


def aside(folder: Path) -> list[list[str]]:
    with open(folder / "aside.csv", newline="") as handle:
        return list(csv.reader(handle))[1:]


def encode(folder: Path, index: Index) -> SpoolEncoder:
    with Spool(folder) as spool:
        encoder = SpoolEncoder(StandIn(), index, spool)  # type: ignore[arg-type]
        encoder.drain(at_once=True)
        assert spool.waiting() == 0 and not any(spool.work.iterdir())
        return encoder


def _other(path: Path) -> None:
    path.unlink()
    save(series(Path("/nowhere"), None, 1)[0], path)  # with names in it


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "x").write_bytes(b"x")


def _link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


BAD: dict[str, tuple[str, Callable[[Path], object]]] = {
    "empty": ("an empty file", lambda path: path.write_bytes(b"")),
    "noise": ("damaged, or of another format", lambda path: path.write_bytes(os.urandom(5000))),
    "head": ("not", lambda path: path.write_bytes(path.read_bytes()[:300] + b"\xff" * 400)),
    "short": ("cut short", lambda path: os.truncate(path, path.stat().st_size - 500)),
    "foreign": ("not a file that was de-identified here", _other),
    "folder": ("not a regular file", _folder),
    "link": ("not a regular file", _link),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_quarantined_alone(tmp_path: Path, index: Index, kind: str) -> None:
    """One of a series and one that is a whole unit; the rest of the series becomes an item marked as incomplete."""
    scan, picture = fill(folder := tmp_path / "spool")
    lost = sorted((folder / "units" / scan).iterdir())[3]
    reason, spoil = BAD[kind]
    spoil(lost)
    spoil(folder / "units" / picture / f"{picture}.dcm")
    encoder = encode(folder, index)
    assert index.counts() == {"ct": 1} and encoder.counts["ct"] == 1
    assert "1 object could not be read" in index.items([scan])["incomplete"][0]
    listed = aside(folder)
    assert len(listed) == 2 and all(reason in line[2] for line in listed)
    assert len(list((folder / "aside" / "files").iterdir())) == 2
    held = sorted((folder / "held" / scan).iterdir())
    assert len(held) == SCAN - 1
    np.testing.assert_allclose(index.vectors([scan])[0], embedding(held), atol=1e-5)
    encode(folder, index)  # and the next start reports nothing
    assert aside(folder) == listed


@pytest.mark.parametrize("place", ["units", "work", "held", "aside"])
def test_what_is_no_folder_of_objects_is_moved_away(tmp_path: Path, index: Index, place: str) -> None:
    scan, _ = fill(folder := tmp_path / "spool")
    (folder / place / "Doe_Jane.txt").write_text("x")
    (folder / place / "gone").symlink_to("/nowhere")
    (folder / place / "elsewhere").symlink_to(tmp_path)
    (folder / "units" / "empty").mkdir()
    (folder / "units" / scan / "notes.txt").write_text("x")
    encode(folder, index)
    assert index.counts() == {"ct": 1, "xray": 1} and index.items([scan]).get("incomplete", [""])[0] == ""
    assert len(aside(folder)) == 4 and "Doe" not in (folder / "aside.csv").read_text()
    assert (tmp_path / "index").is_dir()  # what a link led to is where it was


def test_a_file_without_rights(tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for users other than root."""
    scan, _ = fill(folder := tmp_path / "spool")
    closed, real = sorted((folder / "units" / scan).iterdir())[2], encoding.inspect

    def refusing(path: Path) -> object:
        if path.name == closed.name:
            raise SpoolFileError("cannot be opened (Permission denied)")
        return real(path)

    monkeypatch.setattr(encoding, "inspect", refusing)
    encode(folder, index)
    assert index.counts() == {"ct": 1, "xray": 1} and "Permission denied" in aside(folder)[0][2]


def test_an_unexpected_error_stops_only_one_unit(
    tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scan, _ = fill(folder := tmp_path / "spool")

    def broken(space: object, rows: list[tuple[str, dict[str, str]]], *rest: object) -> object:
        for unit, _ in rows:
            if unit == scan:
                raise ZeroDivisionError("Doe^Jane")
        return decoded(space, rows)

    monkeypatch.setattr(encoding, "ahead", broken)
    encode(folder, index)
    assert index.counts() == {"xray": 1} and "unexpected error" in aside(folder)[0][2]
    assert len(list((folder / "aside" / scan).iterdir())) == SCAN and "Doe" not in caplog.text
    monkeypatch.setattr(encoding, "ahead", decoded)
    with Spool(folder) as spool:  # one slice more, and it is tried again with those of the quarantine
        intake = Intake(spool, NAMES, StandIn.modalities)
        again = shutil.copy(sorted((folder / "aside" / scan).iterdir())[0], tmp_path / "again.dcm")
        assert inspect(Path(again)).modality == "ct"
        spool.units.joinpath(scan).mkdir()
        shutil.copy(again, spool.units / scan / sorted((folder / "aside" / scan).iterdir())[0].name)
        assert intake.counts == {}
    encode(folder, index)
    assert index.counts() == {"ct": 1, "xray": 1} and not (folder / "aside" / scan).exists()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "ledger.db").write_bytes(os.urandom(20_000)), "ledger.db"),
        (lambda folder: os.truncate(folder / "ledger.db", 5000), "ledger.db"),
        (lambda folder: ((folder / "ledger.db").unlink(), (folder / "ledger.db").mkdir()), "ledger.db"),
        (lambda folder: ((folder / "aside.csv").unlink(), (folder / "aside.csv").mkdir()), "aside.csv"),
        (lambda folder: ((folder / "aside.csv").unlink(), os.mkfifo(folder / "aside.csv")), "aside.csv"),
        (lambda folder: ((folder / "aside.csv").unlink(), (folder / "aside.csv").symlink_to("../own")), "aside.csv"),
        (lambda folder: ((folder / "aside.csv").unlink(), (folder / "aside.csv").symlink_to("/dev/full")), "aside.csv"),
        (lambda folder: ((folder / "lock").unlink(), (folder / "lock").mkdir()), "lock"),
        (lambda folder: (shutil.rmtree(folder / "units"), (folder / "units").write_text("")), "units"),
    ],
)
def test_a_damaged_spool_is_named(tmp_path: Path, spoil: Callable[[Path], object], said: str) -> None:
    scan, _ = fill(folder := tmp_path / "spool")
    spoil(folder)
    with pytest.raises(M3BindError, match=said) as caught:
        Spool(folder)
    assert isinstance(caught.value, ConfigError | DiskError)
    if said == "ledger.db":
        shutil.move(folder / said, tmp_path / "away")
        with Spool(folder) as spool:
            assert scan in spool.ready(at_once=True)


def test_a_ledger_that_breaks_later_stops_nothing_for_good(tmp_path: Path, index: Index) -> None:
    fill(folder := tmp_path / "spool")
    with Spool(folder) as spool:
        spool.database._file.close()
        with pytest.raises(DiskError, match=r"ledger\.db"):
            SpoolEncoder(StandIn(), index, spool).drain(at_once=True)  # type: ignore[arg-type]
        assert spool.waiting() == 2
        spool.database._file = sqlite3.connect(folder / "ledger.db")
    encode(folder, index)
    assert index.counts() == {"ct": 1, "xray": 1}


def test_a_ledger_of_before(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    with sqlite3.connect(folder / "ledger.db") as file:
        file.execute("CREATE TABLE done (unit TEXT, object TEXT, PRIMARY KEY (unit, object))")
        file.execute("INSERT INTO done VALUES ('a', 'b')")
    with Spool(folder) as spool:
        assert spool.database.done("a") == {"b": ""}


def test_the_list_is_written_before_anything_is_moved(tmp_path: Path, index: Index) -> None:
    scan, picture = fill(folder := tmp_path / "spool")
    with Spool(folder) as spool:
        encoder = SpoolEncoder(StandIn(), index, spool)  # type: ignore[arg-type]
        encoder._embedded = lambda prepared: "cannot be used"  # type: ignore[method-assign]
        (folder / "aside.csv").unlink()
        (folder / "aside.csv").mkdir()
        with pytest.raises(DiskError, match=r"aside\.csv"):
            encoder.drain(at_once=True)
        assert spool.waiting() == 2 and not any(spool.aside.iterdir())
        (folder / "aside.csv").rmdir()
        encoder.drain(at_once=True)
        assert {line[0] for line in aside(folder)} == {scan, picture}


def test_a_restart_in_the_middle_of_a_series_is_reported(tmp_path: Path, index: Index) -> None:
    scan, _ = fill(folder := tmp_path / "spool", complete=False)
    encode(folder, index)
    assert index.items([scan])["incomplete"][0] == STOPPED


def test_what_is_held_is_bounded(tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """By time on a monotonic clock, and by bytes; across starts."""
    fill(folder := tmp_path / "spool")
    encode(folder, index)
    with Spool(folder) as spool:
        spool.ready()
        assert len(list(spool.held.folder.glob("*/*.dcm"))) == SCAN and spool.held.nbytes > 10_000
        real = time.monotonic
        monkeypatch.setattr(holding.time, "monotonic", lambda: real() + 25 * 3600)
        spool.ready()
        assert not any(spool.held.folder.iterdir()) and spool.held.nbytes == 0
    monkeypatch.undo()
    monkeypatch.setattr(encoding, "ahead", decoded)
    fill(folder)
    encode(folder, index)
    with Spool(folder, max_bytes=5000) as spool:
        spool.ready()
        assert not any(spool.held.folder.iterdir())


def test_doubts(tmp_path: Path) -> None:
    """Gaps in numbers and positions, a late first number, fewer objects than the archive counts; else none."""
    with Spool(tmp_path / "spool") as spool:
        intake = Intake(spool, NAMES, StandIn.modalities)
        for one in series(Path("/nowhere"), None, 12):
            intake.take(save(one, tmp_path / "in.dcm"))
        facts = sorted((inspect(path) for path in spool.units.glob("*/*.dcm")), key=lambda one: one.number or 0)
    assert doubts(facts) == [] and doubts(facts, 12) == []
    assert doubts(facts, 20) == ["12 objects of 20 that the archive counts"]
    gap = doubts(facts[:4] + facts[7:])
    assert gap == ["3 numbers missing between 1 and 12", "1 gap of 8 mm between slices that are 2 mm apart"]
    assert doubts(facts[5:]) == ["its numbers begin at 6"]
    assert doubts(facts[::2]) == []  # every second one, evenly: a reconstruction of its own
    assert doubts(facts[:1]) == []
