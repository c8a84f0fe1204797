"""Planted identifiers: none of them appears in logs, caches, bundles, reports, JSON or error messages.

120 made-up names are in DICOM entries (standard and private), file names, EXIF and PNG texts, ECG headers, EDF
fields, NIfTI descriptions, patient columns and reports.
"""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml
from PIL import Image, PngImagePlugin

from m3bind import modalities
from m3bind.errors import ReadError
from m3bind.pipeline import check
from pipeline.test_run import SETTINGS

COUNT = 120
LETTERS = "abdefgiklmnoprstuvz"


class Names:
    """Names like "Qzaberov", handed out one by one; all that were."""

    def __init__(self) -> None:
        self.used: list[str] = []

    def __call__(self) -> str:
        a, b = divmod(len(self.used), len(LETTERS))
        self.used.append(f"Qz{LETTERS[a]}{LETTERS[b]}erov")
        return self.used[-1]

    def found_in(self, data: bytes) -> list[str]:
        """Those that stand in `data`, in any case."""
        low = data.lower()
        return [name for name in self.used if name.lower().encode() in low]


def plant_dicom(path: Path, names: Names, broken: bool = False) -> Path:
    import pydicom
    from pydicom.data import get_testdata_file

    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    keywords = (
        "PatientName", "PatientID", "OtherPatientIDs", "PatientComments", "InstitutionName", "InstitutionAddress",
        "ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName", "StudyDescription", "SeriesDescription",
        "ProtocolName", "AccessionNumber", "StudyID", "ImageComments", "StationName", "DeviceSerialNumber",
        "PatientBirthName", "Occupation", "AdditionalPatientHistory", "BodyPartExamined", "PatientMotherBirthName",
    )  # fmt: skip
    for keyword in keywords:
        setattr(dataset, keyword, names()[:16])
    block = dataset.private_block(0x0099, names(), create=True)
    block.add_new(1, "LO", names())
    block.add_new(2, "LT", names())
    if broken:
        dataset.PixelData = dataset.PixelData[:100]
    path = path.with_name(names() + path.name)
    dataset.save_as(path)
    return path


def plant_png(path: Path, names: Names, picture: Image.Image, broken: bool = False) -> Path:
    info = PngImagePlugin.PngInfo()
    for key in ("Comment", "Author", "Description"):
        info.add_text(key, names(), zip=key == "Author")
    exif = Image.Exif()
    exif[0x013B], exif[0x010E], exif[0x8298] = names(), names(), names()
    path = path.with_name(names() + path.name)
    out = io.BytesIO()
    picture.save(out, "png", pnginfo=info, exif=exif)
    path.write_bytes(out.getvalue()[: -200 if broken else None])
    return path


def plant_jpeg(path: Path, names: Names, picture: Image.Image) -> Path:
    exif = Image.Exif()
    exif[0x013B], exif[0x010E] = names(), names()
    path = path.with_name(names() + path.name)
    picture.save(path, exif=exif, comment=names().encode())
    return path


def plant_nifti(path: Path, names: Names, broken: bool = False) -> Path:
    values = np.random.default_rng(0).integers(-1000, 300, (16, 16, 6)).astype(np.int16)
    image = nibabel.Nifti1Image(values, np.eye(4))
    image.header["descrip"], image.header["aux_file"] = names().encode(), names().encode()
    image.header["intent_name"] = names().encode()
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", names().encode()))
    path = path.with_name(names() + path.name)
    nibabel.save(image, path)
    if broken:
        path.write_bytes(path.read_bytes()[:400])
    return path


def plant_wfdb(folder: Path, names: Names, make_ecg: Callable[..., Path], broken: bool = False) -> Path:
    name = names()
    stem = Path(make_ecg(folder / name))
    header = stem.with_name(stem.name + ".hea")
    header.write_text(header.read_text() + f"# Name: {names()}\n# Doctor: {names()}\n# {names()}\n")
    if broken:
        stem.with_name(stem.name + ".dat").write_bytes(b"x" * 10)
    return stem


def plant_edf(path: Path, names: Names) -> Path:
    import edfio

    leads = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
    rng = np.random.default_rng(1)
    signals = [edfio.EdfSignal(rng.normal(size=1000) / 3, 100, label=n, physical_dimension="mV", prefiltering=names())
               for n in leads[:1]]  # fmt: skip
    signals += [edfio.EdfSignal(rng.normal(size=1000) / 3, 100, label=n, physical_dimension="mV") for n in leads[1:]]
    path = path.with_name(names() + path.name)
    edfio.Edf(
        signals,
        patient=edfio.Patient(code=names(), name=names()),
        recording=edfio.Recording(hospital_administration_code=names(), investigator_technician_code=names()),
    ).write(path)
    return path


