"""Every reader on the real benchmark: every file is read, within a minute, and valid files have no doubts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from m3bind.data import Record, read_manifest
from m3bind.errors import ReadError
from m3bind.modalities import get

SHAPES = {"xray": 2, "ct": 3, "retina": 3, "ecg": 2, "pathology": 3}


QUALITY = ("blurred", "dark", "exposed", "flat border")  # true of some real pictures, by eye


def read_all(records: Sequence[Record]) -> tuple[list[str], list[str]]:
    """Read every file; doubts about what it is (but the one every CT picture gets), and doubts about its quality."""
    doubts, quality = [], []
    for record in records:
        sample = get(record.modality).read(record.path)
        assert sample.array.dtype == np.float32 and sample.array.ndim == SHAPES[record.modality]
        assert np.isfinite(sample.array).all() and sample.modality == record.modality
        for text in sample.warnings:
            if "not Hounsfield units" not in text:
                (quality if any(word in text for word in QUALITY) else doubts).append(text)
    return doubts, quality


def check_all(records: Sequence[Record]) -> None:
    doubts, quality = read_all(records)
    assert doubts == []
    assert len(quality) < 0.03 * len(records)


def test_every_tenth_file_is_read_without_false_doubts(mini5: Path) -> None:
    check_all(read_manifest(mini5 / "manifest.csv").records[::10])


@pytest.mark.slow
def test_all_files_are_read_without_false_doubts(mini5: Path) -> None:
    check_all(read_manifest(mini5 / "manifest.csv").records)


def test_real_pictures_of_the_wrong_modality_are_caught(mini5: Path) -> None:
    records = read_manifest(mini5 / "manifest.csv", sets=["odir256", "lc25000", "nih224"]).records
    for modality, other, least in (
        ("xray", "retina", 1.0),
        ("xray", "pathology", 1.0),
        ("retina", "xray", 1.0),
        ("pathology", "xray", 1.0),
        ("pathology", "retina", 0.95),
        ("retina", "pathology", 0.95),
    ):
        some = [record.path for record in records if record.modality == other][::15]
        caught = sum(_is_caught(modality, path) for path in some)
        assert caught >= least * len(some), (modality, other, caught, len(some))


def _is_caught(modality: str, path: Path) -> bool:
    try:
        return bool(get(modality).read(path).warnings)
    except ReadError:
        return True


@pytest.mark.parametrize("modality", sorted(SHAPES))
def test_real_thumbnails(mini5: Path, modality: str) -> None:
    reader = get(modality)
    records = read_manifest(mini5 / "manifest.csv", modalities=[modality]).records
    for record in records[:: max(1, len(records) // 5)]:
        thumbnail = reader.thumbnail(reader.read(record.path), 120)
        assert max(thumbnail.size) in (119, 120) and np.asarray(thumbnail).std() > 5
