"""One volume of a series with several: which is read, that it is complete, and how the rest is reported."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from m3bind.errors import ReadError
from m3bind.modalities import Sample, get
from modalities.ct_files import body, each, enhanced, group, plain, slices, write

ONE, TWO = body(40), body(340)  # two volumes of 12 slices at the same places
Entries = dict[str, Any]


def read(path: Path) -> Sample:
    return get("ct").read(path)


def doubts(sample: Sample) -> str:
    return " | ".join(sample.warnings)


# what tells two volumes of a series apart: entries of the first and of the second
APART: dict[str, tuple[Entries, Entries, str]] = {
    "temporal index": ({"TemporalPositionIndex": 1}, {"TemporalPositionIndex": 2}, "temporal position 1"),
    "temporal identifier": ({"TemporalPositionIdentifier": 3}, {"TemporalPositionIdentifier": 8}, "position 3"),
    "cardiac phase": (
        {"NominalPercentageOfCardiacPhase": 30.0},
        {"NominalPercentageOfCardiacPhase": 70.0},
        "cardiac phase 30",
    ),
    "respiratory phase": (
        {"NominalPercentageOfRespiratoryPhase": 0.0},
        {"NominalPercentageOfRespiratoryPhase": 50.0},
        "respiratory phase 0",
    ),
    "stack": ({"StackID": "1"}, {"StackID": "2"}, "stack 1"),
    "acquisition": ({"AcquisitionNumber": 2}, {"AcquisitionNumber": 5}, "acquisition 2"),
    "kernel": ({"ConvolutionKernel": "B30f"}, {"ConvolutionKernel": "B70f"}, "kernel B30F"),
    "voltage": ({"KVP": 80}, {"KVP": 140}, "tube voltage 80"),
    "thickness": ({"SliceThickness": 1.0}, {"SliceThickness": 5.0}, "slice thickness 1"),
    "projection": (
        {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]},
        {"ImageType": ["DERIVED", "SECONDARY", "MIP"]},
        "image type ORIGINAL/PRIMARY/AXIAL",
    ),
    "trigger time": ({"TriggerTime": 100}, {"TriggerTime": 550}, "trigger time"),
    "acquisition time": ({"AcquisitionTime": "101500"}, {"AcquisitionTime": "101530.5"}, "acquisition time"),
    "time of each slice": (
        {"ContentTime": lambda k: f"{101500 + k}"},
        {"ContentTime": lambda k: f"{101530 + k}"},
        "content time",
    ),
}


@pytest.mark.parametrize("what", APART)
@pytest.mark.parametrize("numbers", ["shuffled", "absent"])
def test_two_volumes_at_the_same_places(tmp_path: Path, what: str, numbers: str) -> None:
    """The first of two is read, whole, in order, whatever the numbers of instances say; the other one is named."""
    first, second, said = APART[what]
    both = each(slices(ONE), **first) + each(slices(TWO, first=13), **second)
    if numbers == "shuffled":
        each(both, InstanceNumber=lambda k: int(np.random.default_rng(5).permutation(24)[k]))
    else:
        for dataset in both:
            del dataset.InstanceNumber
    sample = read(write(tmp_path / "s", both))
    by_number = what == "kernel" and numbers == "shuffled"  # where nothing else ranks them, the lowest number does
    np.testing.assert_array_equal(sample.array, TWO if by_number else ONE)
    said = said.replace("B30F", "B70F") if by_number else said
    assert said in doubts(sample) and "excluded 12 slices" in doubts(sample) and sample.unit == "HU"
    assert sample.spacing == pytest.approx((2.0, 0.8, 0.8))


@pytest.mark.parametrize("what", ["temporal index", "cardiac phase", "acquisition", "kernel"])
def test_the_volume_with_more_slices_is_taken(tmp_path: Path, what: str) -> None:
    first, second, _ = APART[what]
    sample = read(write(tmp_path / "s", each(slices(ONE)[:9], **first) + each(slices(TWO), **second)))
    np.testing.assert_array_equal(sample.array, TWO)


@pytest.mark.parametrize("what", ["temporal index", "acquisition", "kernel"])
def test_volumes_that_lie_between_each_other_are_not_mixed(tmp_path: Path, what: str) -> None:
    """The second one is half a distance further up: no place is repeated."""
    first, second, _ = APART[what]
    both = each(slices(ONE), **first) + each(slices(TWO, z=1.0), **second)
    sample = read(write(tmp_path / "s", both))
    np.testing.assert_array_equal(sample.array, ONE)


@pytest.mark.parametrize("phases", [3, 5, 10])
def test_many_phases(tmp_path: Path, phases: int) -> None:
    series: list[Dataset] = []
    for phase in range(phases):
        series += each(slices(body(40 + 20 * phase)), NominalPercentageOfCardiacPhase=100.0 / phases * phase)
    each(series, InstanceNumber=lambda k: k + 1)
    sample = read(write(tmp_path / "s", series))
    np.testing.assert_array_equal(sample.array, body(40))
    assert f"{phases} volumes at the same places" in doubts(sample)


@pytest.mark.parametrize(
    "entries",
    [
        {"AcquisitionNumber": lambda k: 1 + k // 6},  # two slabs of one volume
        {"AcquisitionNumber": lambda k: k},  # each slice its own
        {"AcquisitionTime": lambda k: f"{101500 + k}", "ContentTime": lambda k: f"{101500 + 2 * k}"},
        {"TriggerTime": lambda k: 400 + 7 * (k % 3)},
        {"ImageType": lambda k: ["ORIGINAL", "PRIMARY", "AXIAL", *["HELIX"] * (k == 5)]},
        {"KVP": lambda k: 120 if k < 4 else 100},
        {"StackID": lambda k: str(1 + k // 4)},
        {"SliceThickness": lambda k: 2.0 if k % 11 else 2.5},
    ],
)
def test_what_differs_within_one_volume_does_not_part_it(tmp_path: Path, entries: Entries) -> None:
    sample = read(write(tmp_path / "s", each(slices(ONE), **entries)))
    np.testing.assert_array_equal(sample.array, ONE)
    assert sample.warnings == []


def test_slabs_that_overlap_are_joined_without_mixing(tmp_path: Path) -> None:
    """Acquisition 1 holds places 0 to 7, acquisition 2 places 6 to 11 with other values."""
    both = each(slices(ONE)[:8], AcquisitionNumber=1) + each(slices(TWO)[6:], AcquisitionNumber=2)
    sample = read(write(tmp_path / "s", both))
    np.testing.assert_array_equal(sample.array, np.concatenate([ONE[:8], TWO[8:]]))
    assert "2 slices dropped where parts of another acquisition overlap" in doubts(sample)


def test_slabs_each_taken_twice(tmp_path: Path) -> None:
    """Acquisitions 1, 3 and 2, 4 are two slabs, each scanned twice: the first of each is one volume."""
    series = []
    for number, (volume, part) in enumerate(((ONE, 0), (TWO, 0), (ONE, 1), (TWO, 1)), 1):
        series += each(slices(volume)[6 * part : 6 * part + 6], AcquisitionNumber=number)
    np.testing.assert_array_equal(read(write(tmp_path / "s", series)).array, ONE)


# ------------------------------------------------------------------------------------- nothing in the header tells


def test_passes_by_number_are_separated(tmp_path: Path) -> None:
    sample = read(write(tmp_path / "s", slices(ONE) + slices(TWO, first=13)))
    np.testing.assert_array_equal(sample.array, ONE)
    assert "12 of 24 slices repeat a position" in doubts(sample) and "by number" in doubts(sample)
    down = each(slices(ONE), InstanceNumber=lambda k: 12 - k) + each(slices(TWO), InstanceNumber=lambda k: 24 - k)
    np.testing.assert_array_equal(read(write(tmp_path / "down", down)).array, ONE)


@pytest.mark.parametrize("seed", range(6))
def test_shuffled_numbers_without_any_fact_are_refused(tmp_path: Path, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(24)
    both = each(slices(ONE) + slices(TWO), InstanceNumber=lambda k: int(order[k]))
    with pytest.raises(ReadError, match="12 of 12 places have several slices, and no entry"):
        read(write(tmp_path / "s", both, seed))


@pytest.mark.parametrize("numbers", [lambda k: 1, lambda k: k % 12, lambda k: 2 * (k % 12) + k // 12])
def test_numbers_that_tell_nothing_are_refused(tmp_path: Path, numbers: Callable[[int], int]) -> None:
    both = each(slices(ONE) + slices(TWO), InstanceNumber=numbers)
    with pytest.raises(ReadError, match="no entry distinguishes them"):
        read(write(tmp_path / "s", both))


def test_copies_are_dropped_whatever_their_numbers(tmp_path: Path) -> None:
    copies = each(slices(ONE), SOPInstanceUID=lambda k: generate_uid(), InstanceNumber=lambda k: (7 * k) % 24)
    sample = read(write(tmp_path / "s", slices(ONE) + copies))
    np.testing.assert_array_equal(sample.array, ONE)
    assert "12 of 24 slices repeat a position and were dropped (the same pixels)" in doubts(sample)


def test_one_other_slice_at_a_place_keeps_the_lower_number(tmp_path: Path) -> None:
    sample = read(write(tmp_path / "s", slices(ONE) + each(slices(TWO)[4:5], InstanceNumber=99)))
    np.testing.assert_array_equal(sample.array, ONE)
    assert "1 of 13 slices repeat a position" in doubts(sample)


# ------------------------------------------------------------------------------------------- series, sizes, planes


def test_several_series_in_one_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", slices(ONE)[:7])
    write(folder, each(slices(TWO), SeriesInstanceUID="1.2.4", SeriesNumber=9))
    scouts = each(slices(ONE)[:2], SeriesInstanceUID="1.2.5", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write(folder, scouts)
    sample = read(folder)
    np.testing.assert_array_equal(sample.array, TWO)
    assert "7 slices of 1 other series excluded" in doubts(sample) and "2 localizer" in " ".join(sample.steps)


def test_a_series_of_two_phases_does_not_win_by_its_number_of_files(tmp_path: Path) -> None:
    twice = each(slices(ONE)[:8], TemporalPositionIndex=1) + each(slices(ONE)[:8], TemporalPositionIndex=2)
    folder = write(tmp_path / "s", twice)
    write(folder, each(slices(TWO), SeriesInstanceUID="1.2.4"))
    np.testing.assert_array_equal(read(folder).array, TWO)


def test_equal_numbers_of_slices_thinner_then_lower_number(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", each(slices(ONE), SliceThickness=5.0, SeriesNumber=1))
    write(folder, each(slices(TWO), SeriesInstanceUID="1.2.4", SliceThickness=2.0, SeriesNumber=2))
    np.testing.assert_array_equal(read(folder).array, TWO)
    same = write(tmp_path / "t", each(slices(TWO), SeriesNumber=7, InstanceNumber=lambda k: k + 1))
    write(same, each(slices(ONE), SeriesInstanceUID="1.2.4", SeriesNumber=2))
    np.testing.assert_array_equal(read(same).array, ONE)


@pytest.mark.parametrize(
    "odd",
    [
        lambda: slices(body(90, 4, 30)),  # other rows and columns
        lambda: each(slices(body(90, 4)), PixelSpacing=[0.4, 0.4]),
        lambda: each(slices(body(90, 4)), ImageOrientationPatient=[1, 0, 0, 0, 0, -1]),
    ],
)
def test_slices_of_another_size_spacing_or_plane_are_left_out(tmp_path: Path, odd: Callable[[], list[Dataset]]) -> None:
    sample = read(write(tmp_path / "s", slices(ONE) + odd()))
    np.testing.assert_array_equal(sample.array, ONE)
    assert "4 of 16 slices of another size, orientation or pixel spacing" in doubts(sample)
    half = read(write(tmp_path / "half", slices(ONE)[:4] + each(odd(), SliceThickness=4.0)))
    np.testing.assert_array_equal(half.array, ONE[:4])  # as many of each: the thinner ones


def test_a_fan_of_single_slices_is_refused(tmp_path: Path) -> None:
    fan = []
    for k, dataset in enumerate(slices(ONE)):
        turn = np.deg2rad(15 * k)
        fan += each([dataset], ImageOrientationPatient=[float(np.cos(turn)), float(np.sin(turn)), 0, 0, 0, -1])
    with pytest.raises(ReadError, match="12 slices of 12 sizes, orientations or pixel spacings, all different"):
        read(write(tmp_path / "s", fan))


# --------------------------------------------------------------------------------------------------- enhanced files

FRAME = {
    "temporal": lambda t: {"FrameContentSequence": group(TemporalPositionIndex=t + 1, StackID="1")},
    "stack": lambda t: {"FrameContentSequence": group(StackID=str(t + 1))},
    "cardiac": lambda t: {"CardiacSynchronizationSequence": group(NominalPercentageOfCardiacPhase=30.0 + 40 * t)},
    "trigger": lambda t: {"CardiacSynchronizationSequence": group(NominalCardiacTriggerDelayTime=100.0 + 300 * t)},
    "time": lambda t: {"FrameContentSequence": group(FrameAcquisitionDateTime=f"2020010110{15 + t}00")},
    "kernel": lambda t: {"CTReconstructionSequence": group(ConvolutionKernel=["B30f", "B70f"][t])},
    "type": lambda t: {"CTImageFrameTypeSequence": group(FrameType=["ORIGINAL", "PRIMARY", ["AXIAL", "MIP"][t]])},
    "acquisition": lambda t: {"FrameContentSequence": group(FrameAcquisitionNumber=t + 1)},
}


@pytest.mark.parametrize("what", FRAME)
@pytest.mark.parametrize("order", ["volumes", "alternating", "shuffled"])
def test_one_enhanced_file_with_two_volumes(tmp_path: Path, what: str, order: str) -> None:
    frames = [(volume[k], 2.0 * k, FRAME[what](t)) for t, volume in enumerate((ONE, TWO)) for k in range(12)]
    places = {"volumes": np.arange(24), "alternating": np.arange(24).reshape(2, 12).T.ravel()}
    chosen = places.get(order, np.random.default_rng(3).permutation(24))
    sample = read(enhanced(tmp_path / "a.dcm", [frames[k] for k in chosen]))
    by_number = what == "kernel" and order == "shuffled"  # the first frame is of the second volume
    np.testing.assert_array_equal(sample.array, TWO if by_number else ONE)
    assert "2 volumes at the same places" in doubts(sample) and "excluded 12" in doubts(sample)


def test_dimension_indices_tell_volumes_apart(tmp_path: Path) -> None:
    """The organisation of dimensions alone: stack position, and a contrast agent's phase that no entry states."""
    pointers = [0x00209057, 0x00180010]  # InStackPositionNumber, ContrastBolusAgent
    dimensions = [group(DimensionIndexPointer=pointer)[0] for pointer in pointers]
    frames = []
    for k in np.random.default_rng(1).permutation(24).tolist():
        place, phase = k % 12, k // 12
        content = {"FrameContentSequence": group(DimensionIndexValues=[place + 1, phase + 1])}
        frames.append(((ONE, TWO)[phase][place], 2.0 * place, content))
    sample = read(enhanced(tmp_path / "a.dcm", frames, DimensionIndexSequence=dimensions))
    np.testing.assert_array_equal(sample.array, ONE)
    assert "distinguished by dimension" in doubts(sample)


