"""The service over HTTP: how long a user waits for the first hits of a typed query, on n items.

    python benchmarks/serve.py [--space runs/quick/space] [--rows 100000] [--queries 300] [--work DIR]

`m3bind serve` runs in its own process; this one queries it over loopback, one connection per query, each query a
different sentence (so that no vector is cached), k = 20. Printed: p50 and p95 of the time from connecting to the
complete answer, by one client and by several at once; the same with a condition; and the start time of the service.

The rows: embeddings of the demo's files, jittered: row = unit(a + 0.5 (b - c) + g), a, b, c of one modality drawn at
random, g noise of length 0.3; labels of a. Without --space the demo's space is created first (2 minutes).
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("M3BIND_PROGRESS", "off")

import argparse
import itertools
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import numpy as np

from _measure import conditions

DEGREES = ("", "mild ", "severe ", "suspected ", "bilateral ", "chronic ", "acute ")
FINDINGS = ("pneumonia", "pleural effusion", "atrial fibrillation", "diabetic retinopathy", "lung adenocarcinoma",
            "cardiomegaly", "myocardial infarction", "glaucoma", "interstitial disease", "lung nodule")  # fmt: skip
ENDINGS = ("", " in an old patient", " on the left", " on the right", " after treatment", " with fever")
BLOCK = 16384


def build(space, source, rows, place):
    """An index of `rows` items at `place`."""
    from m3bind.index import create_index, open_index

    rng = np.random.default_rng(0)
    with open_index(source) as demo:
        ids, base = demo.sample(10**9)
        table = demo.items(ids)
    members = {name: np.flatnonzero(table["modality"] == name) for name in table["modality"].unique()}
    with create_index(place, space.dim, space.fingerprint) as index:
        for start in range(0, rows, BLOCK):
            n = min(BLOCK, rows - start)
            a = rng.integers(0, len(base), n)
            b, c = ([rng.choice(members[name]) for name in table["modality"].iloc[a]] for _ in range(2))
            made = base[a] + 0.5 * (base[b] - base[c])
            made += 0.3 / np.sqrt(space.dim) * rng.standard_normal(made.shape, np.float32)
            made /= np.linalg.norm(made, axis=1, keepdims=True)
            items = table.iloc[a][["modality", "label"]].assign(id=[f"b{at:07d}" for at in range(start, start + n)])
            index.upsert(made.astype(np.float32), items)
        index.commit()


class Service:
    """`m3bind serve` as a process."""

    def __init__(self, space, index):
        begun = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "m3bind", "serve", "--space", space, "--index", index, "--port", "0", "--quiet"],
            stdout=subprocess.PIPE,
            text=True,
        )
        line = self.process.stdout.readline()
        self.port = int(line.split(" at http://127.0.0.1:")[1].split("/")[0])
        while get(self.port, "/readyz")[0] != 200:
            time.sleep(0.05)
        self.started = time.perf_counter() - begun

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def ask(self, text, **where):
        """Seconds to the complete answer of one query."""
        body = json.dumps({"parts": [{"kind": "text", "value": text}], "k": 20, "where": where})
        begun = time.perf_counter()
        wire = HTTPConnection("127.0.0.1", self.port, timeout=60)
        wire.request("POST", "/api/search", body, {"Content-Type": "application/json"})
        answer = wire.getresponse()
        told = json.loads(answer.read())
        seconds = time.perf_counter() - begun
        wire.close()
        assert answer.status == 200 and len(told["hits"]) == 20, told
        return seconds


def get(port, route):
    wire = HTTPConnection("127.0.0.1", port, timeout=60)
    wire.request("GET", route)
    answer = wire.getresponse()
    status, body = answer.status, answer.read()
    wire.close()
    return status, body


def line(name, seconds):
    p50, p95 = statistics.median(seconds), np.quantile(seconds, 0.95)
    return f"{name:34}{1000 * p50:8.0f} ms{1000 * p95:8.0f} ms{len(seconds):8}"


def main(options):
    from m3bind.space.bundle import load

    work = Path(options.work or tempfile.mkdtemp(prefix="m3bind-serve-"))
    folder = options.space.parent if options.space else None
    if folder is None:
        from m3bind.cli.serve_demo import prepare

        folder = prepare(work)
    space, place = load(folder / "space"), work / f"serve-{options.rows}"
    if not place.exists():
        build(space, folder / "index", options.rows, place)
    texts = ["".join(parts) for parts in itertools.product(DEGREES, FINDINGS, ENDINGS)]
    texts = [texts[at] for at in np.random.default_rng(1).permutation(len(texts))]
    service = Service(folder / "space", place)
    ask = iter(texts[: options.queries]).__next__
    third = options.queries // 3
    try:
        service.ask("a first question")
        drawn = time.perf_counter()
        while get(service.port, "/api/map")[1].startswith(b'{"state":"computing"'):
            time.sleep(0.2)
        drawn = time.perf_counter() - drawn
        alone = [service.ask(ask()) for _ in range(third)]
        among = [service.ask(ask(), modality=["ct", "ecg"]) for _ in range(third)]
        with ThreadPoolExecutor(options.clients) as pool:
            together = list(pool.map(service.ask, [ask() for _ in range(third)]))
    finally:
        code = service.stop()
    print(f"{options.rows} items of {space.dim} numbers, k = 20, over loopback; {conditions()}")
    print(f"ready in {service.started:.1f} s, with a map {drawn:.1f} s later; stopped with exit code {code}")
    print(f"{'':34}{'p50':>11}{'p95':>11}{'asked':>8}")
    print(line("one client", alone))
    print(line("one client, modality in ct, ecg", among))
    print(line(f"{options.clients} clients at once", together))
    if not options.work:
        shutil.rmtree(work)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", type=Path, help="space of a run of serve-demo, with its index beside it")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=300, help="maximum 420")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--work", help="folder that caches the index")
    main(parser.parse_args())
