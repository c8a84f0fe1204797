"""Which facts about a file may leave its reader."""

import os
from pathlib import Path

import pytest

from m3bind.privacy import TECHNICAL_TAGS, patient_key, printable, redact_path, technical


@pytest.mark.parametrize(
    ("keyword", "value", "text"),
    [
        ("Rows", 512, "512"),
        ("PixelSpacing", [0.5, 0.5], "0.5\\0.5"),
        ("WindowCenter", "40", "40"),
        ("BodyPartExamined", "CHEST", "CHEST"),
        ("ViewPosition", "PA", "PA"),
        ("PhotometricInterpretation", "MONOCHROME1", "MONOCHROME1"),
        ("TransferSyntaxUID", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.70"),
    ],
)
def test_technical_values_pass(keyword: str, value: object, text: str) -> None:
    assert technical(keyword, value) == text


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientName", "Doe^Jane"),
        ("StudyDate", "20200101"),
        ("StudyInstanceUID", "1.2.3.4"),
        ("SOPClassUID", "1.2.276.0.7230010.3.1.4.8323329"),
        ("Rows", "Jane Doe"),
        ("BodyPartExamined", "JANE DOE"),
        ("ViewPosition", "Doe, Jane"),
        ("KVP", "120 kV, Jane"),
        ("PhotometricInterpretation", "Jane Doe"),
        ("LossyImageCompression", "Jane"),
        ("Laterality", "Doe"),
        ("Rows", None),
    ],
)
def test_anything_else_does_not(keyword: str, value: object) -> None:
    assert technical(keyword, value) is None


def test_no_identifying_keyword_is_allowed() -> None:
    for word in (
        "Name",
        "PatientID",
        "StudyID",
        "Number",
        "Date",
        "Time",
        "Comment",
        "Description",
        "Institution",
        "Physician",
        "Accession",
    ):
        technical_numbers = ("ExposureTime", "NumberOfFrames", "NumberOfWaveformChannels", "NumberOfWaveformSamples")
        assert not any(word in tag for tag in TECHNICAL_TAGS if tag not in technical_numbers), word


@pytest.mark.parametrize("path", ["scans/img_0001.png", "series/slice12.dcm", "00001_lr", "chest/xray3.nii.gz"])
def test_generic_names_are_shown(path: str) -> None:
    assert redact_path(Path("/home/jane") / path).endswith(path) and "jane" not in redact_path(
        Path("/home/jane") / path
    )


@pytest.mark.parametrize(
    "name",
    ["DOE^JANE.dcm", "jane_doe_ct.nii.gz", "MRN4837261.png", "19500102.dcm", "1.2.840.113619.2.dcm", "Müller.jpg"],
)
def test_names_that_could_be_a_persons_are_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    masked = redact_path(Path("scans") / name)
    assert masked.startswith("scans/~") and not any(part in masked for part in ("DOE", "doe", "4837", "1950", "113619"))
    assert Path(masked).suffix == Path(name).suffix or "." not in masked
    assert redact_path(Path("scans") / name) == masked  # the same file is the same name in every log
    monkeypatch.setenv("M3BIND_IDENTIFIERS", "show")
    assert redact_path(Path("scans") / name) == f"scans/{name}"


def test_patient_keys_are_stable_salted_and_short() -> None:
    assert patient_key("p1", "a") == patient_key("p1", "a") != patient_key("p1", "b")
    assert patient_key("p1", "a") != patient_key("p2", "a") and len(patient_key("p1", "a")) == 16


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"R\xf6ntgen.png", "R\\xf6ntgen.png"),
        (b"\xff\xfe.png", "\\xff\\xfe.png"),
        (b"a\nb.png", "a\\nb.png"),
        ("\u202egnp.exe".encode(), "\\u202egnp.exe"),
        ("Größe.png".encode(), "Größe.png"),
    ],
)
def test_any_name_of_a_file_can_be_printed(name: bytes, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert printable(os.fsdecode(name)) == text and redact_path(os.fsdecode(name)).encode()
    monkeypatch.setenv("M3BIND_IDENTIFIERS", "show")
    assert redact_path(os.fsdecode(name)) == text


def test_a_generic_name_with_a_line_end_is_masked() -> None:
    assert redact_path("img\n01.png").startswith("~") and redact_path("img01.png") == "img01.png"
