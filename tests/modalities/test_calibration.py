"""A value in mV, or no value: units in every spelling, failed calibrations, in every format of signals.

Expected values are computed here by hand, or by the format's own library.
"""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import edfio
import numpy as np
import pydicom
import pytest
import wfdb
from pydicom.dataset import Dataset
from tests.modalities.test_signals import LEADS, aecg, beats, channels, dataset, header, write_edf, write_record

from m3bind.errors import ReadError
from m3bind.modalities import get
from m3bind.modalities.formats.signals_leads import name_of_code, parse_lead
from m3bind.modalities.formats.signals_units import number, split_unit, to_millivolt, unit_of_code, unit_text

# --- units ------------------------------------------------------------------------------------------------------------

MILLI = [
    "mV",
    "mv",
    "MV",
    "Mv",
    "m V",
    " mV ",
    "[mV]",
    "(mV)",
    "Millivolts",
    "millivolt",
    "milli-volt",
    "milivoltios",
    "㎷",
    "ｍＶ",
    "毫伏",
    "ミリボルト",
    "мВ",
    "MDC_DIM_MILLI_VOLT",
    "266418",
    "4:4274",
    "10*-3.V",
    "10^-3 V",
    "1e-3 V",
    "mV{peak}",
    "mV/LSB",
    "1 mV",
]
MICRO = [
    "uV",
    "UV",
    "uv",
    "\u00b5V",
    "\u03bcV",
    "µv",
    "u V",
    "mcV",
    "Microvolts",
    "micro volt",
    "Mikrovolt",
    "㎶",
    "µV".encode().decode("latin-1"),
    "μV".encode().decode("latin-1"),
    "μV".encode("gbk").decode("latin-1"),
    "μV".encode("shift_jis").decode("latin-1"),
    "μV".encode("iso8859_7").decode("latin-1"),
    "微伏",
    "мкВ",
    "MDC_DIM_MICRO_VOLT",
    "0.001 mV",
    "10*-6.V",
]
NONE = [
    "",
    "NU",
    "mmHg",
    "adu",
    "1",
    "10",
    "%",
    "A",
    "mA",
    "ohm",
    "V/s",
    "mV/s",
    "1000/mV",
    "bpm",
    "-1 mV",
    "0 mV",
    "1e999 uV",
    "megavolt",
    "mVs",
    "x",
    "furlong",
]


def test_units_of_every_spelling() -> None:
    assert {text: to_millivolt(text) for text in MILLI} == pytest.approx(dict.fromkeys(MILLI, 1.0))
    assert {text: to_millivolt(text) for text in MICRO} == pytest.approx(dict.fromkeys(MICRO, 1e-3))
    assert {text: to_millivolt(text) for text in NONE} == dict.fromkeys(NONE)
    others = {"V": 1e3, "volts": 1e3, "nV": 1e-6, "nanovolt": 1e-6, "kV": 1e6, "2.5 uV": 2.5e-3, "x10 uV": 1e-2}
    assert {text: to_millivolt(text) for text in others} == pytest.approx(others)


def test_coded_units() -> None:
    assert unit_of_code("uV", "whatever") == ("uV", "")
    assert unit_of_code("99-17", "microvolt") == ("microvolt", "")
    assert unit_of_code("MV", "millivolt") == ("millivolt", "")
    unit, doubt = unit_of_code("mV", "microvolt")
    assert unit == "mV" and "the code counts" in doubt


@pytest.mark.parametrize(
    ("cell", "name", "unit"),
    [
        ("I (uV)", "I", "uV"),
        ("I [µV]", "I", "µV"),
        ("lead_II_mV", "lead_II", "mV"),
        ("V1/mV", "V1", "mV"),
        ("III microvolts", "III", "microvolts"),
        ("V5", "V5", ""),
        ("V", "V", ""),
        ("ECG_V", "ECG_V", ""),
        ("aVR_uV", "aVR", "uV"),
        ("time_ms", "time_ms", ""),
    ],
)
def test_names_with_units(cell: str, name: str, unit: str) -> None:
    assert split_unit(cell) == (name, unit)


def test_numbers_of_headers() -> None:
    found = {text: number(text) for text in ("-3276,8", "0,125", "1,5e3", " 5 ", "+2", ".5", "1,000", "12,345", "abc",
                                             "1e999", "nan", "inf", "", "1_000", "٣", "0x10", "1,2,3")}  # fmt: skip
    assert found == {"-3276,8": -3276.8, "0,125": 0.125, "1,5e3": 1500, " 5 ": 5, "+2": 2, ".5": 0.5} | dict.fromkeys(
        ("1,000", "12,345", "abc", "1e999", "nan", "inf", "", "1_000", "٣", "0x10", "1,2,3")
    )


