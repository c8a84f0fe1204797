"""The C-STORE listener: right answers, nothing acknowledged is lost, and bad peers have little effect."""

import contextlib
import errno
import io
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pydicom
import pytest

pytest.importorskip("pynetdicom", reason="needs the extra `hospital`")

from pynetdicom import AE, Association
from pynetdicom.dsutils import encode
from pynetdicom.sop_class import Verification

from hospital.planted import Names, electrocardiogram, plant, radiograph, series
from m3bind.hospital import connection_limits
from m3bind.hospital.deidentify import Deidentifier
from m3bind.hospital.intake import Intake
from m3bind.hospital.listener import Listener, ListenerSettings
from m3bind.hospital.pending_connections import PendingConnections
from m3bind.hospital.pseudonyms import Pseudonyms
from m3bind.hospital.spool import BROKEN, Spool

NAMES = Deidentifier(Pseudonyms(b"a salt only for tests"))
CR, ECG, CT = (f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("1", "9.1.1", "2"))
MR = "1.2.840.10008.5.1.4.1.1.4"


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Callable[..., tuple[Listener, Intake]]]:
    """`listening(most=..., **options of Listener)` -> a listener at work, and its intake."""
    found: list[tuple[Listener, Spool]] = []

    def start(most: int = 1 << 30, room: int = 50 << 30, **options: Any) -> tuple[Listener, Intake]:
        spool = Spool(tmp_path / "spool", quiet=0.3, max_bytes=room)
        intake = Intake(spool, NAMES, ("xray", "ct", "ecg"), max_bytes=most)
        listener = Listener(intake, ListenerSettings(**{"timeout": 5.0, **options}))
        listener.start("127.0.0.1", 0)
        found.append((listener, spool))
        return listener, intake

    yield start
    for listener, spool in found:
        listener.stop(2)
        spool.close()


def associate(
    port: int, kinds: Sequence[str] = (CR, CT, ECG), calling: str = "TESTER", called: str = "M3BIND"
) -> Association:
    """An association that asks for these kinds of objects."""
    entity = AE(calling)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 20
    for kind in kinds:
        entity.add_requested_context(kind)
    return entity.associate("127.0.0.1", port, ae_title=called)


def send(port: int, *datasets: Any, **options: Any) -> list[int]:
    """Status of each sent object; -1 if missing."""
    association = associate(port, **options)
    assert association.is_established
    found = [int(association.send_c_store(dataset).get("Status", -1)) for dataset in datasets]
    association.release()
    return found


def kept(intake: Intake) -> list[Path]:
    return sorted(intake.spool.units.glob("*/*.dcm"))


def test_objects_are_stored_without_names_and_once(listening: Callable[..., tuple[Listener, Intake]]) -> None:
    listener, intake = listening()
    names = Names()
    objects = [*series(Path("/nowhere"), names), plant(radiograph(), names), plant(electrocardiogram(names), names)]
    assert send(listener.port, *objects) == [0] * len(objects)
    assert send(listener.port, *objects) == [0] * len(objects)
    files = kept(intake)
    assert len(files) == len(objects) and len({file.parent for file in files}) == 3
    assert all(names.found_in(file.read_bytes()) == [] for file in files)
    assert list(intake.spool.incoming.iterdir()) == []
    whole = {file.parent.name for file in files if pydicom.dcmread(file).Modality != "CT"}
    assert whole <= set(intake.spool.ready())
    time.sleep(0.35)
    assert len(intake.spool.ready()) == 3


def test_echo_titles_and_kinds(listening: Callable[..., tuple[Listener, Intake]]) -> None:
    listener, _ = listening(allow=["TESTER"])
    association = associate(listener.port, [Verification])
    assert association.send_c_echo().Status == 0
    association.release()
    assert associate(listener.port, calling="STRANGER").is_rejected
    assert associate(listener.port, called="OTHER").is_rejected
    alone = associate(listener.port, [MR, "1.2.840.10008.5.1.4.1.1.77.1.5.1"])
    assert not alone.is_established or alone.accepted_contexts == []


