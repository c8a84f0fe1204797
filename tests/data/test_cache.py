import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from m3bind.data.cache import FeatureCache, Rows
from m3bind.errors import DiskError, M3BindError, NotFiniteError, ReadError


class Counter:
    """A compute function that records its calls."""

    def __init__(self, items, width=3, dtype=np.float32):
        self.items, self.width, self.dtype, self.calls = items, width, dtype, []

    def __call__(self, positions):
        self.calls.append(list(positions))
        values = [[hash_value(self.items[i]) + j for j in range(self.width)] for i in positions]
        return np.array(values).astype(self.dtype)


def hash_value(text):
    return sum(text.encode()) % 97


def shards(folder):
    """Those with rows, not those of the memo of files."""
    return [path for path in Path(folder).rglob("*.safetensors") if path.parent.name != "files"]


def names(n, start=0):
    return [f"item {i}" for i in range(start, start + n)]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8])
def test_rows_come_back_in_order_and_are_computed_once(tmp_path, dtype):
    items = [*names(10), "item 3", "item 0"]
    compute = Counter(items, dtype=dtype)
    rows = FeatureCache(tmp_path).get_or_compute("f", "w", items, compute, batch=4)
    expected = Counter(items, dtype=dtype)(range(12))
    assert rows.shape == (12, 3) and rows.dtype == dtype and len(rows) == 12
    np.testing.assert_array_equal(np.asarray(rows), expected)
    np.testing.assert_array_equal(rows[[11, 2, 2]], expected[[11, 2, 2]])
    np.testing.assert_array_equal(rows[4:9:2], expected[4:9:2])
    np.testing.assert_array_equal(rows[-1], expected[-1])
    assert [len(call) for call in compute.calls] == [4, 4, 2]  # equal items once
    again = Counter(items, dtype=dtype)
    warm = FeatureCache(tmp_path).get_or_compute("f", "w", items[::-1], again, batch=4)
    assert again.calls == []
    np.testing.assert_array_equal(np.asarray(warm), expected[::-1])


def test_kind_and_weights_are_part_of_the_key(tmp_path):
    cache, items = FeatureCache(tmp_path), names(3)
    computed = []
    for kind, weights in [("a", "w"), ("b", "w"), ("a", "v"), ("a", "w")]:
        cache.get_or_compute(kind, weights, items, compute := Counter(items))
        computed.append(bool(compute.calls))
    assert computed == [True, True, True, False]


def test_only_missing_items_are_computed_at_fixed_batch_positions(tmp_path):
    cache = FeatureCache(tmp_path)
    cache.get_or_compute("f", "w", ["item 1", "item 5"], Counter(["item 1", "item 5"]))
    compute = Counter(names(8))
    cache.get_or_compute("f", "w", names(8), compute, batch=4)
    assert compute.calls == [[0, 2, 3], [4, 6, 7]]


def test_results_before_an_error_are_stored_and_batches_are_those_of_a_whole_run(tmp_path):
    items = names(20)
    compute = Counter(items)

    def fails(positions):
        if 8 in positions:
            raise ReadError("x.png", "damaged")
        return compute(positions)

    with pytest.raises(ReadError):
        FeatureCache(tmp_path).get_or_compute("f", "w", items, fails, batch=4)
    FeatureCache(tmp_path).get_or_compute("f", "w", items, compute, batch=4)
    assert compute.calls == [list(range(start, start + 4)) for start in range(0, 20, 4)]