def test_frames_that_cannot_be_assigned_are_refused(tmp_path: Path) -> None:
    frames = [((ONE, TWO)[(k + t) % 2][k], 2.0 * k, {}) for k in range(12) for t in range(2)]
    with pytest.raises(ReadError, match="no entry distinguishes them"):
        read(enhanced(tmp_path / "a.dcm", frames))


def test_several_enhanced_files_in_one_folder(tmp_path: Path) -> None:
    for name, volume in (("b", TWO), ("a", ONE)):
        enhanced(tmp_path / "s" / f"{name}.dcm", [(volume[k], 2.0 * k, {}) for k in range(12)])
    sample = read(tmp_path / "s")
    np.testing.assert_array_equal(sample.array, ONE)
    assert "2 volumes at the same places, distinguished by file" in doubts(sample)


def test_parts_of_one_enhanced_volume_in_several_files(tmp_path: Path) -> None:
    for part in range(3):
        frames = [(ONE[k], 2.0 * k, {}) for k in range(4 * part, 4 * part + 4)]
        top = {"SOPInstanceUIDOfConcatenationSource": "1.2.9", "InConcatenationNumber": part + 1}
        enhanced(tmp_path / "s" / f"{3 - part}.dcm", frames, **top)
        enhanced(tmp_path / "bare" / f"{3 - part}.dcm", frames)
    for name in ("s", "bare"):
        sample = read(tmp_path / name)
        np.testing.assert_array_equal(sample.array, ONE)
        assert sample.warnings == []


