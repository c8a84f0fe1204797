"""ICBEB / CPSC2018: 6,877 twelve-lead ECGs of 6 to 60 s at 500 Hz, nine classes, some records with several.

Two formats exist: the challenge's own MATLAB files, a structure (sex, age, data), which are converted to WFDB; and
PhysioNet's copies, a WFDB header beside each .mat file, which are copied. Labels come from REFERENCE.csv, or without
it from the SNOMED codes of the headers.
"""

import shutil
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from m3bind.core.files import atomic_path
from m3bind.errors import ManifestError, in_words
from m3bind.evaluate.benchmarks._cells import whole
from m3bind.evaluate.benchmarks._extract import save_ecg
from m3bind.evaluate.benchmarks.base import Benchmark, BenchmarkItem, Fault, read_table

CLASSES = ("NORM", "AFIB", "1AVB", "CLBBB", "CRBBB", "PAC", "VPC", "STD", "STE")  # codes 1 to 9 of REFERENCE.csv
SNOMED = {
    "426783006": "NORM", "164889003": "AFIB", "270492004": "1AVB", "164909002": "CLBBB", "59118001": "CRBBB",
    "284470004": "PAC", "164884008": "VPC", "429622005": "STD", "164931005": "STE",
}  # fmt: skip
RATE = 500  # Hz
SEED = 42  # of MERL's random split


class Icbeb(Benchmark):
    """CPSC2018 training set with nine labels."""

    name: ClassVar[str] = "icbeb"
    title: ClassVar[str] = "ICBEB / CPSC2018"
    modalities: ClassVar[tuple[str, ...]] = ("ecg",)
    role: ClassVar = "evaluation"
    licence: ClassVar[str] = "stated as free for research by the challenge; PhysioNet's copy CC BY 4.0"
    url: ClassVar[str] = "http://2018.icbeb.org/Challenge.html"
    access: ClassVar[str] = (
        "Open: the three training archives and REFERENCE.csv of the challenge, or the folder cpsc_2018 of PhysioNet's "
        "challenge-2020 or challenge-2021."
    )
    layout: ClassVar[str] = """\
REFERENCE.csv                         Recording, First_label, Second_label, Third_label (1 to 9)
A0001.mat, A0002.mat, ...             in any folders; or A0001.hea with A0001.mat (WFDB)
icbeb_{train,val,test}.csv            optional: MERL's lists for their split (column filename)
icbeb_database.csv                    or the ten folds of the PTB-XL benchmark (filename, strat_fold)
"""
    needs: ClassVar[tuple[str, ...]] = ("**/*.mat",)
    extracts: ClassVar[bool] = True
    classes: ClassVar[tuple[str, ...]] = CLASSES
    known: ClassVar[Mapping[str, int]] = {"train": 4950, "valid": 551, "test": 1376}
    notes: ClassVar[str] = (
        "Split: MERL's lists if present; otherwise folds 1-8/9/10 if present; otherwise MERL's rule (a random 20 % "
        "test, then 10 % of the rest valid, seed 42) on the sorted names: the same sizes, but other members than "
        "theirs, which depend on the order of files on their disk. Some PhysioNet headers of the later challenges "
        "(E...) give the record a name that ends in .mat, which the WFDB library refuses; they are read here."
    )

    def items(self, root: Path, out: Path) -> Iterator[BenchmarkItem | Fault]:
        """One item per record, by name."""
        paths = sorted(path for path in root.rglob("*.mat") if not path.is_relative_to(out))
        files = {path.stem: path for path in paths}
        labels = yield from _reference(root)
        if not labels and not any(path.with_suffix(".hea").is_file() for path in paths):
            raise ManifestError(f"{root}: no REFERENCE.csv and no WFDB headers, so no labels; add REFERENCE.csv")
        splits = _splits(root, sorted(files))
        for name, path in files.items():
            codes = labels.get(name) or _dx(path.with_suffix(".hea"))
            if not codes or name not in splits:
                reason = "none of the nine labels" if not codes else "not in the lists of the split"
                yield Fault(0, reason, path.name, "without a label" if not codes else "without a split")
                continue
            reason = _take(path, out / name)
            if reason:
                yield Fault(0, reason, path.name, "unreadable")
                continue
            ordered = tuple(label for label in CLASSES if label in codes)
            yield BenchmarkItem(path=name, split=splits[name], modality="ecg", label=codes[0], labels=ordered)
        for name in sorted(set(labels) - set(files)):
            yield Fault(0, "listed in REFERENCE.csv, but the file is missing", f"{name}.mat", "with a missing file")


