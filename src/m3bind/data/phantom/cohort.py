"""A cohort of virtual patients on disk: state, split and modalities of each; generation by several processes.

* `CohortSettings`, `plan`: the cohort as a pure function of its settings.
* `generate`: write it; a finished cohort is reused, an interrupted one is resumed, any number of workers gives the
  same bytes.
Layout: cohort.json (settings), patients/p0000/{xray.png, ct.nii.gz, retina.png, ecg.hea, ecg.dat, pathology.png},
manifest.csv (written last).
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m3bind.core import children
from m3bind.core.files import sha256_text, write_json, write_text
from m3bind.core.stored import read_json
from m3bind.data.phantom.reports import HEADER, report
from m3bind.data.phantom.state import MODALITIES, PatientState, sample_state, syndromes, visible
from m3bind.data.phantom.writing import FILES, write_patient
from m3bind.data.tables import csv_text
from m3bind.errors import ConfigError, M3BindError, UnknownNameError

SPLITS = ("train", "valid", "test")
FRACTIONS = (0.6, 0.1, 0.3)  # patients in train, valid and test
# Share of the train and valid patients with each modality, deliberately unbalanced.
SHARES = {"xray": 1.0, "ct": 0.48, "retina": 0.75, "ecg": 0.83, "pathology": 0.29}
COLUMNS = (
    "id", "modality", "set", "path", "label", "labels", "caption", "patient", "split", "licence",
    "severity", "grade", "synthetic", "report_header",
)  # fmt: skip
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CohortSettings:
    """Settings of a cohort. `counts`: files per modality among train and valid patients; test patients have all."""

    patients: int
    seed: int
    counts: dict[str, int]
    fractions: tuple[float, float, float]  # train, valid, test

    def digest(self) -> str:
        """Hash of the settings and of the generator's own source, so that no stale cohort is reused."""
        files = (path for path in Path(__file__).parent.iterdir() if path.suffix in (".py", ".yaml"))
        sources = sorted(path for path in files if path.name not in ("dicom.py", "sheet.py"))  # these read a cohort
        return sha256_text(repr(sorted(asdict(self).items())), *(path.read_text(encoding="utf-8") for path in sources))


@dataclass(frozen=True)
class Patient:
    """One patient of a cohort."""

    number: int
    state: PatientState
    split: str
    modalities: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name in the manifest and on disk, e.g. p0042."""
        return f"p{self.number:04d}"


def cohort_hash(patients: int, seed: int = 0, counts: Mapping[str, int] | None = None) -> str:
    """Short hash of a cohort's settings and of the generator's source: a unique folder name."""
    return make_settings(patients, seed, counts, FRACTIONS).digest()[:16]


def make_settings(
    patients: int, seed: int, counts: Mapping[str, int] | None, fractions: tuple[float, float, float]
) -> CohortSettings:
    """Checked settings with default counts filled in.

    Raises:
        ConfigError: no patients, fractions that do not add up to 1, a negative count.
        UnknownNameError: counts of an unknown modality.
    """
    if patients < 1:
        raise ConfigError(f"phantom: patients is {patients}; give at least 1.")
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ConfigError(
            f"phantom: fractions {fractions} must be three numbers >= 0 (train, valid, test) that sum to 1."
        )
    available = sum(choice != 2 for choice in _spread_out(patients, fractions))
    full = {modality: round(share * available) for modality, share in SHARES.items()}
    for modality, count in (counts or {}).items():
        if modality not in full:
            raise UnknownNameError("modality", modality, MODALITIES)
        if count < 0:
            raise ConfigError(f"phantom: counts[{modality!r}] is {count}; give 0 or more.")
        full[modality] = min(int(count), available)
    return CohortSettings(patients, seed, full, (float(fractions[0]), float(fractions[1]), float(fractions[2])))


def _spread_out(total: int, fractions: tuple[float, ...]) -> list[int]:
    """`total` choices among len(fractions) options, each option evenly spread and exact to within one."""
    given, order = [0] * len(fractions), []
    for place in range(total):
        lacking = [fraction * (place + 1) - count for fraction, count in zip(fractions, given)]
        choice = int(np.argmax(lacking))
        given[choice] += 1
        order.append(choice)
    return order


def plan(settings: CohortSettings) -> list[Patient]:
    """All patients of a cohort. Syndromes and severities are as even as possible, in each split and modality too."""
    names = syndromes()
    rank = np.random.default_rng([settings.seed, 0]).permutation(settings.patients)
    states = []
    for number in range(settings.patients):
        kind, level = names[rank[number] % len(names)], 1 + int(rank[number]) // len(names) % 3
        states.append(sample_state(np.random.default_rng([settings.seed, 1, number]), kind, level))
    order = sorted(range(settings.patients), key=lambda i: (rank[i] % len(names), states[i].severity, rank[i]))
    splits = dict(zip(order, _spread_out(settings.patients, settings.fractions)))
    owners = {modality: {i for i in order if splits[i] == 2} for modality in MODALITIES}
    learners = [i for i in order if splits[i] != 2]
    for index, modality in enumerate(MODALITIES):
        share = settings.counts[modality] / max(len(learners), 1)
        start = index / len(MODALITIES)  # each modality skips other patients
        steps = np.floor(share * np.arange(len(learners) + 1) + start)
        owners[modality] |= {i for i, step in zip(learners, np.diff(steps)) if step > 0}
    patients = []
    for i, state in enumerate(states):
        modalities = tuple(modality for modality in MODALITIES if i in owners[modality])
        patients.append(Patient(i, state, SPLITS[splits[i]], modalities))
    return patients


def rows(settings: CohortSettings) -> list[dict[str, str]]:
    """The manifest's rows, in order of patient and modality."""
    table = []
    for patient in plan(settings):
        for modality in patient.modalities:
            rng = np.random.default_rng([settings.seed, 3, patient.number, MODALITIES.index(modality)])
            table.append(_row(patient, modality, report(patient.state, modality, rng)))
    return table


