"""Objects from the PACS and files read the same: every kind of file, before and after de-identification."""

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.data.data_manager import DATA_ROOT
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from hospital.planted import bare, chest, electrocardiogram, put_pixels, radiograph, save
from m3bind import modalities
from m3bind.errors import ReadError
from m3bind.hospital.deidentify import Deidentifier, Refused
from m3bind.hospital.pseudonyms import Pseudonyms
from m3bind.hospital.tags import ALLOWED, BULK, CODES, MAPPED, NAMED, SEQUENCES, STORAGE, TIMES, WRITTEN
from m3bind.modalities import get
from m3bind.modalities.base import Sample
from m3bind.modalities.formats.dicom_files import open_dicom, quiet
from modalities.test_dicom_colour import BASELINE, jpeg
from modalities.test_dicom_colour import photograph as disc
from modalities.test_picture_kinds import PROFILES

CLEAN = Deidentifier(Pseudonyms(b"a salt only for tests"), burned_in=True)
ROOT = "1.2.840.10008.5.1.4.1.1."
CLASSES = {"xray": f"{ROOT}1.1", "retina": f"{ROOT}77.1.5.1", "pathology": f"{ROOT}77.1.2", "ct": f"{ROOT}2",
           "ecg": f"{ROOT}9.1.1"}  # fmt: skip


def facts(sample: Sample) -> tuple[Any, ...]:
    return sample.array.shape, sample.spacing, sample.rate, sorted(sample.warnings), sample.steps


def same(modality: str, source: Any, folder: Path) -> Sample:
    """Assert that an object is read the same after cleaning; returns the reading."""
    before, after = save(source, folder / "a.dcm"), folder / "b.dcm"
    save(CLEAN.clean_file(before).dataset, after)
    one, two = get(modality).read(before), get(modality).read(after)
    assert facts(one) == facts(two)
    np.testing.assert_array_equal(one.array, two.array)
    return one


# --- all files at hand ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", sorted(CLASSES))
def test_pydicoms_files_read_the_same(tmp_path: Path, modality: str) -> None:
    """Files of unsupported kinds are labelled as a supported one, so that more of them are compared."""
    compared = 0
    for path in sorted((Path(DATA_ROOT) / "test_files").rglob("*.dcm")):
        try:
            with quiet():
                one = get(modality).read(path)
                dataset = open_dicom(path)
        except ReadError:
            continue
        if str(dataset.get("SOPClassUID", "")) not in STORAGE:
            dataset.SOPClassUID = UID(CLASSES[modality])
        for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
            if not dataset.get(keyword):
                setattr(dataset, keyword, "1.2.3")
        try:
            cleaned = CLEAN.clean(dataset)
        except Refused as refused:
            assert refused.why == "kind", (path.name, refused.reason)  # big endian
            continue
        two = get(modality).read(save(cleaned.dataset, tmp_path / "a.dcm"))
        assert facts(one) == facts(two), path.name
        np.testing.assert_array_equal(one.array, two.array, err_msg=path.name)
        compared += 1
    assert compared >= {"ecg": 1, "retina": 3, "pathology": 5, "ct": 3, "xray": 5}[modality]


def test_every_keyword_of_the_readers_is_on_a_list() -> None:
    """Keywords in the readers' source are on a list, so that a new one cannot be forgotten here."""
    kept = {*ALLOWED, *BULK, *CODES, *MAPPED, *NAMED, *SEQUENCES, *TIMES, *WRITTEN}
    elsewhere = {
        "TransferSyntaxUID", "FileMetaInformationGroupLength", "UID",  # of the file, not of the object
        "ExtendedOffsetTable", "ExtendedOffsetTableLengths",  # frames are packed again, with a table of their own
        "LongCodeValue", "URNCodeValue",  # become a CodeValue
        "EncapsulatedDocument",  # explains why a PDF is not an ECG; the PACS side refuses its kind of object
    }  # fmt: skip
    asked = set()
    for file in Path(modalities.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            name = (
                node.value if isinstance(node, ast.Constant) else node.attr if isinstance(node, ast.Attribute) else ""
            )
            if isinstance(name, str) and name.isidentifier() and tag_for_keyword(name):
                asked.add(name)
    assert len(asked) > 60 and asked - kept - elsewhere == set()


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["RGB", "YBR_FULL", "YBR_FULL_422"])
@pytest.mark.parametrize("stored", ["RGB", "YBR"])
@pytest.mark.parametrize("marks", ["", "JFIF", "Adobe 0", "Adobe 1"])
def test_colours_of_jpegs(tmp_path: Path, label: str, stored: str, marks: str) -> None:
    source = put_pixels(bare(CLASSES["retina"], "OP"), disc(), label, 8)
    source.file_meta.TransferSyntaxUID = UID(BASELINE)
    source.PlanarConfiguration = 0
    stream = jpeg(disc(), stored, marks)
    source.PixelData = encapsulate([stream[:2] + b"\xff\xfe\0\x0cSmith^John" + stream[2:]])
    source["PixelData"].is_undefined_length = True
    assert b"Smith" not in CLEAN.clean(source).dataset.PixelData
    try:
        same("retina", source, tmp_path)
    except ReadError as error:  # so contradictory that no colour is left
        assert "colour" in error.reason


