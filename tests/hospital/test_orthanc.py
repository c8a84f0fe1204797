"""Against a real Orthanc: sent by C-STORE, fetched by DICOMweb, found by text, with no patient name anywhere."""

import json
import os
import signal
import urllib.error
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from typer.testing import CliRunner

pytest.importorskip("pynetdicom", reason="needs the extra `hospital`")
pytest.importorskip("httpx", reason="needs the extra `hospital`")

from hospital.conftest import SALT
from hospital.orthanc import Orthanc
from hospital.planted import Names, electrocardiogram, radiograph, save
from hospital.running import EVERY, Command, counts, leaks, until
from m3bind.cli import app
from m3bind.index import open_index

pytestmark = pytest.mark.whole


def run(*arguments: str) -> tuple[int, str]:
    """A command in this process; its exit code and output."""
    done = CliRunner().invoke(app, list(arguments))
    said = done.output + str(done.exception or "")
    return done.exit_code, said


def search(index: Path, space: Path, out: Path) -> list[dict[str, str]]:
    """Hits of a text query, from the command's output."""
    query = ["--text", "CT of the chest", "--json", str(out), "--html", str(out.with_suffix(".html"))]
    code, said = run("search", str(index), "--space", str(space), *query)
    assert code == 0, said
    out.with_suffix(".txt").write_text(said)
    return json.loads(out.read_text())["hits"]


