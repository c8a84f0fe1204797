"""DICOMweb with a slow, busy, broken or lying server: retried, resumed, bounded."""

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("httpx", reason="needs the extra `hospital`")

from hospital.planted import radiograph, save
from m3bind.errors import ConfigError
from m3bind.hospital import http
from m3bind.hospital.deidentify import Deidentifier, Refused
from m3bind.hospital.dicomweb import Pull
from m3bind.hospital.http import Bounds, Web, authorization
from m3bind.hospital.intake import Intake
from m3bind.hospital.multipart import boundary_of, parts_to_files
from m3bind.hospital.pseudonyms import Pseudonyms
from m3bind.hospital.qido import Wanted
from m3bind.hospital.responses import ServerUnavailableError, TransientError, WebError
from m3bind.hospital.spool import Spool

Answer = Callable[[BaseHTTPRequestHandler], None]


class Archive:
    """A DICOMweb server of some studies with one series of one object each; `faults` answer the first requests."""

    def __init__(self, objects: list[bytes], uids: list[tuple[str, str]]) -> None:
        self.asked: list[str] = []
        self.faults: list[Answer] = []
        self.objects, self.uids = objects, uids
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.asked.append(self.path)
                if outer.faults and "/series/" in self.path:
                    outer.faults.pop(0)(self)
                else:
                    outer.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/web"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path, _, query = handler.path.partition("?")
        found = re.search(r"/series/([\d.]+)$", path)
        if found:
            number = [series for _, series in self.uids].index(found[1])
            body = b"--B\r\nContent-Type: application/dicom\r\n\r\n" + self.objects[number] + b"\r\n--B--\r\n"
            return reply(handler, 200, body, 'multipart/related; type="application/dicom"; boundary=B')
        if path.endswith("/studies"):
            asked = dict(part.split("=") for part in query.split("&"))
            start, count = int(asked["offset"]), int(asked["limit"])
            rows = [tags({"0020000D": study}) for study, _ in self.uids[start : start + count]]
        else:
            study = path.split("/")[-2]
            rows = [
                tags({"0020000E": series, "00080060": "CR", "00201209": 1}) for one, series in self.uids if one == study
            ]
        reply(handler, 200, json.dumps(rows).encode(), "application/dicom+json")


def tags(values: dict[str, Any]) -> dict[str, Any]:
    return {tag: {"vr": "UI", "Value": [value]} for tag, value in values.items()}


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", kind: str = "", **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def broken(handler: BaseHTTPRequestHandler) -> None:
    """An answer that ends in its middle."""
    handler.send_response(200)
    handler.send_header("Content-Type", 'multipart/related; type="application/dicom"; boundary=B')
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    handler.wfile.write(b"--B\r\nContent-Type: application/dicom\r\n\r\n" + b"x" * 500)
    handler.close_connection = True


def gone(handler: BaseHTTPRequestHandler) -> None:
    """A connection that ends without an answer."""
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    monkeypatch.setattr(http, "PAUSE", 0.01)
    objects = [radiograph(k, 48) for k in range(5)]
    data = [save(dataset, tmp_path / f"{k}.dcm").read_bytes() for k, dataset in enumerate(objects)]
    found = Archive(data, [(str(one.StudyInstanceUID), str(one.SeriesInstanceUID)) for one in objects])
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture
def intake(tmp_path: Path) -> Iterator[Intake]:
    with Spool(tmp_path / "spool") as spool:
        yield Intake(spool, Deidentifier(Pseudonyms(b"a salt only for tests")), ("xray",), max_bytes=1 << 20)


def fetch(archive: Archive, intake: Intake, **wanted: Any) -> dict[str, int]:
    with Web(archive.url) as web:
        counts = [dict(found) for found in Pull(web, intake, Wanted(**wanted))]
    return counts[-1] if counts else {}


def test_pages_limit_and_resume(archive: Archive, intake: Intake) -> None:
    assert fetch(archive, intake, page=2, limit=3) == {"series": 3, "objects": 3, "refused": 0}
    archive.asked.clear()
    assert fetch(archive, intake, page=2) == {"series": 2, "objects": 2, "refused": 0, "skipped": 3}
    assert sum("/series/" in path for path in archive.asked) == 2
    assert fetch(archive, intake) == {"skipped": 5} and intake.spool.waiting() == 5
    assert list(intake.spool.incoming.iterdir()) == []


