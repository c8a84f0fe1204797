"""ECG formats: values against the formats' own libraries, refusals before opening, and privacy."""

import itertools
import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import edfio
import numpy as np
import pydicom
import pytest
import wfdb
from pydicom.data import get_testdata_file

from m3bind.errors import ReadError
from m3bind.modalities import get
from m3bind.modalities.formats import limits
from m3bind.modalities.formats.recording import Recording
from m3bind.modalities.formats.signals import read_signals

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
SECRETS = ("Meyerhuber", "19310203", "PID-4711", "Grimmelshausen")
Make = Callable[..., Path]


def beats(rate: float = 500, seconds: float = 6) -> np.ndarray:
    """(12, T) in mV with Einthoven's law."""
    t = np.arange(round(rate * seconds)) / rate
    beat = np.exp(-(((t % 0.8) - 0.3) ** 2) / 3e-4) + 0.2 * np.exp(-(((t % 0.8) - 0.55) ** 2) / 3e-3)
    first, second = 0.6 * beat, beat + 0.02 * np.sin(2 * t)
    limb = [first, second, second - first, -(first + second) / 2, first - second / 2, second - first / 2]
    return np.stack([*limb, *(beat * (k + 1) / 4 for k in range(6))])


def write_record(folder: Path, lines: list[str], values: np.ndarray, name: str = "a") -> Path:
    """A WFDB record with a header of one's own; `values` (12, T) in mV at 1000 per mV, format 16."""
    (folder / f"{name}.dat").write_bytes(np.rint(values.T * 1000).astype("<i2").tobytes())
    (folder / f"{name}.hea").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / f"{name}.hea"


def header(count: int, gain: str = "1000/mV", file: str = "a.dat", first: str = "a 12 500 {}") -> list[str]:
    return [first.format(count), *(f"{file} 16 {gain} 16 0 0 0 0 {lead}" for lead in LEADS)]


def refusal(path: Path) -> str:
    with pytest.raises(ReadError) as caught:
        get("ecg").read(path)
    return str(caught.value)


def text_of(found: Any) -> str:
    return " ".join([*found.steps, *found.warnings, *found.tags.values()])


# --- WFDB -------------------------------------------------------------------------------------------------------------


def test_native_record_whose_name_ends_in_mat(native: Path) -> None:
    raw = np.frombuffer((native / "ecg" / "E07938.mat").read_bytes()[24:], dtype="<i2").reshape(-1, 12)
    for ending in ("", ".hea", ".mat"):
        sample = get("ecg").read(native / "ecg" / f"E07938{ending}")
        assert np.array_equal(sample.array, (raw.T / 1000).astype(np.float32)) and sample.rate == 500
        assert "corrected copy" in text_of(sample) and sample.warnings == []


def test_native_record_of_other_signals(native: Path) -> None:
    found = read_signals(native / "ecg" / "a103l.hea")
    expected = wfdb.rdrecord(str(native / "ecg" / "a103l"))
    assert [(s.name, s.unit, s.rate) for s in found.signals] == [
        ("II", "mV", 250),
        ("V", "mV", 250),
        ("PLETH", "NU", 250),
    ]
    assert np.array_equal(np.stack([s.values for s in found.signals], 1), expected.p_signal, equal_nan=True)


@pytest.mark.parametrize("form", ["16", "24", "32", "80", "212", "508", "516", "524"])
def test_wfdb_formats_equal_wfdb(tmp_path: Path, form: str) -> None:
    wfdb.wrsamp("a", 500, ["mV"] * 12, list(LEADS), beats().T, fmt=[form] * 12, write_dir=str(tmp_path))
    expected = wfdb.rdrecord(str(tmp_path / "a")).p_signal
    found = read_signals(tmp_path / "a.hea")
    assert np.array_equal(np.stack([s.values for s in found.signals], 1), expected)
    assert np.array_equal(get("ecg").read(tmp_path / "a").array, expected.T.astype(np.float32))


@pytest.mark.parametrize(("form", "bits"), [("8", 8), ("61", 16), ("160", 16), ("310", 32 / 3), ("311", 32 / 3)])
def test_wfdb_formats_that_wfdb_only_reads(tmp_path: Path, form: str, bits: float) -> None:
    lines = [line.replace(" 16 ", f" {form} ", 1) for line in header(3000)]
    path = write_record(tmp_path, lines, beats())
    (tmp_path / "a.dat").write_bytes(np.random.default_rng(0).bytes(round(3000 * 12 * bits / 8)))
    expected = wfdb.rdrecord(str(tmp_path / "a")).p_signal
    found = read_signals(path)
    assert np.array_equal(np.stack([s.values for s in found.signals], 1), expected, equal_nan=True)
    assert expected.shape == (3000, 12) and np.nanstd(expected) > 0.01