def test_thumbnails_and_texts_in_marks_of_colour_go() -> None:
    from m3bind.hospital.pixels import clean_stream

    plain = jpeg(disc(), "YBR")
    hidden = b"Smith^John!"
    jfif = b"JFIF\0\1\2\1\0\x48\0\x48\1\1" + hidden[:3]
    adobe = b"Adobe" + hidden[:6] + b"\1" + hidden
    for code, body in ((b"\xff\xe0", jfif), (b"\xff\xee", adobe)):
        after = clean_stream(plain[:2] + code + (len(body) + 2).to_bytes(2, "big") + body + plain[2:])
        assert (
            b"Smi" not in after and body[:5] in after[:12] and len(after) - len(plain) in (len(body) + 4, len(body) + 5)
        )


@pytest.mark.parametrize(("icc", "said"), PROFILES)
def test_colour_profiles_are_reported_and_their_texts_removed(tmp_path: Path, icc: bytes, said: bool) -> None:
    source = put_pixels(bare(CLASSES["retina"], "OP"), disc(), "RGB", 8)
    source.PlanarConfiguration, source.ICCProfile = 0, icc
    sample = same("retina", source, tmp_path)
    assert any("colour profile, which is not applied" in text for text in sample.warnings) == said
    cleaned = CLEAN.clean(source).dataset.get("ICCProfile", b"")
    assert bool(cleaned) == (b"acsp" in icc) and not any(
        word in cleaned for word in (b"lcms", b"sRGB", b"desc", b"cprt")
    )


SLOPES = ["0.00244200244200244", "1.0000000001", "3.14159265358979", "0", "nan", "", "-1.5"]


@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("modality", ["xray", "ct"])
def test_rescaling(tmp_path: Path, slope: str, modality: str) -> None:
    source = put_pixels(bare(CLASSES[modality], "CT" if modality == "ct" else "CR"), chest(), "MONOCHROME2", 12)
    source.RescaleIntercept, source.ImageType = "-1024.123456789", ["ORIGINAL", "PRIMARY", "AXIAL"]
    source.add_new("RescaleSlope", "LO", slope)
    with quiet():
        same(modality, source, tmp_path)


@pytest.mark.parametrize("unit", ["HU", "hu ", "", "US", "SUV", "CPS", "mg/ml", "HU?"])
def test_units_of_rescaled_values(tmp_path: Path, unit: str) -> None:
    source = put_pixels(bare(CLASSES["ct"], "CT"), chest(), "MONOCHROME2", 12)
    source.RescaleSlope, source.RescaleIntercept, source.RescaleType = 1, -1024, unit
    source.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    doubts = [doubt for doubt in same("ct", source, tmp_path).warnings if "are not Hounsfield units" in doubt]
    assert len(doubts) == (unit.strip().upper() not in ("", "HU"))


@pytest.mark.parametrize(("centre", "width"), [("2048.123456789012", "4095.987654321"), ("1", "0"), ("x", "y")])
def test_windows(tmp_path: Path, centre: str, width: str) -> None:
    source = radiograph()
    for keyword, value in (("WindowCenter", centre), ("WindowWidth", width)):
        source.add_new(keyword, "LO", value)
    with quiet():
        same("xray", source, tmp_path)


