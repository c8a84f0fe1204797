"""Items that listen and pull index with a space on an accelerator are those of the CPU."""

from pathlib import Path

import numpy as np

from hospital.planted import electrocardiogram, radiograph, series
from hospital.test_encoder import put
from m3bind.hospital.encoder import SpoolEncoder
from m3bind.hospital.results import findings
from m3bind.hospital.spool import Spool
from m3bind.index import create_index
from m3bind.space.bundle import load
from pretend.device import DEVICE, pretend_device


def indexed(
    space_folder: Path, folder: Path, device: str, objects: list[object]
) -> tuple[list[str], np.ndarray, list[float]]:
    """Ids and vectors of the items, and the probabilities of their results."""
    folder.mkdir()
    space = load(space_folder, device)
    with (
        Spool(folder / "spool", quiet=1e9) as spool,
        create_index(folder / "index", space.dim, space.fingerprint) as index,
    ):
        put(spool, folder / "in", *objects)
        SpoolEncoder(space, index, spool, workers=2).drain(at_once=True)
        assert index.counts() == {"ct": 1, "ecg": 1, "xray": 1}
        names = sorted(index.sample(3)[0])
        found = findings(space, index, names, ["normal", "pneumonia"])
        return names, index.vectors(names), [chance for finding in found for chance in finding.probabilities]


def test_items_and_results_are_those_of_the_cpu(space_folder: Path, tmp_path: Path) -> None:
    objects = [*series(Path("/nowhere"), None), radiograph(), electrocardiogram()]
    names, rows, chances = indexed(space_folder, tmp_path / "cpu", "cpu", objects)
    with pretend_device(float64=False):
        got = indexed(space_folder, tmp_path / "device", DEVICE, objects)
    assert got[0] == names
    np.testing.assert_allclose(got[1], rows, atol=1e-6)
    np.testing.assert_allclose(got[2], chances, atol=1e-6)