def test_faults_that_pass(archive: Archive, intake: Intake) -> None:
    archive.faults = [
        lambda handler: reply(handler, 503, Retry_After="0"),
        broken,
        lambda handler: reply(handler, 429),
        gone,
    ]
    assert fetch(archive, intake) == {"series": 5, "objects": 5, "refused": 0}
    assert archive.faults == [] and list(intake.spool.incoming.iterdir()) == []


def test_faults_that_do_not_pass(archive: Archive, intake: Intake) -> None:
    archive.faults = [lambda handler: reply(handler, 410)]
    assert fetch(archive, intake)["failed"] == 1 and intake.spool.waiting() == 4
    assert fetch(archive, intake) == {"series": 1, "objects": 1, "refused": 0, "skipped": 4}
    archive.faults = [lambda handler: reply(handler, 302, Location="http://127.0.0.1:1/")] * 9
    archive.uids[0] = (archive.uids[0][0], "1.2.3")
    assert fetch(archive, intake)["failed"] == 1 and len(archive.faults) == 8
    with (
        Web("http://127.0.0.1:1/", bounds=Bounds(tries=2)) as web,
        pytest.raises(ServerUnavailableError, match="2 times"),
    ):
        web.search("studies")


def test_objects_that_are_refused_or_too_large(archive: Archive, intake: Intake) -> None:
    archive.objects[1], archive.objects[3] = b"no DICOM" * 50, bytes(2 << 20)
    assert fetch(archive, intake) == {"series": 5, "objects": 3, "refused": 2}
    assert fetch(archive, intake) == {"skipped": 5, "listed before": 2}
    intake.spool.max_bytes = 10
    archive.uids[0] = (archive.uids[0][0], "1.2.3")
    with pytest.raises(Refused, match="spool is full"):
        fetch(archive, intake)


def test_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M3BIND_DICOMWEB_AUTH", "Bearer x")
    assert authorization() == "Bearer x"
    (tmp_path / "key").write_text("Basic y\n")
    assert authorization(tmp_path / "key") == "Basic y"
    with pytest.raises(ConfigError, match="https only"):
        Web("http://pacs.example/dicom-web", "Bearer x")
    for url in ("ftp://x/y", "x", "https://me:secret@x/y"):
        with pytest.raises(ConfigError) as told:
            Web(url)
        assert "secret" not in str(told.value)
    with pytest.raises(ConfigError, match="2020-01-31"):
        Wanted(since="2020").check()
    assert Wanted("CT", "2020-01-02", "").queries()[0] == {"StudyDate": "20200102-", "ModalitiesInStudy": "CT"}


_BLOCKS = st.binary(max_size=80).map(lambda data: data.replace(b"\r\n--Q", b""))


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(_BLOCKS, max_size=5), st.integers(1, 40), st.integers(1, 60))
def test_parts_are_what_was_sent(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], cut: int, most: int
) -> None:
    parts = [part.replace(b"\r\n--Q", b"") for part in parts]
    body = b"preamble\r\n" + b"".join(b"--Q\r\nA: b\r\n\r\n" + part + b"\r\n" for part in parts) + b"--Q--\r\n"
    if any(b"\r\n--Q" in part for part in parts):
        return
    blocks = [body[k : k + cut] for k in range(0, len(body), cut)]
    folder = tmp_path_factory.mktemp("parts")
    (folder / "cut").mkdir()
    found = [path and path.read_bytes() for path in parts_to_files(blocks, b"Q", folder, most)]
    assert found == [part if len(part) <= most else None for part in parts]
    with pytest.raises((TransientError, WebError)):
        list(parts_to_files([body[: len(body) - 5]], b"Q", folder / "cut", most))
    assert len(list((folder / "cut").iterdir())) <= max(0, len(parts) - 1)  # not the one that was cut short


def test_answers_that_are_not_multipart() -> None:
    assert boundary_of('Multipart/Related; type="application/dicom"; boundary="a-b"') == b"a-b"
    for kind in ("", "application/json", "text/html; boundary=x"):
        with pytest.raises(WebError):
            boundary_of(kind)
    with pytest.raises(WebError, match="boundary"):
        list(parts_to_files([b"x" * 5000] * 40, b"Q", Path("/nowhere"), 10))
