"""Robustness of a run's space: its test files passed through the shifts of `evaluate/shifts.py`.

* `measure_robustness`: result rows of all modalities, stored in the run's `robustness.json`. * `stored_robustness`.

Every file is decoded once and encoded under each shift. The trunk's features are cached, unless they are very wide, so
a killed run resumes, and spaces with the same frozen trunk share them.

Shapes: n files, s shifts, f width of the trunk's features, S statistics of inputs, d dimension of the space.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
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
from m3bind.models.frozen import FrozenPass
from m3bind.models.weights.checkpoint import hash_state
from m3bind.pipeline.features import TOGETHER, WIDE, preprocessing
from m3bind.pipeline.run import Run
from m3bind.pipeline.stored_inputs import rescaled
from m3bind.space import input_statistics as statistics
from m3bind.space.bundle import STUDENT, Space, load
from m3bind.space.input_statistics import input_statistics

FILE = "robustness.json"
BATCH = 16  # files decoded together, fewer if their inputs are large


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
    first = rescaled(modalities.decode(reader, paths[0]), rescale[0])
    names, example = list(shifts.shifts_of(first)), model.preprocess(first)[None]
    allow(workers)

    def inputs(position: int) -> list[Tensor]:
        """One file under each shift."""
        sample = rescaled(modalities.decode(reader, paths[position]), rescale[position])
        return [model.preprocess(shift(sample)) for shift in _named(sample, names)]

    def trunk(given: Sequence[Tensor]) -> NDArray[np.float32]:
        """(n, f + S): features and statistics of inputs."""
        batch = torch.stack(list(given))
        return np.column_stack([forward(batch).numpy(), input_statistics(batch)])

    def judged(given: Sequence[Tensor]) -> NDArray[np.float32]:
        """(n, d + 1): unit rows, and whether the input is unlike the training data."""
        return _judged(*space.examine_inputs(given, modality))

    def compute(positions: list[int]) -> NDArray[np.float32]:
        """(n, s, width of `outputs`)."""
        with ThreadPoolExecutor(workers) as pool:
            files = list(pool.map(inputs, positions))
        return np.stack([outputs(given) for given in zip(*files)], axis=1)

    outputs, weights, precision = judged, space.fingerprint, ""
    if getattr(model.image_head, "in_features", 0) <= WIDE:  # one trunk may serve many spaces
        forward = FrozenPass(model.image_features, space.device, name=f"the image tower of {modality}")
        outputs, weights, precision = trunk, hash_state(model.image_trunk.state_dict()), forward.kind
    keys = [with_rescale(key, given) for key, given in zip(cache.file_keys(paths), rescale, strict=True)]
    code = "/".join(sha256_file(Path(str(module.__file__))) for module in (shifts, statistics))
    read = f"{modality}/{preprocessing(model)}/read {reader.version}"
    kind = f"robustness/{outputs.__name__}/{read}/{code}/{names}{precision}"
    together = max(1, min(BATCH, TOGETHER // (example.nbytes * len(names))))
    stored = np.asarray(cache.get_or_compute(kind, weights, keys, compute, together, f"robustness {modality}"))
    if outputs is trunk:
        width = stored.shape[-1] - input_statistics(example).shape[1]
        answers = [
            _judged(*space.examine_features(torch.from_numpy(part[:, :width]), part[:, width:], modality))
            for part in np.ascontiguousarray(stored.swapaxes(0, 1))
        ]
        stored = np.stack(answers, axis=1)
    return [ShiftedFiles(name, stored[:, at, :-1], stored[:, at, -1] > 0) for at, name in enumerate(names)]


def _judged(rows: NDArray[np.float32], reasons: Sequence[str]) -> NDArray[np.float32]:
    return np.column_stack([rows, np.array([bool(reason) for reason in reasons], np.float32)])


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