def test_several_samples_per_frame_keep_their_rate(tmp_path: Path) -> None:
    values, slow = beats(500), beats(250)
    frames = [np.concatenate([values[k].reshape(-1, 2) if k < 11 else slow[k].reshape(-1, 1) for k in range(12)], 1)][0]
    (tmp_path / "a.dat").write_bytes(np.rint(frames * 1000).astype("<i2").tobytes())
    lines = [f"a 12 250 {len(frames)}"]
    lines += [f"a.dat 16{'x2' if k < 11 else ''} 1000/mV 16 0 0 0 0 {lead}" for k, lead in enumerate(LEADS)]
    (tmp_path / "a.hea").write_text("\n".join(lines) + "\n")
    expected = wfdb.rdrecord(str(tmp_path / "a"), smooth_frames=False).e_p_signal
    found = read_signals(tmp_path / "a.hea")
    assert [s.rate for s in found.signals] == [500.0] * 11 + [250.0]
    assert all(np.array_equal(s.values, other) for s, other in zip(found.signals, expected))
    sample = get("ecg").read(tmp_path / "a")
    assert sample.rate == 500 and "V6 resampled from 250 to 500 Hz" in sample.steps
    np.testing.assert_allclose(sample.array[11], values[11], atol=0.02)


@pytest.mark.parametrize("file", ["../secret.dat", "/etc/passwd", "..\\secret.dat", "sub/a.dat", "file:a.dat", ".."])
def test_wfdb_signal_files_outside_the_folder(tmp_path: Path, file: str) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for place in (tmp_path / "secret.dat", tmp_path / "in" / "sub" / "a.dat", tmp_path / "in" / "..\\secret.dat"):
        place.write_bytes(np.rint(beats().T * 1000).astype("<i2").tobytes())  # it would be read if it were opened
    path = write_record(tmp_path / "in", header(3000, file=file), beats())
    assert "outside its folder" in refusal(path)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (header(90_000_000), "1,080,000,000 samples, more than 50,000,000"),
        (["a 12 500 3000", *(f"a.dat 16x2000000 1000/mV 16 0 0 0 0 {lead}" for lead in LEADS)], "samples, more than"),
        (["a 12 500 3000", *(f"a.dat 16:99999999 1000/mV 16 0 0 0 0 {lead}" for lead in LEADS)], "is shifted"),
        (header(3000, first="a 999999 500 {}"), "declares 999,999 signals and describes 12"),
        (header(3000, first="a/3 12 500 {}"), "declares 3 segments and describes 12"),
        (["a 12", *header(3000)[1:]], "no signals or no sampling rate"),
        (header(3000, first="a 12 0 {}"), "no signals or no sampling rate"),
        (["a 0 500 3000"], "no signals or no sampling rate"),
        (["a 12 500 3000", *(f"a.dat x 1000/mV {lead}" for lead in LEADS)], "a signal line without a format"),
        (header(3000, file="b.dat"), "a signal file named by the header is missing"),
        (header(9000), "not a readable WFDB record"),
        ([], "not a readable WFDB record"),
        (["nonsense"], "not a readable WFDB record"),
        (["# only a comment " + "x" * (1 << 20)], "a header of more than 1,048,576 bytes"),
    ],
)
def test_wfdb_headers_that_are_refused(tmp_path: Path, lines: list[str], reason: str) -> None:
    assert reason in refusal(write_record(tmp_path, lines, beats()))


def test_unit_with_a_greek_letter(tmp_path: Path) -> None:
    expected = get("ecg").read(write_record(tmp_path, header(3000, "1/uV"), beats()))
    for letter in "µμ":
        path = write_record(tmp_path, header(3000, f"1/{letter}V"), beats())
        assert wfdb.rdrecord(str(tmp_path / "a")).units[0] == "V"  # why the header is corrected first
        sample = get("ecg").read(path)
        assert np.array_equal(sample.array, expected.array) and sample.warnings == []
    np.testing.assert_allclose(expected.array, beats(), atol=5.1e-4)


