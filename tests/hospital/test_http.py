"""Connections to a DICOMweb server: trust, disclosed data, and servers that are unavailable or refuse everything."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httpx", reason="needs the extra `hospital`")

from hospital.lying import HTML, Liar, answer, drips, multipart, raw, rows, say
from hospital.planted import radiograph, save, series
from m3bind.errors import ConfigError
from m3bind.hospital import http
from m3bind.hospital.deidentify import Deidentifier
from m3bind.hospital.dicomweb import Pull
from m3bind.hospital.http import Bounds, Web, authorization
from m3bind.hospital.intake import Intake
from m3bind.hospital.pseudonyms import Pseudonyms
from m3bind.hospital.qido import Wanted
from m3bind.hospital.responses import QUOTED, ServerUnavailableError, WebError, reason_of
from m3bind.hospital.send import SendError, destination
from m3bind.hospital.spool import Spool
from m3bind.hospital.tls import Certificates

BOUNDS = Bounds(tries=2, silence=10.0, seconds=20.0, pages=20, parts=50)
QUICK = Bounds(tries=2, silence=0.5, seconds=3.0, pages=20, parts=50)


@pytest.fixture
def liar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Liar]]:
    """`liar(count, **routes)`: a server of that many radiographs."""
    monkeypatch.setattr(http, "PAUSE", 0.01)
    monkeypatch.setattr(http, "LONGEST", 0.05)
    started: list[Liar] = []

    def start(count: int = 2, datasets: Any = (), **routes: Any) -> Liar:
        made = datasets or [radiograph(k, 32) for k in range(count)]
        data = [save(one, tmp_path / "made" / f"{k}.dcm").read_bytes() for k, one in enumerate(made)]
        uids = [tuple(map(str, (one.StudyInstanceUID, one.SeriesInstanceUID, one.SOPInstanceUID))) for one in made]
        started.append(Liar(data, uids, routes))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def intake(tmp_path: Path) -> Iterator[Intake]:
    with Spool(tmp_path / "spool", quiet=1e9) as spool:
        yield Intake(spool, Deidentifier(Pseudonyms(b"a salt only for tests")), ("xray", "ct"), max_bytes=1 << 20)


def pulled(server: Liar, intake: Intake, bounds: Bounds = BOUNDS, **wanted: Any) -> Pull:
    with Web(server.url, bounds=bounds) as web:
        run = Pull(web, intake, Wanted(**wanted))
        for _ in run:
            pass
    return run


# -- servers that refuse all, or are gone ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (answer(HTML, kind="text/html"), "a web page in place of DICOM JSON"),
        (answer(b"", 302, Location="https://login.example/?token=secret"), "not followed"),
        (answer(b"no", 401), "--auth-file"),
        (answer(b"no", 404), "check the address"),
        (answer(b"", 500), "status 500"),
        (answer(b"[" * 100_000), "in place of DICOM JSON"),
        (raw(b"SSH-2.0-OpenSSH_9.2\r\n"), "no HTTP"),
        (drips(b"HTTP/1.1 200 ", b"x"), "slower than"),
        (answer(b"Bad tag near 1.2.840.113619.2.55 for DOE^JANE, born 19700101", 400, "text/plain"), "Bad tag"),
        (answer(b"<html><title>Not allowed</title>" + b"x" * 9000, 400, "text/html"), "Not allowed"),
        (answer(b"\x00\x1b[2J" + b"y" * 9_999, 400, "text/plain"), "answers 400"),
        (answer(b"\x00\x1b[2J" + b"y" * 99_999, 422, "text/plain"), "answers 422"),
    ],
)
def test_the_search_cannot_begin(how: Any, said: str, liar: Callable[..., Liar], intake: Intake) -> None:
    with pytest.raises(WebError) as told:
        pulled(liar(studies=how), intake, QUICK, modality="CR", since="2019-01-01")
    text = str(told.value)
    assert said in text and len(text) < 320 and text.isprintable()
    assert not any(secret in text for secret in ("secret", "DOE", "113619", "19700101"))


def test_a_server_that_goes_away_ends_the_pull(liar: Callable[..., Liar], intake: Intake) -> None:
    """Three series in a row fail, then the server is checked and does not answer."""
    server = liar(8)

    def away(server: Liar, connection: socket.socket, query: dict[str, str]) -> None:
        server.routes["studies"] = server.routes[""] = server.routes["objects"] = raw()
        raw()(server, connection, query)

    server.routes[""] = lambda one, connection, query: (
        away(one, connection, query) if "/series/" in one.asked[-1][0] else one.honest(connection, *one.asked[-1])
    )
    with pytest.raises(ServerUnavailableError, match="no longer answers"):
        pulled(server, intake)
    assert len(server.asked) < 20


def test_a_row_of_bad_series_does_not_end_the_pull(liar: Callable[..., Liar], intake: Intake) -> None:
    server = liar(9)
    bad = {uids[1] for uids in server.uids[:8]}

    def some(one: Liar, connection: socket.socket, query: dict[str, str]) -> None:
        path = one.asked[-1][0]
        if path.split("/")[-1] in bad:
            return say(connection, b"", 503)
        one.honest(connection, *one.asked[-1])

    server.routes = {"": some, "objects": some}
    run = pulled(server, intake)
    assert run.counts["failed"] == 8 and run.counts["series"] == 1 and not run.whole


@pytest.mark.parametrize("wrong", [0, 1, 3])
def test_series_listed_under_another_study_are_fetched_under_their_own(
    liar: Callable[..., Liar], intake: Intake, wrong: int
) -> None:
    """A server that answers a search in one study with the series of all studies: a failure there loses nothing."""
    server = liar(4)
    study = server.uids[wrong][0]

    def all_of_them(one: Liar, connection: socket.socket, query: dict[str, str]) -> None:
        path = one.asked[-1][0]
        if path == f"studies/{study}/series":
            start = int(query.get("offset", 0))
            return say(connection, rows([one.series(uids) for uids in one.uids][start:]))
        if path.startswith(f"studies/{study}/series/") and server.uids[wrong][1] not in path:
            return say(connection, b"", 404)
        one.honest(connection, *one.asked[-1])

    server.routes = dict.fromkeys(("", "series", "objects"), all_of_them)
    run = pulled(server, intake)
    assert run.counts["series"] == 4 and len(list(intake.spool.units.glob("*/*.dcm"))) == 4
    assert run.counts["failed"] == 3 - wrong and run.whole == (wrong == 3)


def test_object_by_object(liar: Callable[..., Liar], intake: Intake, tmp_path: Path) -> None:
    """A server that cannot send a series as a whole sends its objects; a missing one is reported."""
    scan = series(Path("/nowhere"), None, 6)
    server = liar(datasets=[radiograph(0, 32), *scan], objects=answer(b"", 501))
    server.one_by_one, server.kinds = True, {str(scan[0].SeriesInstanceUID): "CT"}
    run = pulled(server, intake)
    unit = intake.key("series", str(scan[0].SeriesInstanceUID))
    assert run.whole and run.counts["objects"] == 7 and len(list((intake.spool.units / unit).iterdir())) == 6
    server.routes["object"] = lambda one, connection, query: (
        say(connection, b"", 500)
        if one.asked[-1][0].endswith(str(scan[3].SOPInstanceUID))
        else one.honest(connection, *one.asked[-1])
    )
    with Spool(tmp_path / "another") as spool:
        other = Intake(spool, Deidentifier(Pseudonyms(b"a salt only for tests")), ("xray", "ct"))
        run = pulled(server, other)
        assert not run.whole and run.counts["incomplete"] == 1 and spool.expected(unit) == 6
        said = (spool.folder / "aside.csv").read_text()
        assert "1 of 6 objects cannot be had" in said and "status 500" in said and next(iter(run.reasons)) in said


def test_objects_of_another_series_are_not_taken(liar: Callable[..., Liar], intake: Intake) -> None:
    server = liar(3)
    server.routes["objects"] = lambda one, connection, query: say(
        connection, multipart(one.objects[2]), kind='multipart/related; boundary="B"'
    )
    run = pulled(server, intake)
    assert run.counts["refused"] == 1 and run.counts["series"] == 3 and intake.spool.waiting() == 2 and not run.whole
    assert "of another series" in (intake.spool.folder / "aside.csv").read_text()


# -- trust and disclosure ----------------------------------------------------------------------------------------------


@pytest.fixture
def secure(signed: dict[str, Path]) -> Iterator[tuple[str, list[bytes]]]:
    """The address of an https server that answers [] to all requests, and the heads of those."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(signed["own.pem"], signed["own.key"])
    listening, heads = socket.create_server(("127.0.0.1", 0)), []

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(connection, server_side=True) as talk:
                    heads.append(talk.recv(65536))
                    talk.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n[]")
            except OSError:
                continue

    threading.Thread(target=serve, daemon=True).start()
    yield f"https://127.0.0.1:{listening.getsockname()[1]}", heads
    listening.close()


