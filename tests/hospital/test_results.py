"""Results sent back: reports that other programs read, in the original study, only if the mapping allows it."""

import json
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from typer.testing import CliRunner

pytest.importorskip("highdicom", reason="needs the extra `hospital`")
pytest.importorskip("pynetdicom", reason="needs the extra `hospital`")

from hospital.orthanc import Orthanc
from hospital.planted import electrocardiogram, radiograph, save, series
from m3bind.cli import app
from m3bind.errors import ConfigError, M3BindError
from m3bind.hospital.deidentify import Deidentifier
from m3bind.hospital.encoder import SpoolEncoder
from m3bind.hospital.intake import Intake
from m3bind.hospital.mapping import Mapping
from m3bind.hospital.pseudonyms import Pseudonyms
from m3bind.hospital.results import NOTICE, as_json, as_report, findings
from m3bind.hospital.spool import Spool
from m3bind.index import Index, create_index
from m3bind.space.bundle import Space, load

LABELS = ["normal", "pneumonia", "Lungenentzündung " * 6]


@pytest.fixture(scope="module")
def made(space_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Space, Index, Mapping]]:
    """A CR, an ECG and a CT series in an index, with their mapping; the folder holds the sent files."""
    folder, space = tmp_path_factory.mktemp("results"), load(space_folder)
    names = Deidentifier(Pseudonyms(b"a salt only for tests"))
    with (
        Spool(folder / "spool") as spool,
        Mapping(folder / "mapping.db") as mapping,
        create_index(folder / "index", space.dim, space.fingerprint) as index,
    ):
        intake = Intake(spool, names, space.modalities, mapping)
        objects = [radiograph(), electrocardiogram(), *series(Path("/nowhere"), None)]
        for number, dataset in enumerate(objects):
            dataset.PatientName, dataset.SpecificCharacterSet = "Müller^Jörg", "ISO_IR 100"
            intake.take(save(dataset, folder / "sent" / f"{number}.dcm"))
        SpoolEncoder(space, index, spool).drain(at_once=True)
        yield folder, space, index, mapping


def ids(index: Index) -> dict[str, str]:
    names = index.sample(10)[0]
    return dict(zip(index.items(names)["modality"], names))


def test_probabilities_are_those_of_the_space(made: tuple[Path, Space, Index, Mapping]) -> None:
    folder, space, index, _ = made
    (found,) = findings(space, index, [ids(index)["xray"]], LABELS)
    wanted = space.classify(folder / "sent" / "0.dcm", "xray", LABELS)[0]
    np.testing.assert_allclose(found.probabilities, wanted, atol=1e-5)
    assert not found.calibrated and not found.unlike
    for labels in ([], ["one"], ["same", "same"]):
        with pytest.raises(ConfigError, match="two or more"):
            findings(space, index, [], labels)


def test_labelled_items_calibrate_and_unusual_ones_are_reported(space_folder: Path, tmp_path: Path) -> None:
    space, rng = load(space_folder), np.random.default_rng(0)
    texts = space.class_embeddings(LABELS[:2], "xray")
    truth = rng.integers(0, 2, 200)
    near = texts[np.where(rng.random(200) < 0.25, 1 - truth, truth)]  # a quarter looks like the other one
    noise = rng.normal(size=near.shape)
    across = noise - (noise @ texts.T) @ np.linalg.pinv(texts).T
    rows = np.vstack([near + 0.03 * across, -texts.sum(0)])
    table = pd.DataFrame({
        "id": [f"a{at}" for at in range(200)] + ["strange"], "modality": "xray",
        "label": [LABELS[at] for at in truth] + [""], "unlike": [""] * 200 + ["blank"],
    })  # fmt: skip
    with create_index(tmp_path / "index", space.dim, space.fingerprint) as index:
        index.upsert((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), table)
        told = findings(space, index, ["strange", *table["id"][:40]], LABELS[:2])
        other = findings(space, index, ["a0"], ["normal", "something else"])
        answered = findings(space, index, ["strange"], LABELS[:2], abstain=False)
    assert [finding.item for finding in told] == ["strange", *table["id"][:40]]
    assert told[0].unlike == "blank" and told[0].abstained
    assert not any(finding.unlike or finding.abstained for finding in told[1:])
    assert all(finding.calibrated for finding in told) and not other[0].calibrated
    assert 0.65 < np.mean([max(finding.probabilities) for finding in told[1:]]) < 0.85  # three quarters are right
    assert as_json(told[0])["unlike"] == "blank" and as_json(told[0])["probabilities"] is None
    assert as_json(told[1])["calibrated"] and len(as_json(told[1])["probabilities"]) == 2
    assert not answered[0].abstained and as_json(answered[0])["probabilities"]


