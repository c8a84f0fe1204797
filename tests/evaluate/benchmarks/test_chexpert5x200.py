from pathlib import Path

import numpy as np
import pandas as pd

from evaluate.benchmarks.prepared import assert_incomplete, kinds, make, prepared
from evaluate.benchmarks.trees._small import write_table
from evaluate.benchmarks.trees.chexpert import HEADER
from m3bind.evaluate.benchmarks._chexpert import COMPETITION, FINDINGS, Frontal
from m3bind.evaluate.benchmarks.chexpert5x200 import OWN_LIST, drawn, excluded_patients


def test_images_with_one_finding_alone(tmp_path: Path) -> None:
    make("chexpert5x200", tmp_path, n=4)
    done, manifest = prepared("chexpert5x200", tmp_path)
    assert done.counts == {"test": 20, "patients": 20, **{f"test/{name}": 4 for name in COMPETITION}}
    assert all(record.labels == (record.label,) for record in manifest.records)
    assert "test: 20, published 1,000" in done.differences


def test_draw_is_mgcas(tmp_path: Path) -> None:
    """Against MGCA's rule said with pandas: filter, then sample(n=200, random_state=0) per finding."""
    rng = np.random.default_rng(0)
    rows = []
    for k in range(4000):
        values = dict.fromkeys(FINDINGS)
        values[COMPETITION[rng.integers(5)]] = 1
        if rng.random() < 0.3:
            values[FINDINGS[rng.integers(14)]] = rng.choice([1, 0, -1])
        view = "Frontal" if rng.random() < 0.8 else "Lateral"
        path = f"CheXpert-v1.0/train/patient{k // 2:05d}/study1/view{k % 2}_frontal.jpg"
        rows.append((path, "Male", 50, view, "AP", *(values[name] for name in FINDINGS)))
    write_table(tmp_path / "CheXpert-v1.0" / "train.csv", HEADER, rows)
    frame = pd.read_csv(tmp_path / "CheXpert-v1.0" / "train.csv").fillna(0)
    frame = frame[frame["Frontal/Lateral"] == "Frontal"]
    expected: list[str] = []
    for task in COMPETITION:
        others = [name for name in FINDINGS if name not in ("No Finding", task)]
        fitting = frame[(frame[task] == 1) & (frame[others] == 0).all(axis=1)]
        assert len(fitting) > 300
        expected += fitting.sample(n=200, random_state=0)["Path"].tolist()
    found = [row for row in drawn(tmp_path) if isinstance(row, Frontal)]
    assert [row.path for row in found] == expected
    assert excluded_patients(tmp_path) == {f"chexpert-{path.split('/')[2]}" for path in expected}


def test_own_list_is_used_where_there_is_one(tmp_path: Path) -> None:
    root = make("chexpert5x200", tmp_path, n=4) / "CheXpert-v1.0"
    lines = (root / "train.csv").read_text().splitlines()
    alone = [line for line in lines if "patient00001/study1" in line]
    two = [line for line in lines if "patient00001/study2" in line]
    (root / OWN_LIST).write_text("\n".join([lines[0], *alone, *two]) + "\n")
    done, manifest = prepared("chexpert5x200", tmp_path)
    assert done.counts["test"] == 1 and manifest.records[0].label == "Atelectasis"
    assert kinds(done) == {"of no class": 1}
    assert excluded_patients(tmp_path / "data") == {"chexpert-patient00001"}


def test_absent_and_incomplete(tmp_path: Path) -> None:
    make("chexpert5x200", tmp_path, n=1)
    assert_incomplete("chexpert5x200", tmp_path, ["CheXpert-v1.0/train.csv"])
