"""CPSC2018: MATLAB structures, a WFDB copy whose header names the record wrongly (E...), and MERL's three lists."""

from pathlib import Path

import numpy as np
from scipy.io import savemat

from evaluate.benchmarks.trees._tiny import LEADS, ecg, write_csv

ODD = "E07938"  # the header calls it E07938.mat


def make(root: Path, n: int = 12, seed: int = 0) -> None:
    """Nine classes, at least 3 training, 1 validation and 2 test records each, in MERL's lists."""
    rng = np.random.default_rng(seed)
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    rows: list[tuple[object, ...]] = []
    for code in range(1, 10):
        for split in ["train"] * max(3, n // 9) + ["val", "test", "test"]:
            name = f"A{len(rows) + 1:04d}"
            signal = ecg(rng, code - 1, 500, 6)
            write_struct(root / f"TrainingSet{1 + len(rows) % 3}" / f"{name}.mat", signal)
            splits[split].append(name)
            second = 5 if code == 2 and split == "test" else ""
            rows.append((name, code, second, ""))
    write_wfdb_mat(root / "TrainingSet1" / ODD, ecg(rng, 5, 500, 10), f"{ODD}.mat", "284470004,426177001")
    splits["train"].append(ODD)
    rows += [("A9998", 1, "", ""), ("A9999", 17, "", "")]  # no such file; no such class
    write_csv(root / "REFERENCE.csv", ("Recording", "First_label", "Second_label", "Third_label"), rows)
    (root / "TrainingSet1" / "A8000.mat").write_bytes(b"MATLAB 5.0 MAT-file, cut short")
    write_csv(root / "TrainingSet1" / "REFERENCE.csv", ("Recording", "First_label", "Second_label", "Third_label"),
              [("A8000", 1, "", "")])  # fmt: skip
    splits["train"].append("A8000")
    for word, names in splits.items():
        write_csv(root / f"icbeb_{word}.csv", ("patient_id", "filename", "scp_codes"), [(1, x, "{}") for x in names])


def write_struct(path: Path, signal: np.ndarray) -> None:
    """The challenge's own form."""
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"ECG": {"sex": "Male", "age": 74, "data": signal}}, do_compression=True)


def write_wfdb_mat(stem: Path, signal: np.ndarray, name: str, dx: str, suffix: str = ".mat") -> None:
    """PhysioNet's form: MATLAB 4 int16 behind 24 bytes, described by a WFDB header that calls the record `name`."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    stored = np.round(signal * 1000).astype("<i2")
    head = np.array([30, *stored.shape, 0, 4], "<i4").tobytes() + b"val\0"
    stem.with_name(stem.name + suffix).write_bytes(head + stored.T.tobytes())
    lines = [f"{name} 12 500 {stored.shape[1]} 05-May-2020 09:49:17"]
    lines += [f"{stem.name}.mat 16+24 1000/mV 16 0 {row[0]} 0 0 {lead}" for lead, row in zip(LEADS, stored)]
    lines += ["#Age: 65", "#Sex: Female", f"#Dx: {dx}"]
    stem.with_name(stem.name + ".hea").write_text("\n".join(lines) + "\n")
