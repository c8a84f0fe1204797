"""Tables of experiments, job by job: each is computed once and stored by its hash; failed jobs do not stop others.

* `SuiteConfig`, `load_suite`: the tables, data sets and models. * `suites`: names of the packaged suites.
* `Suite`: `run` computes missing jobs; `cells` returns every cell (`TableCell`) with its results.

A suite's folder:
    suite.yaml          the resolved settings
    cells/HASH.json     the inputs of one job; its metrics are in HASH.rows.json
    shots/              few-shot lists, by data set and task
    missing.json        failed jobs, with reasons
    quarantine.csv      unreadable files
"""

import csv
import io
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from m3bind.config import FolderName, mapping_in, override
from m3bind.core.device import Compute
from m3bind.core.files import only_one, sha256_text, write_json, write_text
from m3bind.core.progress import progress
from m3bind.core.provenance import versions
from m3bind.core.stored import Strict, read_json
from m3bind.data.records import BadRow
from m3bind.errors import ConfigError, M3BindError, UnknownNameError
from m3bind.evaluate.benchmarks import known_as
from m3bind.evaluate.datasets import Dataset, DatasetSource, load_dataset
from m3bind.evaluate.jobs import Job, job_of, matches, skip_reason
from m3bind.evaluate.leaks import seen_by
from m3bind.evaluate.protocols import Measure, run_job, task_hash
from m3bind.evaluate.results import ResultTable, Row
from m3bind.evaluate.tables import Block, Column, Printed, Table, TableRow, load_tables, printed
from m3bind.experiments.evaluated_model import EvaluatedModel, ModelSource, open_evaluated, source_hash
from m3bind.privacy import redact_path

log = logging.getLogger(__name__)
FOLDER = Path(__file__).parents[1] / "configs" / "suites"
PROTOCOLS_VERSION = 1  # incremented when the same job on the same data gives other metrics


class SuiteConfig(Strict):
    """Settings of a suite."""

    name: FolderName = "suite"
    tables: str = "paper"
    data: str = "runs/data"  # folder of the prepared data sets, each in a subfolder of its name
    cache: str = "runs/cache"
    datasets: dict[str, DatasetSource] = {}  # data sets that are not below `data`
    models: dict[str, ModelSource] = {}
    seeds: list[int] = Field([0, 1, 2, 3, 4], min_length=1)  # of few-shot draws
    bootstrap: int = Field(1000, ge=1)


def suites() -> list[str]:
    """Names of the packaged suites."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_suite(source: str, overrides: Sequence[str] = ()) -> SuiteConfig:
    """A packaged suite or a YAML file, with `section.key=value` overrides (values are YAML).

    Raises:
        UnknownNameError: neither a suite nor a file.
        ConfigError: an unknown or invalid setting; names it.
    """
    path = FOLDER / f"{source}.yaml" if source in suites() else Path(source)
    if not path.is_file():
        raise UnknownNameError("suite or settings file", source, suites())
    tree: dict[str, Any] = {"name": path.stem, **mapping_in(path)}
    override(tree, overrides)
    try:
        return SuiteConfig(**tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise UnknownNameError("suite setting", where, SuiteConfig.model_fields) from None
        raise ConfigError(f"suite setting {where}: {first['msg']}") from None


@dataclass(frozen=True)
class TableCell:
    """A cell of a table: the paper's value, our rows (one per seed), or the reason why there are none."""

    table: Table
    block: Block
    line: TableRow
    column: Column
    paper: Printed | None
    rows: tuple[Row, ...] = ()
    missing: str = ""
    seen: tuple[str, ...] = ()  # names of this data set on the model's card, if it was trained on it

    @property
    def title(self) -> str:
        """A readable name, e.g. "table 1 Retina, CLIP, MESSIDOR naive"."""
        return f"table {self.table.number} {self.block.name}, {self.line.method}, {self.column.name}"


@dataclass
class _Work:
    """Open models and unreadable files of one model's jobs."""

    models: dict[str, list[EvaluatedModel]] = field(default_factory=dict)
    bad: dict[str, BadRow] = field(default_factory=dict)


