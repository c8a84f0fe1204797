"""Servers with one wrong answer: the pull ends in time, names the fault, and fetches the rest."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httpx", reason="needs the extra `hospital`")

from hospital.lying import LIES, Liar, Lie
from hospital.planted import radiograph, save
from m3bind.hospital import http
from m3bind.hospital.deidentify import Deidentifier
from m3bind.hospital.dicomweb import Pull
from m3bind.hospital.http import Bounds, Web
from m3bind.hospital.intake import Intake
from m3bind.hospital.pseudonyms import Pseudonyms
from m3bind.hospital.qido import Wanted
from m3bind.hospital.spool import Spool

SECONDS = 20.0  # a pull may take on a busy machine
BOUNDS = Bounds(tries=2, silence=20.0, rate=1000.0, seconds=20.0, answer=8 << 20, pages=20, parts=50)
QUICK = Bounds(tries=2, silence=0.8, rate=1000.0, seconds=4.0, answer=1 << 20, pages=20, parts=50)
Told = tuple[list[bytes], list[tuple[str, str, str]]]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """Four radiographs, and (study, series, object) of each."""
    made, folder = [radiograph(k, 32) for k in range(4)], tmp_path_factory.mktemp("told")
    data = [save(one, folder / f"{k}.dcm").read_bytes() for k, one in enumerate(made)]
    return data, [tuple(map(str, (one.StudyInstanceUID, one.SeriesInstanceUID, one.SOPInstanceUID))) for one in made]


@pytest.fixture
def liar(told: Told, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Liar]]:
    monkeypatch.setattr(http, "PAUSE", 0.01)
    monkeypatch.setattr(http, "LONGEST", 0.05)
    started: list[Liar] = []

    def start(**routes: Any) -> Liar:
        started.append(Liar(*told, routes))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def intake(tmp_path: Path) -> Iterator[Intake]:
    with Spool(tmp_path / "spool", max_bytes=8 << 20) as spool:
        yield Intake(spool, Deidentifier(Pseudonyms(b"a salt only for tests")), ("xray",), max_bytes=1 << 20)


def pulled(server: Liar, intake: Intake, bounds: Bounds = BOUNDS, **wanted: Any) -> Pull:
    with Web(server.url, bounds=bounds) as web:
        run = Pull(web, intake, Wanted(**wanted))
        for _ in run:
            pass
    return run


def waiting(intake: Intake) -> int:
    """Objects in the spool, each once."""
    return len(list(intake.spool.units.glob("*/*.dcm")))


@pytest.mark.parametrize("name", LIES)
def test_a_lie(name: str, liar: Callable[..., Liar], intake: Intake, told: Told) -> None:
    lie: Lie = LIES[name]
    server, start = liar(**{lie.place: lie.how}), time.monotonic()
    run = pulled(server, intake, QUICK if lie.slow else BOUNDS, **lie.wanted)
    assert time.monotonic() - start < SECONDS
    said = "\n".join(run.reasons)
    if lie.outcome == "fetched":
        assert run.whole and waiting(intake) == 4 and not said, said
    else:
        assert not run.whole and waiting(intake) >= 3, said
        assert any(word in said for word in lie.outcome.split("|")), said
        listed = (intake.spool.folder / "aside.csv").read_text()
        assert said.splitlines()[0] in listed.replace('""', '"')
        for text in (uid for uids in told[1] for uid in uids):
            assert text not in said + listed
    assert not os.listdir(intake.spool.incoming)
