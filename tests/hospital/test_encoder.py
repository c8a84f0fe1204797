"""From the spool into the index: each item once, nothing lost if a step fails."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hospital.planted import Names, electrocardiogram, photograph, radiograph, save, series
from m3bind.errors import DiskError
from m3bind.hospital.deidentify import Deidentifier, Refused
from m3bind.hospital.encoder import SpoolEncoder
from m3bind.hospital.intake import Intake
from m3bind.hospital.pseudonyms import Pseudonyms
from m3bind.hospital.spool import Spool
from m3bind.index import Index, create_index, open_index
from m3bind.space.bundle import Space, load

NAMES = Deidentifier(Pseudonyms(b"a salt only for tests"))


@pytest.fixture(scope="module")
def space(space_folder: Path) -> Space:
    return load(space_folder)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with Spool(tmp_path / "spool", quiet=1e9) as opened:
        yield opened


@pytest.fixture
def index(space: Space, tmp_path: Path) -> Iterator[Index]:
    with create_index(tmp_path / "index", space.dim, space.fingerprint) as made:
        yield made


def put(spool: Spool, folder: Path, *datasets: object) -> set[str]:
    """Accept objects; their units."""
    intake = Intake(spool, NAMES, ("xray", "ct", "ecg", "retina"))
    folder.mkdir(exist_ok=True)
    return {intake.take(save(dataset, folder / f"{number}.dcm")).unit for number, dataset in enumerate(datasets)}


def test_items_are_what_the_space_makes_of_the_files(space: Space, index: Index, spool: Spool, tmp_path: Path) -> None:
    scan = series(Path("/nowhere"), None)
    units = put(spool, tmp_path / "in", *scan, radiograph(), electrocardiogram())
    SpoolEncoder(space, index, spool, tmp_path / "kept").drain(at_once=True)
    assert index.counts() == {"ct": 1, "ecg": 1, "xray": 1} and spool.waiting() == 0
    items = index.items(sorted(units))
    assert items["patient"].nunique() == 1
    for row in items.itertuples():
        vector = space.encode_image([row.path], row.modality)[0]
        np.testing.assert_allclose(index.vectors([row.id])[0], vector, atol=1e-5)
    for number, dataset in enumerate(scan):
        save(dataset, tmp_path / "plain" / f"{number}.dcm")
    plain = space.encode_image([tmp_path / "plain"], "ct")[0]
    ct = index.vectors(list(items[items["modality"] == "ct"]["id"]))[0]
    np.testing.assert_allclose(ct, plain, atol=1e-5)
    assert os.listdir(spool.work) == os.listdir(spool.units) == [] and spool._bytes == 0


def test_the_same_again_is_not_encoded_again(space: Space, index: Index, spool: Spool, tmp_path: Path) -> None:
    encoder, picture = SpoolEncoder(space, index, spool), radiograph()
    for _ in range(2):
        put(spool, tmp_path / "in", picture)
        encoder.drain()
    assert encoder.counts == {"xray": 1, "repeated": 1} and len(index) == 1
    assert "path" not in index.columns or set(index.items(index.sample(1)[0])["path"]) == {""}


@pytest.mark.parametrize("keeps", [False, True])
def test_late_slices_replace_the_item(space: Space, index: Index, spool: Spool, tmp_path: Path, keeps: bool) -> None:
    """Early and late objects form one item: the same as of the whole series sent at once."""
    scan = series(Path("/nowhere"), None, slices=8)
    encoder = SpoolEncoder(space, index, spool, tmp_path / "kept" if keeps else None)
    (unit,) = put(spool, tmp_path / "a", *scan[:3], *scan[5:])
    encoder.drain(at_once=True)
    first, said = index.vectors([unit]), index.items([unit])["incomplete"][0]
    assert "2 numbers missing between 1 and 8" in said and "1 gap of 6 mm between slices that are 2 mm apart" in said
    put(spool, tmp_path / "b", *scan[3:5])
    encoder.drain(at_once=True)
    assert index.items([unit])["incomplete"][0] == ""
    [save(dataset, tmp_path / "plain" / f"{number}.dcm") for number, dataset in enumerate(scan)]
    np.testing.assert_allclose(index.vectors([unit]), space.encode_image([tmp_path / "plain"], "ct"), atol=1e-5)
    assert not np.array_equal(index.vectors([unit]), first) and len(index) == 1
    assert len(list((tmp_path / "kept").rglob("*.dcm"))) == (8 if keeps else 0)
    assert len(list(spool.held.folder.rglob("*.dcm"))) == (0 if keeps else 8)


def test_slices_that_come_too_late(space: Space, index: Index, spool: Spool, tmp_path: Path) -> None:
    """If the files of the item are gone, it is marked as incomplete, and the late ones wait for the whole series."""
    scan = series(Path("/nowhere"), None, slices=8)
    encoder = SpoolEncoder(space, index, spool)
    (unit,) = put(spool, tmp_path / "a", *scan[:5])
    encoder.drain(at_once=True)
    first = index.vectors([unit])
    while spool.held.drop_oldest():
        pass
    for late in (scan[5:7], scan[7:]):
        put(spool, tmp_path / "b", *late)
        encoder.drain(at_once=True)
    assert np.array_equal(index.vectors([unit]), first) and "too late" in index.items([unit])["incomplete"][0]
    assert "send the whole series again" in (spool.folder / "aside.csv").read_text()
    assert len(list((spool.aside / unit).iterdir())) == 3  # none of them is lost
    put(spool, tmp_path / "c", *scan[:5])
    encoder.drain(at_once=True)  # with the quarantined ones it is whole
    [save(dataset, tmp_path / "plain" / f"{number}.dcm") for number, dataset in enumerate(scan)]
    np.testing.assert_allclose(index.vectors([unit]), space.encode_image([tmp_path / "plain"], "ct"), atol=1e-5)
    assert index.items([unit])["incomplete"][0] == "" and not (spool.aside / unit).exists()


def test_other_pixels_under_the_same_uid_are_not_repeated(
    space: Space, index: Index, spool: Spool, tmp_path: Path
) -> None:
    """The newer content replaces the older one: of an image, of a slice, of a stored file; and it is noted."""
    encoder = SpoolEncoder(space, index, spool, tmp_path / "kept")
    picture, scan = radiograph(), series(Path("/nowhere"), None)
    units = put(spool, tmp_path / "a", picture, *scan)
    encoder.drain(at_once=True)
    before = index.vectors(sorted(units))
    picture.PixelData = radiograph(7).PixelData
    scan[2].PixelData = scan[2].PixelData[::-1]
    put(spool, tmp_path / "b", picture, scan[2])
    encoder.drain(at_once=True)
    after = index.vectors(sorted(units))
    assert not np.allclose(before[0], after[0]) and not np.allclose(before[1], after[1])
    for row in index.items(sorted(units)).itertuples():
        np.testing.assert_allclose(index.vectors([row.id]), space.encode_image([row.path], row.modality), atol=1e-5)
    assert encoder.counts == {"xray": 2, "ct": 2, "replaced": 2}
    assert (spool.folder / "aside.csv").read_text().count("other content") == 2
    put(spool, tmp_path / "c", picture, *scan)
    encoder.drain(at_once=True)
    assert encoder.counts["repeated"] == 2 and encoder.counts["xray"] == 2


def test_unreadable_files_are_quarantined(space: Space, index: Index, spool: Spool, tmp_path: Path) -> None:
    flat, cut = radiograph(), electrocardiogram()
    flat.PixelData = flat.PixelData[:1000]
    cut.WaveformSequence[0].WaveformData = cut.WaveformSequence[0].WaveformData[:500]
    put(spool, tmp_path / "in", flat, cut, radiograph(1))
    encoder = SpoolEncoder(space, index, spool)
    encoder.drain()
    assert encoder.counts == {"xray": 1, "quarantined": 2} and len(os.listdir(spool.aside)) == 2
    told = (spool.folder / "aside.csv").read_text()
    assert told.count("\n") == 3 and "4711" not in told and "cut short" in told


def test_an_index_that_cannot_be_written(
    space: Space, index: Index, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(spool, tmp_path / "in", radiograph(), radiograph(1))
    encoder = SpoolEncoder(space, index, spool)

    def full(*_: object) -> None:
        raise DiskError("full")

    with monkeypatch.context() as patch:
        patch.setattr(index, "upsert", full)
        with pytest.raises(DiskError):
            encoder.drain()
    assert spool.waiting() == 2 and os.listdir(spool.work) == [] and spool._bytes > 10_000
    encoder.drain(at_once=True)
    assert len(index) == 2


@pytest.mark.parametrize("moment", ["upsert", "finish"])
def test_killed_between(space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """Units taken by a killed encoder are encoded by the next one; an item written before is the same item."""

    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    with Spool(tmp_path / "spool") as spool, create_index(tmp_path / "i", space.dim, space.fingerprint) as index:
        put(spool, tmp_path / "in", radiograph(), *series(Path("/nowhere"), None))
        with monkeypatch.context() as patch:
            patch.setattr(*((index, "upsert", kill) if moment == "upsert" else (spool, "finish", kill)))
            with pytest.raises(Killed):
                SpoolEncoder(space, index, spool).step(at_once=True)
        assert len(os.listdir(spool.work)) == 2
    with Spool(tmp_path / "spool") as spool, open_index(tmp_path / "i", writable=True) as index:
        assert spool.waiting() == 2
        SpoolEncoder(space, index, spool).drain(at_once=True)
        assert index.counts() == {"ct": 1, "xray": 1} and spool.waiting() == 0


def test_modalities_that_the_space_does_not_hold(spool: Spool, tmp_path: Path) -> None:
    intake = Intake(spool, NAMES, ("ecg",))
    with pytest.raises(Refused, match="does not hold"):
        intake.take(save(radiograph(), tmp_path / "a.dcm"))
    assert intake.counts == {"refused": 1} and spool.waiting() == 0


def test_one_process_at_a_time(spool: Spool) -> None:
    from m3bind.errors import ConfigError

    with pytest.raises(ConfigError, match="another listen or pull"):
        Spool(spool.folder)


def test_a_photograph_is_recognised_by_its_pixels(space: Space, index: Index, spool: Spool, tmp_path: Path) -> None:
    picture = photograph(Names())
    picture.SOPClassUID, picture.Modality = "1.2.840.10008.5.1.4.1.1.77.1.4", "XC"
    (unit,) = put(spool, tmp_path / "in", picture)
    SpoolEncoder(space, index, spool, tmp_path / "kept").drain()
    assert index.counts() == {"retina": 1} and (tmp_path / "kept" / "retina" / f"{unit}.dcm").is_file()


def test_complete_survives_a_kill(space: Space, index: Index, tmp_path: Path) -> None:
    """A unit that was declared complete, or is one object, is ready after a restart; others wait."""
    scan, half = series(Path("/nowhere"), None), series(Path("/nowhere"), None)
    with Spool(tmp_path / "spool", quiet=1e9) as spool:
        (whole,) = put(spool, tmp_path / "a", *scan)
        (picture,) = put(spool, tmp_path / "b", radiograph())
        (begun,) = put(spool, tmp_path / "c", *half[:3])
        spool.complete([whole], expected=6)
    for _ in range(2):  # taken, but never finished
        with Spool(tmp_path / "spool", quiet=1e9) as spool:
            assert set(spool.ready()) == {whole, picture} and spool.expected(whole) == 6 and spool.waiting() == 3
            spool.take(whole)
            assert not spool.waits(whole) and spool.expected(whole) == 6
    with Spool(tmp_path / "spool", quiet=1e9) as spool:
        spool.take(whole)
        spool.give_back(whole)
        assert spool.waits(whole) and not spool.waits(begun)
        encoder = SpoolEncoder(space, index, spool)
        assert encoder.place(whole) == ""
        encoder.drain()
        assert index.counts() == {"ct": 1, "xray": 1} and spool.waiting() == 1
        assert encoder.place(whole) == "index" and encoder.place(begun) == "" and spool.expected(whole) == 0
