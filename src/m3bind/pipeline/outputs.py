"""Outputs of a run: its bundle, report and printed tables.

* `finish`: runs the stages and writes everything. * `open_run`, `see_finished`: a run from its folder.
* `computing_on`: its settings on this machine.
* `space_of`, `points`, `report`: the run's state as a space, and its report.
* `rewrite_report`, `show_results`, `show_robustness`: report and metrics of a finished run.
"""

import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from m3bind import modalities
from m3bind.align import methods
from m3bind.config import RunConfig, validate
from m3bind.core import sums
from m3bind.core.device import Compute
from m3bind.core.stored import read_yaml
from m3bind.data.records import Record, format_bad_rows
from m3bind.errors import ConfigError
from m3bind.evaluate.embedded_files import Points
from m3bind.evaluate.pivot import console, headline
from m3bind.evaluate.results import ResultTable
from m3bind.evaluate.robustness import robustness_table
from m3bind.evaluate.tasks import concepts_for
from m3bind.pipeline.calibration import reliability, temperatures
from m3bind.pipeline.reference_texts import Matrix, reference_texts
from m3bind.pipeline.robustness import measure_robustness, stored_robustness
from m3bind.pipeline.run import Run
from m3bind.pipeline.unlike import measures
from m3bind.report.write import ReportContent, write_report
from m3bind.space.bundle import STUDENT, Space, load, save_space
from m3bind.space.folder import SpaceInfo
from m3bind.training.parallel import world

WIDTH = 160  # of printed tables without a terminal


def finish(run: Run, until: str) -> int:
    """Run the stages, print metrics before and after, write space and report; 1 if data were quarantined, else 0."""
    before = _points_when_unbound(run)
    table = run.fit(until)
    divisors = {} if until == "pretrain" else temperatures(run)
    if world()[0]:
        return 0
    keys = {(line.protocol, line.task, line.modality, line.metric, line.variant) for line in headline(table).lines}
    rows = [row for row in table if ":" not in row.text_encoder]
    rows = [row for row in rows if (row.protocol, row.task, row.modality, row.metric, row.variant) in keys]
    _console().print(console(rows, title=f"{run.config.name}: before and after", intervals=False))
    if until != "pretrain":
        save_space(space_of(run, divisors), run.folder / "space")
        print(f"space:   {run.folder / 'space'}")
    print(f"report:  {report(run, table, divisors, before)}")
    if run.config.data.phantom is not None:
        _show_patients(run)
    if run.dataset.bad:
        print(f"{format_bad_rows(run.dataset.bad)}\nall rows: {run.folder / 'quarantine.csv'}")
        return 1
    return 0


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=WIDTH)


def _show_patients(run: Run) -> None:
    """Write a contact sheet of the virtual patients, and copy the files of one of them as an example."""
    from m3bind.data.phantom import contact_sheet

    contact_sheet(run.find_manifest().parent, run.folder / "virtual_patients.png")
    test = [r for m in run.dataset.modalities for r in run.dataset.records[m]["test"]]
    chosen = next((r for r in test if r.label == "pneumonia"), test[0])
    shutil.copytree(chosen.path.parent, run.folder / "patient", dirs_exist_ok=True)
    print(f"patients (synthetic): {run.folder / 'virtual_patients.png'}; files of one: {run.folder / 'patient'}")


def _points_when_unbound(run: Run) -> dict[str, Points]:
    """Filled with the points of `run` before binding, once it reaches that stage."""
    before: dict[str, Points] = {}
    run.on_stage = lambda stage: before.update(points(run)) if stage == "unbound" else None
    return before


def space_of(run: Run, divisors: Mapping[str, float] | None = None) -> Space:
    """The current state of the run as a space; `divisors`: its `temperatures`."""
    names = run.dataset.modalities
    prompts: dict[str, list[str]] = {}
    records: dict[str, dict[str, int]] = {}
    for m in names:
        prompts[m] = [f"{modalities.get(m).title} showing {{}}", "findings consistent with {}", "{}"]  # fit any label
        records[m] = {split: len(rows) for split, rows in run.dataset.records[m].items()}

    def embed(modality: str, texts: list[str]) -> Matrix:
        return run.embed_text(texts, modality if run.state.student is None else STUDENT)

    synthetic = run.config.data.phantom is not None
    info = SpaceInfo(
        config=run.config.of_result(),
        prompts=prompts,
        records=records,
        synthetic=synthetic,
        temperatures=dict(divisors or {}),
    )
    return Space(
        {m: run.state.models[m] for m in names},
        {m: run.state.bridges[m] for m in names},
        {m: run.embed_images(m, "train").mean(0) for m in names},
        run.state.student,
        info,
        measures(run),
        reference_texts(run.dataset, embed, run.config.seed),
    )


def points(run: Run) -> dict[str, Points]:
    """Embedded test images with their labels, patients and concepts, of the modalities that have test images."""
    test = {m: rows for m in run.dataset.modalities if len(rows := run.dataset.records[m]["test"])}
    concepts = _concepts(test)
    embedded: dict[str, Points] = {}
    for m, records in test.items():
        labels, patients = [r.label for r in records], [r.patient for r in records]
        paths = [str(r.path) for r in records]
        embedded[m] = Points(
            run.embed_images(m, "test"), labels=labels, patients=patients, concepts=concepts[m], paths=paths
        )
    return embedded