@pytest.mark.parametrize("modality", ["xray", "ecg", "ct"])
def test_a_report_states_its_findings_and_objects(
    made: tuple[Path, Space, Index, Mapping], tmp_path: Path, modality: str
) -> None:
    from highdicom import sr

    _, space, index, mapping = made
    item = ids(index)[modality]
    origins = mapping.origins(item)
    (found,) = findings(space, index, [item], LABELS)
    path = save(as_report(found, origins), tmp_path / "report.dcm")
    report = sr.srread(path)
    assert str(report.PatientName) == "Müller^Jörg" and report.PatientID == "4711"
    assert report.StudyInstanceUID == origins[0].study and report.SeriesInstanceUID != origins[0].series
    assert (report.VerificationFlag, report.PreliminaryFlag, report.Modality) == ("UNVERIFIED", "PRELIMINARY", "SR")
    text = path.read_bytes().decode("utf-8", "replace")
    for wanted in (
        NOTICE,
        "m3bind zero-shot",
        "pneumonia",
        "Zero-shot probability",
        "not calibrated",
        found.space[:16],
    ):
        assert wanted in text
    groups = report.content.get_image_measurement_groups()
    assert [group.finding_type.meaning for group in groups] == [label[:64].strip() for label in LABELS]
    shares = [float(group.get_measurements()[0].value) for group in groups]
    np.testing.assert_allclose(shares, found.probabilities, atol=1e-6)
    referred = {item.ReferencedSOPInstanceUID for item in referenced(report)}
    assert {origin.sop_instance for origin in origins} <= referred and len(origins) == (6 if modality == "ct" else 1)
    again = as_report(found, origins)
    assert again.SOPInstanceUID == report.SOPInstanceUID


def referenced(dataset: pydicom.Dataset) -> Iterator[pydicom.Dataset]:
    """All references to objects, at any depth."""
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                if "ReferencedSOPInstanceUID" in item:
                    yield item
                yield from referenced(item)


def test_json_and_what_is_missing(made: tuple[Path, Space, Index, Mapping], space_folder: Path, tmp_path: Path) -> None:
    folder, space, index, mapping = made
    item = ids(index)["xray"]
    (found,) = findings(space, index, [item], LABELS)
    plain = as_json(found)
    assert plain["notice"] == NOTICE and "study" not in plain and sum(plain["probabilities"]) == pytest.approx(1)
    assert as_json(found, mapping.origins(item))["objects"] == [mapping.origins(item)[0].sop_instance]
    base = ["send-results", str(folder / "index"), "--space", str(space_folder), "--labels", "normal,pneumonia"]

    def run(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, [*base, *arguments])
        return done.exit_code, done.output + str(done.exception or "")

    out = tmp_path / "out"
    assert run("--modality", "xray", "--json", "--out", str(out)) == (0, "1 results written\n")
    written = json.loads((out / f"{item}.json").read_text())
    assert written["item"] == item
    file = tmp_path / "own.yaml"
    file.write_text("tasks: {t: {modality: xray, classes: {normal: [clear lungs], pneumonia: [an opacity]}}}")
    base[-2:] = ["--prompts", str(file)]
    assert run("--modality", "xray", "--json", "--out", str(out)) == (0, "1 results written\n")
    own = json.loads((out / f"{item}.json").read_text())
    assert own["labels"] == written["labels"] and own["probabilities"] != written["probabilities"]
    assert "no task of ct" in run("--modality", "ct", "--json", "--out", str(out))[1]
    assert "--labels normal,pneumonia, or" in run("--modality", "xray", "--labels", "a,b", "--json", "--out", "o")[1]
    base[-2:] = ["--labels", "normal,pneumonia"]
    assert "--mapping" in run("--item", item, "--out", str(out))[1]
    assert "--out DIR" in run("--item", item)[1] and "--item" in run("--json", "--out", str(out))[1]
    assert "no mapping" in run("--item", item, "--out", str(out), "--mapping", str(tmp_path / "none"))[1]
    other = tmp_path / "other.db"
    Mapping(other).close()
    assert "does not know the item" in run("--item", item, "--out", str(out), "--mapping", str(other))[1]
    assert "does not answer" in run("--item", item, "--mapping", str(folder / "mapping.db"), "--to", "X@127.0.0.1:1")[1]


def test_the_mapping_is_private(made: tuple[Path, Space, Index, Mapping], tmp_path: Path) -> None:
    path = made[0] / "mapping.db"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    copy = tmp_path / "copy.db"
    copy.write_bytes(path.read_bytes())
    copy.chmod(0o644)
    with pytest.raises(ConfigError, match="others may read"):
        Mapping(copy)
    copy.chmod(0o400)
    with Mapping(copy, make=False) as mapping, pytest.raises(ConfigError, match="does not know"):
        mapping.origins("nobody")


