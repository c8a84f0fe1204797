"""Reading in child processes: same samples; a reader that crashes, hangs or exhausts memory causes one error."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from m3bind import modalities
from m3bind.errors import ConfigError, ReadError
from m3bind.modalities.formats import isolation, limits
from m3bind.modalities.formats.limits import Limits, from_environment

EVIL = """
import ctypes, os, sys, time
import numpy as np
from m3bind.errors import ReadError
from m3bind.modalities.base import Modality, Sample

class Evil(Modality):
    name = "evil"
    def read(self, path):
        what = open(path).read()
        if what == "crash": ctypes.string_at(0)
        if what == "exit": os._exit(3)
        if what == "hang": time.sleep(60)
        if what == "spin":
            while True: pass
        if what == "memory":
            kept = []
            while True: kept.append(np.ones(4_000_000))
        if what == "noise": print("JANE DOE"); os.write(1, b"JANE DOE"); os.write(2, b"JANE DOE")
        if what == "deep":
            def f(): return f()
            f()
        if what == "words": raise ValueError("JANE DOE, born 1950")
        if what == "typed": raise ReadError(path, "blank", "scan again")
        array = np.arange(6, dtype=np.float32).reshape(2, 3)
        return Sample("evil", array, (1.5, 2.0), 100.0, ["a"], ["b"], {"Rows": "2"})
    def thumbnail(self, sample, size=160): raise NotImplementedError
"""


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], modalities.Sample]]:
    """Reads a file whose content is an instruction to a badly behaved reader."""
    (tmp_path / "evil_reader.py").write_text(EVIL)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(limits.VARIABLE, "memory=3e8 seconds=3")
    monkeypatch.setattr(isolation, "LIMITS", from_environment("memory=3e8 seconds=3"))
    monkeypatch.setattr(isolation, "_pool", None)
    import evil_reader

    def read(what: str) -> modalities.Sample:
        (tmp_path / "file").write_text(what)
        return modalities.read(evil_reader.Evil(), tmp_path / "file")

    yield read
    assert isolation._pool is not None
    isolation._pool.close()
    sys.modules.pop("evil_reader", None)


def test_a_sample_comes_back_whole(evil) -> None:
    sample = evil("good")
    assert sample.array.dtype == np.float32 and sample.array.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (sample.spacing, sample.rate) == ((1.5, 2.0), 100.0)
    assert (sample.steps, sample.warnings, sample.tags) == (["a"], ["b"], {"Rows": "2"})
    assert sample.array.flags.writeable


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("crash", "decoder crashed .SIGSEGV"),
        ("exit", "decoder crashed .exit code 3"),
        ("hang", "longer than 3 s"),
        ("spin", "longer than 3 s"),
        ("memory", "more than 0.3 GB of memory"),
        ("deep", "nested too deeply"),
        ("typed", "blank"),
        ("words", "not readable: a value does not fit its format"),
    ],
)
def test_bad_readers_cost_one_typed_error(evil, what: str, said: str) -> None:
    start = time.monotonic()
    with pytest.raises(ReadError, match=said) as caught:
        evil(what)
    assert time.monotonic() - start < 10
    assert "JANE" not in str(caught.value)
    assert evil("good").array.shape == (2, 3)  # the next file finds a sound worker


def test_loading_a_reader_is_not_the_files_time(evil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that needs longer to import its libraries than a file may take refuses no file."""
    source = (tmp_path / "evil_reader.py").read_text()
    (tmp_path / "evil_reader.py").write_text(f"import time\ntime.sleep(1)\n{source}")
    monkeypatch.setattr(isolation, "LIMITS", from_environment("memory=3e8 seconds=0.9"))
    assert evil("good").array.shape == (2, 3)
    monkeypatch.setattr(isolation, "_pool", isolation._pool.close())  # type: ignore[union-attr, func-returns-value]
    monkeypatch.setattr(isolation, "STARTING", 0.2)
    with pytest.raises(ReadError, match="could not be loaded within"):
        evil("good")


def test_loading_a_second_reader_is_not_within_the_first_ones_memory(evil, tmp_path: Path) -> None:
    """A worker that is limited already may be asked for a modality whose module takes more than a file may."""
    large = "import mmap\nspace = mmap.mmap(-1, 1_000_000_000)\n"
    (tmp_path / "large_reader.py").write_text(large + EVIL.replace("Evil", "Large").replace('"evil"', '"large"'))
    assert evil("good").modality == "evil"
    import large_reader

    try:
        assert modalities.read(large_reader.Large(), tmp_path / "file").modality == "large"
        assert evil("good").modality == "evil"
        with pytest.raises(ReadError, match="memory"):
            evil("memory")
    finally:
        sys.modules.pop("large_reader", None)


def test_memory_stays_within_its_budget(evil) -> None:
    peak, done = [0], threading.Event()
    evil("good")

    def watch() -> None:
        me = psutil.Process()
        while not done.wait(0.005):
            for child in me.children():
                try:
                    peak[0] = max(peak[0], child.memory_info().rss)
                except psutil.Error:
                    continue

    before = max(child.memory_info().rss for child in psutil.Process().children())
    watcher = threading.Thread(target=watch)
    watcher.start()
    with pytest.raises(ReadError, match="memory"):
        evil("memory")
    done.set()
    watcher.join()
    assert peak[0] - before < 300e6 + 200e6


def test_what_a_decoder_prints_goes_nowhere(evil, capfd: pytest.CaptureFixture[str]) -> None:
    assert evil("noise").array.shape == (2, 3)
    shown = capfd.readouterr()
    assert "JANE" not in shown.out + shown.err


def test_many_threads_share_the_workers(evil) -> None:
    results: list[object] = []

    def work() -> None:
        for _ in range(10):
            results.append(evil("good").array.sum())

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [15.0] * 60
    assert isolation._pool is not None and len(isolation._pool._all) <= isolation.WORKERS