def test_sent_by_c_store_to_a_listener_that_was_killed_before(
    objects: tuple[list[Path], Names],
    orthanc: Callable[..., Orthanc],
    space_folder: Path,
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    files, names = objects
    server, index, kept, log = orthanc(), tmp_path / "index", tmp_path / "kept", tmp_path / "log.txt"
    arguments = ["listen", "--space", str(space_folder), "--index", str(index), "--port", "0", "--allow", "ORTHANC",
                 "--keep-files", str(kept)]  # fmt: skip
    ids = server.store(files)
    killed = Command(tmp_path / "killed.txt", environment, *arguments, "--quiet", "1000")
    try:
        server.knows("M3BIND", killed.port())
        server.send("M3BIND", ids[:-3])
    finally:
        killed.end(signal.SIGKILL)
    assert counts(index) == {} and len(list((tmp_path / "index.spool").rglob("*.dcm"))) == len(files) - 3
    command = Command(
        log, environment, *arguments, "--quiet", "1"
    )  # resumes from the state at which the first was killed
    try:
        server.knows("M3BIND", command.port())
        server.send("M3BIND", ids[-3:])
        until(lambda: counts(index) == EVERY)
        server.send("M3BIND", ids)  # again: the same items
    finally:
        said = command.end()
    assert command.process.returncode == 0, said
    assert counts(index) == EVERY and "quarantined 0" in said and f"objects {3 + len(files)}" in said
    assert "repeated 4" in said
    with open_index(index) as opened:
        items = opened.items(opened.sample(10)[0])
    assert set(items["date"]) == {""} and items["path"].map(os.path.exists).all()
    hits = search(index, space_folder, tmp_path / "answer.json")
    assert {hit["modality"] for hit in hits} == set(EVERY)
    assert len(list(kept.rglob("*.dcm"))) == len(files)
    assert (tmp_path / "answer.html").stat().st_size > 5_000  # with images of the stored files
    assert names.found_in(items.to_json() + json.dumps(hits)) == []
    assert (
        leaks(names, index, kept, log, tmp_path / "index.spool", *tmp_path.glob("answer.*"), tmp_path / "killed.txt")
        == {}
    )
    for file in kept.rglob("*.dcm"):
        text = str(pydicom.dcmread(file))
        assert names.found_in(text) == [], file


def test_over_tls_in_and_back(
    orthanc: Callable[..., Orthanc],
    space_folder: Path,
    environment: dict[str, str],
    signed: dict[str, Path],
    tmp_path: Path,
) -> None:
    own, key, ca = (str(signed[name]) for name in ("own.pem", "own.key", "ca.pem"))
    server = orthanc(
        DicomTlsEnabled=True, DicomTlsCertificate=own, DicomTlsPrivateKey=key, DicomTlsTrustedCertificates=ca
    )
    ids = server.store([save(radiograph(), tmp_path / "a.dcm"), save(electrocardiogram(), tmp_path / "b.dcm")])
    tls = ["--tls-cert", own, "--tls-key", key, "--tls-ca", ca]
    space, index, mapping = str(space_folder), tmp_path / "index", str(tmp_path / "mapping.db")
    arguments = ["listen", "--space", space, "--index", str(index), "--port", "0", "--mapping", mapping, *tls]
    command = Command(tmp_path / "log.txt", environment, *arguments)
    try:
        server.knows("M3BIND", command.port(), tls=False)
        with pytest.raises(urllib.error.HTTPError):
            server.send("M3BIND", ids)
        server.knows("M3BIND", command.port(), tls=True)
        server.send("M3BIND", ids)
        until(lambda: counts(index) == {"xray": 1, "ecg": 1})
    finally:
        said = command.end()
    assert command.process.returncode == 0 and "over TLS" in said, said
    before = set(server.call("GET", "/instances"))
    back = ["send-results", str(index), "--space", space, "--labels", "normal,mass", "--modality", "xray",
            "--mapping", mapping, "--to", f"ORTHANC@127.0.0.1:{server.dicom}"]  # fmt: skip
    code, said = run(*back)
    assert code != 0 and "does not answer" in said
    code, said = run(*back, *tls)
    assert code == 0 and "1 results sent" in said, said
    (made,) = set(server.call("GET", "/instances")) - before
    assert server.call("GET", f"/instances/{made}/simplified-tags")["Modality"] == "SR"


def test_fetched_by_dicomweb(
    objects: tuple[list[Path], Names],
    orthanc: Callable[..., Orthanc],
    space_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("M3BIND_SALT", SALT)
    files, names = objects
    server, index, kept, log = orthanc(), tmp_path / "index", tmp_path / "kept", tmp_path / "log.txt"
    server.store(files)
    key = tmp_path / "key"
    key.write_text(server.auth)

    def pull(*options: str) -> str:
        code, said = run("pull", server.web, "--space", str(space_folder), "--index", str(index), "--page", "1",
                         "--keep-files", str(kept), "--auth-file", str(key), "--dates", "shift", *options)  # fmt: skip
        with open(log, "a") as out:
            out.write(said)
        assert code == 0, said
        return said

    pull("--modality", "CT", "--limit", "1")
    assert counts(index) == {"ct": 1}
    assert "skipped 1" in pull("--from", "2019-07-01", "--until", "2019-07-31")
    assert counts(index) == EVERY
    assert "fetched 0, skipped 0, failed 0" in pull("--from", "2021-01-01")
    with open_index(index) as opened:
        items = opened.items(opened.sample(10)[0])
    assert (items["date"] < "2019-07-23").all() and (items["date"] > "2009").all()
    hits = search(index, space_folder, tmp_path / "answer.json")
    assert {hit["modality"] for hit in hits} == set(EVERY)
    assert names.found_in(items.to_json() + json.dumps(hits)) == []
    assert leaks(names, index, kept, log, tmp_path / "index.spool", *tmp_path.glob("answer.*")) == {}


def test_wrong_credentials_and_addresses(
    orthanc: Callable[..., Orthanc], space_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("M3BIND_SALT", SALT)
    server = orthanc()
    common = ["--space", str(space_folder), "--index", str(tmp_path / "index")]
    code, refused = run("pull", server.web, *common)
    assert code == 1 and "M3BIND_DICOMWEB_AUTH" in refused
    monkeypatch.setenv("M3BIND_DICOMWEB_AUTH", server.auth)
    code, lost = run("pull", server.web + "/nowhere", *common)
    assert code == 1 and "DICOMweb root" in lost
    assert "Basic" not in refused + lost
