"""No output line of any command quotes a UID or a header value, however broken their elements are."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from hospital.broken import broken
from hospital.planted import Names, save
from hospital.running import Command, until

THREADS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import logging, warnings
if {hushed}:
    from m3bind.cli.app import hush
    hush()
logging.basicConfig()
from m3bind.hospital.deidentify import Deidentifier, Refused
from m3bind.hospital.pseudonyms import Pseudonyms
from m3bind.modalities.formats.dicom_files import open_dicom, technical_tags
def work(path):
    technical_tags(dataset := open_dicom(path))
    [str(element.value) for element in dataset]
    try:
        Deidentifier(Pseudonyms(b"a salt only for tests")).clean_file(path)
    except Refused as refused:
        print(refused)
with ThreadPoolExecutor(4) as pool:
    list(pool.map(work, 4 * sorted(Path(sys.argv[1]).iterdir())))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Names]:
    folder, names = tmp_path_factory.mktemp("broken"), Names()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, dataset in enumerate(broken(names)):
            save(dataset, folder / f"{number}.dcm")
    return folder, names


@pytest.mark.parametrize("hushed", [True, False])
def test_threads_at_once(files: tuple[Path, Names], hushed: bool) -> None:
    command = [sys.executable, "-c", THREADS.format(hushed=hushed), str(files[0])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (files[1].found_in(done.stdout + done.stderr) == []) == hushed  # pydicom does warn of these


def test_check_quotes_nothing(files: tuple[Path, Names], environment: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "m3bind", "check", str(files[0]), "--json", str(tmp_path / "check.json")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    said = done.stdout + done.stderr + (tmp_path / "check.json").read_text()
    assert "read" in done.stdout and files[1].found_in(said) == []


@pytest.mark.whole
def test_commands_quote_nothing(
    files: tuple[Path, Names], space_folder: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """encode, listen and serve, and their workers, on the same files."""
    import httpx
    import pydicom

    from hospital.test_listener import associate

    folder, names = files
    space, index = ["--space", str(space_folder)], ["--index", str(tmp_path / "index")]
    encode = Command(tmp_path / "encode", environment, "encode", str(folder), *space, "--out", str(tmp_path / "out"))
    encode.process.wait(240)
    listen = Command(tmp_path / "listen", environment, "listen", *space, *index, "--port", "0", "--quiet", "0.5",
                     "--keep-files", str(tmp_path / "kept"))  # fmt: skip
    association = associate(listen.port())
    for path in sorted(folder.iterdir()):
        association.send_c_store(pydicom.dcmread(path))
    association.release()
    until(lambda: len(list((tmp_path / "kept").glob("*/*"))) >= 2)
    serve = Command(tmp_path / "serve", environment, "serve", *space, *index, "--port", "0")
    address = f"http://127.0.0.1:{serve.port()}/api/uploads"
    for path in sorted(folder.iterdir()):
        answer = httpx.post(address, files={"file": (path.name, path.read_bytes())}, timeout=60)
        assert answer.status_code in (201, 422) and names.found_in(answer.text) == []
    said = listen.end() + serve.end() + (tmp_path / "encode").read_text()
    assert "items" in said and names.found_in(said) == []
    lists = [tmp_path / "index.spool" / "aside.csv", tmp_path / "out" / "quarantine.csv"]
    assert names.found_in("".join(path.read_text() for path in lists if path.exists())) == []
    assert os.environ.get("M3BIND_IDENTIFIERS") != "show"