@pytest.mark.parametrize("first", ["a 12 500", "a 12 500 0", "a b.c 12 500 3000"])
def test_length_from_the_file_and_odd_names(tmp_path: Path, first: str) -> None:
    path = write_record(tmp_path, header(0, first=first.replace("a b.c", "a.b.c")), beats())
    np.testing.assert_allclose(get("ecg").read(path).array, beats(), atol=5.1e-4)


def test_matlab_5_behind_a_wfdb_header(tmp_path: Path) -> None:
    from scipy.io import savemat

    path = write_record(tmp_path, header(3000, file="a.mat"), beats())
    savemat(tmp_path / "a.mat", {"val": np.rint(beats() * 1000).astype(np.int16)}, do_compression=True)
    assert "MATLAB 5 or later" in refusal(path)
    path.unlink()
    assert "no WFDB header" in refusal(tmp_path / "a.mat")


# --- EDF and BDF ------------------------------------------------------------------------------------------------------


def write_edf(path: Path, values: np.ndarray | None = None, unit: str = "mV", slow: int = 0, **more: Any) -> Path:
    """EDF or BDF by the ending; the last `slow` leads at half the rate."""
    values = beats() if values is None else values
    kind: Any = edfio.BdfSignal if path.suffix == ".bdf" else edfio.EdfSignal
    extra = {"digital_range": (-8388608, 8388607)} if path.suffix == ".bdf" else {}
    factor = {"uV": 1000.0, "mV": 1.0}[unit]
    signals = [
        kind(x[:: 2 if k >= 12 - slow else 1] * factor, 250 if k >= 12 - slow else 500, label=f"ECG {lead}",
             physical_dimension=unit, physical_range=(-9 * factor, 9 * factor), **extra)
        for k, (lead, x) in enumerate(zip(LEADS, values))
    ]  # fmt: skip
    (edfio.Bdf if path.suffix == ".bdf" else edfio.Edf)(signals, data_record_duration=1, **more).write(path)
    return path


@pytest.mark.parametrize("name", ["a.edf", "a.bdf"])
@pytest.mark.parametrize("unit", ["mV", "uV"])
def test_edf_equals_edfio(tmp_path: Path, name: str, unit: str) -> None:
    path = write_edf(tmp_path / name, unit=unit, annotations=[edfio.EdfAnnotation(1, None, "event")])
    reference = (edfio.read_bdf if name == "a.bdf" else edfio.read_edf)(path)
    found = read_signals(path)
    assert [s.name for s in found.signals] == [f"ECG {lead}" for lead in LEADS]
    assert all(np.array_equal(s.values, r.data) and s.rate == 500 for s, r in zip(found.signals, reference.signals))
    sample = get("ecg").read(path)
    factor = 1.0 if unit == "mV" else 1e-3
    assert np.array_equal(sample.array, np.stack([r.data * factor for r in reference.signals]).astype(np.float32))
    assert sample.rate == 500 and sample.warnings == []
    np.testing.assert_allclose(sample.array, beats(), atol=3e-4)


def test_edf_rates_are_brought_to_the_highest(tmp_path: Path) -> None:
    sample = get("ecg").read(write_edf(tmp_path / "a.edf", slow=2))
    assert sample.rate == 500 and sample.array.shape == (12, 3000)
    assert sample.steps[:2] == ["250 and 500 Hz, 12 signals", "V5, V6 resampled from 250 to 500 Hz"]
    np.testing.assert_allclose(sample.array, beats(), atol=0.02)


def test_edf_with_annotations_only(native: Path, tmp_path: Path) -> None:
    assert "annotations only" in refusal(native / "ecg" / "test_edfann.edf")
    edfio.Edf([], annotations=[edfio.EdfAnnotation(1, None, SECRETS[0])]).write(tmp_path / "a.edf")
    assert "annotations only" in refusal(tmp_path / "a.edf")


def test_edf_with_gaps_is_refused(tmp_path: Path) -> None:
    path = write_edf(tmp_path / "a.edf", annotations=[])
    data = path.read_bytes()
    at = data.rindex(b"+5\x14\x14")
    path.write_bytes(data[:at] + b"+9\x14\x14" + data[at + 4 :])
    assert "a discontinuous EDF+ file" in refusal(path)