@pytest.mark.parametrize("harm", ["flip", "truncate", "empty", "grow"])
def test_damaged_shard_is_quarantined_and_recomputed_with_a_notice(tmp_path, caplog, harm):
    items = names(6)
    FeatureCache(tmp_path).get_or_compute("f", "w", items[:3], Counter(items[:3]))
    healthy = set(shards(tmp_path))
    FeatureCache(tmp_path).get_or_compute("f", "w", items, Counter(items))
    (victim,) = set(shards(tmp_path)) - healthy
    data = bytearray(victim.read_bytes())
    if harm == "flip":
        data[len(data) // 2] ^= 4
    victim.write_bytes({"truncate": data[:-5], "empty": b"", "grow": data + b"x"}.get(harm, data))
    compute = Counter(items)
    rows = FeatureCache(tmp_path).get_or_compute("f", "w", items, compute)
    assert compute.calls == [[3, 4, 5]]
    np.testing.assert_array_equal(np.asarray(rows), Counter(items)(range(6)))
    assert "damaged" in caplog.text and list(tmp_path.rglob("*.damaged"))


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(DiskError, match=r"cannot write .*cache"):
        FeatureCache(tmp_path / "cache").get_or_compute("f", "w", names(3), Counter(names(3)))


def test_a_damaged_shard_that_cannot_be_renamed_is_not_used(tmp_path):
    items = names(3)
    rows = np.asarray(FeatureCache(tmp_path).get_or_compute("f", "w", items, Counter(items)))
    (victim,) = shards(tmp_path)
    victim.write_bytes(b"")
    (victim.with_suffix(".damaged") / "in the way").mkdir(parents=True)
    np.testing.assert_array_equal(FeatureCache(tmp_path).get_or_compute("f", "w", items, Counter(items)), rows)


def test_a_cache_folder_removed_during_a_run_is_filled_again(tmp_path):
    items, cache = names(6), FeatureCache(tmp_path / "cache")
    cache.get_or_compute("f", "w", items[:3], Counter(items[:3]))
    shutil.rmtree(tmp_path / "cache")
    rows = cache.get_or_compute("f", "w", items, Counter(items))
    np.testing.assert_array_equal(np.asarray(rows), Counter(items)(range(6)))


def test_a_shard_removed_before_it_is_mapped_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("m3bind.data.shards.MAPPED", 0)
    rows = FeatureCache(tmp_path).get_or_compute("f", "w", names(3), Counter(names(3)))
    (removed,) = shards(tmp_path)
    removed.unlink()
    with pytest.raises(DiskError, match=f"{removed.name} was removed .* run the same command"):
        rows[0]


def test_every_single_bit_flip_is_noticed(tmp_path):
    items = names(2)
    FeatureCache(tmp_path).get_or_compute("f", "w", items, Counter(items))
    (shard,) = shards(tmp_path)
    good = shard.read_bytes()
    for bit in range(0, 8 * len(good), 7):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        shard.write_bytes(data)
        compute = Counter(items)
        FeatureCache(tmp_path).get_or_compute("f", "w", items, compute)
        assert compute.calls == [[0, 1]]
        assert shard.read_bytes() == good  # written again under the same name


def test_two_caches_see_what_the_other_adds(tmp_path):
    one, two = FeatureCache(tmp_path), FeatureCache(tmp_path)
    one.get_or_compute("f", "w", names(4), Counter(names(4)))
    two.get_or_compute("f", "w", names(8), Counter(names(8)))
    one.get_or_compute("f", "w", names(8), compute := Counter(names(8)))
    assert compute.calls == []


def test_wrong_results_are_refused_and_not_stored(tmp_path):
    cache, items = FeatureCache(tmp_path), names(2)
    nan = np.full((2, 3), np.nan, np.float32)
    with pytest.raises(NotFiniteError, match="NaN"):
        cache.get_or_compute("f", "w", items, lambda _: nan)
    with pytest.raises(M3BindError, match="float64"):
        cache.get_or_compute("f", "w", items, lambda _: np.zeros((2, 3)))
    with pytest.raises(M3BindError, match="for 2 items"):
        cache.get_or_compute("f", "w", items, lambda _: np.zeros((1, 3), np.float32))
    assert not list(shards(tmp_path))
    cache.get_or_compute("f", "w", items, Counter(items))
    with pytest.raises(M3BindError, match="changed under the same name"):
        cache.get_or_compute("f", "w", names(3), Counter(names(3), width=4))
    assert len(cache.get_or_compute("f", "w", items, Counter(items))) == 2


def test_no_items_and_rows_without_axes(tmp_path):
    cache = FeatureCache(tmp_path)
    assert len(cache.get_or_compute("f", "w", [], Counter([]))) == 0
    rows = cache.get_or_compute("scalar", "w", names(3), lambda at: np.array(at, np.float32))
    np.testing.assert_array_equal(np.asarray(rows), [0, 1, 2])
    assert isinstance(rows, Rows) and rows.shape == (3,)


KILLED = """
import sys, time
import numpy as np
from m3bind.data import cache as module
module.FLUSH_SECONDS = 0.0
items = [f"item {i}" for i in range(60)]
def compute(positions):
    time.sleep(0.02)
    with open(sys.argv[2], "a") as log:
        log.write(repr(positions) + chr(10))
    return np.array([[i, len(positions), positions[0]] for i in positions], np.float32)
rows = module.FeatureCache(sys.argv[1]).get_or_compute("f", "w", items, compute, batch=4)
np.save(sys.argv[3], np.asarray(rows))
"""


def test_killed_at_random_moments_gives_the_rows_of_an_uninterrupted_run(tmp_path):
    """The rows depend on their batch, so equality shows that batches are the same however often the run was killed."""

    def start(name):
        arguments = [tmp_path / name, tmp_path / f"{name}.log", tmp_path / f"{name}.npy"]
        return subprocess.Popen([sys.executable, "-c", KILLED, *map(str, arguments)])

    assert start("whole").wait() == 0
    rng, kills = np.random.default_rng(0), 0
    while not (tmp_path / "killed.npy").exists():
        process = start("killed")
        if kills < 4:
            log = tmp_path / "killed.log"
            size = log.stat().st_size if log.exists() else 0
            while not log.exists() or log.stat().st_size == size:  # killed while it computes
                time.sleep(0.005)
            time.sleep(float(rng.uniform(0, 0.08)))
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    np.testing.assert_array_equal(np.load(tmp_path / "killed.npy"), np.load(tmp_path / "whole.npy"))
    assert kills == 4


def test_readers_and_writers_at_once_agree(tmp_path):
    processes = [
        subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "shared"), str(tmp_path / f"{i}.log"), str(out)])
        for i, out in enumerate([tmp_path / "0.npy", tmp_path / "1.npy", tmp_path / "2.npy"])
    ]
    assert [process.wait() for process in processes] == [0, 0, 0]
    for i in (1, 2):
        np.testing.assert_array_equal(np.load(tmp_path / f"{i}.npy"), np.load(tmp_path / "0.npy"))


