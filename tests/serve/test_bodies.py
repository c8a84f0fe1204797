"""Bodies that are too large, too slow, packed, or of another type than declared; nothing of them is stored."""

import errno
import gzip
import io
import json
import os
import socket
import tempfile
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from m3bind.serve import multipart
from m3bind.serve.settings import ServiceSettings
from serve.conftest import until, upload

SMALL = ServiceSettings(body_bytes=300_000, json_bytes=4000, flying_bytes=500_000, files=5, grace_seconds=1.0,
                 bytes_per_second=100_000, header_seconds=1.0, unread_seconds=1.0)  # fmt: skip
FORM = "multipart/form-data; boundary=----x"
HEAD = b'------x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
TAIL = b"\r\n------x--\r\n"


@pytest.fixture
def served(live):
    return live(SMALL)


def request(served, head, *pieces, pause=0.0):
    """Send bytes, and return status and body of the answer."""
    with served.socket() as wire:
        wire.sendall(head)
        for piece in pieces:
            try:
                wire.sendall(piece)
            except (BrokenPipeError, ConnectionResetError):
                break
            time.sleep(pause)
        return read(wire)


def read(wire):
    data = b""
    while b"\r\n\r\n" not in data:
        piece = wire.recv(65536)
        if not piece:
            return 0, {}
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    lines = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:])
    while len(body) < int(lines.get("content-length", 0)):
        body += wire.recv(65536)
    return int(head.split()[1]), json.loads(body or b"{}")


def post(address, kind=FORM, **lines):
    named = b"".join(f"{name.replace('_', '-')}: {value}\r\n".encode() for name, value in lines.items())
    return b"POST /api/%s HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\n%s\r\n" % (
        address.encode(),
        kind.encode(),
        named,
    )


def folders():
    return list(Path(tempfile.gettempdir()).glob(f"m3bind-unpacked-{os.getpid()}-*"))


def test_a_large_body_is_refused_before_it_is_read(served):
    status, body = request(served, post("uploads", content_length=10**12))
    assert status == 413 and "300,000" in body["error"]["message"]
    status, body = request(served, post("search", "application/json", content_length=5000))
    assert status == 413 and body["error"]["code"] == "too_large"


def test_a_large_body_without_a_length_is_refused_when_it_is_too_large(served):
    pieces = [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [HEAD, *[bytes(65536)] * 20]]
    status, body = request(served, post("uploads", transfer_encoding="chunked"), *pieces)
    assert status == 413 and body["error"]["code"] == "too_large"
    status, body = request(
        served, post("search", "application/json", transfer_encoding="chunked"), b"2000\r\n%s\r\n" % (b" " * 0x2000)
    )
    assert status == 413
    until(lambda: not folders())


def test_all_bodies_together_are_bounded(served):
    half = HEAD + bytes(280_000)
    with served.socket() as one:
        one.sendall(post("uploads", content_length=290_000) + half)
        until(lambda: "m3bind_body_bytes 0.0" not in metrics(served))
        status, body = request(served, post("uploads", content_length=290_000), half)
        assert status == 503 and body["error"]["code"] == "busy"
    until(lambda: "m3bind_body_bytes 0.0" in metrics(served))


def metrics(served):
    with served.socket() as wire:
        wire.sendall(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")
        data = b""
        while piece := wire.recv(65536):
            data += piece
    return data.decode()


def test_a_slow_body_is_given_up(served):
    begun = time.monotonic()
    status, body = request(served, post("uploads", content_length=100_000), HEAD)
    assert status == 408 and body["error"]["code"] == "slow" and time.monotonic() - begun < 8
    status, body = request(served, post("search", "application/json", content_length=100), b'{"parts"')
    assert status == 408
    until(lambda: not folders())


def test_a_slow_head_loses_its_connection(served):
    with served.socket() as never, served.socket() as partly:
        partly.sendall(b"GET /api/about HTTP/1.1\r\nHost: loc")
        assert never.recv(10) == b"" and partly.recv(10) == b""


def test_a_slow_head_after_a_request_loses_it_too(served):
    with served.socket() as wire:
        wire.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert wire.recv(65536).startswith(b"HTTP/1.1 200")
        for letter in b"GET /he":
            wire.sendall(bytes([letter]))
        begun = time.monotonic()
        while wire.recv(65536):
            pass
        assert time.monotonic() - begun < 8


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system has no TCP_USER_TIMEOUT")
def test_an_answer_that_no_client_reads_is_dropped(served):
    wire = socket.socket()
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    wire.connect(("127.0.0.1", served.port))
    with wire:
        wire.sendall(b"GET /api/items/i000/picture?size=2048 HTTP/1.1\r\nHost: localhost\r\n\r\n" * 4)
        assert wire.recv(12, socket.MSG_PEEK) == b"HTTP/1.1 200"
        assert served.server.server_state.connections
        until(lambda: not served.server.server_state.connections, 15)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, identity"])
def test_packed_bodies_are_not_taken(client, coding):
    bomb = gzip.compress(bytes(10**6))
    answer = client.post("/api/search", content=bomb, headers={"Content-Encoding": coding})
    assert answer.status_code == 415 and answer.json()["error"]["code"] == "packed"


def test_a_bomb_inside_an_upload_is_refused(client, tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", bytes(100 * 10**6))
    with gzip.open(tmp_path / "bomb.nii.gz", "wb", compresslevel=9) as handle:
        import nibabel

        header = nibabel.Nifti1Header()
        header.set_data_shape((2000, 2000, 2000))
        header.set_data_dtype("int16")
        header["magic"], header["vox_offset"] = b"n+1", 352
        handle.write(header.binaryblock + bytes(10**6))
    for name in ("bomb.zip", "bomb.nii.gz"):
        answer = upload(client, tmp_path / name)
        assert answer.status_code == 422 and answer.json()["error"]["code"] == "unreadable"
    assert upload(client, tmp_path / "bomb.nii.gz", modality="ct").status_code == 422


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'{"parts": NaN}', b"\xff\xfe", b"[" * 3000, b'{"k": 1e400}',
     b'{"parts": [{"kind": "text", "value": "\\ud800"}]}', b'{"k": ' + b"9" * 3000 + b"}"],
)  # fmt: skip
def test_malformed_json(client, body):
    answer = client.post("/api/search", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422) and set(answer.json()) == {"error"}


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("application/json", b"{}", 415),
        ("multipart/form-data", b"x", 415),
        ("multipart/form-data; boundary=" + "x" * 300, b"x", 400),
        (FORM, b"", 400),
        (FORM, b"nonsense", 400),
        (FORM, HEAD + b"cut", 400),
        (FORM, b"------x\r\n\r\nno head" + TAIL, 400),
        (FORM, b"------x\r\nContent-Disposition: form-data\r\n\r\nx" + TAIL, 400),
        (FORM, b"------x\r\nX: " + b"y" * 9000 + b"\r\n\r\nx" + TAIL, 400),
        (FORM, b'------x\r\nContent-Disposition: form-data; name="a"\r\n\r\nx' + TAIL, 400),
        (FORM, HEAD + TAIL, 422),
        (FORM, HEAD + b"no picture" + TAIL, 422),
    ],
)  # fmt: skip
def test_malformed_multipart(client, kind, body, status):
    answer = client.post("/api/uploads", content=body, headers={"Content-Type": kind})
    assert answer.status_code == status and set(answer.json()) == {"error"}
    assert not folders()