@pytest.fixture(scope="module")
def planted(tmp_path_factory, make_picture, make_ecg) -> Iterator[tuple[Path, Names]]:
    folder, names = tmp_path_factory.mktemp("planted"), Names()
    grey = Image.open(make_picture(folder / "img1.png", "xray"))
    colour = Image.open(make_picture(folder / "img2.png", "retina"))
    plant_dicom(folder / "a.dcm", names)
    plant_dicom(folder / "b.dcm", names, broken=True)
    plant_png(folder / "c.png", names, grey)
    plant_png(folder / "d.png", names, grey, broken=True)
    plant_jpeg(folder / "e.jpg", names, colour)
    plant_nifti(folder / "f.nii.gz", names)
    plant_nifti(folder / "g.nii.gz", names, broken=True)
    plant_wfdb(folder, names, make_ecg)
    plant_wfdb(folder, names, make_ecg, broken=True)
    plant_edf(folder / "h.edf", names)
    yield folder, names


def test_check_shows_no_names(planted: tuple[Path, Names], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, names = planted
    answers = check.check_items(check.find_items([folder]), thumbnails=True)
    assert {answer.status for answer in answers} == {"read", "refused"}
    assert len(answers) >= 11
    check.contact_sheet(answers, tmp_path / "sheet.png")
    check.contact_page(answers, tmp_path / "sheet.html")
    (tmp_path / "check.json").write_text(json.dumps([answer.as_dict() for answer in answers]))
    print(check.as_text(answers))
    shown = capsys.readouterr()
    assert names.found_in((shown.out + shown.err).encode()) == []
    for path in tmp_path.iterdir():
        assert names.found_in(path.read_bytes()) == [], path.name


def test_errors_and_tags_tell_no_names(planted: tuple[Path, Names]) -> None:
    folder, names = planted
    seen = 0
    for path in sorted(folder.iterdir()):
        for name in modalities.names():
            try:
                sample = modalities.read(name, path)
            except ReadError as error:
                assert names.found_in(str(error).encode() + repr(error.reason).encode()) == []
                seen += 1
            else:
                told = json.dumps([sample.steps, sample.warnings, sample.tags])
                assert names.found_in(told.encode()) == []
    assert seen > 20


@pytest.mark.whole
def test_a_whole_run_stores_no_names(planted: tuple[Path, Names], tmp_path: Path, make_picture) -> None:
    """Fit on files, patients and reports with names; broken files among them; then every file the run wrote."""
    _, names = planted
    rows = ["id,modality,path,label,caption,patient,split"]
    data = tmp_path / "data"
    data.mkdir()
    while len(names.used) < COUNT - 40:
        names()
    for number in range(40):
        kind = "xray" if number % 2 else "retina"
        name = names()
        path = data / f"{name}{number}.png"
        make_picture(path, kind, seed=number)
        if number in (4, 7):
            path.write_bytes(path.read_bytes()[:60])
        finding = ["normal", "large opacity", "small lesion"][number % 3]
        split = "test" if number % 8 < 2 else "train"
        caption = f"{kind} with {finding} seen by {name} {number % 5}"
        rows.append(f"{name}{number},{kind},{path.name},{finding},{caption},{name},{split}")
    rows.append(f"{names.used[0]},xray,{names.used[1]}.png,normal,gone,{names.used[2]},train")
    assert len(names.used) >= COUNT
    (data / "manifest.csv").write_text("\n".join(rows) + "\n")
    settings = {**SETTINGS, "data": {**SETTINGS["data"], "manifest": str(data / "manifest.csv")}}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "m3bind", "fit", "settings.yaml", "--out", "runs"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, env=environment, timeout=280)
    assert done.returncode == 1, done.stderr[-2000:]  # rows were set aside
    assert names.found_in(done.stdout + done.stderr) == []
    written = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert any(path.name == "report.html" for path in written) and any("space" in path.parts for path in written)
    leaks = {str(path.relative_to(tmp_path)): found for path in written if (found := names.found_in(path.read_bytes()))}
    assert leaks == {}
    assert [path for path in written if names.found_in(str(path.relative_to(tmp_path)).encode())] == []