def test_an_untrusted_certificate_is_reported_at_once(secure: tuple[str, list[bytes]], signed: dict[str, Path]) -> None:
    url, heads = secure
    start = time.monotonic()
    with Web(url, "Bearer secret") as web, pytest.raises(WebError, match="--tls-ca") as told:
        web.search("studies")
    assert time.monotonic() - start < 5 and "not trusted" in str(told.value) and heads == []
    stranger = Certificates(None, None, signed["strange_ca.pem"]).client()
    with Web(url, tls=stranger) as web, pytest.raises(WebError, match="--tls-ca"):
        web.search("studies")
    known = Certificates(None, None, signed["ca.pem"]).client()
    with Web(url, "Bearer secret", tls=known) as web:
        assert web.search("studies").items == [] and b"Bearer secret" in heads[0]
    with Web(url.replace("127.0.0.1", "localhost"), tls=known) as web, pytest.raises(WebError, match="by a name"):
        web.search("studies")


def test_http_where_https_is_meant() -> None:
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(65536)
            say(connection, b"", 400)

    threading.Thread(target=serve, daemon=True).start()
    url = f"https://127.0.0.1:{listening.getsockname()[1]}"
    with listening, Web(url) as web, pytest.raises(WebError, match="is it an http address"):
        web.search("studies")