def test_edf_cut_short(tmp_path: Path) -> None:
    path = write_edf(tmp_path / "a.edf")
    path.write_bytes(path.read_bytes()[:-30_000])
    assert "cut short, the header declares 6 data records, 3 are stored" in refusal(path)
    path.write_bytes(path.read_bytes()[:1000])
    assert "EDF file" in refusal(path)
    path.write_bytes(b"1" + path.read_bytes()[1:])
    assert "not an EDF or BDF file" in refusal(path)


def test_edf_units_and_calibration(tmp_path: Path) -> None:
    path = write_edf(tmp_path / "a.edf", unit="uV")
    data = bytearray(path.read_bytes())
    units = 256 + 12 * (16 + 80)
    assert data[units : units + 2] == b"uV"
    greek = data.copy()
    for k in range(12):
        greek[units + 8 * k : units + 8 * k + 2] = "µV".encode("latin-1")
    path.write_bytes(greek)
    sample = get("ecg").read(path)
    assert sample.warnings == []
    np.testing.assert_allclose(sample.array, beats(), atol=3e-4)
    low, high = 256 + 12 * (16 + 80 + 8), 256 + 12 * (16 + 80 + 16)
    data[high : high + 8] = data[low : low + 8]  # physical maximum = minimum: lead I has no gain
    path.write_bytes(data)
    sample = get("ecg").read(path)
    assert "lead I not calibrated (physical minimum = maximum = -9000); taken as missing" in sample.warnings
    assert "I computed from II and III" in sample.steps
    np.testing.assert_allclose(sample.array, beats(), atol=6e-4)


def test_sizes_are_refused_before_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write_edf(tmp_path / "a.edf"), write_edf(tmp_path / "a.bdf"), write_csv(tmp_path / "a.csv")]
    paths += [write_record(tmp_path, header(3000), beats()), write_npy(tmp_path / "n.npy"), tmp_path / "w.dcm"]
    dataset().save_as(paths[-1])
    monkeypatch.setattr(limits, "LIMITS", limits.from_environment("samples=30000"))
    for path in paths:
        assert "samples, more than 30,000" in refusal(path), path


# --- DICOM ------------------------------------------------------------------------------------------------------------


def dataset() -> Any:
    return pydicom.dcmread(get_testdata_file("waveform_ecg.dcm"))


def channels(source: Any, group: int = 0) -> Any:
    return source.WaveformSequence[group].ChannelDefinitionSequence


def read_dicom(source: Any, folder: Path) -> Any:
    source.save_as(folder / "a.dcm")
    return get("ecg").read(folder / "a.dcm")


def test_dicom_equals_pydicom(tmp_path: Path) -> None:
    expected = dataset().waveform_array(0)  # microvolt
    found = read_signals(Path(get_testdata_file("waveform_ecg.dcm")))
    assert np.array_equal(np.stack([s.values for s in found.signals], 1), expected)
    assert {s.unit for s in found.signals} == {"uV"} and {s.rate for s in found.signals} == {1000.0}
    sample = read_dicom(dataset(), tmp_path)
    assert np.array_equal(sample.array, (expected.T * 1e-3).astype(np.float32)) and sample.warnings == []
    assert "waveform group 1 of 2 taken: 12 channels of 10000 samples, original" in sample.steps
    assert sample.tags["NumberOfWaveformChannels"] == "12" and sample.tags["Modality"] == "ECG"


def test_dicom_leads_follow_their_codes(tmp_path: Path) -> None:
    expected = read_dicom(dataset(), tmp_path).array
    order = [4, 3, 11, 0, 1, 2, 5, 6, 10, 9, 8, 7]  # aVL before aVR, as position would get wrong
    changed = dataset()
    group = changed.WaveformSequence[0]
    raw = np.frombuffer(group.WaveformData, "<i2").reshape(-1, 12)
    group.WaveformData = raw[:, order].tobytes()
    group.ChannelDefinitionSequence = [group.ChannelDefinitionSequence[k] for k in order]
    assert np.array_equal(read_dicom(changed, tmp_path).array, expected)
    for k, channel in enumerate(channels(changed)):
        source = channel.ChannelSourceSequence[0]
        source.CodeMeaning = "unspecified"
        if k % 2:
            source.CodeValue, source.CodingSchemeDesignator = source.CodeValue.replace("5.6.3-9-", "2:"), "MDC"
        else:
            source.CodeValue = "MDC_ECG_LEAD_" + LEADS[order[k]].upper()
    assert np.array_equal(read_dicom(changed, tmp_path).array, expected)
    for k, channel in enumerate(channels(changed)):
        channel.ChannelSourceSequence[0].CodeValue = "X"
        channel.ChannelSourceSequence[0].CodeMeaning = f"Lead {LEADS[order[k]]} (somebody)"
    assert np.array_equal(read_dicom(changed, tmp_path).array, expected)


