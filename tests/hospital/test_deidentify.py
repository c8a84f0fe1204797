"""De-identification: no entry outside the allow-list remains, for any input; the rest reads the same."""

import contextlib
import io
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.datadict import DicomDictionary, keyword_for_tag, tag_for_keyword
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from hospital.planted import Names, chest, electrocardiogram, hidden, photograph, plant, radiograph, save, series
from m3bind import modalities
from m3bind.errors import ConfigError
from m3bind.hospital.deidentify import Deidentifier, Refused
from m3bind.hospital.pixels import clean_stream
from m3bind.hospital.pseudonyms import Pseudonyms, open_salt
from m3bind.hospital.tags import ALLOWED, BULK, CODES, MAPPED, SEQUENCES, WRITTEN
from m3bind.modalities.formats.dicom_files import quiet

CLEAN = Deidentifier(Pseudonyms(b"a salt only for tests"))
LISTED = {*ALLOWED, *MAPPED, *SEQUENCES, *CODES, *BULK, *WRITTEN}
CT = "1.2.840.10008.5.1.4.1.1.2"


def written(dataset: Dataset, path: Path) -> bytes:
    """The bytes of an object as a file."""
    return save(dataset, path).read_bytes()


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """pydicom warns about such values."""
    with quiet():
        yield


def tags_of(dataset: Dataset) -> list[tuple[int, str, object]]:
    """(tag, keyword, value) of every entry at every level."""
    found = []
    for element in dataset:
        found.append((int(element.tag), keyword_for_tag(element.tag), element.value))
        if element.VR == "SQ":
            for item in element.value:
                found += tags_of(item)
    return found


# --- retained entries -------------------------------------------------------------------------------------------------

_TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\\\0"), min_size=1, max_size=16)
_KEYWORDS = sorted(entry[4] for tag, entry in DicomDictionary.items() if entry[4] and tag >> 16 not in (0, 2, 0xFFFE))


@st.composite
def datasets(draw: st.DrawFn, depth: int = 2) -> Dataset:
    """Entries of any kind, half of them from the list, sequences within sequences, private and unknown ones."""
    made = Dataset()
    for keyword in draw(st.lists(st.one_of(st.sampled_from(_KEYWORDS), st.sampled_from(sorted(LISTED))), max_size=8)):
        if keyword in ("PixelData", "WaveformData", "FloatPixelData", "DoubleFloatPixelData", *MAPPED):
            continue
        kind = DicomDictionary[tag_for_keyword(keyword)][0].split(" or ")[0]
        if kind == "SQ":
            made.add_new(keyword, kind, draw(st.lists(datasets(depth - 1), max_size=2)) if depth else [])
        elif kind in ("US", "UL", "SS", "SL", "UV", "SV"):
            made.add_new(keyword, kind, draw(st.integers(0, 30_000)))
        elif kind in ("FL", "FD", "OF", "OD", "OL", "OV", "OW", "OB", "UN", "AT"):
            data = b"QZXbytes" if kind not in ("FL", "FD", "AT") else 1
            made.add_new(keyword, kind, draw(st.floats(-1e3, 1e3, width=32)) if kind in ("FL", "FD") else data)
        else:
            made.add_new(keyword, kind if kind in ("LO", "SH", "CS", "LT", "PN") else "LO", f"QZX{draw(_TEXTS)}")
    if draw(st.booleans()):
        block = made.private_block(0x0011, "QZXcreator", create=True)
        block.add_new(1, "LO", draw(_TEXTS) + "QZX")
    if draw(st.booleans()):
        made.add_new(0x60000022 + 0x20000 * draw(st.integers(0, 15)), "LO", "QZXoverlay")
    return made


@settings(deadline=None, max_examples=50, suppress_health_check=list(HealthCheck))
@given(datasets())
def test_nothing_outside_the_list_stays(given: Dataset) -> None:
    given.file_meta = FileMetaDataset()
    given.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    given.SOPClassUID, given.SOPInstanceUID, given.SeriesInstanceUID, given.StudyInstanceUID = CT, "1.2", "1.3", "1.4"
    given.PatientID, given.PatientName = "QZXnumber", "QZX^NAME"
    if "BurnedInAnnotation" in given:
        given.BurnedInAnnotation = "NO"
    made = CLEAN.clean(given).dataset
    assert [entry for entry in tags_of(made) if entry[1] not in LISTED] == []
    for _, keyword, value in tags_of(made):
        if keyword not in BULK and not isinstance(value, Sequence):  # items of a sequence are checked separately
            assert "QZX" not in str(value).upper(), keyword
    out = io.BytesIO()
    made.save_as(out, enforce_file_format=True)
    assert out.getvalue()[:128] == bytes(128)
    assert [entry[0] for entry in tags_of(pydicom.dcmread(io.BytesIO(out.getvalue()))) if entry[0] >> 16 & 1] == []


