"""From a manifest to pairs that are ready for the first step: seconds and memory by the number of rows.

    python benchmarks/columns.py [--folder FOLDER]
    python benchmarks/columns.py --rows 10000 100000 1000000 2500000

The manifest is generated in the paper's proportions (radiographs with reports, CT with long reports, fundus images with
labels, ECGs with machine statements, tiles with captions) over a thousand small files, reached by as many paths as
there are rows. Each size runs in a process of its own: read_records (manifest, cleaning, splits), open_dataset (texts,
pools, held-out texts), token ids of all texts (computed by an earlier process, then read), pairs of all modalities.
Reading the image files is not part of it. Printed: processor and wall seconds of each part, peak memory above that of
the imported libraries, both per thousand rows, and a line through the sizes.
"""

import argparse
import multiprocessing
import resource
import shutil
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

FILES, FOLDER = 1000, "p{:05d}"
SHARES = {"xray": 377, "ct": 47, "retina": 285, "ecg": 800, "pathology": 1000}  # thousands, as the paper names them
ENDINGS = {"xray": ".png", "ct": ".nii.gz", "retina": ".png", "ecg": ".hea", "pathology": ".png"}
SENTENCES = {"xray": 5, "ct": 12, "retina": 0, "ecg": 3, "pathology": 2}
FINDINGS = (
    "normal",
    "diabetic retinopathy",
    "glaucoma",
    "cataract",
    "drusen",
    "macular edema",
    "myopia",
    "hypertension",
)
WORDS = """no acute small large mild severe pleural effusion consolidation heart size is normal lungs are clear left
right lower upper lobe nodule stable since prior examination without evidence of focal opacity degenerative changes
spine sinus rhythm tachycardia block axis deviation wave abnormality tissue stained cells showing invasive growth"""


def write_manifest(folder: Path, rows: int) -> Path:
    """A manifest of `rows` rows in `folder`; files are shared by rows of one split."""
    random, words = np.random.default_rng(rows), WORDS.split()
    statements = [" ".join(random.choice(words, length, replace=False)) for length in random.integers(5, 11, 4000)]
    statements = [statement.capitalize() + "." for statement in statements]
    real = folder / "files"
    real.mkdir(parents=True)
    for number in range(FILES):
        for m, ending in ENDINGS.items():
            (real / f"{m}{number:04d}{ending}").write_bytes(b"x")
    folders = -(-rows // FILES)
    for number in range(folders):
        (folder / FOLDER.format(number)).symlink_to("files")
    kinds = random.choice(list(SHARES), rows, p=np.array(list(SHARES.values())) / sum(SHARES.values()))
    with open(folder / "manifest.csv", "w", encoding="utf-8") as handle:
        handle.write("id,modality,path,patient,split,labels,caption\n")
        for row, m in enumerate(kinds):
            file = row % FILES
            split = "test" if file % 10 == 0 else "valid" if file % 10 == 1 else "train"
            labels = "|".join(random.choice(FINDINGS, random.integers(1, 3), replace=False)) if m == "retina" else ""
            caption = " ".join(statements[i] for i in random.integers(0, 80 if m == "ecg" else 4000, SENTENCES[m]))
            path = f"{FOLDER.format(row // FILES)}/{m}{file:04d}{ENDINGS[m]}"
            handle.write(f'{m}-{row},{m},{path},{m}{row // 2000}-{file},{split},{labels},"{caption}"\n')
    return folder / "manifest.csv"


def measure(manifest: Path, cache: Path, send) -> None:
    """Send [(part, processor seconds, wall seconds)] and the MB of the libraries and at the peak."""
    from m3bind.config import RunConfig
    from m3bind.data.cache import FeatureCache
    from m3bind.models.layers.tokenizer import TextTokenizer, train_wordpiece
    from m3bind.pipeline.dataset import open_dataset, read_records
    from m3bind.pipeline.features import FeatureExtractor

    class Model:
        def __init__(self, tokenizer: TextTokenizer) -> None:
            self.tokenizer, self.logit_scale = tokenizer, torch.ones(())
            self.tokenize, self.tokenizer_key = tokenizer, lambda: tokenizer.key

    tokenizer = TextTokenizer(train_wordpiece([WORDS, ", ".join(FINDINGS)], minimum=1), 128)
    models = {m: Model(tokenizer) for m in SHARES}
    config = RunConfig.model_validate(
        {"name": "columns", "data": {"manifest": str(manifest)}, "modalities": {m: {"model": "clip"} for m in SHARES}}
    )
    extractor = FeatureExtractor(FeatureCache(cache))
    extractor.readable = lambda records, model: (records, [])
    before, parts = peak(), []

    def timed(name, function):
        wall, cpu = time.perf_counter(), time.process_time()
        result = function()
        parts.append((name, time.process_time() - cpu, time.perf_counter() - wall))
        return result

    records, bad = timed("read_records", lambda: read_records(config, manifest))
    data = timed("open_dataset", lambda: open_dataset(config, records, bad, models, extractor, {}))
    timed("token ids", lambda: [extractor.texts.tokens(model, data.table) for model in models.values()])

    def pairs():
        return [
            extractor.pairs(m, models[m], data.records[m]["train"], data.table, "input", "input")
            for m in data.modalities
        ]

    ready = timed("pairs", pairs)
    send.send(
        SimpleNamespace(parts=parts, before=before, peak=peak(), texts=len(data.table), pairs=sum(map(len, ready)))
    )


def peak() -> float:
    """Peak resident MB of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_a_process(*arguments):
    """The answer of `measure` in a fresh process."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=measure, args=(*arguments, send))
    child.start()
    send.close()
    answer = receive.recv()
    child.join()
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--folder", type=Path, help="for generated files; they are removed")
    given = parser.parse_args()
    seen = []
    for rows in given.rows:
        folder = Path(tempfile.mkdtemp(dir=given.folder))
        try:
            manifest = write_manifest(folder / "data", rows)
            first, found = (in_a_process(manifest, folder / "cache") for _ in range(2))
        finally:
            shutil.rmtree(folder)
        cpu, wall = (sum(part[at] for part in found.parts) for at in (1, 2))
        seen.append((rows / 1000, cpu, wall, found.peak - found.before))
        print(f"{rows:,} rows, {found.texts:,} distinct training texts, {found.pairs:,} pairs")
        for (name, seconds, waited), (_, without, _) in zip(found.parts, first.parts, strict=True):
            again = f"   (first time {without:.1f} s)" if without > 2 * seconds + 0.5 else ""
            print(f"  {name:14} {seconds:8.2f} s processor {waited:8.2f} s wall{again}")
        print(
            f"  {'all':14} {cpu:8.2f} s processor {wall:8.2f} s wall: {1000 * cpu / rows * 1000:.1f} ms a thousand rows"
        )
        more, thousand = found.peak - found.before, rows / 1000
        print(
            f"  memory         {more:8.0f} MB above {found.before:.0f} MB: {more / thousand:.2f} MB a thousand rows",
            flush=True,
        )
    if len(seen) > 1:
        table = np.array(seen)
        for name, column, unit in (("processor", 1, "s"), ("wall", 2, "s"), ("memory", 3, "MB")):
            slope, intercept = np.polyfit(table[:, 0], table[:, column], 1, w=1 / table[:, 0])
            print(f"{name}: {slope:.4f} {unit} a thousand rows + {intercept:.2f} {unit}")


if __name__ == "__main__":
    main()