def test_dicom_rhythm_group_wherever_it_stands(tmp_path: Path) -> None:
    expected = read_dicom(dataset(), tmp_path).array
    changed = dataset()
    changed.WaveformSequence = [changed.WaveformSequence[1], changed.WaveformSequence[0]]
    sample = read_dicom(changed, tmp_path)
    assert np.array_equal(sample.array, expected) and "group 2 of 2" in text_of(sample)


def test_dicom_gain_baseline_padding_and_inversion(tmp_path: Path) -> None:
    raw = dataset().waveform_array(0) / 1.25
    changed = dataset()
    first, second, inverted = channels(changed)[0], channels(changed)[1], channels(changed)[3]
    first.ChannelSensitivity, first.ChannelSensitivityCorrectionFactor, first.ChannelBaseline = "0.002", "1.5", "0.25"
    first.ChannelSensitivityUnitsSequence[0].CodeValue = "mV"
    del second.ChannelSensitivity
    inverted.ChannelSourceSequence[0].CodeValue = "5.6.3-9-65"
    sample = read_dicom(changed, tmp_path)
    assert np.array_equal(sample.array[0], (raw[:, 0] * 0.002 * 1.5 + 0.25).astype(np.float32))
    assert "lead II not calibrated (no ChannelSensitivity); taken as missing" in sample.warnings
    assert "code 'mV' and the meaning 'microvolt'; the code counts" in text_of(sample)
    assert np.array_equal(sample.array[3], (-raw[:, 3] * 1.25e-3).astype(np.float32))
    assert "aVR is stored inverted (-aVR); negated" in sample.steps

    padded = dataset()
    stored = np.frombuffer(padded.WaveformSequence[0].WaveformData, "<i2").reshape(-1, 12).copy()
    stored[100:105, 7] = -32768
    padded.WaveformSequence[0].WaveformData = stored.tobytes()
    padded.WaveformSequence[0].add_new("WaveformPaddingValue", "OW", struct.pack("<h", -32768))
    sample = read_dicom(padded, tmp_path)
    assert "1 leads have gaps" in text_of(sample) and np.abs(sample.array[7]).max() < 3


def _set_group(**values: Any) -> Callable[[Any], None]:
    def change(source: Any) -> None:
        for name, value in values.items():
            setattr(source.WaveformSequence[0], name, value)

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: delattr(d, "WaveformSequence"), "without waveforms"),
        (_set_group(NumberOfWaveformSamples=4_000_000_000), "samples, more than"),
        (_set_group(NumberOfWaveformSamples=10_001), "fewer samples than the header declares"),
        (_set_group(WaveformSampleInterpretation="MB"), "mu-law or A-law"),
        (_set_group(SamplingFrequency="0"), "sampling rate"),
        (_set_group(NumberOfWaveformChannels=13, NumberOfWaveformSamples=9000), "13 channels with 12 definitions"),
    ],
)
def test_dicom_that_is_refused(tmp_path: Path, change: Callable[[Any], None], reason: str) -> None:
    changed = dataset()
    change(changed)
    changed.save_as(tmp_path / "a.dcm")
    assert reason in refusal(tmp_path / "a.dcm")


def test_dicom_without_ending(tmp_path: Path) -> None:
    dataset().save_as(tmp_path / "record")
    assert get("ecg").read(tmp_path / "record").array.shape == (12, 10000)


# --- CSV and npy ------------------------------------------------------------------------------------------------------