def test_planted_names_are_removed_and_the_image_is_the_same(tmp_path: Path) -> None:
    names = Names()
    source = hidden(plant(radiograph(), names), names)
    before = save(source, tmp_path / "a.dcm")
    assert len(names.used) > 400 and len(names.found_in(before.read_bytes())) > 400
    cleaned = CLEAN.clean_file(before)
    after = tmp_path / "b.dcm"
    assert names.found_in(written(cleaned.dataset, after)) == []
    assert cleaned.whole and cleaned.modality == "xray" and cleaned.origin.patient_id in names.used
    one, two = modalities.read("xray", before), modalities.read("xray", after)
    np.testing.assert_array_equal(one.array, two.array)


def test_an_ecg_and_a_photograph_read_the_same(tmp_path: Path) -> None:
    for modality, make in (("ecg", electrocardiogram), ("retina", photograph)):
        names = Names()
        before = save(plant(make(names), names), tmp_path / f"{modality}.dcm")
        after = tmp_path / f"{modality}_clean.dcm"
        assert names.found_in(written(CLEAN.clean_file(before).dataset, after)) == []
        one, two = modalities.read(modality, before), modalities.read(modality, after)
        np.testing.assert_array_equal(one.array, two.array)
        assert (one.rate, one.spacing) == (two.rate, two.spacing)


def test_the_real_series_reads_the_same(native: Path, tmp_path: Path) -> None:
    for file in (native / "dicom" / "ct_series").glob("*.dcm"):
        cleaned = CLEAN.clean_file(file)
        save(cleaned.dataset, tmp_path / f"{cleaned.instance}.dcm")
    one = modalities.read("ct", native / "dicom" / "ct_series")
    two = modalities.read("ct", tmp_path)
    np.testing.assert_array_equal(one.array, two.array)
    assert one.spacing == two.spacing and (one.steps, one.warnings) == (two.steps, two.warnings)


@pytest.mark.parametrize("name", ["CT_small", "693_J2KI", "RG3_J2KI"])
def test_real_files_decode_to_the_same_pixels(native: Path, tmp_path: Path, name: str) -> None:
    cleaned = CLEAN.clean_file(native / "dicom" / f"{name}.dcm")
    after = save(cleaned.dataset, tmp_path / "a.dcm")
    one, two = pydicom.dcmread(native / "dicom" / f"{name}.dcm"), pydicom.dcmread(after)
    np.testing.assert_array_equal(one.pixel_array, two.pixel_array)


def test_implicit_files_keep_their_look_up_tables(tmp_path: Path) -> None:
    source = radiograph()
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [4096, 0, 12])
    table.add_new("LUTData", "US", list(range(4095, -1, -1)))
    table.LUTExplanation = "QZX"
    del source.WindowCenter, source.WindowWidth
    source.VOILUTSequence = [table]
    source.add_new("PixelPaddingValue", "US", int(chest()[5, 5]))
    source.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    before = save(source, tmp_path / "a.dcm")
    after = tmp_path / "b.dcm"
    assert b"QZX" not in written(CLEAN.clean_file(before).dataset, after)
    one, two = modalities.read("xray", before), modalities.read("xray", after)
    np.testing.assert_array_equal(one.array, two.array)
    assert any("VOI LUT" in step for step in two.steps) and any("padding" in step for step in two.steps)


def test_words_in_the_fields_of_numbers_and_codes_go() -> None:
    source = radiograph()
    source.BodyPartExamined, source.ViewPosition, source.ImageType = "SMITHJOHN", "JOHN", ["ORIGINAL", "JOHN SMITH"]
    source.InstanceNumber, source.KVP, source.SliceThickness = 20190723, 19370412, 1.123456789123
    source.RescaleType, source.PatientOrientation = "SMITH", ["L", "F"]
    made = CLEAN.clean(source).dataset
    for keyword in ("BodyPartExamined", "ViewPosition", "InstanceNumber", "KVP"):
        assert not made.get(keyword)
    assert made.RescaleType == "OTHER"
    assert list(made.ImageType) == ["ORIGINAL", "OTHER"] and list(made.PatientOrientation) == ["L", "F"]
    assert float(made.SliceThickness) == 1.12345679


