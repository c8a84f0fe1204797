"""Inputs that are called unlike the training data: false alarms on valid and test, changed files, files of other kinds.

Per modality of a run's space: the share of flagged valid and test files, and of test files under shifts, or
destroyed as below, or of files of other kinds given to the modality's tower. Of each kind at most `--items` files,
chosen at random (seed 0).

    python benchmarks/unlike.py runs/mini5 [--split test] [--items 60] [--other FILE.csv] [--json FILE]

`--other`: a table with the columns path and label, of images for the towers of images (other body parts). `--split
valid` while choosing settings.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from m3bind import modalities
from m3bind.errors import M3BindError
from m3bind.evaluate.shifts import SHIPPED, Kind, Shift, kind_of, noisy, on_array, resampled, shifts_of
from m3bind.modalities.base import Sample
from m3bind.pipeline.outputs import open_run
from m3bind.space.bundle import Space, load

DESTROYED: dict[Kind, dict[str, Shift]] = {  # beside the shifts of `m3bind.evaluate.shifts`
    "image": {
        "64 pixels": on_array(resampled(64)),
        "grey noise": on_array(noisy(0.15, alone=True)),
        "blank": on_array(lambda array: np.full_like(array, array.mean())),
    },
    "volume": {
        "noise alone": on_array(noisy(300, alone=True)),
        "blank": on_array(lambda array: np.full_like(array, -1000)),
    },
    "signal": {
        "noise alone": on_array(noisy(0.3, alone=True)),
        "flat": on_array(np.zeros_like),
        "nearly flat": on_array(lambda array: 0.01 * noisy(0.5, alone=True)(array)),
        "ten times the gain": on_array(lambda array: 10 * array),
        "a tenth of the gain": on_array(lambda array: 0.1 * array),
        "leads swapped": on_array(lambda array: array[::-1]),
    },
}


def changes_of(sample: Sample) -> dict[str, Shift]:
    """The changes that a sample can have."""
    shifts = dict(shifts_of(sample))
    del shifts[SHIPPED]  # measured on more files
    return {**shifts, **DESTROYED[kind_of(sample)]}


def decoded(modality: str, paths: Sequence[Path], items: int) -> list[Sample]:
    """At most `items` of the files."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(paths))[:items])
    return [modalities.decode(modality, paths[at]) for at in chosen]


def reasons(space: Space, modality: str, samples: Sequence[Sample]) -> list[str]:
    """Of each sample that the tower takes."""
    found: list[str] = []
    for sample in samples:
        try:
            found += space.examine_inputs([space.model(modality).preprocess(sample)], modality)[1]
        except M3BindError:  # another shape than the tower takes
            continue
    return found


def line(modality: str, kind: str, found: Sequence[str]) -> dict[str, object]:
    """Printed, and returned as a row."""
    flagged = [reason for reason in found if reason]
    most = max(set(flagged), key=flagged.count) if flagged else ""
    row = {"modality": modality, "kind": kind, "n": len(found), "flagged": len(flagged), "reason": most}
    print(
        f"{modality:10s} {kind:28s} n {len(found):4d}  flagged {len(flagged) / max(len(found), 1):5.2f}  {most}",
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--space", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--items", type=int, default=60)
    parser.add_argument("--other", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    space, run = load(options.space or options.run / "space"), open_run(options.run)
    records, _ = run.read_records()
    paths = {}
    for name in space.modalities:
        for split in ("valid", options.split):
            paths[name, split] = [Path(record.path) for record in records.where(name, split)]
    samples = {name: decoded(name, paths[name, options.split], options.items) for name in space.modalities}
    others: dict[str, list[Path]] = {}
    if options.other:
        for label, part in pd.read_csv(options.other).groupby("label"):
            others[str(label)] = [options.other.parent / path for path in part["path"]]
    rows = []
    for name in space.modalities:
        if name not in space.measures:
            continue
        for split in dict.fromkeys(("valid", options.split)):
            usual = decoded(name, paths[name, split], 10 * options.items)
            rows.append(line(name, f"{split}, as shipped", reasons(space, name, usual)))
        for kind, change in changes_of(samples[name][0]).items():
            rows.append(line(name, kind, reasons(space, name, [change(sample) for sample in samples[name]])))
        for other, given in samples.items():
            if other != name and (found := reasons(space, name, given)):
                rows.append(line(name, f"files of {other}", found))
        if kind_of(samples[name][0]) == "image":
            for kind, files in others.items():
                rows.append(line(name, kind, reasons(space, name, decoded("xray", files, options.items))))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