@pytest.mark.parametrize("secret", ["Meyerhuber", "19310203", "PID-4711", "Doe^John", "born 3.2.1931"])
def test_messages_quote_units_and_nothing_else(secret: str) -> None:
    assert unit_text("mmHg") == "'mmHg'" and unit_text("furlong") == "'furlong'"
    assert secret not in unit_text(secret)


# --- leads ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "lead"),
    [
        ("ECG Lead V1", "V1"),
        ("Ableitung aVL", "aVL"),
        ("Derivación II", "II"),
        ("Dérivation V2", "V2"),
        ("D1", "I"),
        ("DIII", "III"),
        ("Ⅱ", "II"),
        ("V₁", "V1"),
        ("aVᵣ", "aVR"),
        ("第I誘導", "I"),
        ("V3导联", "V3"),
        ("2:1", "I"),
        ("131073", "I"),
        ("131329", "I"),
        ("5.6.3-9-62", "aVR"),
        ("MDC_ECG_ELEC_POTL_AVF", "aVF"),
        ("V3R", ""),
        ("V1R", ""),
        ("2:9", ""),
        ("131138", ""),
        ("1", ""),
        ("C1", ""),
        ("D4", ""),
    ],
)
def test_lead_names_of_all_formats(written: str, lead: str) -> None:
    assert parse_lead(written)[0] == lead


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (("5.6.3-9-1", "SCPECG", "", ""), "I"),
        (("5.6.3-9-1", "", "nothing", ""), "I"),
        (("2:63", "MDC", "", ""), "aVL"),
        (("3", "SCPECG", "", ""), "V1"),
        (("131133", "MDC", "", ""), "III"),
        (("MDC_ECG_LEAD_V6", "MDC", "", ""), "V6"),
        (("5.6.3-9-65", "SCPECG", "", ""), "-aVR"),
        (("X", "99", "Lead V2 (precordial)", ""), "V2"),
        (("X", "99", "chest", "V4"), "V4"),
        (("", "", "", "V5"), "V5"),
        (("5.6.3-9-0", "SCPECG", "none", "V3"), "V3"),
        (("2:11", "MDC", "Lead V3R", "V3"), "lead number 11"),
        (("", "", "", ""), ""),
    ],
)
def test_lead_codes(code: tuple[str, str, str, str], name: str) -> None:
    assert name_of_code(*code) == name


# --- EDF and BDF ------------------------------------------------------------------------------------------------------

FIELDS = {"label": (0, 16), "unit": (96, 8), "low": (104, 8), "high": (112, 8), "least": (120, 8), "most": (128, 8)}


def edit_edf(path: Path, signal: int, **fields: str | bytes) -> Path:
    """Overwrite header fields of a signal of a file with 12."""
    data = bytearray(path.read_bytes())
    for name, text in fields.items():
        before, width = FIELDS[name]
        at = 256 + before * 12 + signal * width
        raw = text if isinstance(text, bytes) else text.encode("latin-1")
        data[at : at + width] = raw.ljust(width)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["a.edf", "a.bdf"])
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"least": "0", "most": "0"}, "digital minimum = maximum = 0"),
        ({"low": "5", "high": "5"}, "physical minimum = maximum = 5"),
        ({"least": "100", "most": "-100"}, "digital minimum 100 above maximum -100"),
        ({"low": "-1,000"}, "its physical minimum is not a number"),
        ({"high": "fast"}, "its physical maximum is not a number"),
        ({"high": "1e999"}, "its physical maximum is not a number"),
        ({"most": ""}, "its digital maximum is not a number"),
        ({"unit": ""}, "no unit, which in EDF means not calibrated"),
        ({"unit": "mmHg"}, "the unit 'mmHg' is not a voltage"),
    ],
)
def test_an_edf_signal_without_calibration_is_missing(
    tmp_path: Path, name: str, fields: dict[str, str], reason: str
) -> None:
    expected = get("ecg").read(write_edf(tmp_path / name)).array
    sample = get("ecg").read(edit_edf(tmp_path / name, 8, **fields))
    assert f"lead V3 not calibrated ({reason}); taken as missing" in sample.warnings
    assert (sample.array[8] == 0).all()
    others = [k for k in range(12) if k != 8]
    assert np.array_equal(sample.array[others], expected[others])
    for k in range(12):
        edit_edf(tmp_path / name, k, **fields)
    with pytest.raises(ReadError, match="none of its leads is calibrated"):
        get("ecg").read(tmp_path / name)