@pytest.mark.parametrize("function", ["LINEAR", "SIGMOID", "LINEAR_EXACT", "SMITH"])
def test_voi_functions(tmp_path: Path, function: str) -> None:
    source = radiograph()
    source.VOILUTFunction = function
    same("xray", source, tmp_path)


@pytest.mark.parametrize("modality", ["xray", "ct"])
@pytest.mark.parametrize("vr", ["US", "SS"])
@pytest.mark.parametrize("limit", [None, 5])
def test_padding(tmp_path: Path, modality: str, vr: str, limit: int | None) -> None:
    stored = (chest().astype(np.int16) - 1000).astype(np.int16)
    stored[:9, :9] = -2000
    source = put_pixels(bare(CLASSES[modality], "CT" if modality == "ct" else "CR"), stored, "MONOCHROME2", 16)
    source.PixelRepresentation, source.ImageType = 1, ["ORIGINAL", "PRIMARY", "AXIAL"]
    source.RescaleSlope, source.RescaleIntercept = 1, 0
    source.add_new("PixelPaddingValue", vr, -2000 if vr == "SS" else 63536)
    if limit is not None:
        source.add_new("PixelPaddingRangeLimit", vr, -2000 + limit if vr == "SS" else 63536 + limit)
    assert any("padding" in step for step in same(modality, source, tmp_path).steps)


@pytest.mark.parametrize("value", [-5000.0, -3.4028234663852886e38, 0.1])
def test_floats_and_their_padding(tmp_path: Path, value: float) -> None:
    stored = chest().astype(np.float32)
    stored[:9, :9] = value
    source = put_pixels(bare(CLASSES["xray"], "CR"), chest(), "MONOCHROME2", 16)
    del source.PixelData
    source.BitsAllocated, source.FloatPixelData, source.FloatPixelPaddingValue = (
        32,
        stored.tobytes(),
        float(np.float32(value)),
    )
    assert any("padding" in step for step in same("xray", source, tmp_path).steps)


def test_what_decides_and_may_not_stay_is_refused() -> None:
    source = radiograph()
    source.WindowCenter, source.WindowWidth = 4711123, 4711124
    with pytest.raises(Refused, match="WindowCenter that may not be retained") as told:
        CLEAN.clean(source)
    assert told.value.why == "policy" and "4711" not in told.value.reason