def write_csv(path: Path, head: str = "", names: str = "", values: np.ndarray | None = None, mark: str = ",") -> Path:
    """A table with times in seconds unless `names` says otherwise."""
    values = beats() if values is None else values
    table = values if names else np.vstack([np.arange(values.shape[1]) / 500, values])
    names = names or mark.join(["time (s)", *(f"{lead} (mV)" for lead in LEADS)])
    rows = (mark.join(format(x, ".10g") for x in row) for row in table.T)
    path.write_text("\n".join(itertools.chain([head + names], rows)) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_csv_with_a_time_column(tmp_path: Path, mark: str) -> None:
    sample = get("ecg").read(write_csv(tmp_path / "a.csv", mark=mark))
    np.testing.assert_allclose(sample.array, beats(), atol=1e-6)
    assert sample.rate == 500 and "500 Hz from the time column" in sample.steps and sample.warnings == []


def test_csv_units_rate_and_order(tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(12)
    values = beats()[order] * 1000
    for head, name in (
        ("# rate 500\n", "{} (uV)"),
        ("# Rate: 500 Hz\n", '"{} [µV]"'),
        ("# rate 500\n# unit uV\n", "{}"),
    ):
        names = ",".join(name.format(f"Lead {LEADS[k].upper()}") for k in order)
        sample = get("ecg").read(write_csv(tmp_path / "a.csv", head, names, values))
        np.testing.assert_allclose(sample.array, beats(), atol=1e-6)
        assert sample.rate == 500 and sample.warnings == []
    bare = get("ecg").read(write_csv(tmp_path / "a.csv", "# rate 500\n", ",".join(LEADS), beats()))
    assert "unit not known in I, II, III, aVR, aVL, aVF, V1" in text_of(bare)


@pytest.mark.parametrize(
    ("name", "times", "rate"),
    [("time (ms)", 2.0, 500), ("time_ms", 4.0, 250), ("t", 1 / 360, 360), ("Time [s]", 0.01, 100)],
)
def test_csv_units_of_time(tmp_path: Path, name: str, times: float, rate: float) -> None:
    column = np.round(np.arange(3000) * times, 4)
    names = ",".join([name, *(f"{lead} (mV)" for lead in LEADS)])
    assert get("ecg").read(write_csv(tmp_path / "a.csv", "", names, np.vstack([column, beats()]))).rate == rate


def test_csv_empty_cells_are_gaps(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv")
    lines = path.read_text().splitlines()
    for k in range(50, 55):
        cells = lines[k].split(",")
        lines[k] = ",".join([*cells[:3], "", *cells[4:]])
    path.write_text("\n".join(lines))
    sample = get("ecg").read(path)
    assert "1 leads have gaps" in text_of(sample) and np.isfinite(sample.array).all()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1,2,3\n" * 3000, "no header line with the names of the leads"),
        ("I\n" + "1\n" * 3000, "no header line with the names of the leads"),
        (",".join(LEADS) + "\n" + "0,1,2,3,4,5,6,7,8,9,10,11\n" * 3000, "no sampling rate; add a line # rate 500"),
        ("# rate 500\nch1,ch2,ch3\n" + "1,2,3\n" * 3000, "none of the 12 standard leads is among its 3 signals"),
        ("# rate 500\nI,II,name\n" + f"1,2,{SECRETS[0]}\n" * 3000, "not a table of numbers below its header"),
        ("# rate 500\nI,II,V1\n" + "1,2,3\n1,2\n" * 3, "line 4 has fewer cells than the header names (3)"),
        ("# rate fast\nI,II,V1\n" + "1,2,3\n" * 3, "has no number"),
        ("time,I,II\n0,1,2\n0.002,1,2\n0.010,1,2\n0.012,1,2\n", "not evenly spaced"),
        ("time,I,II\n0,1,2\n2,1,2\n4,1,2\n6,1,2\n", "a time column without a known unit; name it time (s)"),
        ("time (h),I,II\n0,1,2\n2,1,2\n4,1,2\n6,1,2\n", "a time column without a known unit"),
        ("# rate 250\ntime (s),I,II\n" + "".join(f"{k / 500},1,2\n" for k in range(9)), "contradict each other"),
        ("# rate 500\n" + "#\n" * 200, "no header line within the first 100 lines"),
        ("# rate 500\nI,II\n", "not a table of numbers"),
    ],
)
def test_csv_that_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    message = refusal(tmp_path / "a.csv")
    assert reason in message and SECRETS[0] not in message


def test_long_names_cost_no_time(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("# rate 500\nI (mV),II" + " " * 60_000 + "x\n" + "1,2\n" * 600)
    start = time.process_time()
    assert "are missing; a 12-lead record is needed" in refusal(tmp_path / "a.csv")
    assert time.process_time() - start < 3


def write_npy(path: Path, values: np.ndarray | None = None, note: dict[str, Any] | None = None) -> Path:
    np.save(path, beats() if values is None else values)
    note = {"rate": 500, "unit": "mV", "leads": LEADS} if note is None else note
    path.with_suffix(".json").write_text(json.dumps(note))
    return path


def test_npy_either_way_round(tmp_path: Path) -> None:
    for values in (beats(), beats().T, np.asfortranarray(beats())):
        sample = get("ecg").read(write_npy(tmp_path / "a.npy", values))
        assert np.array_equal(sample.array, beats().astype(np.float32)) and sample.rate == 500
        assert sample.warnings == []


def test_values_that_are_none(tmp_path: Path) -> None:
    values = beats()
    values[2, 100:104] = [np.inf, -np.inf, np.nan, 1e300]
    sample = get("ecg").read(write_npy(tmp_path / "a.npy", values))
    assert "1 leads have gaps" in text_of(sample)
    np.testing.assert_allclose(sample.array[2], beats()[2], atol=0.05)


@pytest.mark.parametrize(
    ("values", "note", "reason"),
    [
        (beats()[:, :12], None, "shape (12, 12) of type float64 does not fit 12 leads in one way"),
        (beats()[None], None, "shape (1, 12, 3000)"),
        (beats()[:8], None, "does not fit 12 leads"),
        (beats() > 0, None, "of type bool"),
        (np.array([{}, {}], dtype=object), None, "not a readable array"),
        (beats(), {"rate": 500}, "not a readable array"),
        (beats(), {"leads": LEADS}, "not a readable array"),
        (beats(), {"leads": LEADS, "rate": -1}, "sampling rate"),
        (beats(), {"leads": LEADS, "rate": float("nan")}, "sampling rate"),
    ],
)
def test_npy_that_is_refused(tmp_path: Path, values: np.ndarray, note: Any, reason: str) -> None:
    assert reason in refusal(write_npy(tmp_path / "a.npy", values, note))


def test_npy_without_names_is_never_read_by_position(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", beats())
    assert 'leads have no fixed positions; write {"rate": 500' in refusal(tmp_path / "a.npy")


# --- HL7 annotated ECG ------------------------------------------------------------------------------------------------


def aecg(values: np.ndarray, leads: tuple[str, ...] = LEADS, step: str = "0.002", person: str = "X") -> str:
    """A small HL7 aECG document: microvolt, scale 2.5, origin 10."""
    sequences = "".join(
        f'<component><sequence><code code="MDC_ECG_LEAD_{lead.upper()}"/><value xsi:type="SLIST_PQ">'
        f'<origin value="10" unit="uV"/><scale value="2.5" unit="uV"/>'
        f"<digits>{' '.join(map(str, np.rint((x * 1000 - 10) / 2.5).astype(int)))}</digits>"
        "</value></sequence></component>"
        for lead, x in zip(leads, values)
    )
    time = (
        '<component><sequence><code code="TIME_ABSOLUTE"/><value xsi:type="GLIST_TS"><head value="20200101"/>'
        f'<increment value="{step}" unit="s"/></value></sequence></component>'
    )
    return (
        '<AnnotatedECG xmlns="urn:hl7-org:v3" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">'
        f"<componentOf><name>{person}</name></componentOf><component><series><component><sequenceSet>{time}{sequences}"
        "</sequenceSet></component></series></component></AnnotatedECG>"
    )


def test_aecg(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text('<?xml version="1.0"?>' + aecg(beats()))
    sample = get("ecg").read(tmp_path / "a.xml")
    np.testing.assert_allclose(sample.array, beats(), atol=1.3e-3)
    assert sample.rate == 500 and sample.warnings == []
    expected = (10 + 2.5 * np.rint((beats()[1] * 1000 - 10) / 2.5)) * 1e-3
    assert np.array_equal(sample.array[1], expected.astype(np.float32))


BOMB = '<!DOCTYPE x [<!ENTITY a "{}"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'.format("lol" * 100)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB + aecg(beats(), person="&b;"), "document type declaration"),
        ('<!DOCTYPE x SYSTEM "file:///etc/passwd">' + aecg(beats()), "document type declaration"),
        (aecg(beats())[:-40], "not a readable HL7 aECG file"),
        (aecg(beats()[:0]), "without signals"),
        (aecg(beats(), step="0"), "its time increment is not a number of seconds"),
        (aecg(beats()).replace("increment", "nothing"), "sampling rate"),
        (aecg(beats()).replace('10" unit="uV"', '10" unit="mV"'), "different units"),
        (f"<restingecgdata><name>{SECRETS[0]}</name></restingecgdata>", "Philips XML, not HL7 aECG"),
        (f"<{SECRETS[0]}/>", "XML of another kind"),
        ("<a>" * 100_000 + "</a>" * 100_000, "XML of another kind"),
    ],
)
def test_aecg_that_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "a.xml").write_text(text)
    message = refusal(tmp_path / "a.xml")
    assert reason in message and SECRETS[0] not in message