@pytest.mark.parametrize(
    "unit", ["µV".encode("latin-1"), "µV".encode(), "μV".encode(), b"UV", b"microV\0\0", b"MicroVol", b"uVolts"]
)
def test_edf_units_in_any_spelling(tmp_path: Path, unit: bytes) -> None:
    expected = get("ecg").read(write_edf(tmp_path / "a.edf", unit="uV")).array
    for k in range(12):
        edit_edf(tmp_path / "a.edf", k, unit=unit)
    assert np.array_equal(get("ecg").read(tmp_path / "a.edf").array, expected)


def test_edf_decimal_commas_and_negative_gain(tmp_path: Path) -> None:
    path = write_edf(tmp_path / "a.edf")
    digital = np.stack([signal.digital for signal in edfio.read_edf(path).signals]).astype(float)
    edit_edf(path, 6, low="-4,5", high="4,5")
    edit_edf(path, 7, low="9", high="-9")
    sample = get("ecg").read(path)
    for lead, low, high in ((6, -4.5, 4.5), (7, 9.0, -9.0)):
        expected = low + (digital[lead] + 32768) * (high - low) / 65535
        np.testing.assert_allclose(sample.array[lead], expected, atol=1e-5)
    assert "1 signals of negative gain (physical minimum above maximum), inverted so" in sample.warnings
    edfs = edfio.read_edf(path).signals
    assert np.array_equal(sample.array[7], edfs[7].data.astype(np.float32))


# --- WFDB -------------------------------------------------------------------------------------------------------------


def replace_line(path: Path, lead: int, gain: str, encoding: str = "utf-8") -> Path:
    lines = path.read_text(encoding="utf-8").splitlines()
    words = lines[1 + lead].split()
    words[2:3] = [gain] if gain else []
    lines[1 + lead] = " ".join(words)
    path.write_bytes("\n".join(lines).encode(encoding))
    return path


@pytest.mark.parametrize(
    ("gain", "reason"),
    [
        ("0", "its gain is 0"),
        ("0/mV", "its gain is 0"),
        ("0(5)/uV", "its gain is 0"),
        ("1,000/mV", "its gain is not a number"),
        ("1e999/mV", "its gain is not a number"),
        ("fast/mV", "its gain is not a number"),
        ("200(x)/mV", "its baseline is not a number"),
        ("200/NU", "the unit 'NU' is not a voltage"),
        ("200/mmHg", "the unit 'mmHg' is not a voltage"),
    ],
)
def test_a_wfdb_signal_without_calibration_is_missing(tmp_path: Path, gain: str, reason: str) -> None:
    path = write_record(tmp_path, header(3000), beats())
    expected = get("ecg").read(path).array
    sample = get("ecg").read(replace_line(path, 8, gain))
    assert f"lead V3 not calibrated ({reason}); taken as missing" in sample.warnings and not sample.array[8].any()
    others = [k for k in range(12) if k != 8]
    assert np.array_equal(sample.array[others], expected[others])
    for k in range(12):
        replace_line(path, k, gain)
    with pytest.raises(ReadError, match="none of its leads is calibrated"):
        get("ecg").read(path)


@pytest.mark.parametrize("lead", [0, 3])
def test_a_wfdb_limb_lead_without_calibration_follows_from_others(tmp_path: Path, lead: int) -> None:
    path = replace_line(write_record(tmp_path, header(3000), beats()), lead, "0")
    sample = get("ecg").read(path)
    assert any(step.startswith(f"{LEADS[lead]} computed from") for step in sample.steps)
    np.testing.assert_allclose(sample.array, beats(), atol=2e-3)