class Suite:
    """Tables, their settings, and the folder of the results."""

    def __init__(self, config: SuiteConfig, folder: Path, compute: Compute | None = None) -> None:
        """Read the tables; data sets and models are opened when needed, on `compute` (default: chosen for the machine).

        Raises:
            UnknownNameError, ConfigError: the tables cannot be read.
        """
        self.config, self.folder, self._machine = config, folder, compute
        self.tables = load_tables(config.tables)
        self._data: dict[str, Dataset | M3BindError] = {}
        self._sources: dict[str, str | M3BindError] = {}

    # ---- jobs

    def places(self) -> Iterator[tuple[Table, Block, TableRow, int]]:
        """Every cell's table, block, line and number of the column."""
        for table in self.tables.table:
            for block in table.block:
                for line in block.rows:
                    for number in range(len(block.columns)):
                        yield table, block, line, number

    def jobs(self, only: Sequence[str] = ()) -> dict[str, list[Job]]:
        """Model -> its jobs; those with all words of `only` in "table=1 retina clip zero shot messidor2 ..."."""
        unique: dict[str, dict[Job, None]] = {}
        for table, block, line, number in self.places():
            job = job_of(block, block.columns[number], line)
            text = f"table={table.number} {block.name} {line.model} {job.title}".casefold()
            if all(word.casefold() in text for word in only):
                unique.setdefault(line.model, {})[job] = None
        return {model: list(jobs) for model, jobs in unique.items()}

    def dataset(self, name: str) -> Dataset:
        """A data set, read once.

        Raises:
            M3BindError: it is not prepared, or cannot be read.
        """
        if name not in self._data:
            prepared = DatasetSource(manifest=str(Path(self.config.data) / name / "manifest.csv"))
            try:
                self._data[name] = load_dataset(name, self.config.datasets.get(name, prepared))
            except M3BindError as error:
                self._data[name] = error
        data = self._data[name]
        if isinstance(data, M3BindError):
            raise data
        return data

    def key(self, model: str, job: Job) -> str:
        """Hash of all inputs of a job: weights, data, prompts, settings.

        Raises:
            M3BindError: the model or the data set is missing.
        """
        source = self._source(model)
        if model not in self._sources:
            try:
                self._sources[model] = source_hash(source)
            except M3BindError as error:
                self._sources[model] = error
        weights = self._sources[model]
        if isinstance(weights, M3BindError):
            raise weights
        data = self.dataset(job.dataset).hash
        settings = f"{self.config.seeds} {self.config.bootstrap} {PROTOCOLS_VERSION}"
        return sha256_text(weights, data, task_hash(job.task), repr(job), settings)[:32]

    def _source(self, model: str) -> ModelSource:
        if model not in self.config.models:
            raise UnknownNameError("model of the suite", model, self.config.models)
        return self.config.models[model]

    def _path(self, key: str) -> Path:
        return self.folder / "cells" / f"{key}.json"

    # ---- computing

    def run(self, only: Sequence[str] = ()) -> dict[str, str]:
        """Compute all missing jobs; returns the failed ones with reasons, by "model: job".

        Raises:
            BusyError: another process works on the folder.
        """
        with only_one(self.folder, "suite"):
            return self._run(only)

    def _run(self, only: Sequence[str]) -> dict[str, str]:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / "suite.yaml", yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False))
        selected = self.jobs(only)
        path = self.folder / "missing.json"
        missing: dict[str, str] = dict(read_json(path)) if path.is_file() else {}
        failed: dict[str, str] = {}
        with progress("experiments", total=sum(map(len, selected.values()))) as bar:
            for model, jobs in selected.items():
                work = _Work()  # a model is closed before the next one is opened
                for job in jobs:
                    name = f"{model}: {job.title}"
                    missing.pop(name, None)
                    try:
                        self._compute(model, job, work)
                    except M3BindError as error:
                        failed[name] = missing[name] = _first_line(error)
                    bar.advance(note=name)
                    write_json(path, missing)
                self._quarantine(work)
        return failed

    def _compute(self, model: str, job: Job, work: _Work) -> None:
        path = self._path(self.key(model, job))
        if path.is_file():
            return
        source = self._source(model)
        place = job.modality if source.model else ""  # a dual encoder is opened for one modality, a space for all
        if place not in work.models:
            work.models[place] = open_evaluated(model, source, job.modality, Path(self.config.cache), self._machine)
        start, rows, data = time.monotonic(), [], self.dataset(job.dataset)
        measure = Measure(tuple(self.config.seeds), self.config.bootstrap, self.folder / "shots")
        for evaluated in work.models[place]:
            measured, bad = run_job(job, evaluated, data, measure)
            rows += measured
            work.bad |= {str(fault.path): fault for fault in bad}
        ResultTable(rows).save(path.with_suffix(".rows.json"))
        write_json(
            path,
            {
                "model": model,
                "source": source.model_dump(mode="json", exclude_defaults=True),
                "weights": [evaluated.fingerprint for evaluated in work.models[place]],
                "job": asdict(job),
                "data": data.hash,
                "prompts": task_hash(job.task),
                "seeds": self.config.seeds,
                "seen": list(_seen(work.models[place], job)),
                "versions": versions(),
                "seconds": round(time.monotonic() - start, 1),
            },
        )

    def _quarantine(self, work: _Work) -> None:
        if not work.bad:
            return
        path = self.folder / "quarantine.csv"
        known = path.read_text(encoding="utf-8").splitlines()[1:] if path.is_file() else []
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows(
            [b.row, redact_path(b.path), b.reason] for b in work.bad.values()
        )
        lines = dict.fromkeys([*known, *buffer.getvalue().splitlines()])
        write_text(path, "\n".join(["row,path,reason", *lines]) + "\n")

    # ---- results

    def cells(self) -> list[TableCell]:
        """Every cell of every table, with our rows or the reason why there are none."""
        path = self.folder / "missing.json"
        missing: dict[str, str] = dict(read_json(path)) if path.is_file() else {}
        results: dict[tuple[str, Job], tuple[tuple[Row, ...], str, tuple[str, ...]]] = {}
        cells = []
        for table, block, line, number in self.places():
            column = block.columns[number]
            job = job_of(block, column, line)
            if (line.model, job) not in results:
                results[line.model, job] = self._rows(line.model, job, missing)
            rows, reason, seen = results[line.model, job]
            mine = tuple(row for row in rows if matches(row, column, line))
            if rows and not mine:
                reason = skip_reason(job, column, rows)
            paper = printed(line, block.columns, number)
            cells.append(TableCell(table, block, line, column, paper, mine, reason, seen if mine else ()))
        return cells

    def calibration(self) -> list[Row]:
        """Calibration rows of all computed zero-shot jobs, without duplicates; `stage` is the model."""
        rows: dict[Row, None] = {}
        for model, jobs in self.jobs(["zero shot"]).items():
            for job in jobs:
                rows |= dict.fromkeys(r for r in self._rows(model, job, {})[0] if r.protocol == "calibration")
        return list(rows)

    def _rows(self, model: str, job: Job, missing: dict[str, str]) -> tuple[tuple[Row, ...], str, tuple[str, ...]]:
        try:
            path = self._path(self.key(model, job))
        except M3BindError as error:
            return (), _first_line(error), ()
        if path.is_file():
            rows = tuple(ResultTable.load(path.with_suffix(".rows.json")))
            return rows, "", tuple(read_json(path).get("seen", ()))
        return (), missing.get(f"{model}: {job.title}", "not computed yet"), ()


def _first_line(error: M3BindError) -> str:
    return " ".join(str(error).split("\n")[0].split())


def _seen(models: Sequence[EvaluatedModel], job: Job) -> tuple[str, ...]:
    """Entries of the models' cards that name the job's data set."""
    names = known_as(job.dataset)
    seen: set[str] = set()
    for model in models:
        for m in job.modality.split("->"):
            seen.update(seen_by(model.training_data(m), names))
    return tuple(sorted(seen))