def _concepts(records: Mapping[str, Sequence[Record]]) -> dict[str, list[dict[str, str]]]:
    """The class of every record in each concept shared by modalities, the most widely shared concept first.

    If no prompt file matches, labels that several modalities have in common are used instead.
    """
    shared = concepts_for([r for rows in records.values() for r in rows])
    known: dict[str, list[dict[str, str]]] = {m: [{} for _ in rows] for m, rows in records.items()}
    for concept in sorted(shared, key=lambda c: -len(c.modalities)):
        for m in concept.modalities:
            for classes, number in zip(known[m], concept.labels(records[m], m)):
                if number >= 0:
                    classes[concept.name] = concept.classes[number]
    if shared:
        return known
    counts: Counter[str] = Counter()
    for rows in records.values():
        counts.update({r.label for r in rows})
    for m, rows in records.items():
        known[m] = [{"label": r.label} if counts[r.label] > 1 else {} for r in rows]
    return known


def report(
    run: Run, table: ResultTable, divisors: Mapping[str, float], before: Mapping[str, Points] | None = None
) -> Path:
    """Write the run's report.html; `divisors`: the temperatures of its space."""

    def thumbnail(modality: str, path: str) -> Any:
        return modalities.get(modality).thumbnail(modalities.decode(modality, path))

    notes = []
    if run.config.align.contrastive.positives == "mixed" or run.config.align.contrastive.concept_probability:
        notes.append("Training used labels: same-label pairs as positives, or captions shared by modalities.")
    if run.dataset.bad:
        notes.append(f"{len(run.dataset.bad)} rows or files were quarantined; quarantine.csv lists the reasons.")
    means = {m: run.embed_images(m, "train").mean(0) for m in run.dataset.modalities}
    content = ReportContent(
        table,
        run.history(),
        points(run),
        thumbnail,
        notes,
        before=before or None,
        means=means if len(means) > 1 else None,
        synthetic=run.config.data.phantom is not None,
        name=run.config.name,
        seed=run.config.seed,
        reliability=reliability(run, divisors),
        robustness=stored_robustness(run.folder),
    )
    return write_report(run.folder, content)


def open_run(folder: Path, compute: Compute | None = None) -> Run:
    """A run from its folder, on the device and with the workers of `compute`; default: chosen for this machine.

    Raises:
        ConfigError: the folder does not contain a run.
        ResultError: its settings or results are missing or were changed.
    """
    path = folder / "config.yaml"
    sums.check(folder)
    if not path.is_file():
        raise ConfigError(f"{folder} holds no run (no config.yaml); give the folder that fit wrote, e.g. runs/demo")
    return Run(computing_on(validate(read_yaml(path), str(path)), compute), folder)


def computing_on(config: RunConfig, compute: Compute | None) -> RunConfig:
    """Saved settings with device and workers for this machine: `compute`, or "auto"."""
    here = {} if compute is None else {"device": str(compute.device), "workers": compute.workers}
    config.compute = config.compute.model_copy(update={"device": "auto", "workers": "auto", **here})
    return config


def see_finished(run: Run, stage: str) -> None:
    """Check that opening a run trains nothing.

    Raises:
        ConfigError: it has not finished `stage` (unbound, closed_form, aligned, distilled).
    """
    names = [m for m, model in run.config.modalities.items() if model.pretrain]
    trained = [m for m in names if _has_weights(run.pretrain_folder / m)]
    if trained and len(trained) < len(names):  # modalities with too few pairs are excluded from a run
        names = [m for m in run.prepare().modalities if m in names]
    folders = [run.pretrain_folder / m for m in names]
    if stage in ("aligned", "distilled") and methods.get(run.config.align.method).towers:
        folders.append(run.folder / "align")
    if stage == "distilled":
        folders += [run.folder / "distill" / phase for phase in ("a", "b")]
    missing = [folder for folder in folders if not _has_weights(folder)]
    if missing:
        raise ConfigError(f"{run.folder} is not finished ({missing[0]} holds no weights); resume it with m3bind fit")


def _has_weights(folder: Path) -> bool:
    return (folder / "final.safetensors").is_file()


def rewrite_report(folder: Path, compute: Compute | None = None) -> Path:
    """report.html of a finished run, written again.

    Raises:
        ConfigError: the folder does not contain a finished run; nothing is trained here.
        ResultError: a file was changed.
    """
    run = open_run(folder, compute)
    if not (folder / "results.json").is_file():
        raise ConfigError(f"{folder} is not finished (no results.json); resume it with m3bind fit, then report")
    before = _points_when_unbound(run)
    stages = {"distilled": "distill", "aligned": "align", "closed_form": "closed_form", "unbound": "pretrain"}
    done = next((stage for stage in stages if (folder / "results" / f"{stage}.json").is_file()), "unbound")
    see_finished(run, done)
    table, space = run.fit(stages[done]), folder / "space"
    return report(run, table, load(space).info.temperatures if space.is_dir() else {}, before)


def show_robustness(folder: Path, compute: Compute | None = None) -> ResultTable:
    """Measure the robustness of a finished run, print it, and write the report again.

    Raises:
        ConfigError: the folder does not contain a finished run with a space.
        ResultError: a file was changed.
    """
    table = measure_robustness(open_run(folder, compute))
    _console().print(robustness_table(table))
    print(f"report:  {rewrite_report(folder, compute)}")
    return table


def show_results(folder: Path) -> ResultTable:
    """Print the metrics of a run."""
    path = folder / "results.json"
    if not path.exists() and (folder / "space.json").exists():
        raise ConfigError(f"{folder} is a space, not a run: add --manifest FILE to measure it")
    sums.check(folder, finished=["results.json"])
    table = ResultTable.load(path)
    _console().print(console(table, title=str(folder)))
    return table
