"""Files per second of `encode_files` against its towers alone, and against open_clip's model behind a DataLoader.

    python benchmarks/encode.py [--models RN50 ViT-B-32] [--formats jpeg png] [--files 96] [--repeats 5] [--workers 2]

Run in turn within each repeat, from the same files (generated: RGB JPEG of 768, grey PNG of 1,024 pixels a side) with
the same random weights, each ending with unit rows in memory or on disk:
    ours        encode_files: child processes decode and check, towers in threads, shards, the final folder
    limit       the same towers on the same inputs, already decoded and prepared in memory
    open_clip   open_clip's own model and transform, Pillow in a DataLoader with as many workers, inference mode
    eager       open_clip's own model on inputs in memory
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("M3BIND_PROGRESS", "off")
os.environ["HF_HUB_OFFLINE"] = "1"

import json

import numpy as np
import open_clip
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from _measure import alternate, conditions, ratio
from m3bind import models
from m3bind.encode.job import encode_files
from m3bind.encode.towers import Batches, TowerRunner, Towers, arithmetic, batch_size, choose
from m3bind.space.bundle import Space, load, save_space
from read import make_jpeg, make_png

FORMATS: dict[str, tuple[str, Callable[[Path, int], list[Path]]]] = {
    "jpeg": ("retina", make_jpeg),
    "png": ("xray", make_png),
}


def make_model(name: str, folder: Path) -> Path:
    """A folder in open_clip's format: configuration and random weights."""
    folder.mkdir()
    config = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder


def make_space(model_folder: Path, modality: str, folder: Path) -> Space:
    model = models.load("open_clip_any", model_folder)
    return load(save_space(Space({modality: model}, {modality: torch.eye(model.joint_dim)}), folder))


class Files(Dataset):
    def __init__(self, paths: list[Path], transform: Any) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> torch.Tensor:
        with Image.open(self.paths[number]) as picture:
            return self.transform(picture)


def with_loader(model: Any, transform: Any, paths: list[Path], batch: int, workers: int) -> np.ndarray:
    loader = DataLoader(Files(paths, transform), batch, num_workers=workers)
    with torch.inference_mode():
        return torch.cat([model.encode_image(inputs, normalize=True) for inputs in loader]).numpy()


def eager(model: Any, inputs: list[torch.Tensor], batch: int) -> np.ndarray:
    with torch.inference_mode():
        parts = [torch.stack(inputs[at : at + batch]) for at in range(0, len(inputs), batch)]
        return torch.cat([model.encode_image(part, normalize=True) for part in parts]).numpy()


def towers_alone(space: Space, modality: str, inputs: list[torch.Tensor]) -> None:
    decision, _ = choose(space, modality, inputs, "auto")
    threads = torch.get_num_threads()
    with arithmetic(1), Towers[int](lambda m, some: TowerRunner(space, m, decision, some[0]), threads) as towers:
        batches = Batches[int]({modality: batch_size(space, modality)})
        for number, value in enumerate(inputs):
            for batch in batches.add(modality, number, value):
                list(towers.run(batch))
        for batch in batches.flush():
            list(towers.run(batch))
        list(towers.rest())


def measure(name: str, kind: str, options: argparse.Namespace, folder: Path) -> None:
    modality, make = FORMATS[kind]
    (folder / "in").mkdir(parents=True)
    paths = make(folder / "in", options.files)
    source = make_model(name, folder / "model")
    space = make_space(source, modality, folder / "space")
    own, transform = open_clip.create_model_from_pretrained(f"local-dir:{source}")
    own.eval()
    inputs = [space.read(path, modality) for path in paths]
    count = iter(range(10**6))

    def ours() -> None:
        encode_files(space, paths, folder / f"out{next(count)}", modality, workers=options.workers)

    forms = {
        "limit": partial(towers_alone, space, modality, inputs),
        "ours": ours,
        "open_clip": partial(with_loader, own, transform, paths, options.batch, options.workers),
        "eager": partial(eager, own, inputs, options.batch),
    }
    seconds = alternate(forms, options.repeats)
    rate = {form: options.files / statistics.median(found) for form, found in seconds.items()}
    made = encode_files(space, paths, folder / "out", modality).embeddings
    cosine = float((made * with_loader(own, transform, paths, options.batch, options.workers)).sum(1).min())
    print(
        f"  {name:10} {kind:5} ours {rate['ours']:6.1f} files/s: {ratio(seconds['limit'], seconds['ours'])} of its "
        f"limit ({rate['limit']:.1f}), {ratio(seconds['open_clip'], seconds['ours'])} of open_clip + DataLoader "
        f"({rate['open_clip']:.1f}); towers alone {ratio(seconds['eager'], seconds['limit'])} of open_clip's "
        f"({rate['eager']:.1f}); least cosine {cosine:.5f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["RN50", "ViT-B-32"])
    parser.add_argument("--formats", nargs="*", default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument("--files", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--batch", type=int, default=32, help="of open_clip; ours uses its default")
    options = parser.parse_args()
    print(f"{conditions()}; {options.files} files, {options.repeats} repeats, {options.workers} workers", flush=True)
    for name in options.models:
        for kind in options.formats:
            with tempfile.TemporaryDirectory() as folder:
                measure(name, kind, options, Path(folder))
    print(conditions())


if __name__ == "__main__":
    main()
