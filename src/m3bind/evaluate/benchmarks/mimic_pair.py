"""MIMIC-PAIR, reconstructed: a chest radiograph and an ECG of the same visit (MedBind, Gao et al. 2024)."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from m3bind.evaluate.benchmarks._chexpert import FINDINGS
from m3bind.evaluate.benchmarks._mimic import (
    CREDENTIALS,
    LICENCE,
    RECORDS,
    moment,
    radiographs,
    study_time,
    subject_splits,
    table_of,
)
from m3bind.evaluate.benchmarks._mimic_pairs import LAYOUT, NEEDS, Archives, MimicFile, Stays, match
from m3bind.evaluate.benchmarks.base import Benchmark, BenchmarkItem, Fault, read_table


class MimicPair(Benchmark):
    """MIMIC-PAIR."""

    name = "mimic_pair"
    title = "MIMIC-PAIR (MIMIC-CXR-JPG x MIMIC-IV-ECG)"
    modalities = ("xray", "ecg")
    role = "both"
    licence = f"{LICENCE}; MIMIC-IV-ECG: ODbL"
    url = "https://physionet.org/content/mimic-cxr-jpg/"
    access = CREDENTIALS + " Put the data sets below one folder, as PhysioNet names them (links do)."
    layout = (
        LAYOUT
        + """mimiciv/3.1/hosp/admissions.csv(.gz), mimic-iv-ed/2.2/ed/edstays.csv(.gz)    optional: stays
    """
    )
    needs = NEEDS
    classes = FINDINGS
    notes = (
        "MedBind's rule: the same hospital stay (hadm_id) if both files have one, otherwise the same subject within "
        "24 h; without admissions.csv only the latter. A visit has one radiograph (the first frontal image of its "
        "study) and one ECG, the nearest in time; no file of one pair matches another. Subjects are split 70 / 10 / "
        "20 % by a hash, as in mimic_iv_ecg. MedBind has 22,397 / 3,292 / 6,664 pairs of a list that is not public, so "
        "counts cannot be compared. Subjects of the valid and test split must leave training of every MIMIC set: "
        "patients have the same names in all of them, and a manifest of several sets quarantines the training rows."
    )

    def items(self, root: Path, out: Path) -> Iterator[BenchmarkItem | Fault]:
        """Radiograph and ECG of every visit, subject by subject."""
        archives, stays = Archives(root), Stays(root)
        xrays: dict[str, dict[str, MimicFile]] = defaultdict(dict)
        for image in radiographs(archives.cxr):
            time = study_time(image.date, image.clock)
            if time is None:
                yield Fault(image.row, "StudyDate or StudyTime is not a time", image.path, "without a time")
            else:
                stay = stays.at(image.subject, time)
                file = MimicFile(image.path, image.study, image.subject, time, stay)
                xrays[image.subject].setdefault(image.study, file)
        ecgs: dict[str, list[MimicFile]] = defaultdict(list)
        columns = ("subject_id", "study_id", "ecg_time", "path")
        for row, cells in read_table(table_of(archives.ecg, RECORDS), columns):
            subject, study, clock, path = (cells[column] for column in columns)
            time = moment(clock)
            if subject not in xrays:
                continue
            if time is None:
                yield Fault(row, "ecg_time is not a time", path, "without a time")
            else:
                ecgs[subject].append(MimicFile(path, study, subject, time, stays.at(subject, time)))
        splits = subject_splits(ecgs)
        for subject in sorted(ecgs):
            for number, (x, e) in enumerate(match(list(xrays[subject].values()), ecgs[subject]), 1):
                yield from archives.items(x, e, splits[subject], f"{subject}-{number}")