def _row(patient: Patient, modality: str, caption: str) -> dict[str, str]:
    state = patient.state
    return {
        "id": f"{patient.name}-{modality}",
        "modality": modality,
        "set": "phantom",
        "path": f"patients/{patient.name}/{FILES[modality]}",
        "label": state.syndrome,
        "labels": "|".join(visible(state, modality)),
        "caption": caption,
        "patient": patient.name,
        "split": patient.split,
        "licence": "synthetic",
        "severity": state.severity_name,
        "grade": f"{state.grade:.3f}",
        "synthetic": "true",
        "report_header": HEADER,
    }


def missing(folder: Path, settings: CohortSettings) -> list[Patient]:
    """Patients with files to write and without a folder."""
    return [p for p in plan(settings) if p.modalities and not (folder / "patients" / p.name).is_dir()]


def work(folder: Path, settings: CohortSettings, share: int, of: int, done: Callable[[], None]) -> None:
    """Write every `of`-th patient of the cohort, from number `share` on, if missing; call `done` after each."""
    for patient in missing(folder, settings):
        if patient.number % of == share:
            place, seeds = folder / "patients" / patient.name, [settings.seed, 2, patient.number]
            write_patient(place, patient.state, patient.modalities, seeds)
            done()


def load_settings(folder: Path) -> CohortSettings:
    """The settings stored in a cohort's folder."""
    stored: dict[str, Any] = read_json(folder / "cohort.json")["settings"]
    train, valid, test = stored["fractions"]
    return CohortSettings(stored["patients"], stored["seed"], stored["counts"], (train, valid, test))


def generate(
    folder: Path | str,
    patients: int = 600,
    seed: int = 0,
    counts: Mapping[str, int] | None = None,
    workers: int = 2,
    progress: Progress | None = None,
    fractions: tuple[float, float, float] = FRACTIONS,
) -> Path:
    """Write a cohort of synthetic patients into `folder` and return the path of its manifest.

    counts: files per modality among train and valid patients (at most one per patient; default SHARES of them); test
    patients always have all modalities. progress(done, total) is called after each patient. The same settings give the
    same bytes for any `workers`; a finished cohort is reused and an interrupted one resumed.

    Raises:
        ConfigError: invalid settings, or `folder` contains a cohort of other settings.
        DiskError: a file could not be written.
        M3BindError: a worker process died.
    """
    folder = Path(folder)
    settings = make_settings(patients, seed, counts, fractions)
    manifest = folder / "manifest.csv"
    _claim(folder, settings)
    todo = missing(folder, settings)
    if manifest.is_file() and not todo:
        return manifest
    _sweep(folder / "patients")
    finished = 0

    def done() -> None:
        nonlocal finished
        finished += 1
        if progress:
            progress(finished, len(todo))

    workers = max(1, min(workers, len(todo)))
    if workers == 1:
        work(folder, settings, 0, 1, done)
    else:
        _in_processes(folder, workers, done)
    write_text(manifest, csv_text(COLUMNS, rows(settings)))
    return manifest


def _claim(folder: Path, settings: CohortSettings) -> None:
    """Store the settings in `folder`, or check that those stored there are the same."""
    note, digest = folder / "cohort.json", settings.digest()
    if not note.is_file():
        write_json(note, {"synthetic": True, "digest": digest, "settings": asdict(settings)})
    elif read_json(note)["digest"] != digest:
        raise ConfigError(
            f"{folder} holds a phantom cohort of other settings or of another version of the generator; "
            "choose another folder or delete this one."
        )


def _sweep(folder: Path) -> None:
    """Remove incomplete patients of killed processes."""
    for path in folder.glob(".p*.tmp"):
        pid = path.name.split(".")[-2]
        if not (pid.isdigit() and Path(f"/proc/{pid}").exists()):
            shutil.rmtree(path, ignore_errors=True)


def _in_processes(folder: Path, workers: int, done: Callable[[], None]) -> None:
    """Run `work` in several Python processes; each prints one line per patient. They stop when this process does."""
    environment = children.environment(OMP_NUM_THREADS="1")
    command = children.command("m3bind.data.phantom.worker", str(folder))
    running = []
    for share in range(workers):
        line = [*command, str(share), str(workers)]
        running.append(subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment))
    try:
        _follow(running, done)
    finally:
        for process in running:
            if process.poll() is None:
                process.terminate()
            process.wait()
    for process in running:
        if process.returncode:
            assert process.stderr is not None
            last = process.stderr.read().decode(errors="replace").strip().splitlines()[-1:]
            raise M3BindError(f"a worker generating {folder} stopped: {' '.join(last)}; run again to continue.")


def _follow(running: "list[subprocess.Popen[bytes]]", done: Callable[[], None]) -> None:
    import selectors

    watch = selectors.DefaultSelector()
    for process in running:
        assert process.stdout is not None
        watch.register(process.stdout, selectors.EVENT_READ)
    while watch.get_map():
        for key, _ in watch.select():
            chunk = os.read(key.fd, 4096)
            if not chunk:
                watch.unregister(key.fileobj)
            for _ in range(chunk.count(b"\n")):
                done()