@pytest.mark.parametrize(
    ("gain", "encoding", "factor"),
    [
        ("1/microvolts", "utf-8", 1e-3),
        ("1/Microvolt", "utf-8", 1e-3),
        ("1/µV", "utf-8", 1e-3),
        ("1/µV", "latin-1", 1e-3),
        ("1/μV", "utf-8", 1e-3),
        ("1/μV", "gbk", 1e-3),
        ("1/uV", "utf-8", 1e-3),
        ("1/UV", "utf-8", 1e-3),
        ("1e3/mV", "utf-8", 1e-3),
        ("1000", "utf-8", 1e-3),
        ("1000/millivolt", "utf-8", 1e-3),
        ("1e6/V", "utf-8", 1e-3),
        ("0.001/nV", "utf-8", 1e-3),
        ("1000,0/mV", "utf-8", 1e-3),
        ("1000(0)/mV", "utf-8", 1e-3),
        ("-1000/mV", "utf-8", -1e-3),
    ],
)
def test_wfdb_gains_and_units_in_any_spelling(tmp_path: Path, gain: str, encoding: str, factor: float) -> None:
    path = write_record(tmp_path, header(3000), beats())
    raw = np.frombuffer((tmp_path / "a.dat").read_bytes(), "<i2").reshape(-1, 12).T
    for k in range(12):
        replace_line(path, k, gain, encoding if k == 11 else "utf-8")
    sample = get("ecg").read(path)
    np.testing.assert_allclose(sample.array, raw * factor, rtol=1e-6)
    assert bool(factor < 0) == ("12 signals of negative gain, inverted accordingly" in sample.warnings)


def test_wfdb_baselines_are_those_of_wfdb(tmp_path: Path) -> None:
    path = write_record(tmp_path, header(3000), beats())
    for k, text in enumerate(["1000(100)/mV", "1000/mV", "1000(-7)/mV"]):
        replace_line(path, k, text)
    lines = path.read_text().splitlines()
    lines[2] = lines[2].replace("mV 16 0", "mV 16 512")  # zero of the converter, where no baseline is named
    path.write_text("\n".join(lines))
    expected = wfdb.rdrecord(str(tmp_path / "a")).p_signal.T
    assert np.array_equal(get("ecg").read(path).array[:3], expected[:3].astype(np.float32))
    assert expected[1].mean() < -0.3


# --- DICOM ------------------------------------------------------------------------------------------------------------


def unit_code(value: str | None, scheme: str | None = "UCUM", meaning: str | None = None, **more: str) -> list[Any]:
    item = Dataset()
    if value is not None:
        item.CodeValue = value
    if scheme is not None:
        item.CodingSchemeDesignator = scheme
    if meaning is not None:
        item.CodeMeaning = meaning
    for name, text in more.items():
        setattr(item, name, text)
    return [item]


UNIT_CODES = [
    unit_code("uV"),
    unit_code("uV", None),
    unit_code("UV"),
    unit_code("uV", "SCPECG"),
    unit_code("microvolt"),
    unit_code("uV", "99LOCAL"),
    unit_code("uV", "UCUM", CodingSchemeVersion="1.9"),
    unit_code("X17", "99A", "microvolts"),
    unit_code(None, None, "uV"),
    unit_code("266419", "MDC"),
    unit_code("MDC_DIM_MICRO_VOLT", "MDC"),
    unit_code("[uV]"),
    unit_code(None, None, "x", LongCodeValue="microvolt"),
]


@pytest.mark.parametrize("code", UNIT_CODES, ids=range(len(UNIT_CODES)))
def test_dicom_units_under_any_scheme(tmp_path: Path, code: list[Any]) -> None:
    changed = dataset()
    expected = (changed.waveform_array(0).T * 1e-3).astype(np.float32)
    for channel in channels(changed):
        channel.ChannelSensitivityUnitsSequence = code
    changed.save_as(tmp_path / "a.dcm")
    assert np.array_equal(get("ecg").read(tmp_path / "a.dcm").array, expected)


def _drop(name: str) -> Callable[[Any], None]:
    return lambda channel: delattr(channel, name)


def _bad(name: str, text: str) -> Callable[[Any], None]:
    def change(channel: Any) -> None:
        from pydicom.datadict import tag_for_keyword
        from pydicom.dataelem import RawDataElement
        from pydicom.tag import Tag

        tag = Tag(tag_for_keyword(name))  # type: ignore[arg-type]
        raw = text.encode() + b" " * (len(text) % 2)
        channel._dict[tag] = RawDataElement(tag, "DS", len(raw), raw, 0, False, True)

    return change


