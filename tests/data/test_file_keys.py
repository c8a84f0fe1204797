"""Content keys of files; the memo is shared, binary, and trusts no file that may have changed."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from m3bind.data import file_keys as module
from m3bind.data.file_keys import FileKeys, file_key
from m3bind.data.shards import KEY, ShardFolder
from m3bind.errors import ReadError


def test_file_key_is_the_content(tmp_path):
    (tmp_path / "a.png").write_bytes(b"one")
    (tmp_path / "b.png").write_bytes(b"one")
    (tmp_path / "c.png").write_bytes(b"two")
    assert file_key(tmp_path / "a.png") == file_key(tmp_path / "b.png") != file_key(tmp_path / "c.png")
    with pytest.raises(ReadError, match="no such file"):
        file_key(tmp_path / "d.png")


def test_file_key_of_a_record_and_of_a_folder_covers_all_parts(tmp_path):
    (tmp_path / "r.hea").write_text("# a comment\nr 2 100 1000\nr.dat 16 1000\nr.dat 16 1000\n")
    (tmp_path / "r.dat").write_bytes(b"signal")
    (tmp_path / "r.atr").write_bytes(b"third-party notes")
    whole, folder = file_key(tmp_path / "r"), file_key(tmp_path)
    assert file_key(tmp_path / "r.hea") == whole
    (tmp_path / "r.atr").write_bytes(b"other notes")
    assert file_key(tmp_path / "r") == whole and file_key(tmp_path) != folder
    (tmp_path / "r.dat").write_bytes(b"signaL")
    assert file_key(tmp_path / "r") != whole


def test_file_key_of_a_record_of_segments_covers_them_and_nothing_outside(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    outside = tmp_path / "secret.dat"
    outside.write_bytes(b"one")
    (folder / "r.hea").write_text("r/2 2 100 2000\ns1 1000\n../s2 1000\n")
    (folder / "s1.hea").write_text(f"s1 2 100 1000\ns1.dat 16 1000\n../secret.dat 16 1000\n{outside} 16 1000\n")
    (folder / "s1.dat").write_bytes(b"signal")
    key = file_key(folder / "r")
    outside.write_bytes(b"two")
    assert file_key(folder / "r") == key
    (folder / "s1.dat").write_bytes(b"signaL")
    assert file_key(folder / "r") != key


@pytest.mark.parametrize("name", ["a.png", "r.dat"])
def test_a_file_larger_than_any_may_be_is_not_hashed(tmp_path, name):
    (tmp_path / "r.hea").write_text("r 1 100 1000\nr.dat 16 1000\n")
    with open(tmp_path / name, "wb") as handle:
        handle.truncate(1 << 40)
    for path in (tmp_path / ("r" if name == "r.dat" else name), tmp_path):
        with pytest.raises(ReadError, match="more than"):
            file_key(path)


def old(path, data=b"one"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (1e9, 1e9))
    return path


@pytest.fixture
def hashed(monkeypatch):
    """The files whose content was hashed."""
    files, sha256_file = [], module.sha256_file
    monkeypatch.setattr(module, "sha256_file", lambda path: files.append(path.name) or sha256_file(path))
    return files


def test_keys_are_remembered_and_renewed_when_the_file_changes(tmp_path, hashed):
    path = old(tmp_path / "a.png")

    def key():
        keys = FileKeys(tmp_path / "c")
        found = keys.key(path)
        keys.save()
        assert keys.known([path]) in ([found], [None])
        return found

    first = key()
    assert first == key() and hashed == ["a.png"]
    path.write_bytes(b"six")  # just now: too fresh to be trusted
    assert key() == key() != first and hashed == ["a.png"] * 3
    os.utime(path, (1e9, 1e9 + 1))
    assert key() == key() != first and hashed == ["a.png"] * 4
    assert not any(b"a.png" in file.read_bytes() for file in (tmp_path / "c").iterdir())


def test_a_changed_part_of_a_record_changes_its_key(tmp_path, hashed):
    """Whether or not the signal has the name of the header."""
    for signal in ("r.dat", "other.dat"):
        folder = tmp_path / signal
        folder.mkdir()
        old(folder / "r.hea", f"r 1 100 1000\n{signal} 16 1000\n".encode())
        old(folder / signal)
        keys = FileKeys(tmp_path / "c")
        first = keys.key(folder / "r")
        hashed.clear()
        assert keys.key(folder / "r") == first == file_key(folder / "r") and sorted(hashed) == sorted(["r.hea", signal])
        old(folder / signal, b"longer")
        assert keys.key(folder / "r") == file_key(folder / "r") != first
        old(folder / "r.mat")  # not part of it
        assert keys.key(folder / "r") == file_key(folder / "r")


def test_a_folder_is_read_again_only_if_a_file_in_it_changed(tmp_path, hashed):
    for name in "abc":
        old(tmp_path / "series" / name, name.encode())
    keys = FileKeys(tmp_path / "c")
    first = keys.key(tmp_path / "series")
    assert keys.key(tmp_path / "series") == first and len(hashed) == 3
    old(tmp_path / "series" / "b", b"changed")
    assert keys.key(tmp_path / "series") != first and len(hashed) == 6


def test_what_is_missing_is_not_known_and_has_no_key(tmp_path):
    keys = FileKeys(tmp_path / "c")
    assert keys.known([tmp_path / "a", tmp_path, tmp_path / "a\0b"]) == [None, None, None]
    with pytest.raises(ReadError, match="no such file"):
        keys.key(tmp_path / "a")


def test_two_processes_add_and_nothing_is_lost(tmp_path, hashed):
    paths = [old(tmp_path / f"{n}", bytes([n])) for n in range(8)]
    one, two = FileKeys(tmp_path / "c"), FileKeys(tmp_path / "c")
    for keys, own in ((one, paths[:4]), (two, paths[4:])):
        for path in own:
            keys.key(path)
        keys.save()
    assert one.known(paths) == two.known(paths) == FileKeys(tmp_path / "c").known(paths) == [file_key(p) for p in paths]


def test_many_small_shards_of_the_memo_are_merged(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_SHARDS", 3)
    monkeypatch.setattr(module, "FOLDED", 2)
    paths = [old(tmp_path / f"{n}", bytes([n])) for n in range(12)]
    keys = FileKeys(tmp_path / "c")
    for path in paths:
        keys.key(path)
        keys.save()
    assert len(list((tmp_path / "c").iterdir())) <= 4
    assert keys.known(paths) == FileKeys(tmp_path / "c").known(paths) == [file_key(path) for path in paths]


def test_a_damaged_memo_is_forgotten(tmp_path):
    path = old(tmp_path / "a")
    keys = FileKeys(tmp_path / "c")
    keys.key(path)
    keys.save()
    (memo,) = (tmp_path / "c").iterdir()
    content = memo.read_bytes()
    memo.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # always another byte
    assert FileKeys(tmp_path / "c").known([path]) == [None]
    assert FileKeys(tmp_path / "c").key(path) == file_key(path)


def test_threads_share_a_memo(tmp_path, hashed):
    paths = [old(tmp_path / f"{n}", bytes([n])) for n in range(64)]
    keys = FileKeys(tmp_path / "c")
    threads = [threading.Thread(target=lambda part=part: [keys.key(p) for p in paths[part::4]]) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    keys.save()
    assert FileKeys(tmp_path / "c").known(paths) == [file_key(path) for path in paths]


def test_a_memo_of_many_files_costs_microseconds_a_file(tmp_path):
    """400,000 entries: what is spent beside stat is counted in processor time, generously."""
    random = np.random.default_rng(0)
    table = random.integers(0, 256, (400_000, 32), dtype=np.uint8)
    ShardFolder(tmp_path / "c").add(table.view(KEY).reshape(-1), {"rows": [table]})
    path = old(tmp_path / "a")
    start = time.process_time()
    assert FileKeys(tmp_path / "c").known([path] * 20_000) == [None] * 20_000
    assert time.process_time() - start < 5


KILLED = """
import sys
from pathlib import Path
from m3bind.data.file_keys import FileKeys
keys = FileKeys(Path(sys.argv[1]))
for path in sys.argv[2:]:
    keys.key(path)
    keys.save()
    print(path, flush=True)
sys.stdin.read()
"""


def test_killed_processes_leave_a_whole_memo(tmp_path, hashed):
    paths = [old(tmp_path / f"{n}", bytes([n])) for n in range(6)]
    command = [sys.executable, "-c", KILLED, tmp_path / "c", *paths]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for _ in range(3):
        process.stdout.readline()
    process.kill()
    process.communicate()
    assert FileKeys(tmp_path / "c").known(paths)[:3] == [file_key(path) for path in paths[:3]]
