"""New virtual patients, sent from a real Orthanc into the demo's archive, are found by the text of their reports."""

import csv
import statistics
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from typer.testing import CliRunner

from hospital.conftest import SALT
from hospital.orthanc import Orthanc
from hospital.running import counts
from m3bind.cli import app
from m3bind.data.phantom import generate
from m3bind.data.phantom.dicom import write_dicom
from m3bind.hospital.pseudonyms import Pseudonyms
from m3bind.hospital.tags import SERIES
from m3bind.index import Where
from m3bind.search.query import Query
from m3bind.search.searcher import Searcher
from m3bind.space.bundle import load

PATIENTS = 8


@pytest.mark.slow
def test_new_patients_are_found_by_their_reports(
    orthanc: Callable[..., Orthanc], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from m3bind.cli.serve_demo import prepare

    demo = prepare(tmp_path / "runs")
    space, index = demo / "space", demo / "index"
    before = counts(index)
    generate(tmp_path / "cohort", patients=PATIENTS, seed=991, workers=1, fractions=(0.0, 0.0, 1.0))
    sent = write_dicom(tmp_path / "cohort", tmp_path / "dicom").parent
    server = orthanc()
    server.store(sorted(sent.rglob("*.dcm")))
    monkeypatch.setenv("M3BIND_SALT", SALT)
    monkeypatch.setenv("M3BIND_DICOMWEB_AUTH", server.auth)
    done = CliRunner().invoke(app, ["pull", server.web, "--space", str(space), "--index", str(index)])
    assert done.exit_code == 0, done.output
    assert counts(index) == {name: count + PATIENTS for name, count in before.items()}
    names, searcher = Pseudonyms(SALT.encode()), Searcher(load(space), str(index))
    ranks: dict[str, list[float]] = defaultdict(list)
    with open(sent / "manifest.csv", encoding="utf-8", newline="") as handle:
        for row in csv.DictReader(handle):
            path, modality = sent / row["path"], row["modality"]
            header = pydicom.dcmread(min(path.glob("*.dcm")) if path.is_dir() else path, stop_before_pixels=True)
            together = header.SOPClassUID in SERIES
            kind, uid = ("series", header.SeriesInstanceUID) if together else ("object", header.SOPInstanceUID)
            count = counts(index)[modality]
            hits = [hit.id for hit in searcher.search(Query.text(row["caption"]), count, Where(modality=modality))]
            ranks[modality].append(hits.index(names.key(kind, str(uid))) / count)
    middle = {modality: statistics.median(found) for modality, found in ranks.items()}
    print("median rank of the right item, as a share of its kind:", middle)
    assert statistics.median(middle.values()) < 0.25 and middle["xray"] < 0.25  # 0.5 by chance