# --- what is refused --------------------------------------------------------------------------------------------------


def test_what_is_refused(tmp_path: Path) -> None:
    burned = radiograph()
    burned.BurnedInAnnotation = "YES"
    with pytest.raises(Refused, match="burned-in") as told:
        CLEAN.clean(burned)
    assert told.value.why == "policy"
    assert Deidentifier(CLEAN.names, burned_in=True).clean(burned).dataset.BurnedInAnnotation == "YES"
    capture = radiograph()
    capture.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    lost = radiograph()
    del lost.StudyInstanceUID
    label = radiograph()
    label.SOPClassUID, label.ImageType = "1.2.840.10008.5.1.4.1.1.77.1.6", ["ORIGINAL", "PRIMARY", "LABEL", "NONE"]
    for dataset, why in ((capture, "kind"), (lost, "unreadable"), (label, "policy")):
        with pytest.raises(Refused) as told:
            CLEAN.clean(dataset)
        assert told.value.why == why
    (tmp_path / "a.dcm").write_bytes(b"Smith^John, not a DICOM file")
    with pytest.raises(Refused) as told:
        CLEAN.clean_file(tmp_path / "a.dcm")
    assert told.value.why == "unreadable" and "Smith" not in str(told.value)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Two objects as files."""
    folder = tmp_path_factory.mktemp("sound")
    return [written(make(), folder / "a") for make in (radiograph, electrocardiogram)]


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_objects_are_refused_or_cleaned(
    tmp_path_factory: pytest.TempPathFactory, sound: list[bytes], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    content = bytearray(data.draw(st.sampled_from(sound)))
    for _ in range(data.draw(st.integers(1, 20))):
        content[data.draw(st.integers(128, min(len(content) - 1, 3000)))] = data.draw(st.integers(0, 255))
    (folder / "b").write_bytes(content[: data.draw(st.integers(200, len(content)))])
    try:
        made = CLEAN.clean_file(folder / "b").dataset
    except Refused as refused:
        assert refused.reason and "4711" not in refused.reason
    else:
        assert [entry for entry in tags_of(made) if entry[1] not in LISTED] == []
        assert b"Doe^Jane" not in written(made, folder / "c")


# --- streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jpeg", "progressive", "jpeg2000", "boxed"])
def test_streams_lose_their_comments_and_nothing_else(kind: str) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8)
    out = io.BytesIO()
    if kind in ("jpeg2000", "boxed"):
        Image.fromarray(pixels).save(out, "jpeg2000", comment="Smith^John", no_jp2=kind == "jpeg2000")
    else:
        exif = Image.Exif()
        exif[0x013B] = "Smith^John"
        Image.fromarray(pixels).save(out, "jpeg", comment=b"Smith^John", exif=exif, progressive=kind == "progressive")
    before = out.getvalue()
    assert b"Smith" in before
    after = clean_stream(before + b"Smith^John")
    assert (b"Smith" not in after and len(after) - len(before) in (0, 1)) or kind == "boxed"
    one, two = (np.asarray(Image.open(io.BytesIO(data))) for data in (before, after))
    np.testing.assert_array_equal(one, two)


@settings(deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"\xff\xd8", b"\xff\x4f\xff\x51", b""]))
def test_any_bytes_as_a_stream_end(data: bytes, start: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert len(clean_stream(start + data)) <= len(start + data) + 1


# --- pseudonyms -------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=9))
def test_same_patient_same_pseudonym(one: str, other: str, issuer: str) -> None:
    names = Pseudonyms(b"0123456789abcdef")
    same = one.strip().casefold() == other.strip().casefold()
    assert (names.patient(one, issuer, "1.2") == names.patient(other, issuer, "1.2")) == same
    assert names.patient(one, issuer, "1.2") != Pseudonyms(b"another salt 123").patient(one, issuer, "1.2")
    assert re.fullmatch(r"2\.25\.\d{1,39}", names.uid("1.2.3")) and len(names.uid("1.2.3")) <= 64


def test_dates_move_together() -> None:
    names = Pseudonyms(b"0123456789abcdef")
    days = [names.moved(day, "p") for day in ("20190723", "20190724", "20200301")]
    from datetime import date

    found = [date(int(day[:4]), int(day[4:6]), int(day[6:])) for day in days]
    assert [(later - found[0]).days for later in found] == [0, 1, 222]
    assert found[0] < date(2019, 7, 23) and names.moved("20190723", "q") != days[0]
    assert [names.moved(day, "p") for day in ("", "2019", "20190230", "99999999", "abcdefgh")] == [""] * 5


def test_objects_of_a_series_stay_together() -> None:
    made = [CLEAN.clean(dataset) for dataset in series(Path("/nowhere"), None)]
    assert len({one.unit for one in made}) == 1 and len({one.instance for one in made}) == len(made)
    assert len({str(one.dataset.SeriesInstanceUID) for one in made}) == 1
    assert made[0].dataset.PatientID == CLEAN.clean(radiograph()).dataset.PatientID


def test_a_salt_is_made_once_and_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("M3BIND_SALT", raising=False)
    path = tmp_path / "new" / "salt"
    salt = open_salt(path)
    assert open_salt(path) == salt and len(salt) == 64 and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["salt"]
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="others may read"):
        open_salt(path)
    monkeypatch.setenv("M3BIND_SALT", "short")
    with pytest.raises(ConfigError, match="5 characters"):
        open_salt()
    monkeypatch.setenv("M3BIND_SALT", "long enough, really")
    assert open_salt() == b"long enough, really"


def test_a_whole_slide_reads_the_same(tmp_path: Path) -> None:
    from m3bind.modalities.formats.slides import open_slide
    from modalities.test_slides import PINK, discs, write_dicom

    folder = write_dicom(tmp_path / "slide", discs(400, 500, (250, 200, 150, PINK)))
    units = set()
    for number, file in enumerate(sorted(folder.iterdir())):
        names = Names()
        dataset = pydicom.dcmread(file)
        study, one, frame = dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID
        plant(dataset, names)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = study, one, frame
        dataset.VolumetricProperties, dataset.FocusMethod = "VOLUME", "AUTO"
        dataset.DimensionOrganizationType, dataset.SpecimenLabelInImage = "TILED_FULL", "NO"
        cleaned = CLEAN.clean_file(save(dataset, tmp_path / "planted" / f"{number}.dcm"))
        assert names.found_in(written(cleaned.dataset, tmp_path / "clean" / f"{number}.dcm")) == []
        units.add(cleaned.unit)
        assert not cleaned.whole
    assert len(units) == 1
    with open_slide(folder) as one, open_slide(tmp_path / "clean") as two:
        assert (one.size, one.mpp, len(one.levels)) == (two.size, two.mpp, len(two.levels)) and len(two.levels) == 2
        np.testing.assert_array_equal(one.decode(0, 100, 100, 200, 200), two.decode(0, 100, 100, 200, 200))


def test_an_enhanced_ct_keeps_its_places(tmp_path: Path) -> None:
    from hospital.planted import bare, put_pixels

    values = np.arange(4 * 16 * 16, dtype=np.int16).reshape(4, 16, 16)
    source = put_pixels(bare("1.2.840.10008.5.1.4.1.1.2.1", "CT"), values[0], "MONOCHROME2", 16)
    source.NumberOfFrames, source.PixelData, source.ImageType = 4, values.tobytes(), ["ORIGINAL", "PRIMARY", "VOLUME"]
    shared, measures, orientation, rescale = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.5], 3.0
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = 1, -1000, "HU"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    shared.PixelValueTransformationSequence = [rescale]
    frames = []
    for number in range(4):
        frame, place, content = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [0, 0, 3.0 * number]
        content.FrameComments = "Smith^John"
        frame.PlanePositionSequence, frame.FrameContentSequence = [place], [content]
        frames.append(frame)
    source.SharedFunctionalGroupsSequence, source.PerFrameFunctionalGroupsSequence = [shared], frames
    before = save(source, tmp_path / "a.dcm")
    after = tmp_path / "b.dcm"
    assert b"Smith" not in written(CLEAN.clean_file(before).dataset, after)
    one, two = modalities.read("ct", before), modalities.read("ct", after)
    np.testing.assert_array_equal(one.array, two.array)
    assert one.spacing == two.spacing == (3.0, 0.5, 0.5)