@pytest.mark.parametrize(("name", "kind"), [("a.scp", "SCP-ECG"), ("a.ecg", "ISHNE"), ("a.mwf", "MFER")])
def test_formats_known_and_not_read(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).write_bytes(b"12345678")
    assert kind in refusal(tmp_path / name)


# --- privacy ----------------------------------------------------------------------------------------------------------


def planted(folder: Path) -> dict[str, Path]:
    """One sound file of each format whose headers name a person everywhere a header can."""
    person = " ".join(SECRETS)
    lines = [*header(3000, first=f"{SECRETS[0]}.x 12 500 {{}}"), f"# Name: {person}", f"# Age: {SECRETS[1]}"]
    lines.append(f"#{person}")
    written = {"wfdb": write_record(folder, lines, beats())}
    patient = edfio.Patient(code=SECRETS[2], name=SECRETS[0], additional=[SECRETS[3]])
    recording = edfio.Recording(hospital_administration_code=SECRETS[2], investigator_technician_code=SECRETS[3])
    notes = [edfio.EdfAnnotation(1, None, person)]
    for name in ("p.edf", "p.bdf"):
        written[name] = write_edf(folder / name, patient=patient, recording=recording, annotations=notes)
    source = dataset()
    source.PatientName, source.PatientID, source.PatientBirthDate = f"{SECRETS[0]}^A", SECRETS[2], SECRETS[1]
    source.ReferringPhysicianName = source.InstitutionName = source.StudyDescription = SECRETS[3]
    for group in source.WaveformSequence:
        group.MultiplexGroupLabel = SECRETS[3]
        for channel in group.ChannelDefinitionSequence:
            channel.ChannelLabel = SECRETS[0]
    source.save_as(folder / "p.dcm")
    written["dicom"] = folder / "p.dcm"
    names = ",".join(["time (s)", *LEADS, SECRETS[0]])
    table = np.vstack([np.arange(3000) / 500, beats(), beats()[:1]])
    written["csv"] = write_csv(folder / "p.csv", f"# {person}\n", names, table)
    written["npy"] = write_npy(folder / "p.npy", note={"rate": 500, "leads": LEADS, "patient": person})
    (folder / "p.xml").write_text(aecg(beats(), person=person))
    written["aecg"] = folder / "p.xml"
    return written


