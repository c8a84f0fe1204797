"""Tables of experiments, job by job: each is computed once and kept by its hashes; one that fails stops no other.

* `SuiteConfig`, `load_suite`: which tables, where the data sets are, who the models are.
* `Suite`: `run` computes what is not there yet; `cells` is every cell with what is known of it.

A suite's folder:
    suite.yaml          the resolved settings
    cells/HASH.json     what one job was computed from; its figures are beside it in HASH.rows.json
    shots/              few-shot lists, by data set and task
    missing.json        jobs that could not be done, with reasons
    quarantine.csv      files that were set aside
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
PROTOCOLS_VERSION = 1  # raised when the same job on the same data gives other figures


class SuiteConfig(Strict):
    """Everything a suite needs."""

    name: FolderName = "suite"
    tables: str = "paper"
    data: str = "runs/data"  # folder of the prepared data sets, each in a folder of its name
    cache: str = "runs/cache"
    datasets: dict[str, DatasetSource] = {}  # where they are not below `data`
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
        ConfigError: an unknown or bad setting; names it.
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
        raise ConfigError(f"suite setting {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


@dataclass(frozen=True)
class TableCell:
    """One cell of a table: what the paper printed, our rows (one per seed), or why there are none."""

    table: Table
    block: Block
    line: TableRow
    column: Column
    paper: Printed | None
    rows: tuple[Row, ...] = ()
    missing: str = ""
    seen: tuple[str, ...] = ()  # names on the model's card that mean this data set: it was trained on it

    @property
    def title(self) -> str:
        """For people: "table 1 Retina, CLIP, MESSIDOR naive"."""
        return f"table {self.table.number} {self.block.name}, {self.line.method}, {self.column.name}"


@dataclass
class _Work:
    """What one call of `run` opens on its way, kept as long as it is of use."""

    models: dict[str, list[EvaluatedModel]] = field(default_factory=dict)
    bad: dict[str, BadRow] = field(default_factory=dict)


class Suite:
    """Tables, their settings, and the folder the results are kept in."""

    def __init__(self, config: SuiteConfig, folder: Path) -> None:
        """Nothing is opened or computed yet.

        Raises:
            UnknownNameError, ConfigError: the tables cannot be read.
        """
        self.config, self.folder = config, folder
        self.tables = load_tables(config.tables)
        self._data: dict[str, Dataset | M3BindError] = {}
        self._sources: dict[str, str | M3BindError] = {}

    # ---- what there is to do

    def places(self) -> Iterator[tuple[Table, Block, TableRow, int]]:
        """Every cell's table, block, line and number of the column."""
        for table in self.tables.table:
            for block in table.block:
                for line in block.rows:
                    for number in range(len(block.columns)):
                        yield table, block, line, number

    def jobs(self, only: Sequence[str] = ()) -> dict[str, list[Job]]:
        """Model -> its jobs; those that have each word of `only` in "table=1 retina clip zero shot messidor2 ..."."""
        found: dict[str, dict[Job, None]] = {}
        for table, block, line, number in self.places():
            job = job_of(block, block.columns[number], line)
            text = f"table={table.number} {block.name} {line.model} {job.title}".casefold()
            if all(word.casefold() in text for word in only):
                found.setdefault(line.model, {})[job] = None
        return {model: list(jobs) for model, jobs in found.items()}

    def dataset(self, name: str) -> Dataset:
        """A data set, read once.

        Raises:
            M3BindError: it is not prepared, or cannot be read.
        """
        if name not in self._data:
            source = self.config.datasets.get(name)
            try:
                self._data[name] = load_dataset(
                    name, source or DatasetSource(manifest=str(Path(self.config.data) / name / "manifest.csv"))
                )
            except M3BindError as error:
                self._data[name] = error
        found = self._data[name]
        if isinstance(found, M3BindError):
            raise found
        return found

    def key(self, model: str, job: Job) -> str:
        """Hash of everything the rows of a job depend on: weights, data, prompts, settings.

        Raises:
            M3BindError: the model or the data set is not there.
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
        """Compute every job that is not there yet; those that could not be done, with reasons, by "model: job".

        Raises:
            BusyError: another process works on the folder.
        """
        with only_one(self.folder, "suite"):
            return self._run(only)

    def _run(self, only: Sequence[str]) -> dict[str, str]:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / "suite.yaml", yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False))
        wanted = self.jobs(only)
        path = self.folder / "missing.json"
        missing: dict[str, str] = dict(read_json(path)) if path.is_file() else {}
        failed: dict[str, str] = {}
        with progress("experiments", total=sum(map(len, wanted.values()))) as bar:
            for model, jobs in wanted.items():
                work = _Work()  # a model is closed before the next one is opened
                for job in jobs:
                    name = f"{model}: {job.title}"
                    missing.pop(name, None)
                    try:
                        self._do(model, job, work)
                    except M3BindError as error:
                        failed[name] = missing[name] = " ".join(str(error).split("\n")[0].split())
                    bar.advance(note=name)
                    write_json(path, missing)
                self._quarantine(work)
        return failed

    def _do(self, model: str, job: Job, work: _Work) -> None:
        path = self._path(self.key(model, job))
        if path.is_file():
            return
        source = self._source(model)
        place = job.modality if source.model else ""  # a lone model is opened for one modality, a space for all
        if place not in work.models:
            work.models[place] = open_evaluated(model, source, job.modality, Path(self.config.cache))
        start, rows, data = time.monotonic(), [], self.dataset(job.dataset)
        measure = Measure(tuple(self.config.seeds), self.config.bootstrap, self.folder / "shots")
        for one in work.models[place]:
            found, bad = run_job(job, one, data, measure)
            rows += found
            work.bad |= {str(fault.path): fault for fault in bad}
        ResultTable(rows).save(path.with_suffix(".rows.json"))
        write_json(
            path,
            {
                "model": model,
                "source": source.model_dump(mode="json", exclude_defaults=True),
                "weights": [one.fingerprint for one in work.models[place]],
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

    # ---- what there is

    def cells(self) -> list[TableCell]:
        """Every cell of every table, with our rows or why there are none."""
        path = self.folder / "missing.json"
        missing: dict[str, str] = dict(read_json(path)) if path.is_file() else {}
        found: dict[tuple[str, Job], tuple[tuple[Row, ...], str, tuple[str, ...]]] = {}
        cells = []
        for table, block, line, number in self.places():
            column = block.columns[number]
            job = job_of(block, column, line)
            if (line.model, job) not in found:
                found[line.model, job] = self._rows(line.model, job, missing)
            rows, reason, seen = found[line.model, job]
            mine = tuple(row for row in rows if matches(row, column, line))
            if rows and not mine:
                reason = skip_reason(job, column, rows)
            paper = printed(line, block.columns, number)
            cells.append(TableCell(table, block, line, column, paper, mine, reason, seen if mine else ()))
        return cells

    def calibration(self) -> list[Row]:
        """Calibration rows of all zero-shot jobs that are there, each once; `stage` is the model."""
        rows: dict[Row, None] = {}
        for model, jobs in self.jobs(["zero shot"]).items():
            for job in jobs:
                rows |= dict.fromkeys(r for r in self._rows(model, job, {})[0] if r.protocol == "calibration")
        return list(rows)

    def _rows(self, model: str, job: Job, missing: dict[str, str]) -> tuple[tuple[Row, ...], str, tuple[str, ...]]:
        try:
            path = self._path(self.key(model, job))
        except M3BindError as error:
            return (), " ".join(str(error).split("\n")[0].split()), ()
        if path.is_file():
            rows = tuple(ResultTable.load(path.with_suffix(".rows.json")))
            return rows, "", tuple(read_json(path).get("seen", ()))
        return (), missing.get(f"{model}: {job.title}", "not computed yet"), ()


def _seen(models: Sequence[EvaluatedModel], job: Job) -> tuple[str, ...]:
    """Entries of the model's cards that name the job's data set."""
    names = known_as(job.dataset)
    found = {e for one in models for m in job.modality.split("->") for e in seen_by(one.training_data(m), names)}
    return tuple(sorted(found))