def _set(name: str, value: Any) -> Callable[[Any], None]:
    return lambda channel: setattr(channel, name, value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_drop("ChannelSensitivity"), "no ChannelSensitivity"),
        (_set("ChannelSensitivity", "0"), "its ChannelSensitivity is 0"),
        (_bad("ChannelSensitivity", "1,25"), "its ChannelSensitivity is not a number"),
        (_bad("ChannelSensitivity", "1e999"), "its ChannelSensitivity is not a number"),
        (_set("ChannelSensitivityCorrectionFactor", "0"), "its ChannelSensitivityCorrectionFactor is 0"),
        (_bad("ChannelSensitivityCorrectionFactor", "one"), "its ChannelSensitivityCorrectionFactor is not a number"),
        (_bad("ChannelBaseline", "zero"), "its ChannelBaseline is not a number"),
        (_drop("ChannelSensitivityUnitsSequence"), "no unit of its ChannelSensitivity"),
        (_set("ChannelSensitivityUnitsSequence", unit_code("mmHg")), "the unit 'mmHg' is not a voltage"),
    ],
)
def test_a_dicom_channel_without_calibration_is_missing(
    tmp_path: Path, change: Callable[[Any], None], reason: str
) -> None:
    changed = dataset()
    expected = (changed.waveform_array(0).T * 1e-3).astype(np.float32)
    lead = next(k for k, c in enumerate(channels(changed)) if c.ChannelSourceSequence[0].CodeValue == "5.6.3-9-5")
    change(channels(changed)[lead])
    changed.save_as(tmp_path / "a.dcm")
    sample = get("ecg").read(tmp_path / "a.dcm")
    assert f"lead V3 not calibrated ({reason}); taken as missing" in sample.warnings and not sample.array[8].any()
    others = [k for k in range(12) if k != 8]
    assert np.array_equal(sample.array[others], expected[others])


def test_dicom_baseline_correction_and_labels_only(tmp_path: Path) -> None:
    changed = dataset()
    raw = np.frombuffer(changed.WaveformSequence[0].WaveformData, "<i2").reshape(-1, 12).astype(float)
    for lead, channel in zip(LEADS, channels(changed)):
        channel.ChannelSensitivity, channel.ChannelSensitivityCorrectionFactor = "2.5", "0.5"
        channel.ChannelBaseline = "-20"
        channel.ChannelSourceSequence[0].CodeValue, channel.ChannelSourceSequence[0].CodeMeaning = "X", "unspecified"
        channel.ChannelLabel = lead
    changed.save_as(tmp_path / "a.dcm")
    sample = get("ecg").read(tmp_path / "a.dcm")
    np.testing.assert_allclose(sample.array, (raw.T * 1.25 - 20) * 1e-3, rtol=1e-5, atol=1e-6)


# --- aECG, tables -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "reason"),
    [
        ('<scale value="0" unit="uV"/>', "its scale is 0"),
        ('<scale value="2,500" unit="uV"/>', "its scale or origin is not a number"),
        ('<scale value="2.5" unit=""/>', "no unit of its scale"),
        ('<scale value="2.5" unit="mmHg"/>', "the unit 'mmHg' is not a voltage"),
        ("", "no scale"),
    ],
)
def test_an_aecg_sequence_without_calibration_is_missing(tmp_path: Path, scale: str, reason: str) -> None:
    text = aecg(beats()).replace('<origin value="10" unit="uV"/>', '<origin value="0" unit="uV"/>')
    (tmp_path / "a.xml").write_text(text)
    expected = get("ecg").read(tmp_path / "a.xml").array
    at = text.index("MDC_ECG_LEAD_V3")
    (tmp_path / "a.xml").write_text(text[:at] + text[at:].replace('<scale value="2.5" unit="uV"/>', scale, 1))
    sample = get("ecg").read(tmp_path / "a.xml")
    assert f"lead V3 not calibrated ({reason}); taken as missing" in sample.warnings and not sample.array[8].any()
    others = [k for k in range(12) if k != 8]
    assert np.array_equal(sample.array[others], expected[others])


@pytest.mark.parametrize("unit", ["µV", "microvolts", "UV", "mcV"])
def test_aecg_units(tmp_path: Path, unit: str) -> None:
    (tmp_path / "a.xml").write_text(aecg(beats()).replace("uV", unit), encoding="utf-8")
    np.testing.assert_allclose(get("ecg").read(tmp_path / "a.xml").array, beats(), atol=1.3e-3)


