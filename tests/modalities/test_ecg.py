"""WFDB records: lead order, derived leads, units, gaps, doubts."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import wfdb

from m3bind.errors import ReadError
from m3bind.modalities import get
from m3bind.modalities.ecg import LEADS, parse_lead, record_stem

Make = Callable[..., Path]
UPPER = tuple(lead.upper() for lead in LEADS)


@pytest.mark.parametrize("ending", ["", ".hea", ".dat"])
def test_any_way_to_name_a_record(tmp_path: Path, ending: str, make_ecg: Make) -> None:
    stem = make_ecg(tmp_path / "rec")
    sample = get("ecg").read(f"{stem}{ending}")
    assert sample.array.shape == (12, 1000) and sample.array.dtype == np.float32 and sample.rate == 100
    assert sample.warnings == [] and record_stem(f"{stem}{ending}") == stem


def test_leads_are_found_by_name_and_put_in_order(tmp_path: Path, make_ecg: Make) -> None:
    expected = get("ecg").read(make_ecg(tmp_path / "a")).array
    order = np.random.default_rng(0).permutation(12)
    names = [("Lead " + UPPER[k].lower()) if k % 2 else UPPER[k] for k in order]
    shuffled = make_ecg(tmp_path / "b", edit=lambda signal: signal[:, order])
    header = (tmp_path / "b.hea").read_text()
    for old, new in zip(UPPER, names):
        header = header.replace(f" {old}\n", f" ~{new}\n")
    (tmp_path / "b.hea").write_text(header.replace("~", ""))
    np.testing.assert_allclose(get("ecg").read(shuffled).array, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("written", "lead"),
    [
        ("aVR", "aVR"), (" avr ", "aVR"), ("LEAD II", "II"), ("v6", "V6"), ("LeadIII", "III"), ("ECG I", "I"),
        ("ECG-V1", "V1"), ("EKG aVL-ref", "aVL"), ("ECG V2 - Ref", "V2"), ("MDC_ECG_LEAD_AVR", "aVR"),
        ("MDC_ECG_LEAD_V6", "V6"), ("Lead I (Einthoven)", "I"), ("Lead - II", "II"), ("AVF_", "aVF"), ("DII", "II"),
        ("Lead-aVR", "aVR"), ("ECG: V3", "V3"),
        ("V", ""), ("MLII", ""), ("C3", ""), ("", ""), ("ECG", ""), ("V7", ""), ("IV", ""), ("ECG 1", ""), ("-", ""),
        ("Lead", ""), ("EEG C3-ref", ""), ("aVRx", ""), ("III-I", ""),
    ],
)  # fmt: skip
def test_lead_names(written: str, lead: str) -> None:
    assert parse_lead(written) == (lead, 1)


@pytest.mark.parametrize(
    "written", ["-aVR", "ECG -aVR", "Lead \u2212aVR", "aVR inverted", "MDC_ECG_LEAD_AVRneg", "- avr"]
)
def test_inverted_leads(written: str) -> None:
    assert parse_lead(written) == ("aVR", -1)


def test_inverted_lead_is_negated_and_reported(tmp_path: Path, make_ecg: Make) -> None:
    expected = get("ecg").read(make_ecg(tmp_path / "a")).array
    stem = make_ecg(tmp_path / "b", edit=lambda s: s * np.where(np.arange(12) == 3, -1, 1))
    header = tmp_path / "b.hea"
    header.write_text(header.read_text().replace(" AVR\n", " -aVR\n"))
    sample = get("ecg").read(stem)
    np.testing.assert_allclose(sample.array, expected, atol=1e-3)
    assert "aVR is stored inverted (-aVR); negated" in sample.steps and sample.warnings == []


def test_several_signals_of_one_name(tmp_path: Path, make_ecg: Make) -> None:
    stem = make_ecg(tmp_path / "a", leads=[*UPPER, "X"])
    expected = get("ecg").read(stem).array
    header = tmp_path / "a.hea"
    header.write_text(header.read_text().replace(" X\n", " v1\n"))
    sample = get("ecg").read(stem)
    assert np.array_equal(sample.array, expected) and "several signals named V1; the first is taken" in sample.warnings


@pytest.mark.parametrize("kept", [("I", "II"), ("II", "III"), ("I", "AVF"), ("AVR", "AVL"), ("I", "III", "AVL")])
def test_limb_leads_follow_from_any_two(tmp_path: Path, kept: tuple[str, ...], make_ecg: Make) -> None:
    expected = get("ecg").read(make_ecg(tmp_path / "a")).array
    columns = [UPPER.index(lead) for lead in (*kept, *UPPER[6:])]
    stem = make_ecg(tmp_path / "b", leads=[UPPER[k] for k in columns], edit=lambda signal: signal)
    full = get("ecg").read(stem)
    np.testing.assert_allclose(full.array[:6], expected[:6], atol=5e-3)
    assert full.warnings == [] and sum("computed from" in step for step in full.steps) == 6 - len(kept)


def test_missing_leads(tmp_path: Path, make_ecg: Make) -> None:
    some = get("ecg").read(make_ecg(tmp_path / "a", leads=UPPER[:10]))
    assert (some.array[10:] == 0).all() and "V5, V6 are missing" in " ".join(some.warnings)
    with pytest.raises(ReadError, match=r"leads V1, V2.* are missing; a 12-lead record is needed"):
        get("ecg").read(make_ecg(tmp_path / "b", leads=UPPER[:6]))
    with pytest.raises(ReadError, match="none of the 12"):
        get("ecg").read(make_ecg(tmp_path / "c", leads=["PLETH", "RESP"]))


def test_units(tmp_path: Path, make_ecg: Make) -> None:
    expected = get("ecg").read(make_ecg(tmp_path / "a")).array
    micro = get("ecg").read(make_ecg(tmp_path / "b", unit="uV"))
    np.testing.assert_allclose(micro.array, expected, atol=2e-3)
    assert micro.warnings == []
    with pytest.raises(ReadError, match="none of its leads is calibrated: the unit 'NU' is not a voltage"):
        get("ecg").read(make_ecg(tmp_path / "c", unit="NU"))


def test_gaps_are_filled(tmp_path: Path, make_ecg: Make) -> None:
    def gap(signal: np.ndarray) -> np.ndarray:
        signal = signal.copy()
        signal[200:210, 3] = np.nan
        signal[100:700, 8] = np.nan
        return signal

    sample = get("ecg").read(make_ecg(tmp_path / "a", edit=gap))
    assert np.isfinite(sample.array).all() and (sample.array[8] == 0).all()
    text = " ".join(sample.warnings)
    assert "gaps (up to 1.0%)" in text and "V3 has no value" in text and "V3 are missing" in text
    line = sample.array[3, 199:211]
    np.testing.assert_allclose(np.diff(line, 2), 0, atol=1e-3)


@pytest.mark.parametrize(
    ("edit", "doubt"),
    [
        (lambda s: s * 0, "all leads are flat"),
        (lambda s: np.where(np.arange(12) == 7, 0, s), "flat leads: V2"),
        (lambda s: s * 30, "very high voltage"),
        (lambda s: s[:, [1, 0, *range(2, 12)]], "I + III differs from II"),
    ],
)
def test_doubts(tmp_path: Path, edit: object, doubt: str, make_ecg: Make) -> None:
    assert doubt in " ".join(get("ecg").read(make_ecg(tmp_path / "a", edit=edit)).warnings)


def test_length_and_rate(tmp_path: Path, make_ecg: Make) -> None:
    assert "only 3.0 s" in " ".join(get("ecg").read(make_ecg(tmp_path / "a", seconds=3)).warnings)
    assert "sampling rate 20" in " ".join(get("ecg").read(make_ecg(tmp_path / "b", rate=20)).warnings)
    with pytest.raises(ReadError, match=r"only 0.50 s long"):
        get("ecg").read(make_ecg(tmp_path / "c", seconds=0.5))


def test_broken_records(tmp_path: Path, make_ecg: Make) -> None:
    stem = make_ecg(tmp_path / "a")
    header = (tmp_path / "a.hea").read_text()
    with pytest.raises(ReadError, match=r"no WFDB header"):
        get("ecg").read(tmp_path / "gone")
    (tmp_path / "a.hea").write_text(header.replace("a.dat", "../a.dat"))
    with pytest.raises(ReadError, match="outside its folder"):
        get("ecg").read(stem)
    (tmp_path / "a.hea").write_text(header.replace("1000\n", "90000000\n", 1))
    with pytest.raises(ReadError, match="samples, more than 50,000,000"):
        get("ecg").read(stem)
    (tmp_path / "a.hea").write_text("nonsense\n")
    with pytest.raises(ReadError, match="not a readable WFDB record"):
        get("ecg").read(stem)
    (tmp_path / "a.hea").write_text(header)
    (tmp_path / "a.dat").write_bytes((tmp_path / "a.dat").read_bytes()[:1000])
    with pytest.raises(ReadError, match="not a readable WFDB record"):
        get("ecg").read(stem)
    (tmp_path / "a.dat").unlink()
    with pytest.raises(ReadError, match="signal file named by the header is missing"):
        get("ecg").read(stem)


def test_real_records_of_other_kinds(native: Path, tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="a 12-lead record is needed"):
        get("ecg").read(native / "ecg" / "a103l")
    with pytest.raises(ReadError, match="annotations only"):
        get("ecg").read(native / "ecg" / "test_edfann.edf")
    with pytest.raises(ReadError, match="a DICOM file without waveforms"):
        get("ecg").read(native / "dicom" / "CT_small.dcm")
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ReadError, match="not a file that ecg reads"):
        get("ecg").read(tmp_path / "a.txt")


def test_values_of_the_benchmark_are_those_of_wfdb(mini5: Path) -> None:
    records = sorted((mini5 / "ecg" / "ptbxl100").glob("*.hea"))[::20]
    assert len(records) > 15
    for header in records:
        record = wfdb.rdrecord(str(header.with_suffix("")))
        order = [[name.upper() for name in record.sig_name].index(lead) for lead in UPPER]
        sample = get("ecg").read(header.with_suffix(""))
        assert np.array_equal(sample.array, record.p_signal.T[order].astype(np.float32)) and sample.rate == record.fs


def test_a_long_record_is_not_cut(tmp_path: Path, make_ecg: Make) -> None:
    sample = get("ecg").read(make_ecg(tmp_path / "a", seconds=120))
    assert sample.array.shape == (12, 12_000) and sample.warnings == []


@pytest.mark.parametrize("rate", [100, 500])
def test_signal_quality(tmp_path: Path, rate: int, make_ecg: Make) -> None:
    rng = np.random.default_rng(0)

    def doubts(edit: Callable[[np.ndarray], np.ndarray]) -> str:
        return " ".join(get("ecg").read(make_ecg(tmp_path / "a", rate=rate, edit=edit)).warnings)

    seconds = np.arange(10 * rate)[:, None] / rate
    assert doubts(lambda s: s + rng.normal(size=s.shape) * 0.01) == ""
    assert "very noisy" in doubts(lambda s: s + rng.normal(size=s.shape) * 0.4)
    assert "baseline" not in doubts(lambda s: s + 0.3 * np.sin(2 * np.pi * 0.2 * seconds))
    assert "the baseline wanders by" in doubts(lambda s: s + 2 * np.sin(2 * np.pi * 0.1 * seconds))
    assert "clipped (saturated) leads: V3, V6" in doubts(lambda s: np.where(np.isin(np.arange(12), (8, 11)),
                                                                            np.minimum(s, 0.5), s))  # fmt: skip


def test_rates_too_far_apart(tmp_path: Path) -> None:
    import edfio

    signals = [edfio.EdfSignal(np.linspace(0, 1, 4 * rate), rate, label=lead, physical_dimension="mV")
               for lead, rate in zip(LEADS, [2000, *[10] * 11])]  # fmt: skip
    edfio.Edf(signals).write(tmp_path / "a.edf")
    with pytest.raises(ReadError, match="differ more than 100 times"):
        get("ecg").read(tmp_path / "a.edf")
