"""Header fields that contradict each other or the samples: doubts and reasons; valid files have none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wfdb
from tests.modalities.test_signals import (
    LEADS,
    aecg,
    beats,
    channels,
    dataset,
    header,
    read_dicom,
    refusal,
    write_edf,
    write_record,
)

from m3bind.modalities import get
from m3bind.modalities.formats.signals_leads import differing

# --- WFDB -------------------------------------------------------------------------------------------------------------


def sound(folder: Path, form: str = "16") -> Path:
    """A record as wfdb writes it, with its checksums and first values."""
    wfdb.wrsamp(
        "a", fs=500, units=["mV"] * 12, sig_name=list(LEADS), p_signal=beats().T, fmt=[form] * 12,
        adc_gain=[400.0] * 12, baseline=[0] * 12, write_dir=str(folder),
    )  # fmt: skip
    return folder / "a.hea"


@pytest.mark.parametrize("form", ["16", "24", "32", "80", "212", "516"])
def test_checksums_of_valid_records(tmp_path: Path, form: str) -> None:
    if form == "80":
        wfdb.wrsamp("a", fs=500, units=["mV"] * 12, sig_name=list(LEADS), p_signal=beats().T, fmt=[form] * 12,
                    adc_gain=[60.0] * 12, baseline=[0] * 12, write_dir=str(tmp_path))  # fmt: skip
    else:
        sound(tmp_path, form)
    assert get("ecg").read(tmp_path / "a.hea").warnings == []


@pytest.mark.parametrize("field", [5, 6])
def test_a_checksum_or_first_value_that_is_another(tmp_path: Path, field: int) -> None:
    path = sound(tmp_path)
    lines = path.read_text().splitlines()
    for k in (3, 9):
        words = lines[k].split()
        words[field] = str(int(words[field]) + 7)
        lines[k] = " ".join(words)
    path.write_text("\n".join(lines))
    sample = get("ecg").read(path)
    assert sample.warnings == [
        "checksum or first value in the header do not match signals 3, 9: damaged, edited or of another record?"
    ]
    assert np.allclose(sample.array, beats(), atol=2e-3)


def test_a_signal_file_of_another_record_or_longer_than_declared(tmp_path: Path) -> None:
    path = sound(tmp_path)
    data = path.with_name("a.dat").read_bytes()
    path.with_name("a.dat").write_bytes(data + data)
    assert get("ecg").read(path).warnings == [
        "the header declares 3,000 samples, 6,000 are stored; the declared ones are read"
    ]
    path.with_name("a.dat").write_bytes(np.roll(np.frombuffer(data, "<i2").reshape(-1, 12), 2, axis=1).tobytes())
    assert any("do not match all signals" in warning for warning in get("ecg").read(path).warnings)


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [lines[0] + " 0:0:0 0/0/0", *lines[1:]],  # the example of the format's own manual
        lambda lines: [lines[0] + " 12-May-2020 12:33:59", *lines[1:]],
        lambda lines: [lines[0] + " 25:61:61 31/02/2020", *lines[1:]],
        lambda lines: [line.replace(" ", "\t") for line in lines],
        lambda lines: [line.replace(" ", "  ") for line in lines],
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_headers_written_otherwise(tmp_path: Path, change: Callable[[list[str]], list[str]], encoding: str) -> None:
    path = write_record(tmp_path, header(3000), beats())
    path.write_text("\n".join(change(header(3000))) + "\n", encoding=encoding)
    sample = get("ecg").read(path)
    assert np.array_equal(sample.array, np.float32(np.rint(beats() * 1000) / 1000)) and sample.warnings == []


def test_reasons_of_wfdb_headers(tmp_path: Path) -> None:
    path = write_record(tmp_path, [line.replace(" 16 1000", " 999 1000") for line in header(3000)], beats())
    assert "samples in format 999, which WFDB does not define" in refusal(path)
    assert "contains blanks" in refusal(write_record(tmp_path, header(3000, file="my a.dat"), beats(), "my a"))
    path.write_text("\n".join(header(3000, file="b.dat")))
    (tmp_path / "b.dat.gz").write_bytes(b"\x1f\x8b")
    assert "is missing; unpack the .gz beside it" in refusal(path)


# --- EDF --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "text", "reason"),
    [
        (184, "4096", "its header states a length of 4,096 bytes, its 12 signals need 3,328"),
        (184, "", "its header states no length"),
        (244, "0", "its data records have no duration"),
        (244, "-1", "its data records have no duration"),
        (244, "1,0", "its data records have no duration"),
        (244, "nan", "its data records have no duration"),
    ],
)
def test_edf_headers_that_are_refused(tmp_path: Path, place: int, text: str, reason: str) -> None:
    path = write_edf(tmp_path / "a.edf")
    data = bytearray(path.read_bytes())
    data[place : place + 8] = text.ljust(8).encode()
    path.write_bytes(data)
    assert reason in refusal(path)


# --- names of leads ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (("2:5", "MDC", "Lead V4", ""), "V3 or V4"),
        (("5.6.3-9-1", "SCPECG", "Ableitung II", ""), "I or II"),
        (("131074", "MDC", "Lead I", "II"), "II or I"),
        (("2:62", "MDC", "", "-aVR"), "aVR or -aVR"),
        (("MDC_ECG_LEAD_V1", "MDC", "V2", ""), "V1 or V2"),
        (("X", "99LOCAL", "V1", "V2"), "V1 or V2"),
    ],
)
def test_code_and_name_of_different_leads(code: tuple[str, str, str, str], told: str) -> None:
    assert differing([code]) == [f"leads whose code and name differ: {told}; the first of each is taken"]


@pytest.mark.parametrize(
    "code",
    [
        ("2:1", "MDC", "Lead I (Einthoven)", "I"),
        ("5.6.3-9-62", "SCPECG", "Lead aVR, augmented voltage, right", "AVR"),
        ("2:3", "MDC", "Brustwand", "ECG V1"),
        ("2:65", "MDC", "-aVR", "-aVR"),
        ("2:1", "MDC", " ", ""),
        ("", "", "", "V6"),
    ],
)
def test_code_and_name_of_one_lead(code: tuple[str, str, str, str]) -> None:
    assert differing([code]) == []


def test_a_dicom_file_that_names_its_leads_twice(tmp_path: Path) -> None:
    source = dataset()
    before = read_dicom(source, tmp_path)
    one, two = (channels(source)[k].ChannelSourceSequence[0] for k in (0, 1))
    one.CodeMeaning, two.CodeMeaning = two.CodeMeaning, one.CodeMeaning
    after = read_dicom(source, tmp_path)
    assert np.array_equal(before.array, after.array)
    new = [warning for warning in after.warnings if warning not in before.warnings]
    assert new == ["leads whose code and name differ: I or II, II or I; the first of each is taken"]


def test_an_aecg_that_names_its_leads_twice(tmp_path: Path) -> None:
    text = aecg(beats()).replace('code="MDC_ECG_LEAD_V2"', 'code="MDC_ECG_LEAD_V2" displayName="Lead V3"')
    (tmp_path / "a.xml").write_text(text)
    assert get("ecg").read(tmp_path / "a.xml").warnings == [
        "leads whose code and name differ: V2 or V3; the first of each is taken"
    ]


# --- what else there is -----------------------------------------------------------------------------------------------


def derived(text: str) -> str:
    """An aECG whose series becomes one of averaged beats."""
    return text.replace("<series>", "<series><derivation><derivedSeries>").replace(
        "</series>", "</derivedSeries></derivation></series>"
    )


def test_aecg_of_averaged_beats(tmp_path: Path) -> None:
    whole = aecg(beats())
    assert "<series>" in whole
    (tmp_path / "a.xml").write_text(derived(whole))
    sample = get("ecg").read(tmp_path / "a.xml")
    assert sample.warnings == ["only derived or averaged waveforms (sequence set 1) hold the leads"]
    np.testing.assert_allclose(sample.array, beats(), atol=1.3e-3)
    beat = derived(aecg(beats()[:, :600] * 2))
    inner = beat[beat.index("<derivation>") : beat.index("</derivation>") + len("</derivation>")]
    (tmp_path / "a.xml").write_text(whole.replace("</series>", f"{inner}</series>"))
    sample = get("ecg").read(tmp_path / "a.xml")
    assert sample.warnings == [] and sample.array.shape == (12, 3000)
    np.testing.assert_allclose(sample.array, beats(), atol=1.3e-3)


def test_a_second_rhythm_is_a_doubt(tmp_path: Path) -> None:
    one = aecg(beats())
    series = one[one.index("<component><series>") : one.index("</series></component>") + len("</series></component>")]
    (tmp_path / "a.xml").write_text(one.replace(series, series + series))
    assert get("ecg").read(tmp_path / "a.xml").warnings == ["1 more sequence set of the same leads, not read"]


def test_ge_muse_xml_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text('<!DOCTYPE RestingECG SYSTEM "restecg.dtd"><RestingECG/>')
    assert "GE MUSE XML, not HL7 aECG" in refusal(tmp_path / "a.xml")


def _without_samples(source: Any) -> None:
    source.WaveformSequence[0].WaveformData = b""


def _of_another_width(source: Any) -> None:
    source.WaveformSequence[0].WaveformSampleInterpretation = "SB"


def _cut_in_its_header(source: Any) -> None:
    del source.WaveformSequence[0].WaveformSampleInterpretation


def _a_document(source: Any) -> None:
    del source.WaveformSequence
    source.EncapsulatedDocument = b"%PDF-1.4"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_without_samples, "cut short, 0 of"),
        (_of_another_width, "samples of 16 bits with the interpretation of another width"),
        (_cut_in_its_header, "a waveform group without WaveformSampleInterpretation: damaged or cut short"),
        (_a_document, "a document (PDF) in DICOM, without waveforms"),
    ],
)
def test_reasons_of_dicom_waveforms(tmp_path: Path, change: Callable[[Any], None], reason: str) -> None:
    source = dataset()
    del source.WaveformSequence[1:]
    change(source)
    source.save_as(tmp_path / "a.dcm")
    assert reason in refusal(tmp_path / "a.dcm")