# --- CT ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keyword", "values"),
    [
        ("TemporalPositionIndex", (1, 2)), ("NominalPercentageOfCardiacPhase", (40.0, 75.0)),
        ("TriggerTime", ("120.5", "480.25")), ("AcquisitionTime", ("103000.25", "103112")),
        ("ContentTime", ("235958", "235959.5")), ("ConvolutionKernel", ("B70f", "Smith special")),
        ("AcquisitionNumber", (3, 4)),
    ],
)  # fmt: skip
def test_two_volumes_in_one_series(tmp_path: Path, keyword: str, values: tuple[Any, Any]) -> None:
    """Twice six slices at the same positions, distinguished by one entry."""
    for number in range(12):
        slice_ = put_pixels(bare(CLASSES["ct"], "CT"), chest() // 4 + 40 * (number % 2), "MONOCHROME2", 12)
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.SOPInstanceUID = "1.2.1", "1.2.2", f"1.2.3.{number}"
        slice_.ImageType, slice_.InstanceNumber = ["ORIGINAL", "PRIMARY", "AXIAL"], number + 1
        slice_.ImagePositionPatient, slice_.ImageOrientationPatient = [0, 0, 2.5 * (number // 2)], [1, 0, 0, 0, 1, 0]
        slice_.PixelSpacing, slice_.RescaleSlope, slice_.RescaleIntercept = [0.7, 0.7], 1, -1024
        setattr(slice_, keyword, values[number % 2])
        before = save(slice_, tmp_path / "before" / f"{number:02}.dcm")
        cleaned = CLEAN.clean_file(before).dataset
        save(cleaned, tmp_path / "after" / f"{number:02}.dcm")
        assert b"Smith" not in (tmp_path / "after" / f"{number:02}.dcm").read_bytes()
        if "Time" in keyword and keyword != "TriggerTime":
            assert str(cleaned.get(keyword)) not in map(str, values)
    one, two = get("ct").read(tmp_path / "before"), get("ct").read(tmp_path / "after")
    np.testing.assert_array_equal(one.array, two.array)
    assert one.spacing == two.spacing and len(one.warnings) == len(two.warnings)


# --- ECG --------------------------------------------------------------------------------------------------------------


def coded(value: str, scheme: str, meaning: str, keyword: str = "CodeValue") -> Dataset:
    item = Dataset()
    setattr(item, keyword, value)
    item.CodingSchemeDesignator, item.CodeMeaning = scheme, meaning
    return item


@pytest.mark.parametrize(
    ("value", "scheme", "meaning"),
    [
        ("uV", "UCUM", "microvolt"), ("uV", "99SMITH", ""), ("µV", "UCUM", "microvolt"), ("MICROVOLT", "SCPECG", ""),
        ("10*-6.V", "UCUM", "x"), ("mV", "UCUM", "millivolt"), ("1", "UCUM", "microvolt"), ("nV", "", "nanovolt"),
        ("MDC_DIM_MICRO_VOLT", "MDC", "Smith"), ("10 uV", "UCUM", ""), ("uV", "UCUM", "millivolt"),
        ("MV", "", "millivolt"),
    ],
)  # fmt: skip
def test_units_of_leads(tmp_path: Path, value: str, scheme: str, meaning: str) -> None:
    source = electrocardiogram()
    for channel in source.WaveformSequence[0].ChannelDefinitionSequence:
        channel.ChannelSensitivityUnitsSequence = [coded(value, scheme, meaning)]
    before = save(source, tmp_path / "a.dcm")
    after = save(CLEAN.clean_file(before).dataset, tmp_path / "b.dcm")
    one, two = get("ecg").read(before), get("ecg").read(after)
    np.testing.assert_array_equal(one.array, two.array)
    assert one.rate == two.rate and len(one.warnings) == len(two.warnings)
    assert b"Smith" not in after.read_bytes() and b"SMITH" not in after.read_bytes()


@pytest.mark.parametrize("how", ["meaning", "label", "mdc name", "131072", "long", "prefix", "minus"])
def test_names_of_leads(tmp_path: Path, how: str) -> None:
    from hospital.planted import LEADS

    source = electrocardiogram()
    for lead, channel in zip(LEADS, source.WaveformSequence[0].ChannelDefinitionSequence):
        number = int(LEADS[lead].split(":")[1])
        channel.ChannelSourceSequence = [{
            "meaning": coded("E7", "99SMITH", f"Lead {lead}"),
            "label": coded("E7", "99SMITH", "Smith"),
            "mdc name": coded(f"MDC_ECG_LEAD_{lead.upper()}", "MDC", ""),
            "131072": coded(str(131072 + number), "MDC", "Smith"),
            "long": coded(f"2:{number}", "MDC", "Smith", "LongCodeValue"),
            "prefix": coded("E7", "99SMITH", f"Ableitung {lead}"),
            "minus": coded("E7", "99SMITH", f"-{lead}" if lead == "V6" else lead),
        }[how]]  # fmt: skip
        channel.ChannelLabel = f"ECG {lead}" if how == "label" else "Smith"
    sample = same("ecg", source, tmp_path)
    assert sample.array.any(axis=1).all()
    assert b"Smith" not in (tmp_path / "b.dcm").read_bytes()


# --- doubts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["padding", "slope", "label"])
def test_doubts_are_the_same_after_cleaning(tmp_path: Path, kind: str) -> None:
    source = radiograph()
    if kind == "padding":
        source.PixelPaddingValue, source.PixelPaddingRangeLimit = 0, 65535
    elif kind == "slope":
        source.RescaleSlope, source.RescaleIntercept = 0, 5
    else:
        source = put_pixels(bare(CLASSES["retina"], "OP"), disc(), "YBR_FULL", 8)
    sample = same("retina" if kind == "label" else "xray", source, tmp_path)
    assert any(
        {"padding": "padding", "slope": "slope is 0", "label": "labelled"}[kind] in text for text in sample.warnings
    )


def test_pydicom_reads_what_was_cleaned(tmp_path: Path) -> None:
    """An independent reading of one of them."""
    source = radiograph()
    before = save(source, tmp_path / "a.dcm")
    after = save(CLEAN.clean_file(before).dataset, tmp_path / "b.dcm")
    np.testing.assert_array_equal(pydicom.dcmread(before).pixel_array, pydicom.dcmread(after).pixel_array)
