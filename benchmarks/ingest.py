"""Reading all files of a run once: with bad files among them, and beside bare decoding.

    python benchmarks/ingest.py [--files 2000] [--repeats 3]
    python benchmarks/ingest.py --files 20000

1. Many small PNG images of which 0, 0.1, 2 and 10 % are bad: seconds of the first pass as a ratio of the pass without
   bad files, how often the most-read file was decoded in that pass, a pass of features and one of embeddings, and the
   time of a second pass that finds everything stored.
2. Radiographs (JPEG), ECGs (WFDB) and CT volumes (NIfTI) of the published data sets' size: files a second of the pass
   (hash, isolated readers, exact packing, files on disk) and of live reading in the workers of a loader, as ratios of
   what the same number of processes decode and preprocess without either.
"""

import argparse
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from _generated import copy_with
from _measure import bare_rate, conditions, ratio
from m3bind import modalities, models
from m3bind.data.cache import FeatureCache
from m3bind.data.records import Record, Records
from m3bind.models import registry
from m3bind.models.base import DualEncoder
from m3bind.models.layers.tokenizer import train_wordpiece
from m3bind.pipeline.features import FeatureExtractor
from m3bind.pipeline.plan.typical_files import write_typical
from m3bind.pipeline.stored_inputs import FileReader

LONG_AGO = (1e9, 1e9)  # files that were written just now are hashed again
SHARES = (0.0, 0.001, 0.02, 0.1)
FORMATS = {"xray": ("mgca_vit_base", 40), "ecg": ("merl_resnet18", 400), "ct": ("ct_net", 8)}  # model, files


def records_of(modality: str, paths: list[Path]) -> Records:
    """A record for each file."""
    for file in os.scandir(paths[0].parent):
        os.utime(file, LONG_AGO)
    return Records.of(
        [Record(str(n), modality, path, "", (), ("text",), (), str(n), "train", "") for n, path in enumerate(paths)]
    )


def start_readers(modality: str, paths: list[Path], workers: int) -> None:
    """The isolated readers start, so that this is not measured."""
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda path: modalities.decode(modality, path), paths[:1] * 2 * workers))


# --- bad files --------------------------------------------------------------------------------------------------------