def test_proxies(
    secure: tuple[str, list[bytes]], liar: Callable[..., Liar], signed: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the environment, for https to others only; a proxy learns neither credentials nor paths."""
    heads: list[bytes] = []
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                heads.append(connection.recv(65536))
                connection.sendall(b"HTTP/1.1 407 Proxy says no\r\nContent-Length: 0\r\n\r\n")

    threading.Thread(target=serve, daemon=True).start()
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{listening.getsockname()[1]}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with Web(liar().url, "Bearer secret") as web:
        assert len(web.search("studies").items) == 2
    with Web(secure[0], tls=Certificates(None, None, signed["ca.pem"]).client()) as web:
        assert web.search("studies").items == []
    assert heads == []
    with Web("https://pacs.example/web", "Bearer secret") as web, pytest.raises(WebError, match="the proxy"):
        web.search("studies/1.2.3/series")
    assert heads and heads[0].startswith(b"CONNECT pacs.example:443") and b"secret" not in heads[0]
    assert b"1.2.3" not in heads[0]
    listening.close()
    monkeypatch.setenv("HTTPS_PROXY", "socks9://nowhere")
    monkeypatch.setenv("https_proxy", "socks9://nowhere")
    with pytest.raises(ConfigError, match="environment"):
        Web("https://pacs.example/web")


def test_ipv6(tmp_path: Path) -> None:
    try:
        listening = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 on this machine")

    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(65536)
            say(connection, rows([{"0020000D": "1.2"}]))

    threading.Thread(target=serve, daemon=True).start()
    with listening, Web(f"http://[::1]:{listening.getsockname()[1]}/web/", "Bearer x") as web:
        assert len(web.search("studies").items) == 1


@pytest.mark.parametrize(
    "url",
    ["https://x:99999/y", "https://x:port/y", "https:///y", "https://[::1/y", "https://x/y?token=secret", "https://x/#y",
     "https://x y/z", "https://x/\ny", "file:///etc/passwd", "//x/y", "https://me:secret@x/y"],
)  # fmt: skip
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ConfigError, match="DICOMweb address") as told:
        Web(url)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize("text", ["Bearer x\nHost: evil", "Bearer \u00e9", "Bearer \x00", "a\rb"])
def test_credentials_that_are_no_header(text: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(text)
    with pytest.raises(ConfigError, match="one line of plain characters"):
        authorization(tmp_path / "key")


def test_reasons_contain_no_names() -> None:
    for said in (b"Patient DOE^JANE not found", b"no 1.2.840.10008.5.1.4", b"MRN 00471147", b"born 1970-01-01"):
        assert not any(part in reason_of(said, "text/plain") for part in ("DOE", "JANE", "840", "4711", "1970"))
    assert reason_of(b'{"error": "limit is too large"}', "application/json") == "{'error': 'limit is too large'}"
    assert reason_of(b"\x89PNG", "image/png") == ""
    assert len(reason_of(b"word " * 999, "text/plain; charset=x")) == QUOTED


# -- objects sent ------------------------------------------------------------------------------------------------------

FAILED = b'{"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [43264]}}]}}'
XML = b'<NativeDicomModel><DicomAttribute tag="00081197" vr="US"><Value number="1">272</Value></DicomAttribute>'


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (answer(b"{}"), ""),
        (answer(b""), ""),
        (answer(b"", 202), ""),
        (answer(b'{"00081199": {"vr": "SQ", "Value": [{}]}, "00081198": {"vr": "SQ"}}'), ""),
        (answer(b'{"00081198": {"vr": "SQ", "Value": []}}'), ""),
        (answer(b'{"00081198": {"vr": "SQ"}, "00081199": {"vr": "SQ", "Value": [{}]}}'), ""),  # as Orthanc answers
        (answer(b'{"00081198" : {"vr" : "SQ"}, "00081199" : {"Value" : [{"00081150": {}}], "vr" : "SQ"}}'), ""),
        (answer(FAILED), "failure 0xA900"),
        (answer(FAILED, 202), "failure 0xA900"),
        (answer(FAILED, 409), "failure 0xA900"),
        (answer(XML, 202, "application/dicom+xml"), "does not take"),
        (answer(b'{"00081198": {"vr": "SQ", "Value": [{"00081150": {}}]}}'), "does not take"),
        (answer(b"", 409), "a conflict"),
        (answer(b"quota for DOE^JANE", 409, "text/plain"), '"quota for ..."'),
        (answer(HTML, kind="text/html"), "web page"),
        (answer(b"", 403), "--auth-file"),
        (answer(b"", 415), "415"),
        (answer(b"", 503), "status 503"),
        (raw(), "no HTTP"),
        (drips(b"HTTP/1.1 200 ", b"x"), "slower than"),
        (raw(then="hold"), "no byte for"),
    ],
)
def test_sent_by_stow(how: Any, said: str, liar: Callable[..., Liar], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "Bounds", lambda: QUICK)
    server = liar(1, studies=how)
    with destination(server.url, []) as send:
        if not said:
            return send(radiograph(0, 32))
        with pytest.raises((SendError, WebError)) as told:
            send(radiograph(0, 32))
    if said == "no HTTP" and "connection broke" in str(told.value):
        return  # the server had closed before all was sent
    assert said in str(told.value) and "DOE" not in str(told.value)
