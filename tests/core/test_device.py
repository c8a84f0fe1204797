"""Which device, precision, TF32 policy and number of workers are chosen, from the machine and the settings."""

import logging
import mmap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from m3bind.config import load_config
from m3bind.core import device
from m3bind.errors import ConfigError


@pytest.fixture(autouse=True)
def _fresh():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    device._native_dtype.cache_clear()
    device._exact.clear()
    device._warn.cache_clear()
    yield
    device._native_dtype.cache_clear()
    device._exact.clear()
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.fixture
def gpus(monkeypatch):
    """Two NVIDIA GPUs, as far as `pick` asks."""
    monkeypatch.delenv("M3BIND_BFLOAT16", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda chosen: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number=0: "Some GPU")
    monkeypatch.setattr(device, "_native_dtype", lambda kind, index: torch.bfloat16)


@pytest.mark.parametrize(
    ("amx", "avx512", "expected"),
    [(True, False, torch.bfloat16), (False, True, torch.bfloat16), (False, False, torch.float32)],
)
def test_bfloat16_only_where_the_processor_multiplies_it(monkeypatch, amx, avx512, expected):
    monkeypatch.delenv("M3BIND_BFLOAT16", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    assert device.compute_dtype() == expected
    assert device.compute_dtype(torch.device("meta")) == torch.float32


def test_the_environment_makes_every_choice_float32(monkeypatch, gpus):
    monkeypatch.setenv("M3BIND_BFLOAT16", "off")
    assert device.compute_dtype() == torch.float32 and not device.may_round()
    assert device.pick().dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(
    ("precision", "dtype", "policy"),
    [("auto", torch.bfloat16, "high"), ("float32", torch.float32, "highest"), ("bfloat16", torch.bfloat16, "high")],
)
def test_precision_and_tf32_are_decided_together(gpus, precision, dtype, policy):
    chosen = device.pick(precision=precision)
    assert chosen.device == torch.device("cuda", 0) and chosen.dtype == dtype
    assert torch.get_float32_matmul_precision() == policy
    assert torch.backends.cudnn.allow_tf32 == (policy == "high")
    assert device.compute_dtype(chosen.device) == (torch.float32 if precision == "float32" else torch.bfloat16)


@pytest.mark.parametrize(
    ("name", "rank", "index"), [("auto", "1", 1), ("cuda", "1", 1), ("cuda:0", "1", 0), ("auto", "", 0)]
)
def test_the_device_is_that_of_the_local_rank(gpus, monkeypatch, name, rank, index):
    monkeypatch.setenv("LOCAL_RANK", rank) if rank else monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert device.pick(name).device == torch.device("cuda", index)


def test_a_gpu_that_is_not_used_is_a_warning_with_its_reason(gpus, caplog):
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert device.pick("cpu").device.type == "cpu"
    assert [record.message for record in caplog.records] == [
        "computing on cpu: Some GPU is not used, since the device was set to 'cpu'"
    ]  # once in a process


@pytest.mark.parametrize("node", device._NODES)
def test_a_gpu_without_its_build_of_torch_is_a_warning(monkeypatch, caplog, tmp_path, node):
    (tmp_path / "node").touch()
    name = device._NODES[node]
    monkeypatch.setattr(device, "_NODES", {str(tmp_path / "node"): name})
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.WARNING):
        device.pick()
    assert name in caplog.text and "built for the CPU only" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "gpu"}, "is not a device"),
        ({"device": "cuda"}, "not available"),
        ({"device": "mps"}, "not available"),
        ({"precision": "half"}, "use one of auto, float32, bfloat16"),
        ({"workers": 0}, "use auto or a number"),
        ({"workers": "many"}, "use auto or a number"),
    ],
)
def test_settings_that_cannot_be_met_say_what_to_do(monkeypatch, settings, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=message):
        device.pick(**settings)


@pytest.mark.parametrize(
    ("visible", "hidden"),
    [
        ("", True),
        ("-1", True),
        ("-1,0", True),
        (" ", True),
        ("1", False),
        ("11", False),
        ("0,-1", False),
        ("GPU-1", False),
    ],
)
def test_a_list_of_visible_gpus_hides_all_only_if_it_is_empty(monkeypatch, visible, hidden):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(ConfigError, match="hides all GPUs" if hidden else "no usable driver"):
        device.pick("cuda")


def test_a_device_beyond_the_machines_is_refused(gpus):
    with pytest.raises(ConfigError, match="this machine has 2"):
        device.pick("cuda:2")


def test_workers_share_the_cores_of_this_process(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(12)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert device.pick("cpu").workers == 12
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert device.pick("cpu").workers == 3 and device.pick("cpu", workers=5).workers == 5


def test_settings_of_a_run(tmp_path):
    config = load_config("quick", ["compute.workers=3", "compute.device=cpu"])
    assert device.pick(config.compute.device, config.compute.precision, config.compute.workers).workers == 3
    assert "compute" not in config.of_result() and "align" in config.of_result()


def test_device_of_a_module():
    assert device.device_of(nn.Linear(2, 2, device="meta")) == torch.device("meta")
    norm = nn.BatchNorm1d(2, affine=False, device="meta")
    assert device.device_of(norm) == torch.device("meta")
    assert device.device_of(nn.Identity()) == device.CPU


@pytest.mark.parametrize("tf32", [False, True])
def test_arithmetic_of_a_block_is_restored(tf32):
    torch.set_float32_matmul_precision("medium")
    with device.float32_arithmetic(tf32):
        assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
        assert torch.backends.cudnn.allow_tf32 == tf32
    assert torch.get_float32_matmul_precision() == "medium" and torch.backends.cudnn.allow_tf32


def test_the_heap_is_released_only_after_it_grew(monkeypatch):
    sizes, released = iter([100, 150, 199, 205, 120, 60, 155, 165, 70]), []
    monkeypatch.setattr(device, "_released", 0)
    monkeypatch.setattr(device, "own_memory", lambda: next(sizes))
    monkeypatch.setattr(device.ctypes, "CDLL", lambda name: SimpleNamespace(malloc_trim=released.append))
    for expected in (0, 0, 0, 1, 1, 1, 2):  # 205: grew by 100 since the first; 120 after it; 60: shrank; 165 grew again
        device.bound_heap(100)
        assert len(released) == expected


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux only")
def test_own_memory_counts_what_this_process_fills():
    before, size = device.own_memory(), 64 << 20
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:  # never memory freed before
        pages.write(b"1" * size)
        assert device.own_memory() - before > size // 2
