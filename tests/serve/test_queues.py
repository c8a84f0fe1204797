"""The queue in front of the towers, and the caches of uploads and images."""

import asyncio
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3bind.serve.errors import Refusal
from m3bind.serve.lru_cache import LruCache
from m3bind.serve.previews import Preview
from m3bind.serve.queues import Queue
from m3bind.serve.uploads import Upload, Uploads


def test_more_than_may_wait_get_a_retry_time():
    async def main():
        queue, gate = Queue("q", 1, 2), threading.Event()
        tasks = [asyncio.create_task(queue.run(gate.wait, 10)) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert (queue.running, queue.waiting) == (1, 2)
        with pytest.raises(Refusal) as refused:
            await queue.run(gate.wait, 10)
        assert refused.value.status == 503 and int(refused.value.headers()["Retry-After"]) >= 1
        gate.set()
        assert await asyncio.gather(*tasks) == [True] * 3
        assert (queue.running, queue.waiting) == (0, 0)

    asyncio.run(main())


def test_who_leaves_gives_the_place_up():
    async def main():
        queue, gate, ran = Queue("q", 1, 2), threading.Event(), []
        first = asyncio.create_task(queue.run(gate.wait, 10))
        await asyncio.sleep(0.02)
        left = [asyncio.create_task(queue.run(ran.append, number)) for number in range(2)]
        await asyncio.sleep(0.02)
        for task in left:
            task.cancel()
        await asyncio.sleep(0.02)
        assert queue.waiting == 0
        first.cancel()  # its thread is running and occupies the place until it ends
        await asyncio.sleep(0.02)
        assert queue.running == 1
        gate.set()
        assert await asyncio.wait_for(queue.run(lambda: 7), 5) == 7
        assert ran == [] and queue.running == 0

    asyncio.run(main())


def test_an_error_of_the_work_is_the_callers_and_the_place_is_free_again():
    async def main():
        queue = Queue("q", 1, 2)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                await queue.run(lambda: 1 // 0)
        assert await queue.run(lambda: 1) == 1
        queue.close()
        with pytest.raises(Refusal, match="stopping"):
            await queue.run(lambda: 1)

    asyncio.run(main())


def made(size):
    return Upload("xray", np.zeros(2, np.float32), "", [], [], Preview("xray", "image", np.zeros(size, np.int8)))


@given(st.lists(st.tuples(st.sampled_from("agt"), st.integers(0, 60), st.integers(0, 30)), max_size=60))
def test_uploads_never_exceed_their_bounds_and_the_least_recently_used_go(steps):
    now = [0.0]
    uploads = Uploads(5, 150, 50, lambda: now[0])
    order: list[tuple[str, int, float]] = []  # id, bytes, time of last use
    for step, number, seconds in steps:
        now[0] += seconds
        order = [entry for entry in order if entry[2] >= now[0] - 50]
        if step == "a":
            order.append((uploads.add(made(number)), number + 8, now[0]))
            while len(order) > 5 or sum(size for _, size, _ in order) > 150:
                order.pop(0)
        elif step == "g" and order:
            entry = order.pop(number % len(order))
            assert uploads.get(entry[0]).nbytes == entry[1]
            order.append((*entry[:2], now[0]))
        assert len(uploads) == len(order) and uploads.nbytes == sum(size for _, size, _ in order)
    for name, size, _ in list(order):
        assert uploads.get(name).nbytes == size


def test_one_upload_larger_than_all_is_refused():
    uploads = Uploads(5, 100, 50)
    with pytest.raises(Refusal) as refused:
        uploads.add(made(200))
    assert refused.value.status == 413 and len(uploads) == 0


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 50)), max_size=50))
def test_cached_values_stay_within_their_bytes(asked):
    kept, made_for = LruCache[bytes](100, len), {}
    for key, size in asked:
        value = kept.get(key, lambda size=size: bytes(size))
        assert len(value) in (size, made_for.get(key))
        made_for[key] = len(value)
        assert kept.nbytes <= 100 or len(kept) == 1
    assert kept.nbytes == sum(map(len, kept._values.values()))
