"""Loading published models: parameters that start at zero (ours) against random ones that the file overwrites, in turn.

    python benchmarks/load.py [NAME ...]

The files are generated for the benchmark: weights derived from their names, under this package's own keys.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import contextlib
import sys
import tempfile
import time
from pathlib import Path

import torch

import m3bind.models as models
from _measure import alternate, conditions, ratio
from m3bind.models import published
from m3bind.models.weights.checkpoint import save_state
from m3bind.models.weights.reference import fill

REPEATS = 5


def measure(name: str, folder: Path) -> None:
    path, usual = folder / f"{name}.safetensors", contextlib.nullcontext
    model = models.build(name)
    fill(model)
    save_state(model.state_dict(), path)
    state, quick = model.state_dict(), published.without_initialisation

    def load(how: object) -> None:
        published.without_initialisation = how  # type: ignore[assignment]
        loaded = models.load(name, path).state_dict()
        published.without_initialisation = quick
        assert all(torch.equal(value, state[key]) for key, value in list(loaded.items())[::50])

    forms = {"random": lambda: load(usual), "ours": lambda: load(quick)}
    seconds = alternate(forms, REPEATS, clock=time.process_time)
    size = sum(value.numel() for value in state.values()) / 1e6
    ours = sorted(seconds["ours"])[REPEATS // 2]
    print(f"{name:18s} {size:4.0f} M numbers: {ratio(seconds['random'], seconds['ours'])} ({ours:.2f} s of processor)")
    path.unlink()


def main(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in names or ["flair", "clip", "biomedclip", "medclip_vit", "keep"]:
            measure(name, Path(folder))
    print(f"median of {REPEATS} pairs (range); processor seconds of models.load from safetensors; {conditions()}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
