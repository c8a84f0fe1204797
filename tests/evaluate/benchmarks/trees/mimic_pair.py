"""Small MIMIC-CXR-JPG, MIMIC-IV-ECG and tables of stays below one folder, with each case of the pairing rule."""

from pathlib import Path

from evaluate.benchmarks.trees._mimic import Record, Study, write_cxr, write_ecgs
from evaluate.benchmarks.trees._small import cycled, people, write_table
from m3bind.evaluate.benchmarks._mimic import FRACTIONS, patient_of

FINDINGS = ("Pneumonia", "Cardiomegaly", "Pleural Effusion", "No Finding")
ADMISSIONS = ("subject_id", "hadm_id", "admittime", "dischtime")
ED = ("subject_id", "hadm_id", "stay_id", "intime", "outtime")


def make(root: Path, n: int = 12, seed: int = 0) -> None:
    """`n` subjects with a pair each (same stay three days apart, or no stay and five hours), then three without one."""
    subjects = list(people([*cycled(n), "train", "train", "train"], FRACTIONS, patient_of, 10000032 + seed))
    studies, records, stays, visits = [], [], [], []
    for k, subject in enumerate(subjects[:n]):
        values = {FINDINGS[k % 4]: 1}
        if k % 2:  # the ECG in the emergency department, the radiograph three days later on the ward
            studies.append(Study(subject, f"{50000000 + k}", "21800509", "93012.0", values=values))
            records.append(Record(subject, f"{40000000 + k}", "2180-05-06 08:00:00"))
            stays.append((subject, f"{20000000 + k}", "2180-05-06 12:00:00", "2180-05-12 10:00:00"))
            visits.append((subject, f"{20000000 + k}", f"{30000000 + k}", "2180-05-06 07:00:00", "2180-05-06 12:00:00"))
        else:
            studies.append(Study(subject, f"{50000000 + k}", "21800506", "93012.0", values=values))
            records.append(Record(subject, f"{40000000 + k}", "2180-05-06 14:30:00"))
    late, moved, damaged = subjects[n:]
    studies += [Study(subject, f"{51000000 + k}", "21800506", "93012.0") for k, subject in enumerate((late, moved))]
    records.append(Record(late, "41000000", "2180-05-07 15:30:12"))  # 30 hours later, no stay
    records.append(Record(moved, "41000001", "2180-05-06 11:00:00"))  # 90 minutes later, but in the next stay
    stays += [(moved, "21000000", "2180-05-01 00:00:00", "2180-05-06 10:00:00"),
              (moved, "21000001", "2180-05-06 10:30:00", "2180-05-08 00:00:00")]  # fmt: skip
    studies.append(Study(damaged, "51000002", "", ""))
    records.append(Record(damaged, "41000002"))
    write_cxr(root / "mimic-cxr-jpg" / "2.1.0", studies)
    write_ecgs(root / "mimic-iv-ecg" / "1.0", records)
    write_table(root / "mimiciv" / "3.1" / "hosp" / "admissions.csv.gz", ADMISSIONS, stays)
    write_table(root / "mimic-iv-ed" / "2.2" / "ed" / "edstays.csv.gz", ED, visits)