@pytest.mark.parametrize(
    ("names", "note", "factor", "encoding"),
    [
        ("{} (uV)", "", 1e3, "utf-8"),
        ("lead_{}_mV", "", 1, "utf-8"),
        ("{}_uV", "", 1e3, "utf-8"),
        ("{} [µV]", "", 1e3, "latin-1"),
        ("{} (μV)", "", 1e3, "utf-16"),
        ("{}/Millivolts", "", 1, "utf-8"),
        ("{}", "# unit Millivolts\n", 1, "utf-8"),
        ("{}", "# unit: µV\n", 1e3, "utf-8"),
    ],
)
def test_tables_with_units(tmp_path: Path, names: str, note: str, factor: float, encoding: str) -> None:
    rows = "\n".join(",".join(f"{x:.6g}" for x in row) for row in beats().T * factor)
    head = ",".join(names.format(lead) for lead in LEADS)
    (tmp_path / "a.csv").write_text(f"# rate 500\n{note}{head}\n{rows}\n", encoding=encoding)
    sample = get("ecg").read(tmp_path / "a.csv")
    np.testing.assert_allclose(sample.array, beats(), atol=1e-5)
    assert sample.warnings == []
    np.save(tmp_path / "b.npy", beats() * factor)
    unit = note.partition("unit")[2].strip(": \n")
    said = {"rate": 500, "leads": [names.format(lead) for lead in LEADS], "unit": unit}
    (tmp_path / "b.json").write_text(json.dumps(said))
    np.testing.assert_allclose(get("ecg").read(tmp_path / "b.npy").array, beats(), atol=1e-6)


def test_tables_with_unknown_units_or_none(tmp_path: Path) -> None:
    for unit in ("adu", "mmHg", "counts"):
        (tmp_path / "a.json").write_text(json.dumps({"rate": 500, "leads": LEADS, "unit": unit}))
        np.save(tmp_path / "a.npy", beats())
        with pytest.raises(ReadError, match=f"the unit '{unit}' is not a voltage"):
            get("ecg").read(tmp_path / "a.npy")
    (tmp_path / "a.json").write_text(json.dumps({"rate": 500, "leads": LEADS}))
    assert any("unit not known" in text for text in get("ecg").read(tmp_path / "a.npy").warnings)
    np.save(tmp_path / "a.npy", beats() * 1000)  # microvolt, without a stated unit
    with pytest.raises(ReadError, match="no unit is stated, and values that swing by"):
        get("ecg").read(tmp_path / "a.npy")


@pytest.mark.parametrize("mark", [";", "\t"])
def test_tables_as_a_spreadsheet_saves_them(tmp_path: Path, mark: str) -> None:
    rows = "\n".join(mark.join(f"{x:.5f}".replace(".", ",") for x in row) for row in beats().T)
    head = mark.join(f"{lead} (mV)" for lead in LEADS)
    (tmp_path / "a.csv").write_text(f"sep={mark}\n# rate 500\n{head}\n{rows}\n")
    sample = get("ecg").read(tmp_path / "a.csv")
    np.testing.assert_allclose(sample.array, beats(), atol=1e-5)
    assert "decimal commas read" in sample.steps
    (tmp_path / "a.csv").write_text(f"# rate 500\n{head}\n" + mark.join(["1,000"] * 12) + "\n")
    with pytest.raises(ReadError, match="decimal or between thousands"):
        get("ecg").read(tmp_path / "a.csv")


def test_one_lead_of_volts_is_a_doubt(tmp_path: Path) -> None:
    values = beats()
    values[8] *= 1000
    path = write_record(tmp_path, header(3000, "10/mV"), values / 100)
    (tmp_path / "a.dat").write_bytes(np.rint(values.T * 10).astype("<i2").tobytes())
    assert "very high voltage in V3" in " ".join(get("ecg").read(path).warnings)


def test_megavolts_are_a_doubt(tmp_path: Path) -> None:
    sample = get("ecg").read(write_record(tmp_path, header(3000, "1000/MV"), beats()))
    np.testing.assert_allclose(sample.array, beats(), atol=6e-4)
    assert any("literally megavolt" in text for text in sample.warnings)


def test_padding_survives_a_channel_without_calibration(tmp_path: Path) -> None:
    changed = dataset()
    del channels(changed)[1].ChannelSensitivity
    changed.WaveformSequence[0].add_new("WaveformPaddingValue", "OW", struct.pack("<h", -32768))
    changed.save_as(tmp_path / "a.dcm")
    assert np.isfinite(get("ecg").read(tmp_path / "a.dcm").array).all()
    assert pydicom.dcmread(tmp_path / "a.dcm") is not None
