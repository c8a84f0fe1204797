"""The job of a table's cell: one protocol on one data set.

* `Job`: one computation; columns that differ only in metric, variant or amount share one.
* `job_of`: the job of a cell. `matches`: whether a row is the value of the cell. `skip_reason`: why no row is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from m3bind.evaluate.few_shot import shot_variant
from m3bind.evaluate.results import Row
from m3bind.evaluate.tables import Block, Column, TableRow


@dataclass(frozen=True)
class Job:
    """One computation for one or more columns of a table."""

    protocol: str
    dataset: str
    modality: str
    task: str = ""
    method: str = ""
    unit: str = ""
    amounts: tuple[int, ...] = ()
    metrics: tuple[str, ...] = ()
    direction: str = ""
    match: str = ""
    text: str = ""
    split: str = "test"

    @property
    def title(self) -> str:
        """Title in logs and messages."""
        parts = (self.protocol.replace("_", " "), self.dataset, self.task, self.method, self.direction, self.text)
        return " ".join(filter(None, parts))


def job_of(block: Block, column: Column, line: TableRow) -> Job:
    """The job that computes the cell of `column` and `line`."""
    protocol = line.protocol or column.protocol
    job = partial(Job, protocol, column.dataset, column.direction or column.modality or block.modality)
    if protocol == "cross_modal":
        return job(direction=column.direction, match=column.match)
    same = [c for c in block.columns if (c.dataset, c.task) == (column.dataset, column.task)]
    if protocol == "few_shot":
        same = [c for c in same if (c.protocol, c.unit) == ("few_shot", column.unit)]
        amounts, metrics = tuple(sorted({c.amount for c in same})), tuple(sorted({c.metric for c in same}))
        method = line.tuning or column.method
        return job(task=column.task, method=method, unit=column.unit, amounts=amounts, metrics=metrics)
    if protocol == "classifier":
        return job(task=column.task, split=column.split, metrics=tuple(sorted({c.metric for c in same})))
    return job(task=column.task, text=line.text, split=column.split)


def matches(row: Row, column: Column, line: TableRow) -> bool:
    """Whether `row`, of the cell's job, is the value of the cell."""
    if row.metric != column.metric or row.protocol == "calibration":
        return False
    if column.protocol == "text_retrieval":
        return row.protocol == "image_to_text"
    parts = [column.variant]
    if column.protocol == "few_shot":
        parts = [shot_variant(line.tuning or column.method, column.amount, column.unit), column.variant]
    elif column.protocol == "cross_modal" and column.match == "visit":
        parts = [f"gallery={column.gallery or 'all'}", column.variant]
    elif column.protocol == "cross_modal" and row.task != (column.task or "patient"):
        return False
    return row.variant == ", ".join(filter(None, parts))


def skip_reason(job: Job, column: Column, rows: Sequence[Row]) -> str:
    """Why the rows of a job lack the value of `column`."""
    if job.protocol == "cross_modal" and column.gallery and rows:
        pairs = max(row.gallery or 0 for row in rows)
        return f"{pairs} pairs are fewer than the gallery of {column.gallery}"
    return f"no metric {column.metric} {column.variant} among: {', '.join(sorted({row.metric for row in rows}))}"
