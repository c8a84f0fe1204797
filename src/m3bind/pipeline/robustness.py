"""Robustness of a run's space: its test files passed through the shifts of `evaluate/shifts.py`.

* `measure_robustness`: result rows of all modalities, stored in the run's `robustness.json`. * `stored_robustness`.

Every file is decoded once and encoded under each shift; what was computed is cached, so a killed run resumes.

Shapes: n files, s shifts, d dimension of the space.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from m3bind import modalities
from m3bind.core.files import sha256_file
from m3bind.data.file_keys import with_rescale
from m3bind.data.records import Records
from m3bind.errors import ConfigError
from m3bind.evaluate import shifts
from m3bind.evaluate.results import Context, ResultTable
from m3bind.evaluate.robustness import ShiftedFiles, robustness_rows
from m3bind.evaluate.tasks import tasks_for
from m3bind.modalities.base import Sample
from m3bind.modalities.formats.isolation import allow
from m3bind.pipeline.run import Run
from m3bind.pipeline.stored_inputs import rescaled
from m3bind.space.bundle import STUDENT, Space, load

FILE = "robustness.json"
BATCH = 16  # files decoded together


def measure_robustness(run: Run) -> ResultTable:
    """Rows of `evaluate/robustness.py` for the space of a finished run, also written to its folder.

    Raises:
        ConfigError: the run has no space.
    """
    folder = run.folder / "space"
    if not folder.is_dir():
        raise ConfigError(f"{run.folder} holds no space; finish the run with m3bind fit")
    space = load(folder, run.compute.device)
    data = run.prepare().dataset
    test, train = ([r for m in data.modalities for r in data.records[m][split]] for split in ("test", "train"))
    tasks = tasks_for(test, train, run.config.evaluate.tasks or None)
    split = "valid" if run.config.data.tune else "test"
    table = ResultTable()
    for m in space.modalities:
        records = data.records[m]["test"]
        if not len(records):
            continue
        encoder = STUDENT if space.student is not None else m
        table.extend(
            robustness_rows(
                _shifted(run, space, m, records),
                records,
                [task for task in tasks if task.modality == m],
                partial(space.encode_text, encoder=encoder),
                Context(
                    modality=m,
                    split=split,
                    text_encoder="student" if encoder == STUDENT else "teacher",
                    seed=run.config.seed,
                ),
                scale=space.logit_scale(m),
                temperature=space.temperature(m) or 1.0,
                resamples=run.config.evaluate.bootstrap,
            )
        )
    table.save(run.folder / FILE)
    return table


def stored_robustness(folder: Path) -> ResultTable:
    """What `measure_robustness` wrote into a run's folder; empty if it never ran."""
    return ResultTable.load(folder / FILE) if (folder / FILE).exists() else ResultTable()


def _shifted(run: Run, space: Space, modality: str, records: Records) -> list[ShiftedFiles]:
    """The files of one modality under each shift that its first file can have."""
    model, cache, workers = space.model(modality), run.extractor.cache, run.compute.workers
    paths, rescale = records.paths, records.rescale
    reader = modalities.get(modality)
    names = list(shifts.shifts_of(modalities.decode(reader, paths[0])))
    allow(workers)

    def inputs(position: int) -> list[Tensor]:
        """One file under each shift."""
        sample = rescaled(modalities.decode(reader, paths[position]), rescale[position])
        return [model.preprocess(shift(sample)) for shift in _named(sample, names)]

    def compute(positions: list[int]) -> NDArray[np.float32]:
        """(n, s, d + 1): unit rows, and whether the file is unlike the training data."""
        with ThreadPoolExecutor(workers) as pool:
            files = list(pool.map(inputs, positions))
        columns = []
        for given in zip(*files):
            rows, reasons = space.examine_inputs(given, modality)
            columns.append(np.column_stack([rows, np.array([bool(reason) for reason in reasons], np.float32)]))
        return np.stack(columns, axis=1)

    keys = [with_rescale(key, given) for key, given in zip(cache.file_keys(paths), rescale, strict=True)]
    kind = f"robustness/{modality}/read {reader.version}/{sha256_file(Path(shifts.__file__))}/{names}"
    stored = np.asarray(cache.get_or_compute(kind, space.fingerprint, keys, compute, BATCH, f"robustness {modality}"))
    return [ShiftedFiles(name, stored[:, at, :-1], stored[:, at, -1] > 0) for at, name in enumerate(names)]


def _named(sample: Sample, names: Sequence[str]) -> list[shifts.Shift]:
    """The shifts of these names.

    Raises:
        ConfigError: the sample is of another kind than the first file of its modality.
    """
    own = shifts.shifts_of(sample)
    if list(own) != list(names):
        raise ConfigError(
            f"{sample.modality}: some files are of kind {shifts.kind_of(sample)}, others not; "
            "robustness is measured on files of one kind"
        )
    return list(own.values())
