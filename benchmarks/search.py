"""Search among n x 512 embeddings: the index of one folder (ours) against faiss Flat, faiss HNSW32 and usearch.

    python benchmarks/search.py [--rows 100000] [--repeats 5] [--texts FILE] [--work DIR] [--only ours --only flat ...]

The rows: distinct texts (one per line in FILE; default the reports of virtual patients) through the real
all-MiniLM-L6-v2 (384 dimensions, unit rows), mapped to 512 by one fixed random orthonormal map, then jittered:
row = unit(a + 0.3 (b - c) + g), where a, b, c are texts drawn at random and g is Gaussian noise of length 0.1. So rows
are distributed like the texts. Queries are generated the same way from a tenth of the texts that no row uses.

Every graph uses the smallest search width of a fixed list that reaches recall@10 >= 0.99 on these queries; "ours
shipped" uses the width that our index chose at its commit, without knowing them. Single queries and batches of 256 are
timed in turn in one process, with the same threads; memory, in a child process each: what opening and searching adds.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("M3BIND_PROGRESS", "off")

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from _measure import alternate, conditions, peak_memory, ratio

DIM, K, BATCH, SINGLE, QUERIES = 512, 10, 256, 64, 512
RECALL = 0.99
WIDTHS = (16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 256, 320, 384, 512, 768, 1024)


class Ours:
    """The embedded index; `exact` without its graph."""

    exact = False
    file = "ours"

    def build(self, rows, place):
        import pandas as pd

        from m3bind.index import create_index

        with create_index(place, DIM, "benchmark") as index:
            for start in range(0, len(rows), 16384):
                ids = [str(row) for row in range(start, min(start + 16384, len(rows)))]
                index.upsert(rows[start : start + 16384], pd.DataFrame({"id": ids, "modality": "text"}))
            index.commit()

    def open(self, place):
        from m3bind.index import open_index

        self.index = open_index(place)
        self.width = self.index._near.width if self.index._near else 0
        return self

    def widen(self, width):
        if not self.index._near:
            return False
        self.index._near.width = self.width = width
        return True

    def search(self, queries):
        found = self.index.search(queries, K, exact=self.exact)
        return np.array([[int(name) for name in line] for line in found.ids])


class OursAsShipped(Ours):
    """With the width that the index chose at its commit."""

    def widen(self, width):
        return False


class OursExact(Ours):
    exact = True

    def widen(self, width):
        return False


class Flat:
    file = "flat"

    def build(self, rows, place):
        import faiss

        index = faiss.IndexFlatIP(DIM)
        index.add(rows)
        faiss.write_index(index, str(place))

    def open(self, place):
        import faiss

        self.index, self.width = faiss.read_index(str(place)), 0
        return self

    def widen(self, width):
        return False

    def search(self, queries):
        return self.index.search(queries, K)[1]


class Hnsw(Flat):
    file = "hnsw"

    def build(self, rows, place):
        import faiss

        index = faiss.IndexHNSWFlat(DIM, 32, faiss.METRIC_INNER_PRODUCT)
        index.add(rows)
        faiss.write_index(index, str(place))

    def widen(self, width):
        self.index.hnsw.efSearch = self.width = width
        return True


class Usearch(Flat):
    file = "usearch"

    def build(self, rows, place):
        from usearch.index import Index

        index = Index(ndim=DIM, metric="ip", dtype="f32")
        index.add(np.arange(len(rows)), rows, threads=threads())
        index.save(str(place))

    def open(self, place):
        from usearch.index import Index

        self.index, self.width = Index(ndim=DIM, metric="ip", dtype="f32"), 0
        self.index.load(str(place))
        return self

    def widen(self, width):
        self.index.expansion_search = self.width = width
        return True

    def search(self, queries):
        return self.index.search(queries, K, threads=threads()).keys.reshape(len(queries), K)


FORMS = {
    "ours": Ours,
    "ours shipped": OursAsShipped,
    "ours exact": OursExact,
    "faiss Flat": Flat,
    "faiss HNSW32": Hnsw,
    "usearch": Usearch,
}


def threads():
    return os.cpu_count() or 1


def texts(file):
    if file is None:
        from m3bind.data.phantom.cohort import make_settings, rows

        return list(dict.fromkeys(row["caption"] for row in rows(make_settings(3000, 0, None, (0.6, 0.1, 0.3)))))
    return list(dict.fromkeys(line for line in Path(file).read_text(encoding="utf-8").splitlines() if line))


def embeddings(file, count, place):
    """(count, 512) unit rows of real texts, cached in `place`."""
    if not place.exists():
        import torch

        from m3bind.models.embedding import encode_distinct, evaluating
        from m3bind.models.layers.text_encoder import make_text_encoder

        rng = np.random.default_rng(0)
        every = texts(file)
        chosen = [every[at] for at in rng.permutation(len(every))[:count]]
        tower = make_text_encoder("minilm", 384, head="identity", max_tokens=64)
        with evaluating(tower):
            rows = encode_distinct(chosen, tower.tokenize, tower.encode, 384, torch.device("cpu"))
        widen = np.linalg.qr(rng.normal(size=(DIM, 384)))[0].T
        np.save(place, (rows @ widen).astype(np.float32))
    return np.load(place)


def jittered(base, n, rng):
    """(n, 512): see above."""
    out = np.empty((n, DIM), np.float32)
    for start in range(0, n, 16384):
        m = min(16384, n - start)
        a, b, c = (base[rng.integers(0, len(base), m)] for _ in range(3))
        rows = a + 0.3 * (b - c) + 0.1 / np.sqrt(DIM) * rng.standard_normal((m, DIM), np.float32)
        out[start : start + m] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return out


def truth(rows, queries):
    import faiss

    return faiss.knn(queries, rows, K, metric=faiss.METRIC_INNER_PRODUCT)[1]


def recall(found, true):
    return float(np.mean([len(set(near) & set(line)) / K for near, line in zip(found.tolist(), true.tolist())]))


def opened_and_searched(name, place, width, queries):
    """A function for a child process that opens and searches, after importing what both need."""

    def run():
        form = FORMS[name]().open(place)
        if width:
            form.widen(width)
        form.search(queries)

    import faiss  # noqa: F401
    import pandas  # noqa: F401
    import usearch.index  # noqa: F401

    import m3bind.index.embedded  # noqa: F401

    return run


def size(place):
    return (
        sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
        if place.is_dir()
        else place.stat().st_size
    )


def main(options):
    import faiss

    faiss.omp_set_num_threads(threads())
    work = Path(options.work or tempfile.mkdtemp(prefix="m3bind-search-"))
    work.mkdir(parents=True, exist_ok=True)
    base = embeddings(options.texts, options.base, work / f"base-{options.base}.npy")
    rng, held = np.random.default_rng(1), len(base) // 10
    rows, queries = jittered(base[held:], options.rows, rng), jittered(base[:held], QUERIES, rng)
    true = truth(rows, queries)
    names = [name for name in FORMS if not options.only or name in options.only]
    print(f"{options.rows} x {DIM} rows from {len(base)} texts; {conditions()}", flush=True)
    forms, measured = {}, {}
    for name in names:
        form = FORMS[name]()
        place = work / f"{form.file}-{options.rows}"
        start = time.perf_counter()
        if not place.exists():
            form.build(rows, place)
        built = time.perf_counter() - start
        start = time.perf_counter()
        form.open(place).search(queries[:1])
        opened = time.perf_counter() - start
        for width in WIDTHS:
            can_widen = form.widen(width)
            found = recall(form.search(queries), true)
            if found >= RECALL or not can_widen:
                break
        memory = peak_memory(opened_and_searched, name, place, form.width, queries[:BATCH])
        forms[name], measured[name] = form, (built, opened, found, form.width, memory, size(place))
        print(f"  {name}: built", flush=True)
    report(names, forms, measured, queries, options.repeats)
    if not options.work:
        shutil.rmtree(work)


def report(names, forms, measured, queries, repeats):
    single = alternate(
        {n: lambda n=n: [forms[n].search(queries[i : i + 1]) for i in range(SINGLE)] for n in names}, repeats
    )
    batch = alternate({n: lambda n=n: forms[n].search(queries[:BATCH]) for n in names}, repeats)
    heads = ("recall@10", "width", "single/s", "batch/s", "build s", "open s", "memory GB", "disk GB")
    print(f"{'':14}" + "".join(f"{head:>10}" for head in heads))
    for name in names:
        built, opened, found, width, memory, disk = measured[name]
        rates = SINGLE / statistics.median(single[name]), BATCH / statistics.median(batch[name])
        used = memory[1] - memory[0] if memory else float("nan")
        line = f"{name:14}{found:10.4f}{width:10}{rates[0]:10.0f}{rates[1]:10.0f}{built:10.1f}{opened:10.2f}"
        print(f"{line}{used:10.2f}{disk / 2**30:10.2f}")
    for name in names[1:]:
        one, many = ratio(single[name], single[names[0]]), ratio(batch[name], batch[names[0]])
        print(f"{names[0]} against {name}: single {one}, batch {many}")
    print(conditions())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--base", type=int, default=4000, help="texts to encode")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--texts", help="file with one text per line")
    parser.add_argument("--work", help="folder that caches embeddings and indexes; build times of cached ones are 0")
    parser.add_argument("--only", action="append", choices=list(FORMS))
    main(parser.parse_args())
