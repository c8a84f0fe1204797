"""Rows of shifted files: the task's metric on all, the share flagged, calibration error of the others."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from m3bind.data.records import Record
from m3bind.evaluate.calibration import answers
from m3bind.evaluate.classification import expected_calibration_error
from m3bind.evaluate.confidence import Resampling
from m3bind.evaluate.results import Context
from m3bind.evaluate.robustness import ShiftedFiles, robustness_lines, robustness_rows, robustness_table
from m3bind.evaluate.tasks import ClassSpec, Rule, Task
from m3bind.evaluate.zero_shot import unit

N, D = 60, 6
RNG = np.random.default_rng(0)
CLASSES = unit(RNG.normal(size=(2, D)))
NUMBERS = np.arange(N) % 2
RECORDS = [
    Record(
        f"f{i}", "xray", Path(f"{i}.png"), ("normal", "large")[NUMBERS[i]], (), ("x",), (), f"p{i // 2}", "test", "s"
    )
    for i in range(N)
]
TASK = Task(
    "size", ("s",), "xray", "auc", tuple(ClassSpec(n, Rule(label=(n,)), (n,)) for n in ("normal", "large")), "hash"
)


def encode(texts):
    return np.stack([CLASSES[("normal", "large").index(text)] for text in texts])


def shifted(name, noise, flagged):
    rows = unit(CLASSES[NUMBERS] + noise * np.random.default_rng(1).normal(size=(N, D))).astype(np.float32)
    return ShiftedFiles(name, rows, np.arange(N) < flagged)


SHIFTED = [shifted("as shipped", 0.5, 0), shifted("blur", 3.0, 20), shifted("noise", 3.0, N)]


def rows_of(tasks=(TASK,), records=RECORDS):
    context = Context(modality="xray", text_encoder="student")
    return list(robustness_rows(SHIFTED, records, tasks, encode, context, scale=20.0, temperature=4.0, resamples=50))


def ece(part, scale, inside):
    given = answers(NUMBERS[inside], scale * (part.images[inside].astype(np.float64) @ CLASSES.T))
    return expected_calibration_error(given.confidence, given.right, Resampling(resamples=0)).value


def test_one_line_per_shift():
    lines = robustness_lines(rows_of())
    assert [line.row.variant for line in lines] == ["as shipped", "blur", "noise"]
    assert [line.flagged for line in lines] == [0, pytest.approx(1 / 3), 1]
    assert all(line.row.protocol == "robustness" and line.row.metric == "auc" for line in lines)
    assert lines[0].change is None and lines[1].change.significant and lines[1].change.change < -0.05
    for line, part in zip(lines, SHIFTED):
        assert line.ece == pytest.approx(ece(part, 20.0, np.ones(N, bool)))
    for line, part in zip(lines[:2], SHIFTED):
        assert line.ece_answered == pytest.approx(ece(part, 5.0, ~part.flagged))
    assert np.isnan(lines[2].ece_answered)
    assert robustness_table(rows_of()).row_count == 3


def test_scores_that_are_no_probabilities_have_no_calibration_error():
    lines = robustness_lines(rows_of([replace(TASK, zscore=True)]))
    assert len(lines) == 3 and all(np.isnan(line.ece) and np.isnan(line.ece_answered) for line in lines)


def test_files_outside_the_task_are_flagged_too():
    others = [replace(record, label="other") if i >= 40 else record for i, record in enumerate(RECORDS)]
    lines = robustness_lines(rows_of(records=others))
    assert [line.row.n for line in lines] == [40, 40, 40] and lines[1].flagged == pytest.approx(1 / 3)