@pytest.mark.parametrize("name", ["wfdb", "p.edf", "p.bdf", "dicom", "csv", "npy", "aecg"])
def test_nothing_of_a_person_leaves_the_reader(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    path = planted(tmp_path)[name]
    capfd.readouterr()
    recwarn.clear()
    sample = get("ecg").read(path)
    said = text_of(sample)
    data = path.read_bytes()
    messages = []
    broken = tmp_path / "broken"
    broken.mkdir()
    for companion in tmp_path.glob("[ap].*"):  # .dat and .json
        (broken / companion.name).write_bytes(companion.read_bytes())
    for k in range(60):  # whatever breaks, the reason quotes no name
        rng = np.random.default_rng(k)
        changed = bytearray(data)
        for _ in range(20):
            changed[int(rng.integers(0, min(len(data), 4000)))] = int(rng.integers(0, 256))
        (broken / path.name).write_bytes(changed[: len(data) if k % 3 else len(data) // 2])
        try:
            said += text_of(get("ecg").read(broken / path.name))
        except ReadError as error:
            messages.append(f"{error} {error.reason} {error.hint}")
    assert messages or name == "npy"
    output = capfd.readouterr()
    everything = " ".join([said, *messages, output.out, output.err, *(str(w.message) for w in recwarn)])
    assert not [secret for secret in SECRETS if secret.lower() in everything.lower()]


def test_recording_has_the_promised_fields(tmp_path: Path) -> None:
    found = read_signals(write_edf(tmp_path / "a.edf"))
    assert isinstance(found, Recording) and found.steps == ["500 Hz, 12 signals"] and found.warnings == []
