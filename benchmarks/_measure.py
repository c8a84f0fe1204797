"""Shared by the benchmarks: alternating runs, ratios with their spread, bare decoding, peak memory, conditions."""

import gc
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch

Clock = Callable[[], float]  # time.perf_counter, or time.process_time: processor seconds of all threads


def alternate(
    forms: Mapping[str, Callable[[], object]], repeats: int, clock: Clock = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each form, run in turn within each repeat (in rotating order), after one unmeasured run of each.

    On a busy machine processor seconds (`clock=time.process_time`) are steadier than the wall clock.
    """
    names = list(forms)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-1, repeats):
        for name in names if turn % 2 else reversed(names):
            start = clock()
            forms[name]()
            if turn >= 0:
                seconds[name].append(clock() - start)
    return seconds


def ratio(slow: list[float], fast: list[float]) -> str:
    """Median and range of the ratios of runs of the same repeat: "3.61x (3.40-3.82)"."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return f"{statistics.median(ratios):.2f}x ({min(ratios):.2f}-{max(ratios):.2f})"


def gemm_rate(
    width: int, dtype: torch.dtype = torch.float32, clock: Clock = time.perf_counter, rows: int = 4096, repeats: int = 5
) -> float:
    """Best current rate of (rows, width) @ (width, 4 width), in GFLOP/s."""
    x, w = torch.randn(rows, width, dtype=dtype), torch.randn(4 * width, width, dtype=dtype)
    best = float("inf")
    for _ in range(repeats + 1):
        start = clock()
        torch.nn.functional.linear(x, w)
        best = min(best, clock() - start)
    return 2 * rows * 4 * width * width / best / 1e9


def bare_rate(modality: str, paths: list[Path], model: Any, workers: int) -> float:
    """Files a second of processes that only decode and preprocess; their start is not counted."""
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(workers + 1)
    processes = [
        context.Process(target=_decode, args=(modality, paths[n::workers], model, ready)) for n in range(workers)
    ]
    for process in processes:
        process.start()
    ready.wait()
    start = time.perf_counter()
    for process in processes:
        process.join()
    return len(paths) / (time.perf_counter() - start)


def _decode(modality: str, paths: list[Path], model: Any, ready: Any) -> None:
    from m3bind import modalities

    torch.set_num_threads(1)  # as in a worker; threads do not survive a fork
    modalities.decode(modality, paths[0])  # starts the decoder
    ready.wait()
    for path in paths:
        model.preprocess(modalities.decode(modality, path))


def peak_memory(prepare: Callable[..., Callable[[], object]], *arguments: object) -> tuple[float, float] | None:
    """(GiB resident before, at the peak) of running what `prepare(*arguments)` returns, in a child process.

    Sampled every few milliseconds, so that what preparing took for a moment does not count. None if the child died (out
    of memory). `prepare` and its arguments must be picklable.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(sender, prepare, arguments))
    child.start()
    sender.close()
    try:
        before, peak = receiver.recv()
    except EOFError:
        return None
    finally:
        child.join()
    return before / 2**30, peak / 2**30


def _child(sender, prepare, arguments) -> None:
    run, process = prepare(*arguments), psutil.Process()
    gc.collect()
    samples, done = [process.memory_info().rss], threading.Event()

    def sample() -> None:
        while not done.wait(0.004):
            samples.append(process.memory_info().rss)

    watcher = threading.Thread(target=sample)
    watcher.start()
    run()
    done.set()
    watcher.join()
    sender.send((samples[0], max(samples)))


def conditions() -> str:
    """Threads, instruction set, versions and how busy the machine is."""
    load = os.getloadavg()[0]
    return (
        f"torch {torch.__version__}, {torch.get_num_threads()} threads on {os.cpu_count()} cores, "
        f"{torch.backends.cpu.get_cpu_capability()}, load average {load:.1f}"
        + (" (busy: look at ratios, not at seconds)" if load > (os.cpu_count() or 1) + 0.5 else "")
    )
