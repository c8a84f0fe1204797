"""Robustness: zero-shot on test files passed through shifts (`shifts`), what is flagged, and calibration of the rest.

* `ShiftedFiles`: the files of one modality under one shift. * `robustness_rows`: result rows of them.
* `RobustnessLine`, `robustness_lines`: the rows of one task under one shift, for tables. * `robustness_table`: printed.

Rows of protocol "robustness" have the name of the shift as variant. Metrics: the primary metric of each task, on all
files; `flagged`, the share of files that are unlike the training data; `ece` of all files with the scale of the model,
and with the variant "SHIFT, answered" of the files that are not flagged, with the temperature of the space.

Shapes: n files, d dimensions.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from m3bind.data.records import Record
from m3bind.evaluate.calibration import answers
from m3bind.evaluate.classification import expected_calibration_error
from m3bind.evaluate.compare import Difference, paired
from m3bind.evaluate.confidence import Floats as Doubles
from m3bind.evaluate.confidence import Resampling, mean_estimate
from m3bind.evaluate.pivot import number
from m3bind.evaluate.results import Context, Row
from m3bind.evaluate.shifts import SHIPPED
from m3bind.evaluate.tasks import Task, title
from m3bind.evaluate.zero_shot import Encode, evaluate_task, known_rows, task_logits

PROTOCOL = "robustness"
ANSWERED = "answered"


@dataclass(frozen=True)
class ShiftedFiles:
    """The files of one modality under one shift, in the order of their records."""

    shift: str
    images: NDArray[np.float32]  # (n, d) unit rows
    flagged: NDArray[np.bool_]  # (n,) unlike the training data


def robustness_rows(
    shifted: Sequence[ShiftedFiles],
    records: Sequence[Record],
    tasks: Sequence[Task],
    encode_text: Encode,
    context: Context,
    *,
    scale: float,
    temperature: float,
    resamples: int = 1000,
) -> Iterator[Row]:
    """Rows of one modality.

    Args:
        shifted: by shift.
        records: of the files.
        tasks: of the modality.
        encode_text: texts -> (p, d) unit rows.
        context: common fields of the rows, with the modality.
        scale: the model's factor on cosines.
        temperature: divides the scaled cosines.
        resamples: of the bootstrap.
    """
    sets = "+".join(sorted({record.set for record in records}))
    draw = Resampling([record.patient for record in records], resamples)
    for part in shifted:
        place = replace(context, variant=part.shift)
        share = mean_estimate(part.flagged, np.nan, draw)
        yield replace(place, dataset=sets, text_encoder="").row(PROTOCOL, "flagged", share)
        for task in tasks:
            rows = evaluate_task(task, part.images, records, encode_text, place, scale=scale, resamples=resamples)
            yield from (replace(row, protocol=PROTOCOL) for row in rows[:1])
            if rows and task.has_probabilities:
                place = replace(place, dataset=task.dataset, task=task.name, prompts=task.prompts_hash)
                logits = partial(task_logits, task, encode_text=encode_text, scale=scale)
                yield from _ece_rows(task, part, records, logits, place, temperature, resamples)


def _ece_rows(
    task: Task,
    part: ShiftedFiles,
    records: Sequence[Record],
    logits: Callable[[Doubles], Doubles],
    context: Context,
    temperature: float,
    resamples: int,
) -> Iterator[Row]:
    """Expected calibration error of all files of a task, and of those that are not flagged (NaN without any)."""
    images, y, patients = known_rows(task, (part.images, records))
    kept = known_rows(task, (part.flagged, records))[0] == 0
    scores = logits(images)
    for place, inside, divisor in (
        (context, np.ones(len(y), bool), 1.0),
        (context.varied(ANSWERED), kept, temperature),
    ):
        given = answers(y[inside], scores[inside], divisor)
        draw = Resampling(given.groups(np.array(patients)[inside]), resamples)
        yield place.row(PROTOCOL, "ece", expected_calibration_error(given.confidence, given.right, draw))


@dataclass(frozen=True)
class RobustnessLine:
    """One task under one shift."""

    row: Row  # the task's primary metric, on all files
    change: Difference | None  # to the files as shipped; None for them
    flagged: float  # share of the modality's files
    ece: float  # of all files with the model's scale; NaN if the task has no probabilities
    ece_answered: float  # of files that are not flagged, with the temperature of the space; NaN if there are none


def robustness_lines(rows: Iterable[Row]) -> list[RobustnessLine]:
    """The rows of `robustness_rows` arranged by modality, task and shift."""
    found = {(row.modality, row.task, row.metric == "ece", row.variant): row for row in rows}
    lines = []
    for (modality, task, is_ece, shift), row in found.items():
        if not task or is_ece:
            continue
        shipped = found[modality, task, False, SHIPPED]
        errors = (found.get((modality, task, True, name)) for name in (shift, f"{shift}, {ANSWERED}"))
        ece, ece_answered = (np.nan if error is None else error.value for error in errors)
        change = None if shift == SHIPPED else paired([shipped], [row])
        lines.append(RobustnessLine(row, change, found[modality, "", False, shift].value, ece, ece_answered))
    return sorted(lines, key=lambda line: (line.row.modality, line.row.task))


def robustness_table(rows: Iterable[Row]) -> Table:
    """The lines for the terminal."""
    table = Table(title="Robustness", caption="ece: expected calibration error; answered: of files not flagged")
    for name in ("modality", "task", "shift"):
        table.add_column(name, overflow="fold")
    for name in ("metric", "value", "change", "flagged", "ece", "ece, answered"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in robustness_lines(rows):
        row, change = line.row, "" if line.change is None else f"{line.change.change:+.3f}"
        values = number(row.value), change, f"{line.flagged:.0%}", number(line.ece), number(line.ece_answered)
        table.add_row(title(row.modality), row.task.replace("_", " "), row.variant, row.metric, *values)
    return table
