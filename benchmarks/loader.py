"""How long a training step waits for its data: stored inputs and files that are read live.

A step only waits as long as a GPU would compute (`--step` seconds); the batches are those of a stage with one modality
(JPEG files of `--side` pixels, a model of 224 x 224). "bare" is what the same processes decode and preprocess without
any loader. Prints the share of waiting of a step that decoding just allows (80 % of the bare rate), and the rate that
live reading reaches if the step takes no time, as a ratio of the bare rate measured in turn with it.

    python benchmarks/loader.py [--files 400] [--side 1024] [--workers 2]
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from _measure import bare_rate, ratio
from m3bind.core.device import Compute
from m3bind.data.batching import EpochSampler
from m3bind.data.cache import FeatureCache
from m3bind.data.records import Record
from m3bind.models import registry
from m3bind.models.layers.tokenizer import train_wordpiece
from m3bind.pipeline.features import FeatureExtractor
from m3bind.training import loader
from m3bind.training.monitor import Pace
from m3bind.training.pairs import Images


class Stage:
    """Batches of images of one modality."""

    reads_files = True  # workers prepare the batches, as they do for a GPU

    def __init__(self, images: Images, batch: int) -> None:
        self.images, self.sampler = images, EpochSampler(len(images), batch, 0)

    def batch(self, step: int) -> dict[str, object]:
        return self.images.load(self.sampler.batch(step))


def make_files(folder: Path, count: int, side: int) -> list[Record]:
    """JPEG files of smooth noise, about as large as radiographs of that size."""
    random = np.random.default_rng(0)
    records = []
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (side // 8, side // 8), dtype=np.uint8))
        path = folder / f"{number}.jpg"
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(path, quality=90)
        records.append(Record(str(number), "xray", path, "", (), ("a text",), (), str(number), "train", ""))
    return records


def run(stage: Stage, steps: int, compute: Compute, seconds: float) -> tuple[float, float]:
    """(batches a second, share of waiting) of steps that take `seconds`; the start of the workers is not counted."""
    pace, start, warm = Pace(compute), 0.0, 2 * compute.workers
    for step, _ in enumerate(pace.timed(loader.batches(stage, 0, steps + warm, compute))):
        if step + 1 == warm:
            start, pace.waited = time.perf_counter(), 0.0
        time.sleep(seconds)
    took = time.perf_counter() - start
    return steps / took, pace.waited / took


def main() -> None:
    """Print the two ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=400)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--step", type=float, default=0.2)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        records = make_files(folder, given.files, given.side)
        train_wordpiece(["a text"] * 4).save(str(folder / "tokenizer.json"))
        model = registry.build("compact_2d", modality="xray", assets=folder, image_size=224)
        compute = Compute(workers=given.workers)
        live = FeatureExtractor(FeatureCache(folder / "live"), workers=given.workers, inputs_gb=0.0)
        stored = FeatureExtractor(FeatureCache(folder / "stored"), workers=given.workers)
        sides = {name: Images(model, "input", each.inputs(records, model)) for name, each in
                 (("live", live), ("stored", stored))}  # fmt: skip
        bare, reached = [], []
        for _ in range(given.repeats):
            bare.append(bare_rate("xray", [record.path for record in records], model, given.workers))
            stage = Stage(sides["live"], 8)
            reached.append(8 * run(stage, len(records) // 8 - 2 * given.workers, compute, 0.0)[0])
        print(f"bare: {np.median(bare):.0f} files/s; live reading: {np.median(reached):.0f} files/s, "
              f"{ratio(reached, bare)} of it")  # fmt: skip
        size = max(2, int(0.8 * np.median(bare) * given.step))
        _, waiting = run(Stage(sides["live"], size), 40, compute, given.step)
        print(f"live, {size} files in a step of {given.step} s (80 % of the decode limit): waiting {waiting:.1%}")
        _, waiting = run(Stage(sides["stored"], 72), 40, compute, given.step)
        print(f"stored, 72 files in a step of {given.step} s: waiting {waiting:.1%}")


if __name__ == "__main__":
    main()
