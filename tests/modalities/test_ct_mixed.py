"""Volumes of one series with interleaved slices, and series spread over several folders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from pydicom.dataset import Dataset
from scipy.ndimage import gaussian_filter

from m3bind.errors import ReadError
from m3bind.modalities import get
from m3bind.modalities.base import Sample
from m3bind.modalities.formats import ct_mixed
from m3bind.modalities.formats import series as _series
from m3bind.modalities.formats.files import files_below
from modalities.ct_files import body, each, enhanced, slices, write

ONE, TWO, THREE = body(40.0), body(340.0), body(-400.0)


def read(path: Path) -> Sample:
    return _series.read_folder(path)


def doubts(sample: Sample) -> str:
    return "; ".join(sample.warnings)


def series(datasets: list[Dataset], uid: str) -> list[Dataset]:
    return each(datasets, SeriesInstanceUID=f"1.2.3.{uid}", SeriesNumber=int(uid))


# ------------------------------------------------------------------------------------------------- in between


NUMBERED: dict[str, Callable[[], list[Dataset]]] = {
    "two passes": lambda: slices(ONE) + slices(TWO, first=13, z=1.0),
    "nearer to one side": lambda: slices(ONE) + slices(TWO, first=13, z=0.7),
    "one up, one down": lambda: slices(ONE) + each(slices(TWO, z=1.0), InstanceNumber=lambda k: 24 - k),
    "three passes": lambda: slices(ONE) + slices(TWO, first=13, z=0.7) + slices(THREE, first=25, z=1.4),
}  # fmt: skip
TIMED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "acquisition time": ({"AcquisitionTime": "101010"}, {"AcquisitionTime": "101210"}),
    "trigger time": ({"TriggerTime": 200}, {"TriggerTime": 600}),
    "content time": ({"ContentTime": lambda k: f"1010{k:02d}"}, {"ContentTime": lambda k: f"1030{k:02d}"}),
}


@pytest.mark.parametrize("what", NUMBERED)
def test_passes_by_number_that_lie_in_between_are_not_mixed(tmp_path: Path, what: str) -> None:
    sample = read(write(tmp_path / "s", NUMBERED[what]()))
    np.testing.assert_array_equal(sample.array, ONE)
    assert sample.spacing == (2.0, 0.8, 0.8)
    assert "interleaved volumes, distinguished by their numbers: took one with 12 slices" in doubts(sample)


@pytest.mark.parametrize("what", TIMED)
def test_passes_by_time_that_lie_in_between_are_not_mixed(tmp_path: Path, what: str) -> None:
    first, second = TIMED[what]
    both = each(slices(ONE), InstanceNumber=1, **first) + each(slices(TWO, z=1.0), InstanceNumber=1, **second)
    sample = read(write(tmp_path / "s", both))
    np.testing.assert_array_equal(sample.array, ONE)
    assert f"distinguished by {what}" in doubts(sample)


@pytest.mark.parametrize("seed", range(3))
def test_alternating_slices_that_cannot_be_assigned_are_refused(tmp_path: Path, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(24)
    both = each(slices(ONE) + slices(TWO, z=1.0), InstanceNumber=lambda k: int(order[k]))
    with pytest.raises(ReadError, match="neighbouring slices are of different volumes"):
        read(write(tmp_path / "s", both))


RNG = np.random.default_rng(7)
SMOOTH = gaussian_filter(RNG.normal(size=(48, 40, 40)), 4) * 6000 + np.linspace(-100, 100, 40)
NOISE = RNG.normal(size=SMOOTH.shape)
KERNEL = 12 * gaussian_filter(NOISE, (0, 1, 1))  # correlated noise
OTHERS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "another patient": (lambda v: v[:, ::-1, ::-1], "refused"),
    "a window": (lambda v: np.clip(v, 0, 60), "refused"),
    "half the slope": (lambda v: v * 0.5 - 300, "refused"),
    "contrast": (lambda v: v + 40 * (v > 50), "doubted"),
    "another level": (lambda v: v + 25, "doubted"),
    "more noise": (lambda v: v + 30 * NOISE[: len(v)], "doubted"),
    "a sharper kernel": (lambda v: v + 3 * (v - gaussian_filter(v, (0, 1, 1))) + 9 * NOISE[: len(v)], "doubted"),
}


def in_turns(what: str) -> np.ndarray:
    volume = SMOOTH + KERNEL
    volume[1::2] = OTHERS[what][0](volume[1::2])
    return volume.round()


def outcome(path: Path) -> str:
    try:
        text = doubts(get("ct").read(path))
    except ReadError as error:
        assert "neighbouring slices are of different volumes" in error.reason
        return "refused"
    return "doubted" if "perhaps several phases, kernels or windows" in text else text


@pytest.mark.parametrize("what", OTHERS)
def test_every_second_slice_of_another_reconstruction(tmp_path: Path, what: str) -> None:
    volume = in_turns(what)
    assert outcome(write(tmp_path / "s", each(slices(volume), InstanceNumber=1))) == OTHERS[what][1]
    nibabel.save(nibabel.Nifti1Image(volume.T.astype(np.int16), np.diag([1.0, 1, 2, 1])), tmp_path / "a.nii.gz")
    np.savez(tmp_path / "a.npz", ct=volume.astype(np.int16))
    assert outcome(tmp_path / "a.nii.gz") == outcome(tmp_path / "a.npz") == "doubted"  # their slices may be no slices


@pytest.mark.parametrize("count", [2, 3, 4, 5])
@pytest.mark.parametrize("regular", [True, False])
def test_several_volumes_without_numbers_or_times_are_not_taken(tmp_path: Path, count: int, regular: bool) -> None:
    both = []
    for number in range(count):
        volume = gaussian_filter(np.random.default_rng(number).normal(size=(16, 32, 32)), 3) * 6000
        both += slices(volume.round(), z=2 * number / count)
    if not regular:
        for k, dataset in enumerate(both):
            dataset.ImagePositionPatient[2] = float(dataset.ImagePositionPatient[2]) + 0.37 * ((k * 7) % 5)
    found = outcome(write(tmp_path / "s", each(both, InstanceNumber=1)))
    assert found == "refused" or (found == "doubted" and not regular)


SOUND: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as it is": lambda v: v,
    "thick": lambda v: v[::4],
    "noisy": lambda v: v + 80 * NOISE,
    "noisier towards the head": lambda v: v + np.linspace(0, 80, len(v))[:, None, None] * NOISE,
    "two halves": lambda v: np.concatenate([v[:24], v[24:] * 0.5 - 300]),
    "one odd slice": lambda v: np.concatenate([v[:9], v[9:10, ::-1] + 400, v[10:]]),
    "blank": lambda v: np.full_like(v, -1000),
    "only noise": lambda v: 50 * NOISE,
}


@pytest.mark.parametrize("what", SOUND)
def test_valid_volumes_are_not_taken_for_mixed_ones(what: str) -> None:
    warnings: list[str] = []
    ct_mixed.check_alternation(SOUND[what](SMOOTH + KERNEL).astype(np.float32), "x", warnings)
    assert warnings == []


ORDINARY: dict[str, Any] = {
    "odd numbers, then even ones": {"InstanceNumber": lambda k: k // 2 + 1 + 6 * (k % 2)},
    "at random": {"InstanceNumber": lambda k: int(np.random.default_rng(3).permutation(12)[k])},
    "written by two at once": {"ContentTime": lambda k: f"10101{k % 2}"},
    "two parts": {"AcquisitionTime": lambda k: f"10101{k // 6}", "InstanceNumber": lambda k: k % 6 + 1},
}


@pytest.mark.parametrize("what", ORDINARY)
def test_numbers_and_times_of_one_volume_part_nothing(tmp_path: Path, what: str) -> None:
    volume = np.maximum(body(40.0) + np.random.default_rng(5).normal(0, 20, (12, 24, 24)).round(), -1024)
    sample = read(write(tmp_path / "s", each(slices(volume), **ORDINARY[what])))
    np.testing.assert_array_equal(sample.array, volume)
    assert sample.warnings == []


# ------------------------------------------------------------------------------------------------- headers


@pytest.mark.parametrize("change", [{}, {"ImagePositionPatient": [1, 2, 3]}, {"SliceLocation": lambda k: -2.0 * k}])
def test_one_position_for_all_slices_is_none(tmp_path: Path, change: dict[str, Any]) -> None:
    entries = {"ImagePositionPatient": [0, 0, 0], "SliceLocation": lambda k: 2.0 * k} | change
    sample = read(write(tmp_path / "s", each(slices(ONE), **entries)))
    up = entries["SliceLocation"](1) > 0
    np.testing.assert_array_equal(sample.array, ONE if up else ONE[::-1])
    assert "all slices state one position, but different slice locations" in doubts(sample)


@pytest.mark.parametrize("keyword", ["PatientID"])
def test_slices_of_different_patients_are_doubted(tmp_path: Path, keyword: str) -> None:
    both = slices(ONE)
    setattr(both[4], keyword, "SECRET-2")
    sample = read(write(tmp_path / "s", both))
    assert "different patients" in doubts(sample) and "SECRET" not in doubts(sample)


def test_more_bytes_of_pixels_than_the_header_describes_are_reported(tmp_path: Path) -> None:
    for name, entries in {
        "bits": {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7},
        "rows": {"Rows": 23},
        "columns": {"Columns": 23},
    }.items():
        sample = read(write(tmp_path / name, each(slices(ONE), **entries)))
        assert "12 of 12 slices: 1,152 bytes of pixels, of which the header describes" in doubts(sample), name
    padded = each(slices(ONE), PixelData=lambda k: (ONE[k] + 1024).astype(np.uint16).tobytes() + bytes(6))
    assert read(write(tmp_path / "padded", padded)).warnings == []


@pytest.mark.parametrize("keyword", ["RescaleSlope", "PixelSpacing", "ImagePositionPatient"])
def test_decimal_commas_are_read_as_points(tmp_path: Path, keyword: str) -> None:
    folder = write(tmp_path / "s", each(slices(ONE), RescaleSlope="1.00"))
    expected = read(folder)
    for path in folder.iterdir():
        data = path.read_bytes()
        tag = {"RescaleSlope": b"(\0\x53\x10DS", "PixelSpacing": b"(\0\x30\0DS", "ImagePositionPatient": b" \0\x32\0DS"}
        at = data.index(tag[keyword]) + 8
        end = at + int.from_bytes(data[at - 2 : at], "little")
        assert b"." in data[at:end]
        path.write_bytes(data[:at] + data[at:end].replace(b".", b",") + data[end:])
    sample = read(folder)
    np.testing.assert_array_equal(sample.array, expected.array)
    assert (sample.spacing, sample.warnings) == (expected.spacing, [])


# ------------------------------------------------------------------------------------------------- folders


def test_loose_slices_above_other_series_are_the_folders_own(tmp_path: Path) -> None:
    top = write(tmp_path / "top", series(slices(ONE), "1"))
    write(top / "other", series(slices(body(340.0, depth=20)), "2"))
    (top / "other" / "broken.dcm").write_bytes(b"x" * 200)
    assert list(files_below(top)) == [top, top / "other", top / "other" / "broken.dcm"]
    sample = read(top)
    np.testing.assert_array_equal(sample.array, ONE)
    assert sample.warnings == [] and "20 slices of other series in subfolders" in "; ".join(sample.steps)
    rest = series(slices(body(340.0, depth=24)), "2")[20:]
    write(top / "more", [*rest, *each(series(slices(ONE[:2], z=24.0, first=13), "1"))])
    assert read(top).array.shape == (14, 24, 24)


@pytest.mark.parametrize("share", [1, 4, 5])
def test_a_series_in_several_folders_is_one(tmp_path: Path, share: int) -> None:
    top, parts = tmp_path / "patient" / "DICOM", slices(ONE)
    for k in range(0, 12, share):
        write(top / f"S{k:02d}", parts[k : k + share])
    write(tmp_path / "next", series(slices(TWO), "2"))
    found = list(files_below(tmp_path))
    assert found == [tmp_path / "next", top]
    np.testing.assert_array_equal(read(top).array, ONE)


def test_copies_phases_and_whole_series_side_by_side_stay_items_of_their_own(tmp_path: Path) -> None:
    for name in ("a", "a copy"):
        write(tmp_path / "copies" / name, slices(ONE))
    for name, volume in {"phase 0": ONE, "phase 50": TWO}.items():
        write(tmp_path / "phases" / name, series(slices(volume), "2"))
    for name, datasets in {"x": series(slices(ONE), "3")[:6], "y": series(slices(ONE), "3")[6:]}.items():
        write(tmp_path / "beside" / name, datasets)
    write(tmp_path / "beside" / "z", series(slices(TWO), "4"))
    names = [path.relative_to(tmp_path).as_posix() for path in files_below(tmp_path)]
    assert names == [
        "beside/x",
        "beside/y",
        "beside/z",
        "copies/a",
        "copies/a copy",
        "phases/phase 0",
        "phases/phase 50",
    ]


@pytest.mark.parametrize("files", [6, 4, 1])
def test_a_part_of_a_series_beside_another_part_is_doubted(tmp_path: Path, files: int) -> None:
    both = series(slices(ONE), "3")
    write(tmp_path / "beside" / "x", both[:-files])
    write(tmp_path / "beside" / "y", both[-files:])
    write(tmp_path / "beside" / "z", series(slices(TWO), "4"))
    for name, said in {"x": True, "z": False}.items():
        assert ("a part of a volume?" in doubts(read(tmp_path / "beside" / name))) == said
    for name, datasets in {"copy 1": both, "copy 2": both, "phase": series(slices(TWO), "3")}.items():
        write(tmp_path / "whole" / name, datasets)
    (tmp_path / "whole" / "broken").mkdir()
    (tmp_path / "whole" / "broken" / "a.dcm").write_bytes(bytes(128) + b"DICM" + b"x" * 99)
    (tmp_path / "whole" / "empty").mkdir()
    for name in ("copy 1", "copy 2", "phase"):
        assert read(tmp_path / "whole" / name).warnings == []


def test_an_enhanced_file_is_an_item_wherever_it_lies(tmp_path: Path) -> None:
    frames = [(plane, 2.0 * k, {}) for k, plane in enumerate(ONE)]
    paths = [enhanced(tmp_path / name / "e.dcm", frames) for name in ("a", "b")]
    assert list(files_below(tmp_path)) == paths
