"""An ECG reads the same before and after de-identification, however its units and leads are written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from tests.modalities.test_calibration import UNIT_CODES, unit_code
from tests.modalities.test_signal_sets import CHEST, LIMB, MEDIAN, three_by_four, waveform
from tests.modalities.test_signals import channels, dataset

from m3bind.errors import ReadError
from m3bind.hospital.deidentify import Deidentifier
from m3bind.hospital.pseudonyms import Pseudonyms
from m3bind.modalities import get

CLEAN = Deidentifier(Pseudonyms(b"a salt only for tests"))


def read(source: Any, path: Path) -> tuple[Any, list[str]]:
    source.save_as(path)
    try:
        sample = get("ecg").read(path)
    except ReadError as error:
        return None, [error.reason]
    return sample.array, sample.warnings


def assert_alike(source: Any, folder: Path) -> tuple[Any, list[str]]:
    array, warnings = read(source, folder / "as sent.dcm")
    cleaned, doubts = read(CLEAN.clean_file(folder / "as sent.dcm").dataset, folder / "cleaned.dcm")
    assert (array is None) == (cleaned is None), (warnings, doubts)
    assert array is None or np.array_equal(array, cleaned)
    assert len(warnings) == len(doubts)
    return array, doubts


@pytest.mark.parametrize(
    "code",
    [*UNIT_CODES, unit_code("MV"), unit_code("mV", "UCUM", "microvolt"), unit_code("2.5 uV"), unit_code("mmHg"),
     unit_code("V"), unit_code("X", "99A", "millivolts"), unit_code("", None, "")],
)  # fmt: skip
def test_units(tmp_path: Path, code: list[Any]) -> None:
    source = dataset()
    for channel in channels(source):
        channel.ChannelSensitivityUnitsSequence = code
    assert_alike(source, tmp_path)


def lead(value: str, scheme: str = "", meaning: str = "", label: str = "") -> Callable[[Any], None]:
    def change(channel: Any) -> None:
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
        channel.ChannelSourceSequence = [item]
        channel.ChannelLabel = label

    return change


@pytest.mark.parametrize(
    "change",
    [
        lead("5.6.3-9-2", "SCPECG", "Lead II"), lead("5.6.3-9-2", "", "x"), lead("2:2", "MDC"), lead("2", "SCPECG"),
        lead("131074", "MDC"), lead("131330", "MDC"), lead("MDC_ECG_LEAD_II", "MDC"), lead("X", "99A", "Ableitung II"),
        lead("X", "99A", "Derivación II"), lead("X", "99A", "unknown", "Lead II"), lead("", "", "", "II"),
        lead("5.6.3-9-0", "SCPECG", "unspecified", "DII"), lead("5.6.3-9-0", "SCPECG", "Lead II"),
        lead("X", "99A", "-II"), lead("X", "99A", "II inverted"), lead("2:11", "MDC", "Lead V3R", "II"),
        lead("9", "SCPECG", "Lead V7", "II"), lead("X", "99A", "somebody", "nobody"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("number", [1, 7])
def test_leads(tmp_path: Path, change: Callable[[Any], None], number: int) -> None:
    source = dataset()
    change(channels(source)[number])
    assert_alike(source, tmp_path)


@pytest.mark.parametrize(
    "groups",
    [[{"leads": LIMB}, {"leads": CHEST}], three_by_four(True), [MEDIAN, {"leads": range(12)}], [MEDIAN]],
    ids=("6+6", "3x4", "median", "median alone"),
)
def test_groups(tmp_path: Path, groups: list[dict[str, Any]]) -> None:
    array, _ = assert_alike(waveform(*groups), tmp_path)
    assert array is not None


def test_no_name_of_a_person_stays(tmp_path: Path) -> None:
    source = dataset()
    for channel in channels(source):
        lead("Meyerhuber", "99A", "Meyerhuber", "Meyerhuber II")(channel)
        channel.ChannelSensitivityUnitsSequence = unit_code("uV", "99MEYERHUBER", "Meyerhuber")
    source.save_as(tmp_path / "a.dcm")
    CLEAN.clean_file(tmp_path / "a.dcm").dataset.save_as(tmp_path / "b.dcm")
    assert b"eyerhuber" not in (tmp_path / "b.dcm").read_bytes()
    assert b"MEYERHUBER" not in (tmp_path / "b.dcm").read_bytes()
