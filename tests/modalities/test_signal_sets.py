"""Leads in several parts of a file (groups, sequence sets, segments, signal files), truncated files, and XML in any
encoding; values against the whole signal they were made from."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wfdb
from tests.modalities.test_signals import (
    LEADS,
    aecg,
    beats,
    dataset,
    header,
    refusal,
    text_of,
    write_csv,
    write_edf,
    write_npy,
    write_record,
)

from m3bind.errors import ReadError
from m3bind.modalities import get
from m3bind.modalities.formats.files import files_below

TRUTH = 1e-3 * np.rint(beats(seconds=10) * 1000)  # (12, 5000) in mV, whole microvolt
LIMB, CHEST = tuple(range(6)), tuple(range(6, 12))


def waveform(*groups: dict[str, Any]) -> Any:
    """A DICOM ECG whose groups hold `leads` of `TRUTH`, samples `part`, with an offset in ms."""
    source = dataset()
    template = copy.deepcopy(source.WaveformSequence[0])
    by_lead = dict(zip(LEADS, template.ChannelDefinitionSequence))
    made = []
    for said in groups:
        leads, part, step = said["leads"], said.get("part", slice(None)), said.get("step", 1)
        values = np.rint(TRUTH[list(leads), part][:, ::step].T * 1000 * said.get("times", 1)).astype("<i2")
        group = copy.deepcopy(template)
        group.NumberOfWaveformChannels, group.NumberOfWaveformSamples = values.shape[1], values.shape[0]
        group.SamplingFrequency = 500 / step
        group.MultiplexGroupTimeOffset = said.get("offset", 0)
        group.WaveformOriginality = said.get("originality", "ORIGINAL")
        group.ChannelDefinitionSequence = [copy.deepcopy(by_lead[LEADS[k]]) for k in leads]
        for channel in group.ChannelDefinitionSequence:
            channel.ChannelSensitivity = "1"
        group.WaveformData = values.tobytes()
        made.append(group)
    source.WaveformSequence = made
    return source


def read_waveform(folder: Path, *groups: dict[str, Any]) -> Any:
    waveform(*groups).save_as(folder / "a.dcm")
    return get("ecg").read(folder / "a.dcm")


MEDIAN = {"leads": range(12), "part": slice(0, 600), "originality": "DERIVED"}


@pytest.mark.parametrize(
    "groups",
    [
        [{"leads": LIMB}, {"leads": CHEST}],
        [{"leads": CHEST}, {"leads": LIMB}],
        [{"leads": (0, 1, 2)}, {"leads": (3, 4, 5)}, {"leads": (6, 7, 8)}, {"leads": (9, 10, 11)}],
        [{"leads": LIMB}, {"leads": CHEST}, MEDIAN],
        [MEDIAN, {"leads": LIMB}, {"leads": CHEST}],
        [{"leads": LIMB, "originality": "DERIVED"}, {"leads": CHEST, "originality": "DERIVED"}],
        [{"leads": range(12)}, {"leads": (1,), "times": 2}],
        [{"leads": LIMB}, {"leads": CHEST}, {"leads": (1, 6, 10), "times": 2}],
    ],
    ids=range(8),
)
def test_groups_of_one_time_are_merged(tmp_path: Path, groups: list[dict[str, Any]]) -> None:
    sample = read_waveform(tmp_path, *groups)
    assert np.array_equal(sample.array, TRUTH.astype(np.float32)) and sample.rate == 500
    assert f"of {len(groups)} " in text_of(sample)
    derived = any("only derived" in text for text in sample.warnings)
    assert derived == all(group.get("originality") == "DERIVED" for group in groups)


def test_groups_of_other_rates_are_resampled(tmp_path: Path) -> None:
    sample = read_waveform(tmp_path, {"leads": LIMB}, {"leads": CHEST, "step": 2})
    np.testing.assert_allclose(sample.array, TRUTH, atol=0.02)
    assert "V1, V2, V3, V4, V5, V6 resampled from 250 to 500 Hz" in sample.steps


def three_by_four(strip: bool) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = [
        {"leads": range(3 * k, 3 * k + 3), "part": slice(1250 * k, 1250 * k + 1250), "offset": 2500 * k}
        for k in range(4)
    ]
    return [*groups, {"leads": (1,)}] if strip else groups


@pytest.mark.parametrize("strip", [False, True])
@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 2, 0, 3, 1)])
def test_three_by_four(tmp_path: Path, strip: bool, order: tuple[int, ...]) -> None:
    groups = three_by_four(strip)
    sample = read_waveform(tmp_path, *(groups[k] for k in order if k < len(groups)), MEDIAN)
    expected = np.zeros_like(TRUTH)
    for lead in range(12):
        part = slice(None) if strip and lead == 1 else slice(lead // 3 * 1250, lead // 3 * 1250 + 1250)
        expected[lead, part] = TRUTH[lead, part]
    assert np.array_equal(sample.array, expected.astype(np.float32))
    said = " ".join(sample.warnings)
    assert "recorded for a part of the time each" in said and "V4, V5, V6 7.5-10 s" in said
    assert "I + III differs" not in said and "several signals" not in said


def test_limb_leads_are_computed_from_leads_of_the_same_time_only(tmp_path: Path) -> None:
    groups = three_by_four(False)
    groups[0]["leads"] = (0, 1)  # III is missing
    sample = read_waveform(tmp_path, *groups)
    np.testing.assert_allclose(sample.array[2, :1250], TRUTH[2, :1250], atol=2e-3)
    assert not sample.array[2, 1250:].any() and "III computed from I and II" in sample.steps


def test_three_by_four_with_gaps_in_one_record(tmp_path: Path) -> None:
    values = np.full_like(TRUTH, np.nan)
    for lead in range(12):
        part = slice(lead // 3 * 1250, lead // 3 * 1250 + 1250)
        values[lead, part] = TRUTH[lead, part]
    sample = get("ecg").read(write_npy(tmp_path / "a.npy", values))
    assert np.array_equal(sample.array, np.nan_to_num(values).astype(np.float32))
    assert "recorded for a part of the time each" in text_of(sample)


@pytest.mark.parametrize("skew", [0, 5, 40])
def test_channels_that_begin_later(tmp_path: Path, skew: int) -> None:
    source = waveform({"leads": range(12)})
    source.WaveformSequence[0].ChannelDefinitionSequence[7].ChannelSampleSkew = str(skew)
    source.save_as(tmp_path / "a.dcm")
    sample = get("ecg").read(tmp_path / "a.dcm")
    expected = TRUTH[:, skew:].copy()
    expected[7] = TRUTH[7, : 5000 - skew]
    assert np.array_equal(sample.array, expected.astype(np.float32))


def test_a_group_that_is_not_needed_may_be_damaged(tmp_path: Path) -> None:
    source = waveform({"leads": range(12)}, MEDIAN)
    source.WaveformSequence[1].WaveformData = b"\0\0"
    source.save_as(tmp_path / "a.dcm")
    assert np.array_equal(get("ecg").read(tmp_path / "a.dcm").array, TRUTH.astype(np.float32))


# --- HL7 aECG ---------------------------------------------------------------------------------------------------------


def sequence_sets(*parts: tuple[range, slice, str]) -> str:
    """An aECG of several sequence sets: leads, samples and the time they begin at."""
    texts = []
    for leads, part, begin in parts:
        text = aecg(TRUTH[list(leads), part], tuple(LEADS[k] for k in leads)).replace("20200101", begin)
        texts.append(text.partition("<series>")[2].partition("</series>")[0])
    before, _, rest = aecg(TRUTH[:1]).partition("<series>")
    return before + "<series>" + "".join(texts) + "</series>" + rest.partition("</series>")[2]


def test_sequence_sets_are_merged(tmp_path: Path) -> None:
    whole = slice(None)
    (tmp_path / "a.xml").write_text(aecg(TRUTH))
    expected = get("ecg").read(tmp_path / "a.xml").array
    for parts in (
        [(range(6), whole, "20200101"), (range(6, 12), whole, "20200101")],
        [(range(6, 12), whole, "20200101120000"), (range(6), whole, "20200101120000.000")],
        [(range(3 * k, 3 * k + 3), whole, "20200101120000.5") for k in range(4)],
    ):
        (tmp_path / "a.xml").write_text(sequence_sets(*parts))
        sample = get("ecg").read(tmp_path / "a.xml")
        assert np.array_equal(sample.array, expected) and "merged" in text_of(sample)


def test_sequence_sets_one_after_the_other(tmp_path: Path) -> None:
    parts = [
        (range(3 * k, 3 * k + 3), slice(1250 * k, 1250 * k + 1250), f"2020013123595{5 + int(2.5 * k)}.{5 * (k % 2)}00")
        for k in range(2)
    ]
    parts += [(range(6, 9), slice(2500, 3750), "20200201000000"), (range(9, 12), slice(3750, 5000), "20200201000002.5")]
    (tmp_path / "a.xml").write_text(sequence_sets(*parts))
    sample = get("ecg").read(tmp_path / "a.xml")
    expected = np.zeros_like(TRUTH)
    for lead in range(12):
        part = slice(lead // 3 * 1250, lead // 3 * 1250 + 1250)
        expected[lead, part] = TRUTH[lead, part]
    np.testing.assert_allclose(sample.array, expected, atol=1.3e-3)
    assert "V4, V5, V6 7.5-10 s" in text_of(sample)


NAMES = {
    "gbk": "张伟", "gb2312": "李娜", "gb18030": "王芳", "shift_jis": "山田太郎", "euc-jp": "鈴木", "big5": "陳大文",
    "euc-kr": "김철수", "iso-8859-1": "Müller", "windows-1252": "Müller “x”", "koi8-r": "Иванов",
    "utf-16": "张伟 Müller", "utf-8": "张伟 Müller",
}  # fmt: skip


@pytest.mark.parametrize("encoding", NAMES)
@pytest.mark.parametrize("declared", [True, False])
def test_xml_in_any_encoding(tmp_path: Path, encoding: str, declared: bool) -> None:
    (tmp_path / "b.xml").write_text(aecg(beats()))
    expected = get("ecg").read(tmp_path / "b.xml").array
    head = f'<?xml version="1.0" encoding="{encoding}"?>' if declared else '<?xml version="1.0"?>'
    (tmp_path / "a.xml").write_text(head + aecg(beats(), person=NAMES[encoding]), encoding=encoding)
    sample = get("ecg").read(tmp_path / "a.xml")
    assert np.array_equal(sample.array, expected) and sample.warnings == []
    assert tmp_path / "a.xml" in files_below(tmp_path)


def test_xml_that_declares_another_encoding(tmp_path: Path) -> None:
    text = '<?xml version="1.0" encoding="{}"?>' + aecg(beats(), person="Müller")
    for declared, stored in (("utf-16", "utf-8"), ("utf-8", "utf-8-sig"), ("utf-8", "latin-1"), ("utf-8", "utf-16")):
        (tmp_path / "a.xml").write_text(text.format(declared), encoding=stored)
        np.testing.assert_allclose(get("ecg").read(tmp_path / "a.xml").array, beats(), atol=1.3e-3)
    for declared in ("utf-7", "x-unknown", "unicode_escape", "utf-32", "rot13"):
        (tmp_path / "a.xml").write_text(text.format(declared))
        assert f"XML in the encoding {declared}, which is not supported" in refusal(tmp_path / "a.xml")


@pytest.mark.parametrize("encoding", ["gbk", "shift_jis", "utf-16", "latin-1"])
def test_entities_are_refused_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    bomb = '<!DOCTYPE x [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;">]>'
    text = f'<?xml version="1.0" encoding="{encoding}"?>{bomb}' + aecg(beats(), person="&b;")
    (tmp_path / "a.xml").write_text(text, encoding=encoding)
    assert "document type declaration" in refusal(tmp_path / "a.xml")


# --- WFDB -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forms", [("16", "212", "24", "32"), ("80", "16", "212", "16"), ("516", "16", "524", "212")])
def test_signal_files_of_different_formats(tmp_path: Path, forms: tuple[str, ...]) -> None:
    lines = ["r 12 500 3000"]
    for k, form in enumerate(forms):
        names = list(LEADS[3 * k : 3 * k + 3])
        part = beats()[3 * k : 3 * k + 3].T
        wfdb.wrsamp(f"r{k}", 500, ["mV"] * 3, names, part, fmt=[form] * 3, write_dir=str(tmp_path))
        lines += (tmp_path / f"r{k}.hea").read_text().splitlines()[1:4]
        (tmp_path / f"r{k}.hea").unlink()
    (tmp_path / "r.hea").write_text("\n".join(lines) + "\n")
    expected = wfdb.rdrecord(str(tmp_path / "r")).p_signal.T
    assert np.array_equal(get("ecg").read(tmp_path / "r").array, expected.astype(np.float32))
    np.testing.assert_allclose(expected, beats(), atol=2e-2)


def test_byte_offsets_and_skew(tmp_path: Path) -> None:
    path = write_record(tmp_path, [line.replace("a.dat 16 ", "a.dat 16+24 ") for line in header(3000)], beats())
    (tmp_path / "a.dat").write_bytes(bytes(24) + (tmp_path / "a.dat").read_bytes())
    np.testing.assert_allclose(get("ecg").read(path).array, beats(), atol=5.1e-4)
    path = write_record(tmp_path, [line.replace("a.dat 16 ", "a.dat 16:7 ") for line in header(3000)], beats())
    np.testing.assert_allclose(get("ecg").read(path).array[:, :2993], beats()[:, 7:], atol=5.1e-4)


def segments(folder: Path, *lengths: int, gap: int = 0) -> np.ndarray:
    """A record `m` of several segments; the whole signal, NaN in the gap behind the first segment."""
    lines, parts, at = [], [], 0
    values = TRUTH[:, : sum(lengths)]
    for number, length in enumerate(lengths):
        name = f"m_{number}"
        write_record(
            folder, header(length, file=f"{name}.dat", first=f"{name} 12 500 {{}}"), values[:, at : at + length], name
        )
        lines.append(f"{name} {length}")
        parts.append(values[:, at : at + length])
        if gap and not number:
            lines.append(f"~ {gap}")
            parts.append(np.full((12, gap), np.nan))
        at += length
    total = sum(lengths) + gap
    (folder / "m.hea").write_text("\n".join([f"m/{len(lines)} 12 500 {total}", *lines]) + "\n")
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("lengths", [(3000, 2000), (1000, 1000, 1000), (5000,)])
def test_records_of_several_segments(tmp_path: Path, lengths: tuple[int, ...]) -> None:
    expected = segments(tmp_path, *lengths)
    sample = get("ecg").read(tmp_path / "m.hea")
    assert np.array_equal(sample.array, expected.astype(np.float32)) and sample.warnings == []
    assert np.array_equal(wfdb.rdrecord(str(tmp_path / "m")).p_signal.T.astype(np.float32), sample.array)
    assert list(files_below(tmp_path, ["ecg"])) == [tmp_path / "m.hea"]


def test_segments_with_a_gap(tmp_path: Path) -> None:
    expected = segments(tmp_path, 3000, 1500, gap=500)
    sample = get("ecg").read(tmp_path / "m.hea")
    there = np.isfinite(expected[0])
    assert np.array_equal(sample.array[:, there], expected[:, there].astype(np.float32))
    assert "12 leads have gaps (up to 10.0%)" in text_of(sample)


def test_segments_of_other_signals(tmp_path: Path) -> None:
    expected = segments(tmp_path, 3000, 2000)
    (tmp_path / "layout.hea").write_text("\n".join(header(0, file="~", first="layout 12 500 {}")) + "\n")
    (tmp_path / "m.hea").write_text("m/3 12 500 5000\nlayout 0\nm_0 3000\nm_1 2000\n")
    part = tmp_path / "m_1.hea"
    lines = part.read_text().splitlines()
    part.write_text("\n".join([lines[0], *reversed(lines[1:])]).replace(" V6", " RESP") + "\n")
    raw = np.fromfile(tmp_path / "m_1.dat", "<i2").reshape(-1, 12)[:, ::-1]
    (tmp_path / "m_1.dat").write_bytes(np.ascontiguousarray(raw).tobytes())
    sample = get("ecg").read(tmp_path / "m.hea")
    assert np.array_equal(sample.array[:11], expected[:11].astype(np.float32))  # by name, in any order
    assert np.array_equal(sample.array[11, :3000], expected[11, :3000].astype(np.float32))
    assert "1 leads have gaps (up to 40.0%)" in text_of(sample)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text.replace("m_1 2000", "../m_1 2000"), "outside its folder"),
        (lambda text: text.replace("m_1 2000", "gone 2000"), "a segment named by the header is missing"),
        (lambda text: text.replace("m_1 2000", "m_1 1999"), "declares 5,000 samples, its segments 4,999"),
        (lambda text: text.replace("m_1 2000", "m 2000"), "segments itself"),
        (lambda text: text.replace("5000", "90000000").replace("m_1 2000", "m_1 89997000"), "samples, more than"),
        (lambda text: text.replace("m/2", "m/3"), "declares 3 segments and describes 2"),
        (lambda text: text.replace("m_1 2000", "m_1 x"), "a segment line without a length"),
    ],
)
def test_segments_that_are_refused(tmp_path: Path, change: Any, reason: str) -> None:
    segments(tmp_path, 3000, 2000)
    (tmp_path / "m.hea").write_text(change((tmp_path / "m.hea").read_text()))
    assert reason in refusal(tmp_path / "m.hea")


# --- cut short --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["16", "24", "32", "80", "212", "508", "516", "524"])
def test_wfdb_cut_short(tmp_path: Path, form: str) -> None:
    wfdb.wrsamp("a", 500, ["mV"] * 12, list(LEADS), beats(seconds=20).T, fmt=[form] * 12, write_dir=str(tmp_path))
    get("ecg").read(tmp_path / "a")
    file = next(path for path in tmp_path.iterdir() if path.suffix != ".hea")
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 4 // 5])
    message = refusal(tmp_path / "a")
    assert "cut short, the header declares 10,000 samples, its signal file contains" in message
    held = int(message.partition("contains ")[2].partition(";")[0].replace(",", ""))
    assert held == 8000 if form not in ("508", "516", "524") else 0 < held < 10_000


@pytest.mark.parametrize("name", ["a.edf", "a.bdf"])
def test_edf_of_other_lengths(tmp_path: Path, name: str) -> None:
    path = write_edf(tmp_path / name)
    data = path.read_bytes()
    expected = get("ecg").read(path).array
    for cut in (30_000, 1, len(data) - 4000):
        path.write_bytes(data[:-cut])
        message = refusal(path)
        assert "cut short, the header declares 6 data records, " in message
    path.write_bytes(data[:236] + b"-1      " + data[244:])
    sample = get("ecg").read(path)
    assert np.array_equal(sample.array, expected) and "the recording was not closed" in text_of(sample)
    path.write_bytes(data[:236] + b"4       " + data[244:])
    sample = get("ecg").read(path)
    assert np.array_equal(sample.array, expected) and "declares 4 data records, 6 are stored" in text_of(sample)
    path.write_bytes(data[:236] + b"9       " + data[244:])
    assert "declares 9 data records, 6 are stored" in refusal(path)


def test_dicom_of_other_lengths(tmp_path: Path) -> None:
    for declared, text in ((5001, "cut short, 5,000 of 5,001"), (9000, "cut short, 5,000 of 9,000")):
        source = waveform({"leads": range(12)})
        source.WaveformSequence[0].NumberOfWaveformSamples = declared
        source.save_as(tmp_path / "a.dcm")
        assert text in refusal(tmp_path / "a.dcm")
    source = waveform({"leads": range(12)})
    source.WaveformSequence[0].NumberOfWaveformSamples = 4000
    source.save_as(tmp_path / "a.dcm")
    sample = get("ecg").read(tmp_path / "a.dcm")
    assert np.array_equal(sample.array, TRUTH[:, :4000].astype(np.float32))
    assert "declares 4,000 samples, 5,000 are stored" in text_of(sample)


def test_tables_and_xml_cut_short(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv")
    text = path.read_text()
    path.write_text(text[: text.rindex(",")])
    assert "cut short: its last line, 3,001, has 12 of 13 cells" in refusal(path)
    lines = text.splitlines()
    path.write_text("\n".join([*lines[:7], lines[7].rpartition(",")[0], *lines[8:]]))
    assert "line 8 has fewer cells than the header names (13)" in refusal(path)
    path.write_text("\n".join([*lines[:7], lines[7] + ",1", *lines[8:]]))
    assert "line 8 has 14 cells, the header names 13" in refusal(path)
    path.write_text("\n".join([lines[0], *(line + "," for line in lines[1:])]))
    np.testing.assert_allclose(get("ecg").read(path).array, beats(), atol=1e-6)
    array = write_npy(tmp_path / "a.npy")
    array.write_bytes(array.read_bytes()[:-8000])
    assert "cut short: the header declares 36,000 values, 35,000 are stored" in refusal(array)
    (tmp_path / "a.xml").write_text(aecg(beats())[:9000])
    assert "it ends early: cut short" in refusal(tmp_path / "a.xml")
    (tmp_path / "a.xml").write_text(aecg(beats()).replace("</digits>", "</digit>", 1))
    with pytest.raises(ReadError, match="damaged in line 1"):
        get("ecg").read(tmp_path / "a.xml")