KEYS = b', "keys": {"data_offsets": [%d, %d]}}'
HOSTILE_HEADERS = {
    "deep": b"[" * 50_000, "a list": b"[]", "no rows": b"{}", "huge": (1 << 60).to_bytes(8, "little"), "a pipe": b"",
    "a type of objects": b'{"rows": {"dtype": "O", "shape": [1], "data_offsets": [0, 8]}}',
    "beyond": b'{"rows": {"dtype": "F32", "shape": [9000000000], "data_offsets": [0, 4]}' + KEYS % (0, 32),
    "texts": b'{"rows": {"dtype": "F32", "shape": ["a"], "data_offsets": ["b", 4]}' + KEYS % (0, 32),
    "fewer keys": b'{"rows": {"dtype": "U8", "shape": [4, 2], "data_offsets": [0, 8]}' + KEYS % (8, 40),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE_HEADERS)
def test_a_shard_of_another_job_is_quarantined(tmp_path, kind):
    cache, compute = FeatureCache(tmp_path), Counter(names(3))
    wanted = np.asarray(cache.get_or_compute("k", "w", names(3), compute))
    (group,) = (path for path in tmp_path.iterdir() if path.is_dir() and path.name != "files")
    header = HOSTILE_HEADERS[kind]
    data = header if kind == "huge" else len(header).to_bytes(8, "little") + header + bytes(64)
    hostile = group / f"{hashlib.sha256(data).hexdigest()}.safetensors"
    if kind == "a pipe":
        os.mkfifo(hostile)
    else:
        hostile.write_bytes(data)
    found = FeatureCache(tmp_path).get_or_compute("k", "w", names(3), compute)
    np.testing.assert_array_equal(np.asarray(found), wanted)
    assert not hostile.exists() and hostile.with_suffix(".damaged").exists()


def test_ten_thousand_items_are_quick_when_warm(tmp_path):
    items = names(10_000)
    wide = np.zeros((10_000, 64), np.float32)
    FeatureCache(tmp_path).get_or_compute("f", "w", items, lambda at: wide[at], batch=100)
    start = time.process_time()
    rows = FeatureCache(tmp_path).get_or_compute("f", "w", items, Counter(items))
    assert np.asarray(rows).shape == (10_000, 64)
    assert time.process_time() - start < 1.0


def test_shards_are_plain_safetensors(tmp_path):
    from safetensors.numpy import load_file

    items = names(3)
    FeatureCache(tmp_path).get_or_compute("f", "w", items, Counter(items))
    (shard,) = shards(tmp_path)
    tensors = load_file(shard)
    assert tensors["keys"].shape == (3, 32)
    np.testing.assert_array_equal(tensors["rows"], Counter(items)(range(3)))