@pytest.mark.parametrize("kind", ["xray", "retina", "pathology"])
def test_real_readers_give_the_same_in_a_child(kind: str, make_picture: Callable[..., Path], tmp_path: Path) -> None:
    path = make_picture(tmp_path / "a.png", kind)
    here, there = modalities.get(kind).read(path), modalities.read(kind, path)
    np.testing.assert_array_equal(here.array, there.array)
    assert (here.steps, here.warnings, here.spacing) == (there.steps, there.warnings, there.spacing)


def test_switched_off_it_reads_here(monkeypatch, make_picture, tmp_path: Path) -> None:
    monkeypatch.setenv("M3BIND_ISOLATION", "off")
    monkeypatch.setattr(isolation, "_pool", None)
    modalities.read("xray", make_picture(tmp_path / "a.png", "xray"))
    assert isolation._pool is None


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="no such file") as caught:
        modalities.read("xray", tmp_path / "gone.png")
    assert caught.value.path == str(tmp_path / "gone.png")


def test_limits_come_from_the_environment() -> None:
    assert from_environment("") == Limits()
    assert from_environment("seconds=2.5, memory=1e9") == Limits(seconds=2.5, memory=1_000_000_000)
    for wrong in ("second=2", "seconds=no", "seconds=-1", "memory"):
        with pytest.raises(ConfigError, match="M3BIND_LIMITS"):
            from_environment(wrong)


def test_declared_sizes_are_checked(tmp_path: Path) -> None:
    path, few = tmp_path / "a", Limits(bytes=3, pixels=100, ratio=10)
    path.write_bytes(b"1234")
    with pytest.raises(ReadError, match="4 bytes, more than 3"):
        limits.check_bytes(path, few)
    limits.check_count(path, 100, "pixels", few)
    for count in (101, 0, -5):
        with pytest.raises(ReadError, match="pixels"):
            limits.check_count(path, count, "pixels", few)
    limits.check_ratio(path, 40, 4, few)
    with pytest.raises(ReadError, match="41 bytes of content"):
        limits.check_ratio(path, 41, 4, few)


def test_workers_end_with_the_program(tmp_path: Path, make_picture) -> None:
    import subprocess

    path = make_picture(tmp_path / "a.png", "xray")
    script = f"""
import os, psutil
from m3bind import modalities
modalities.read("xray", {str(path)!r})
print(*[child.pid for child in psutil.Process().children()])
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=os.environ)
    pids = [int(pid) for pid in ended.stdout.split()]
    assert ended.returncode == 0 and pids, ended.stderr
    time.sleep(0.3)
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids)


def test_a_worker_whose_program_was_killed_ends_by_itself(tmp_path: Path) -> None:
    import signal
    import subprocess

    (tmp_path / "evil_reader.py").write_text(EVIL)
    (tmp_path / "file").write_text("spin")
    script = """
import evil_reader, threading, time
from m3bind import modalities
from m3bind.modalities.formats import isolation
threading.Thread(target=lambda: modalities.read(evil_reader.Evil(), "file"), daemon=True).start()
while not (isolation._pool and isolation._pool._all):
    time.sleep(0.05)
time.sleep(2)
print(*[worker.process.pid for worker in isolation._pool._all], flush=True)
time.sleep(60)
"""
    environment = {**os.environ, limits.VARIABLE: "seconds=4", "PYTHONPATH": str(tmp_path)}
    program = subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    worker = psutil.Process(int(program.stdout.readline()))
    program.send_signal(signal.SIGKILL)
    program.wait()
    worker.wait(30)  # raises if it continues


def test_parts_come_through_the_child_with_their_places(tmp_path: Path, make_ecg: Callable[..., Path]) -> None:
    record, cut = make_ecg(tmp_path / "long", seconds=47), modalities.Cut(most=3, seconds=10)
    sample, here = modalities.decode_parts("ecg", record, cut), modalities.get("ecg").decode_parts(record, cut)
    assert sample.places == here.places == [[0.0], [20.0], [30.0]] and sample.array.shape == (3, 12, 1000)
    np.testing.assert_array_equal(sample.array, here.array)
    whole = modalities.decode("ecg", record)
    for part, (start,) in zip(sample.parts(), sample.places):
        np.testing.assert_array_equal(part.array, whole.array[:, int(start * 100) : int(start * 100) + 1000])
    short = modalities.decode_parts("ecg", make_ecg(tmp_path / "short", seconds=19), cut)
    assert short.places is None and short.array.shape == (12, 1900)


def test_more_workers_may_be_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "_pool", None)
    isolation.allow(1)
    pool = isolation._current()
    assert pool._idle.qsize() == isolation.WORKERS
    for wanted in (isolation.WORKERS + 3, 2):
        isolation.allow(wanted)
        assert pool._idle.qsize() == isolation.WORKERS + 3


def test_a_forked_process_has_workers_of_its_own(evil, tmp_path: Path) -> None:
    """Also if another thread holds the pool's lock; it leaves the parent's workers alone."""
    assert evil("good").modality == "evil"
    (worker,) = isolation._pool._all  # type: ignore[union-attr]
    holding, done = threading.Event(), threading.Event()

    def hold() -> None:
        with isolation._starting:
            holding.set()
            done.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    holding.wait()
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            worker._channel.fileno() == -1 and os.write(write_end, evil("good").modality.encode())
        finally:
            os._exit(0)
    done.set()
    holder.join()
    os.close(write_end)
    assert os.read(read_end, 10) == b"evil"
    os.waitpid(child, 0)
    assert evil("good").modality == "evil" and isolation._pool._all == {worker}  # type: ignore[union-attr]