def write_many(folder: Path, count: int, share: float) -> Records:
    """PNG images of 96 x 110; a share of them is damaged."""
    folder.mkdir()
    random, every = np.random.default_rng(0), round(1 / share) if share else 0
    paths = [folder / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        tone = random.integers(0, 256, (6, 5)).astype(np.uint8)
        Image.fromarray(tone).resize((96, 110), Image.Resampling.BICUBIC).save(path, compress_level=1)
        if every and number % every == 1:
            path.write_bytes(b"\x89PNG\r\n\x1a\n" + number.to_bytes(8, "little"))
    return records_of("xray", paths)


@contextmanager
def counted_reads() -> Iterator[Counter[Path]]:
    """How often each file is decoded."""
    counts: Counter[Path] = Counter()
    read = FileReader.read

    def counting(self: FileReader, path: Path, *how: object) -> object:
        counts[path] += 1
        return read(self, path, *how)

    FileReader.read = counting
    try:
        yield counts
    finally:
        FileReader.read = read


def bad_files(folder: Path, count: int, workers: int, model: DualEncoder, repeats: int) -> None:
    """Print a line for each share of bad files; passes of the shares are measured in turn."""
    sides = {share: write_many(folder / f"files{share}", count, share) for share in SHARES}
    start_readers("xray", [sides[0.0][0].path], workers)
    seconds: dict[float, list[float]] = {share: [] for share in SHARES}
    again: dict[float, float] = {}
    most: dict[float, int] = {}
    for turn in range(repeats):
        for share in SHARES if turn % 2 else reversed(SHARES):
            cache = FeatureCache(folder / "cache")
            with counted_reads() as counts:
                extractor = FeatureExtractor(cache, workers=workers)
                start = time.perf_counter()
                good, bad = extractor.readable(sides[share], model)
                seconds[share].append(time.perf_counter() - start)
                assert len(good) + len(bad) == count and bool(bad) == bool(share)
                if not turn:
                    extractor.image_features(good, model)
                    extractor.image_embeddings(good, model)
                start = time.perf_counter()
                found = FeatureExtractor(cache, workers=workers).readable(sides[share], model)[1]
                again[share] = time.perf_counter() - start
                assert found == bad
            most[share] = max(most.get(share, 0), *counts.values())
            shutil.rmtree(folder / "cache")
    for share in SHARES:
        print(f"{count:,} files, {share:.1%} bad: {np.median(seconds[share]):.1f} s, "
              f"{ratio(seconds[share], seconds[0.0])} of none bad; a file was decoded at most {most[share]} times; "
              f"second pass {1e6 * again[share] / count:.0f} us a file", flush=True)  # fmt: skip


# --- beside bare decoding ---------------------------------------------------------------------------------------------


def write_format(modality: str, folder: Path, count: int) -> Records:
    """Files of the published data set's size, of equal content and different hashes."""
    folder.mkdir()
    typical = write_typical(modality, folder)
    assert typical is not None
    return records_of(modality, [copy_with(typical.paths[-1], f"n{number}") for number in range(count)])


def live_rate(extractor: FeatureExtractor, records: Records, model: DualEncoder, workers: int) -> float:
    """Files a second of a loader whose batches have one file; the start of its workers is not counted."""
    inputs = extractor.inputs(records, model)
    count, warm = len(records), 2 * workers

    class Steps(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 2 * count + warm

        def __getitem__(self, step: int) -> object:
            return inputs.packed([step % count])

    start = 0.0
    loader = torch.utils.data.DataLoader(Steps(), None, num_workers=workers, multiprocessing_context="fork")
    for step, _ in enumerate(loader):
        if step + 1 == warm:
            start = time.perf_counter()
    return 2 * count / (time.perf_counter() - start)


def against_bare(folder: Path, modality: str, name: str, count: int, workers: int, repeats: int) -> None:
    """Print the rates of a format."""
    with torch.device("meta"):  # only its preprocessing is used
        model = models.build(name)
    records = write_format(modality, folder / modality, count)
    paths = [record.path for record in records]
    rates: dict[str, list[float]] = {"bare": [], "pass": [], "live": []}
    for _ in range(repeats):
        rates["bare"].append(bare_rate(modality, paths, model, workers))
        cache = FeatureCache(folder / "cache")
        start_readers(modality, paths, workers)
        start = time.perf_counter()
        FeatureExtractor(cache, workers=workers, inputs_gb=1000).readable(records, model)
        rates["pass"].append(count / (time.perf_counter() - start))
        live = FeatureExtractor(FeatureCache(folder / "live"), workers=workers, inputs_gb=0)
        rates["live"].append(live_rate(live, records, model, workers))
        shutil.rmtree(folder / "cache")
        shutil.rmtree(folder / "live")
    print(f"{modality}, {count} files: bare {np.median(rates['bare']):.1f} files/s; the pass "
          f"{ratio(rates['pass'], rates['bare'])}, live {ratio(rates['live'], rates['bare'])}", flush=True)  # fmt: skip
    shutil.rmtree(folder / modality)


def main() -> None:
    """Print both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    os.environ["M3BIND_PROGRESS"] = "off"
    torch.set_num_threads(1)
    print(conditions())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        train_wordpiece(["a text"] * 4).save(str(folder / "tokenizer.json"))
        model = registry.build("compact_2d", modality="xray", assets=folder, image_size=32)
        bad_files(folder, given.files, given.workers, model.eval(), given.repeats)
        for modality, (name, count) in FORMATS.items():
            against_bare(folder, modality, name, count, given.workers, given.repeats)


if __name__ == "__main__":
    main()