def test_a_localizer_among_the_frames_is_left_out(tmp_path: Path) -> None:
    kind = "CTImageFrameTypeSequence"
    frames = [(ONE[k], 2.0 * k, {kind: group(FrameType=["ORIGINAL", "PRIMARY", "AXIAL"])}) for k in range(12)]
    frames.insert(0, (TWO[0], 40.0, {kind: group(FrameType=["ORIGINAL", "PRIMARY", "LOCALIZER"])}))
    np.testing.assert_array_equal(read(enhanced(tmp_path / "a.dcm", frames)).array, ONE)


# ------------------------------------------------------------------------------------------------------- free text


def test_no_free_text_reaches_a_message(tmp_path: Path) -> None:
    for name, keyword in enumerate(("StackID", "ConvolutionKernel")):
        both = each(slices(ONE), **{keyword: "SECRET MEIER"}) + each(slices(TWO), **{keyword: "SECRETPERSON1"})
        sample = read(write(tmp_path / str(name), both))
        np.testing.assert_array_equal(sample.array, ONE)
        assert "SECRET" not in doubts(sample) + "".join(sample.steps)
    numbered = each(slices(ONE), AcquisitionNumber=12345678) + each(slices(TWO), AcquisitionNumber=12345679)
    assert "1234567" not in doubts(read(write(tmp_path / "n", numbered)))


def test_a_header_of_nothing_but_a_modality_is_no_slice(tmp_path: Path) -> None:
    dataset = plain((4, 4))
    del dataset.Rows
    with pytest.raises(ReadError, match="no CT slice"):
        read(write(tmp_path / "s", [dataset]))