def _reference(root: Path) -> Generator[Fault, None, dict[str, tuple[str, ...]]]:
    """Yields faults (rows without valid labels); returns the labels of each record in the order of REFERENCE.csv."""
    labels: dict[str, tuple[str, ...]] = {}
    for table in sorted(root.rglob("REFERENCE*.csv")):
        columns = ("First_label", "Second_label", "Third_label")
        for line, row in read_table(table, ("Recording", *columns)):
            codes = [whole(row[column]) for column in columns if row[column] and row[column].lower() != "nan"]
            if not codes or any(code not in range(1, 10) for code in codes):
                yield Fault(line, "a label is not one of 1 to 9", row["Recording"], "without a label")
            else:
                labels[row["Recording"]] = tuple(CLASSES[code - 1] for code in codes if code)
    return labels


def _dx(header: Path) -> tuple[str, ...]:
    """The labels in the line "#Dx: 164889003,59118001" of a WFDB header."""
    if not header.is_file():
        return ()
    for line in header.read_text(encoding="latin-1").splitlines():
        if line.lstrip("# ").startswith("Dx:"):
            codes = line.split(":", 1)[1].split(",")
            return tuple(SNOMED[code.strip()] for code in codes if code.strip() in SNOMED)
    return ()


def _splits(root: Path, names: Sequence[str]) -> dict[str, str]:
    """The split of each record; see `Icbeb.notes`."""
    splits: dict[str, str] = {}
    words = {"train": "train", "val": "valid", "test": "test"}
    lists = {split: next(root.rglob(f"icbeb_{word}.csv"), None) for word, split in words.items()}
    folds = next(root.rglob("icbeb_database.csv"), None)
    if all(lists.values()):
        for split, path in lists.items():
            for _, row in read_table(path or root, ("filename",)):
                splits[row["filename"].removesuffix(".mat")] = split
    elif folds:
        for _, row in read_table(folds, ("filename", "strat_fold")):
            splits[row["filename"]] = {9: "valid", 10: "test"}.get(whole(row["strat_fold"]) or 0, "train")
    else:
        splits = random_split(names)
    return splits


def random_split(names: Sequence[str], seed: int = SEED) -> dict[str, str]:
    """MERL's rule on `names` in their order: 20 % test, then 10 % of the rest valid."""
    from sklearn.model_selection import train_test_split

    rest, test = train_test_split(list(names), test_size=0.2, random_state=seed)
    train, valid = train_test_split(rest, test_size=0.1, random_state=seed)
    return dict.fromkeys(train, "train") | dict.fromkeys(valid, "valid") | dict.fromkeys(test, "test")


def _take(path: Path, stem: Path) -> str:
    """Write the record of a .mat file to `stem` as WFDB; returns the reason of a failure, or ""."""
    header = path.with_suffix(".hea")
    if not header.is_file():
        return _rewrite(path, stem)
    for source in (path, header):  # the header last: with it, the record counts as complete
        target = stem.with_name(source.name)
        if not target.exists():
            with atomic_path(target) as temporary:
                shutil.copyfile(source, temporary)
    return ""


def _rewrite(path: Path, stem: Path) -> str:
    from scipy.io import loadmat

    if stem.with_name(stem.name + ".hea").exists():
        return ""
    try:
        record = loadmat(path, variable_names=["ECG"])["ECG"][0, 0]
        signal = record["data"]
    except Exception as error:  # scipy raises many types for damaged files
        return f"not a MATLAB file with the structure ECG ({in_words(error)})"
    if signal.ndim != 2 or signal.shape[0] != 12 or signal.dtype.kind not in "iuf":
        return f"its data are of shape {signal.shape}, not (12, samples)"
    save_ecg(stem, signal, RATE)
    return ""
