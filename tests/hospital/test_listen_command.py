"""`m3bind listen` on a spool with bad files, and on a damaged one: the rest continues; the exit code reports it."""

import os
import time
from pathlib import Path

import pytest

pytest.importorskip("pynetdicom", reason="needs the extra `hospital`")

from hospital.planted import radiograph, save, series
from hospital.running import Command, counts, until
from hospital.test_listener import NAMES, associate
from m3bind.hospital.intake import Intake
from m3bind.hospital.spool import Spool

pytestmark = pytest.mark.whole


def test_bad_files_and_a_damaged_ledger(space_folder: Path, environment: dict[str, str], tmp_path: Path) -> None:
    index, spool = tmp_path / "index", tmp_path / "index.spool"
    with Spool(spool) as opened:
        intake = Intake(opened, NAMES, ("xray", "ct"))
        for one in series(Path("/nowhere"), None, 8):
            unit = intake.take(save(one, tmp_path / "in.dcm")).unit
    lost = sorted((spool / "units" / unit).iterdir())
    lost[2].write_bytes(b"")
    lost[5].write_bytes(os.urandom(1000))
    (spool / "units" / "empty").mkdir()
    (spool / "units" / "Doe.txt").write_text("x")
    common = ["--space", str(space_folder), "--index", str(index), "--port", "0", "--quiet", "0.5"]

    listen = Command(tmp_path / "first.txt", environment, "listen", *common)
    port = listen.port()
    until(lambda: counts(index) == {"ct": 1})
    association = associate(port)
    assert association.send_c_store(radiograph()).Status == 0
    association.release()
    until(lambda: counts(index) == {"ct": 1, "xray": 1})
    said = listen.end()
    assert listen.process.returncode == 1, said
    assert "incomplete 1" in said and "quarantined 3" in said and "Traceback" not in said

    listen = Command(tmp_path / "second.txt", environment, "listen", *common)
    listen.port()
    time.sleep(0.5)
    said = listen.end()
    assert listen.process.returncode == 0 and "quarantined 0" in said, said

    (spool / "ledger.db").write_bytes(os.urandom(9000))
    listen = Command(tmp_path / "third.txt", environment, "listen", *common)
    listen.process.wait(240)
    said = listen.log.read_text()
    assert listen.process.returncode == 2 and said.count("\n") == 1 and "ledger.db" in said, said