def test_answers(listening: Callable[..., tuple[Listener, Intake]], tmp_path: Path) -> None:
    listener, intake = listening(room=60_000)
    burned, lost, good, more = radiograph(), radiograph(1), radiograph(2), radiograph(3)
    burned.BurnedInAnnotation = "YES"
    del lost.Rows
    assert send(listener.port, burned, lost, good, more) == [0x0124, 0xC000, 0, 0xA700]
    assert intake.counts == {"received": 1, "refused": 3} and len(kept(intake)) == 1
    told = (intake.spool.folder / "aside.csv").read_text()
    assert "burned-in" in told and "spool is full" in told and "4711" not in told and "Doe" not in told


def test_release_completes_a_series(listening: Callable[..., tuple[Listener, Intake]]) -> None:
    listener, intake = listening(complete="release")
    intake.spool.quiet = 1e9
    association = associate(listener.port)
    for dataset in series(Path("/nowhere"), None):
        assert association.send_c_store(dataset).Status == 0
    assert intake.spool.ready() == []
    association.release()
    end = time.monotonic() + 5
    while not intake.spool.ready():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_two_senders_at_once(listening: Callable[..., tuple[Listener, Intake]]) -> None:
    listener, intake = listening()
    answers: list[list[int]] = []

    def work(seed: int) -> None:
        answers.append(send(listener.port, *(radiograph(seed + k, 64) for k in range(10))))

    threads = [threading.Thread(target=work, args=(100 * k,)) for k in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert answers == [[0] * 10] * 2 and len(kept(intake)) == 20 and intake.counts["received"] == 20


def test_too_many_senders_are_turned_away(listening: Callable[..., tuple[Listener, Intake]]) -> None:
    listener, _ = listening(associations=2)
    held = [associate(listener.port) for _ in range(2)]
    assert all(association.is_established for association in held)
    assert not associate(listener.port).is_established
    [association.release() for association in held]
    time.sleep(0.3)
    assert send(listener.port, radiograph()) == [0]


def test_an_object_that_is_too_large_ends_its_association(listening: Callable[..., tuple[Listener, Intake]]) -> None:
    listener, intake = listening(most=100_000)
    association = associate(listener.port)
    status = association.send_c_store(radiograph(size=1024))
    assert "Status" not in status or status.Status == 0xA700
    assert kept(intake) == [] and intake.counts["refused"] == 1
    end = time.monotonic() + 10
    while list(intake.spool.incoming.iterdir()):
        assert time.monotonic() < end, "half an object stays on disk"
        time.sleep(0.05)
    assert send(listener.port, radiograph(size=64)) == [0]


def test_malformed_peers(listening: Callable[..., tuple[Listener, Intake]]) -> None:
    listener, intake = listening(timeout=1.0)
    attacks = [
        b"",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        struct.pack(">BBL", 1, 0, 0xFFFFFFF0) + b"x" * 4096,  # an association request of 4 GB
        struct.pack(">BBL", 1, 0, 68) + os.urandom(68),
        struct.pack(">BBL", 4, 0, 20) + b"\0" * 20,  # data before an association
        struct.pack(">BBL", 9, 0, 4) + b"\0" * 4,
    ]
    open_ones = []
    for attack in attacks * 3:
        peer = socket.create_connection(("127.0.0.1", listener.port), timeout=5)
        peer.sendall(attack)
        open_ones.append(peer)
    time.sleep(0.5)
    association = associate(listener.port)
    end = time.monotonic() + 10
    while not association.is_established and time.monotonic() < end:
        time.sleep(0.2)
        association = associate(listener.port)
    assert association.is_established
    association.dul.socket.socket.sendall(struct.pack(">BBL", 4, 0, 40) + os.urandom(40))  # then rubbish
    time.sleep(0.3)
    assert send(listener.port, radiograph(size=64)) == [0]
    [peer.close() for peer in open_ones]
    assert len(kept(intake)) == 1


COMMANDS: dict[str, dict[str, Any]] = {
    "no instance": {"AffectedSOPInstanceUID": None},
    "no class": {"AffectedSOPClassUID": None},
    "no kind": {"CommandField": None},
    "an unknown kind": {"CommandField": 0x0999},
    "nothing": dict.fromkeys(
        ("CommandField", "MessageID", "Priority", "CommandDataSetType", "AffectedSOPClassUID", "AffectedSOPInstanceUID")
    ),
}


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_command_that_cannot_be_parsed_ends_its_association(
    listening: Callable[..., tuple[Listener, Intake]], capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    """pynetdicom raises in its own threads then; no traceback is printed, and no other sender waits."""
    listener, intake = listening(associations=2)
    command = pydicom.Dataset()
    given = {"AffectedSOPClassUID": CR, "AffectedSOPInstanceUID": "1.2.4711", "CommandField": 1, "MessageID": 1}
    for keyword, value in {**given, "Priority": 2, "CommandDataSetType": 1, **COMMANDS[kind]}.items():
        if value is not None:
            setattr(command, keyword, value)
    body = encode(command, True, True)
    assert body is not None
    body = struct.pack("<HHLL", 0, 0, 4, len(body)) + body
    held = [associate(listener.port) for _ in range(2)]
    for association in held:
        context = next(one.context_id for one in association.accepted_contexts if one.abstract_syntax == CR)
        data = struct.pack(">LBB", len(body) + 2, context, 3) + body
        association.dul.socket.socket.sendall(struct.pack(">BBL", 4, 0, len(data)) + data)
    end = time.monotonic() + 20
    while not all(association.is_aborted for association in held):
        assert time.monotonic() < end, "the sender is not told"
        time.sleep(0.02)
    assert intake.counts["refused"] == 2
    assert "cannot be parsed" in (intake.spool.folder / "aside.csv").read_text()
    while listener._ae.active_associations:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert send(listener.port, radiograph(size=64)) == [0]
    said = capfd.readouterr().err
    assert "Traceback" not in said and "4711" not in said


@pytest.mark.parametrize("ending", ["released", "aborted", "vanished"])
def test_an_open_association_keeps_its_series_open(
    listening: Callable[..., tuple[Listener, Intake]], ending: str
) -> None:
    """A pause longer than `quiet` does not close a series whose sender is connected; its kind of ending is recorded."""
    listener, intake = listening()
    scan = series(Path("/nowhere"), None)
    association = associate(listener.port)
    for dataset in scan[:3]:
        assert association.send_c_store(dataset).Status == 0
    time.sleep(3 * intake.spool.quiet)
    assert intake.spool.ready() == []
    for dataset in scan[3:]:
        assert association.send_c_store(dataset).Status == 0
    intake.spool.quiet = 1e9 if ending == "released" else 0.3
    unit = next(iter(intake.spool.units.iterdir())).name
    {
        "released": association.release,
        "aborted": association.abort,
        "vanished": lambda: association.dul.socket.socket.close(),
    }[ending]()
    intake.spool.quiet = 0.3
    end = time.monotonic() + 10
    while intake.spool.ready() != [unit]:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert intake.spool.doubts(unit) == ([] if ending == "released" else [BROKEN])


def test_a_sender_that_reconnects_completes_its_series(listening: Callable[..., tuple[Listener, Intake]]) -> None:
    listener, intake = listening()
    scan = series(Path("/nowhere"), None)
    association = associate(listener.port)
    assert association.send_c_store(scan[0]).Status == 0
    association.abort()
    unit = next(iter(intake.spool.units.iterdir())).name
    end = time.monotonic() + 5
    while not intake.spool.doubts(unit):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert send(listener.port, *scan) == [0] * len(scan)
    end = time.monotonic() + 5
    while intake.spool.doubts(unit):
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("shift", [-3600.0, 3600.0])
def test_a_clock_that_is_set_changes_nothing(
    listening: Callable[..., tuple[Listener, Intake]], monkeypatch: pytest.MonkeyPatch, shift: float
) -> None:
    """Neither the completeness of a series nor an association's timers, here or after a restart."""
    listener, intake = listening()
    intake.spool.quiet = 2.0
    scan, real = series(Path("/nowhere"), None), time.time
    association = associate(listener.port)
    association.dul._idle_timer.timeout = None  # the sender's own
    assert association.send_c_store(scan[0]).Status == 0
    monkeypatch.setattr(time, "time", lambda: real() + shift)
    time.sleep(0.3)
    assert association.send_c_store(scan[1]).Status == 0
    association.release()
    assert intake.spool.ready() == []
    end = time.monotonic() + 10
    while not intake.spool.ready():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_half_open_connections_block_no_sender(listening: Callable[..., tuple[Listener, Intake]]) -> None:
    """Fifty that send nothing, a part of their request, or single bytes; senders are served."""
    listener, intake = listening(associations=2, timeout=30.0)
    request = struct.pack(">BBL", 1, 0, 200) + b"\0\1" + bytes(66)
    starts = [b"", request[:3], request[:6], request]
    half = []
    for number in range(52):
        peer = socket.create_connection(("127.0.0.1", listener.port), timeout=5)
        peer.sendall(starts[number % 4])
        half.append(peer)
    begun = time.monotonic()
    for number in range(3):
        assert send(listener.port, radiograph(number, 64)) == [0]
        half[4 * number + 3].sendall(b"\0")  # one more byte
    assert time.monotonic() - begun < 10
    assert len(listener._server.active_associations) <= 1  # none of them has a thread
    listener._porch._seconds = 0.0
    for peer in half:
        peer.settimeout(10)
        with contextlib.suppress(ConnectionResetError):
            assert peer.recv(1) == b""  # closed when its time was over
        peer.close()
    assert len(kept(intake)) == 3


def test_too_many_half_open_connections_push_each_other_out() -> None:
    got: list[Any] = []
    pending = PendingConnections(lambda connection, address: got.append(connection), lambda: None, 60.0, maximum=3)
    pairs = [socket.socketpair() for _ in range(5)]
    for ours, _ in pairs:
        pending.add(ours, None)
    for _, theirs in pairs[:2]:
        theirs.settimeout(5)
        assert theirs.recv(1) == b""
    pairs[3][1].sendall(struct.pack(">BBL", 1, 0, 4))
    time.sleep(0.2)
    assert got == []
    pairs[3][1].sendall(b"four")
    end = time.monotonic() + 5
    while not got:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert got == [pairs[3][0]] and got[0].recv(10, socket.MSG_PEEK) == struct.pack(">BBL", 1, 0, 4) + b"four"
    pending.close()
    [one.close() for pair in pairs for one in pair]


@pytest.mark.parametrize("moment", ["open", "first", "later"])
def test_a_full_disk_is_an_answer(
    listening: Callable[..., tuple[Listener, Intake]], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """If a received file cannot be written, the answer asks for a retry, on the same association."""
    listener, intake = listening()
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            if moment == "first" or self.tell() > 200:
                raise full
            return super().write(data)

    def opened(path: Any, mode: str) -> Any:
        if moment == "open":
            raise full
        return Full(path, mode)

    association = associate(listener.port)
    with monkeypatch.context() as patch:
        patch.setattr(connection_limits, "open", opened, raising=False)
        assert association.send_c_store(radiograph(1)).Status == 0xA700
    assert association.send_c_store(radiograph(2)).Status == 0
    association.release()
    assert intake.counts == {"refused": 1, "received": 1} and list(intake.spool.incoming.iterdir()) == []
    assert "No space left" in (intake.spool.folder / "aside.csv").read_text()