@pytest.mark.parametrize("make", [True, False])
@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "device", "folder"])
def test_a_mapping_is_a_plain_file(tmp_path: Path, kind: str, make: bool) -> None:
    """The target of a link may belong to another user, and would be overwritten."""
    path, other = tmp_path / "mapping.db", tmp_path / "other"
    {
        "link": lambda: (other.write_bytes(b""), other.chmod(0o600), path.symlink_to(other)),
        "dangling": lambda: path.symlink_to(other),
        "pipe": lambda: os.mkfifo(path, 0o600),
        "device": lambda: path.symlink_to("/dev/zero"),
        "folder": lambda: path.mkdir(0o700),
    }[kind]()
    with pytest.raises(M3BindError, match=r"mapping\.db: (a link|not a plain file|no mapping|cannot hold)"):
        Mapping(path, make)
    assert not other.exists() or not other.read_bytes()


@pytest.mark.parametrize("text", ["", "{}", "[]", "no JSON", '{"patient": "1"}', None])
def test_a_damaged_mapping_is_named(tmp_path: Path, text: str | None) -> None:
    with Mapping(tmp_path / "mapping.db") as mapping:
        if text is None:
            mapping._file.execute("DROP TABLE origins")
        else:
            mapping._file.execute("INSERT INTO origins VALUES ('item', 'object', ?)", (text,))
        with pytest.raises(ConfigError, match=r"mapping\.db: damaged"):
            mapping.origins("item")


def test_reports_arrive_in_the_original_study(
    made: tuple[Path, Space, Index, Mapping],
    orthanc: Callable[..., Orthanc],
    space_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By C-STORE and by STOW-RS, into a real Orthanc that already has the study."""
    folder, _, _, _ = made
    server = orthanc()
    server.store(sorted((folder / "sent").glob("*.dcm")))
    server.knows("M3BIND", 1)
    studies = set(server.call("GET", "/studies"))
    monkeypatch.setenv("M3BIND_DICOMWEB_AUTH", server.auth)
    base = ["send-results", str(folder / "index"), "--space", str(space_folder), "--labels", "normal,pneumonia",
            "--mapping", str(folder / "mapping.db")]  # fmt: skip
    for modality, to in (("xray", f"ORTHANC@127.0.0.1:{server.dicom}"), ("ct", server.web)):
        done = CliRunner().invoke(app, [*base, "--modality", modality, "--to", to])
        assert done.exit_code == 0, done.output + str(done.exception)
    assert set(server.call("GET", "/studies")) == studies
    kinds = [server.call("GET", f"/series/{name}")["MainDicomTags"] for name in server.call("GET", "/series")]
    assert sorted(tags["Modality"] for tags in kinds) == ["CR", "CT", "ECG", "SR", "SR"]


def test_one_that_is_not_taken_does_not_keep_the_others(
    made: tuple[Path, Space, Index, Mapping], space_folder: Path, tmp_path: Path
) -> None:
    """The first is refused in the answer to STOW-RS, the second is sent; the exit code is 1."""
    from hospital.lying import Liar, say

    folder, _, index, _ = made
    failed = b'{"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [272]}}]}}'
    server = Liar(
        [], [], {"studies": lambda one, connection, query: say(connection, failed if one.times == 1 else b"")}
    )
    items = [name for item in list(ids(index).values())[:2] for name in ("--item", item)]
    base = ["send-results", str(folder / "index"), "--space", str(space_folder), "--labels", "normal,pneumonia"]
    done = CliRunner().invoke(app, [*base, *items, "--mapping", str(folder / "mapping.db"), "--to", server.url])
    server.stop()
    assert done.exit_code == 1 and "1 results sent" in done.output and "failure 0x0110" in done.output


def test_possible_incompleteness_is_in_every_result(made: tuple[Path, Space, Index, Mapping]) -> None:
    _, space, index, mapping = made
    one = ids(index)["ct"]
    (whole,) = findings(space, index, [one], LABELS[:2])
    part = replace(whole, incomplete="3 numbers missing between 1 and 9")
    reports = [as_report(finding, mapping.origins(one)) for finding in (part, whole)]
    told = [" ".join(item.get("TextValue", "") for item in report.ContentSequence) for report in reports]
    assert "may be incomplete: 3 numbers missing" in told[0] and "incomplete" not in told[1]
    assert [as_json(finding)["may_be_incomplete"] for finding in (part, whole)] == [part.incomplete, ""]
    items, rows = index.items([one]), index.vectors([one])
    items["incomplete"] = "a gap"
    index.upsert(rows, items)
    found = findings(space, index, list(ids(index).values()), LABELS[:2])
    assert sorted(finding.incomplete for finding in found) == ["", "", "a gap"]
