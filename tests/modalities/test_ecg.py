"""WFDB records: lead order, derived leads, units, gaps, doubts."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from m3bind.errors import ReadError
from m3bind.modalities import get
from m3bind.modalities.ecg import LEADS, lead_name, record_stem

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
    ("written", "lead"), [("aVR", "aVR"), (" avr ", "aVR"), ("LEAD II", "II"), ("V", ""), ("MLII", ""), ("v6", "V6")]
)
def test_lead_names(written: str, lead: str) -> None:
    assert lead_name(written) == lead


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
    unknown = get("ecg").read(make_ecg(tmp_path / "c", unit="NU"))
    assert any("unit not known" in text and "V6" in text for text in unknown.warnings)


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
    with pytest.raises(ReadError, match="not a readable WFDB record"):
        get("ecg").read(stem)
    (tmp_path / "a.hea").write_text(header.replace("1000\n", "90000000\n", 1))
    with pytest.raises(ReadError, match="too long"):
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


def test_real_records_of_other_kinds(native: Path) -> None:
    with pytest.raises(ReadError, match="a 12-lead record is needed"):
        get("ecg").read(native / "ecg" / "a103l")
    with pytest.raises(ReadError, match="not a file that ecg reads"):
        get("ecg").read(native / "ecg" / "test_edfann.edf")