def test_too_many_files(served):
    part = HEAD + b"x\r\n"
    body = part * 6 + TAIL[2:]
    status, told = request(served, post("uploads", content_length=len(body)), body)
    assert status == 413 and told["error"]["code"] == "too_many_files"


@pytest.mark.parametrize("name", ["../../etc/cron.d/x.png", "/etc/x.png", "..\\x.png", ".hidden.png", "-rf.png",
                                  "\x00.png", "a" * 300 + ".png", "über maß.png", "..", ""])  # fmt: skip
def test_names_of_files_leave_no_folder(client, world, name):
    data = world.files["xray"].read_bytes()
    answer = client.post("/api/uploads", files={"file": (name or " ", data)})
    assert answer.status_code in (201, 422)
    assert (answer.status_code == 201) == name.endswith(".png")


def test_what_takes_too_long_is_given_up_and_its_place_is_free(live):
    served = live(replace(SMALL, request_seconds=0.5, workers=1))
    questions, gate = served.app.service.questions, threading.Event()
    real = questions.text
    questions.text = lambda text: (gate.wait(20), real(text))[1]
    body = b'{"parts": [{"kind": "text", "value": "a lung"}]}'
    head = post("search", "application/json", content_length=len(body))
    with served.socket() as waiting:
        waiting.sendall(head + body)
        for _ in range(2):  # one at work, one that waits
            status, told = request(served, head, body)
            assert status == 503 and told["error"]["code"] == "timeout"
        assert read(waiting)[0] == 503
    assert served.app.service.towers.waiting == 0
    gate.set()
    until(lambda: served.app.service.towers.running == 0)
    assert request(served, head, body)[0] == 200


def test_one_slow_decoder_does_not_keep_others_from_pictures(live, monkeypatch):
    from m3bind.serve import uploads

    served, gate = live(replace(SMALL, decoders=2)), threading.Event()
    monkeypatch.setattr(uploads, "decode", lambda *_: gate.wait(20) and None)
    body = HEAD + b"x" + TAIL
    with served.socket() as slow:
        slow.sendall(post("uploads", content_length=len(body)) + body)
        until(lambda: served.app.service.files.running == 1)
        with served.socket() as wire:
            wire.sendall(b"GET /api/items/i000/thumbnail HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert wire.recv(12) == b"HTTP/1.1 200"
        gate.set()


@pytest.mark.parametrize("moment", ["folder", "open", "write"])
def test_a_full_temporary_folder_is_an_answer(client, world, monkeypatch, moment):
    full = OSError(errno.ENOSPC, "No space left on device")

    class Full(io.FileIO):
        def write(self, data):
            raise full

    def refuse(*_, **__):
        raise full

    data = world.files["xray"].read_bytes()
    with monkeypatch.context() as patch:
        if moment == "folder":
            patch.setattr(tempfile, "mkdtemp", refuse)
        else:
            patch.setattr(multipart, "open", refuse if moment == "open" else Full, raising=False)
        answer = client.post("/api/uploads", files={"file": ("a.png", data)})
    assert answer.status_code == 507 and answer.json()["error"]["code"] == "no_room"
    assert "no room" in answer.json()["error"]["message"] and answer.headers["retry-after"] == "60"
    assert client.post("/api/uploads", files={"file": ("a.png", data)}).status_code == 201
