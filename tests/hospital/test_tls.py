"""DICOM over TLS, both ways: authenticated peers get through; others, and slow ones, block no one."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pynetdicom", reason="needs the extra `hospital`")

from pydicom.dataset import Dataset
from pynetdicom import AE, evt

from hospital.planted import electrocardiogram, radiograph, series
from m3bind.errors import ConfigError
from m3bind.hospital.deidentify import Deidentifier
from m3bind.hospital.intake import Intake
from m3bind.hospital.listener import Listener, ListenerSettings, refuse_open
from m3bind.hospital.pseudonyms import Pseudonyms
from m3bind.hospital.send import SendError, destination
from m3bind.hospital.spool import Spool
from m3bind.hospital.tls import Certificates

CR, CT, ECG = (f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("1", "2", "9.1.1"))


@pytest.fixture
def listener(tmp_path: Path, signed: dict[str, Path]) -> Iterator[Listener]:
    """One that only accepts certificates of our authority."""
    tls = Certificates(signed["own.pem"], signed["own.key"], signed["ca.pem"]).server()
    with Spool(tmp_path / "spool", quiet=0.3) as spool:
        names = Deidentifier(Pseudonyms(b"a salt only for tests"))
        made = Listener(Intake(spool, names, ("xray", "ct", "ecg")), ListenerSettings(timeout=5.0, tls=tls))
        made.start("127.0.0.1", 0)
        yield made
        made.stop(2)


def sent(port: int, tls: Any, *datasets: Dataset) -> list[int] | None:
    """Status of each object; None without an association."""
    entity = AE("TESTER")
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 8
    for kind in (CR, CT, ECG):
        entity.add_requested_context(kind)
    association = entity.associate("127.0.0.1", port, ae_title="M3BIND", tls_args=(tls, "127.0.0.1") if tls else None)
    if not association.is_established:
        return None
    found = [int(association.send_c_store(dataset).get("Status", -1)) for dataset in datasets]
    association.release()
    return found


def test_only_who_proves_itself_gets_through(listener: Listener, signed: dict[str, Path]) -> None:
    own = Certificates(signed["own.pem"], signed["own.key"], signed["ca.pem"]).client()
    objects = [*series(Path("/nowhere"), None), radiograph(), electrocardiogram()]
    assert sent(listener.port, own, *objects) == [0] * len(objects)
    nobody = Certificates(None, None, signed["ca.pem"]).client()
    stranger = Certificates(signed["stranger.pem"], signed["stranger.key"], signed["ca.pem"]).client()
    misled = Certificates(signed["own.pem"], signed["own.key"], signed["strange_ca.pem"]).client()
    for tls in (None, nobody, stranger, misled):
        assert sent(listener.port, tls, radiograph(1)) is None
    assert sent(listener.port, own, radiograph(2)) == [0]


def test_a_slow_peer_blocks_no_one(listener: Listener, signed: dict[str, Path]) -> None:
    own = Certificates(signed["own.pem"], signed["own.key"], signed["ca.pem"]).client()
    silent = [socket.create_connection(("127.0.0.1", listener.port)) for _ in range(5)]
    begun = time.monotonic()
    assert sent(listener.port, own, radiograph()) == [0]
    assert time.monotonic() - begun < 4  # the silent ones are given up after 5 s
    for one in silent:
        one.close()


def test_results_are_sent_to_an_archive_that_proves_itself(signed: dict[str, Path]) -> None:
    got: list[str] = []

    def keep(event: Any) -> int:
        got.append(str(event.dataset.SOPInstanceUID))
        return 0

    entity = AE("PACS")
    entity.add_supported_context(CR)
    context = Certificates(signed["own.pem"], signed["own.key"], signed["ca.pem"]).server()
    server = entity.start_server(
        ("127.0.0.1", 0), block=False, ssl_context=context, evt_handlers=[(evt.EVT_C_STORE, keep)]
    )
    place, dataset = f"PACS@127.0.0.1:{server.server_address[1]}", radiograph()
    try:
        own = Certificates.of(signed["own.pem"], signed["own.key"], signed["ca.pem"])
        assert own is not None
        with destination(place, [CR], tls=own.client()) as send:
            send(dataset)
        assert got == [str(dataset.SOPInstanceUID)]
        misled = Certificates(None, None, signed["strange_ca.pem"]).client()
        with pytest.raises(SendError, match="certificates"), destination(place, [CR], tls=misled):
            pass
    finally:
        server.shutdown()


def test_files_that_are_no_certificates(signed: dict[str, Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<html>")
    assert Certificates.of(None, None, None) is None
    for one in ((signed["own.pem"], None, None), (None, signed["own.key"], None)):
        with pytest.raises(ConfigError, match="belong together"):
            Certificates.of(*one)
    with pytest.raises(ConfigError, match="needs a certificate"):
        Certificates(None, None, signed["ca.pem"]).server()
    for own, key in ((page, page), (signed["own.pem"], signed["ca.key"]), (tmp_path / "absent", page)):
        with pytest.raises(ConfigError, match="no certificates in PEM that fit"):
            Certificates(own, key, None).server()
    with pytest.raises(ConfigError, match=r"page\.html"):
        Certificates(None, None, page).client()
    with pytest.raises(ConfigError, match="--tls-ca"):
        refuse_open("0.0.0.0", ())
    refuse_open("0.0.0.0", (), proven=True)
