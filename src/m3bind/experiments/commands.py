"""Experiments called by the command line.

* `evaluate_suite`, `report_suite`: suites and the paper's tables. * `evaluate_space`: a space on a manifest's files.
* `evaluation_settings`: its settings. * `compare_runs`: two runs.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from m3bind.config import EvaluateConfig, override, validate
from m3bind.core import sums
from m3bind.core.device import Compute
from m3bind.core.files import write_json
from m3bind.core.stored import checked, read_json, read_yaml
from m3bind.data.cache import FeatureCache
from m3bind.data.manifest import read_manifest
from m3bind.data.records import Record, format_bad_rows
from m3bind.errors import ConfigError, SpaceError
from m3bind.evaluate.compare import compare_rows, unresolved
from m3bind.evaluate.own_prompts import check_prompts
from m3bind.evaluate.pivot import console, number
from m3bind.evaluate.results import ResultTable, plain
from m3bind.evaluate.stage_results import View, measure
from m3bind.evaluate.tasks import tasks_for
from m3bind.experiments import paper_tables
from m3bind.experiments.evaluated_model import of_space
from m3bind.experiments.suite import Suite, SuiteConfig, TableCell, load_suite
from m3bind.pipeline.features import FeatureExtractor
from m3bind.pipeline.outputs import WIDTH
from m3bind.pipeline.run import differences
from m3bind.report.text_table import aligned
from m3bind.space.bundle import Space, load

OF_SPACE = ("evaluate.tasks", "evaluate.bootstrap", "evaluate.gap_correction")  # settings of evaluate_space

# ---- suites ----------------------------------------------------------------------------------------------------------


def evaluate_suite(
    source: str,
    change: Sequence[str],
    out: Path,
    only: Sequence[str],
    missing: bool,
    json_file: Path | None,
    compute: Compute | None = None,
) -> int:
    """Compute a suite's cells and print and write the tables; 1 if jobs failed, else 0.

    `missing`: compute nothing, list missing cells.
    """
    config = load_suite(source, change)
    suite = Suite(config, out / f"suite-{config.name}", compute)
    failed = {} if missing else suite.run(only)
    cells = suite.cells()
    if missing:
        reasons = {f"{cell.title}: {cell.missing}": None for cell in cells if cell.missing}
        print("\n".join(reasons) or "nothing is missing")
        return 1 if reasons else 0
    print(paper_tables.as_text(cells))
    print(f"\ncomputed cells of all cells\n{paper_tables.coverage_text(cells)}")
    print(f"\npage: {paper_tables.write_page(cells, suite.tables, suite.folder, config.name, suite.calibration())}")
    if failed:
        print(f"{len(failed)} jobs failed; the reasons are above and in {suite.folder / 'missing.json'}")
    if json_file:
        write_json(json_file, [_json(cell) for cell in cells])
    return 1 if failed else 0


def report_suite(folder: Path | None) -> str:
    """The tables of a suite's folder as text, also written to tables.html; without a folder, the paper's tables.

    Raises:
        ConfigError: the folder does not contain a suite.
    """
    if folder is None:
        return paper_tables.as_text(Suite(load_suite("paper"), Path("runs") / "suite-paper").cells())
    path = folder / "suite.yaml"
    if not path.is_file():
        raise ConfigError(f"{folder} holds no suite (no suite.yaml); create one with m3bind evaluate --suite paper")
    config = checked(SuiteConfig, read_yaml(path), path)
    suite = Suite(config, folder)
    cells = suite.cells()
    page = paper_tables.write_page(cells, suite.tables, folder, config.name, suite.calibration())
    return f"{paper_tables.as_text(cells)}\n\npage: {page}"


def _json(cell: TableCell) -> dict[str, Any]:
    mine = paper_tables.ours(cell)
    return {
        "table": cell.table.number,
        "block": cell.block.name,
        "method": cell.line.method,
        "column": cell.column.name,
        "paper": None if cell.paper is None else cell.paper.value,
        "conflict": "" if cell.paper is None else cell.paper.conflict,
        "ours": None if mine is None else asdict(mine),
        "rows": [plain(row) for row in cell.rows],
        "missing": cell.missing,
    }


# ---- a space on the files of a manifest ------------------------------------------------------------------------------


def evaluation_settings(change: Sequence[str], prompts: Sequence[str] = ()) -> EvaluateConfig:
    """The settings of `evaluate_space` from overrides; `prompts`: files or packaged sets, as evaluate.tasks.

    Raises:
        ConfigError: an unknown setting, or one without effect on a finished space.
    """
    tree: dict[str, Any] = {}
    override(tree, change)
    settings = validate(tree).evaluate
    for section, values in tree.items():
        keys = [f"{section}.{key}" for key in values] if isinstance(values, dict) else [section]
        if idle := [key for key in keys if key not in OF_SPACE]:
            raise ConfigError(f"setting {idle[0]!r} has no effect with --manifest, which takes {', '.join(OF_SPACE)}")
    if prompts and settings.tasks:
        raise ConfigError("give the prompts once: by --prompts, or by --set evaluate.tasks=...")
    return settings.model_copy(update={"tasks": list(prompts) or settings.tasks, "probe": False})


def evaluate_space(
    folder: Path,
    manifest: Path,
    root: Path | None,
    split: str,
    compute: Compute,
    settings: EvaluateConfig | None = None,
) -> tuple[ResultTable, bool]:
    """Evaluate a saved space on the files of a manifest, print the metrics; also whether files were quarantined.

    Raises:
        ConfigError: no rows of that split for the space's modalities, or own prompts that do not fit the manifest.
    """
    settings = settings or evaluation_settings(())
    place = folder / "space" if (folder / "space" / "space.json").exists() else folder
    space = load(place, compute.device)
    content = read_manifest(manifest, root=root, modalities=space.modalities)
    for note in check_prompts(settings.tasks, content.records):
        print(note)
    with TemporaryDirectory() as cache:
        model = of_space("space", space, FeatureExtractor(FeatureCache(cache), workers=compute.workers))
        bad = list(content.bad)
        files: dict[str, dict[str, list[Record]]] = {split: {}, "train": {}}
        for s, part in files.items():
            for m in space.modalities:
                part[m], unreadable = model.readable([r for r in content.records if (r.modality, r.split) == (m, s)])
                bad += unreadable
        names = [m for m, records in files[split].items() if records]
        if not names:
            raise ConfigError(
                f"{manifest}: no rows of split {split!r} for {', '.join(space.modalities)}; choose another --split"
            )
        images: dict[str, dict[str, NDArray[np.float32]]] = {}
        for s, part in files.items():
            images[s] = {m: model.images(part[m]) if part[m] else np.zeros((0, space.dim), np.float32) for m in names}
    student = "student" in space.text_encoders
    means = _means(space, names)
    view = View(
        "distilled" if student else "aligned",
        images[split],
        {m: files[split][m] for m in names},
        images["train"],
        {m: files["train"][m] for m in names},
        lambda texts, path: space.encode_text(texts, encoder=path),
        student,
        means,
        {m: space.logit_scale(m) for m in names},
    )
    known = means is not None or all(files["train"][m] for m in names)
    settings = settings.model_copy(update={"gap_correction": settings.gap_correction and known})
    table = ResultTable(measure(view, [], settings, split, 0))
    if bad:
        print(format_bad_rows(bad))
    if not tasks_for(content.records, content.records, settings.tasks or None):
        print("no zero-shot task matches these labels; add labels to the rows, or a prompt file (--prompts)")
    terminal = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    terminal.print(console(table, title=f"{folder} on {manifest.name}"))
    return table, bool(bad)


def _means(space: Space, names: Sequence[str]) -> dict[str, NDArray[np.float32]] | None:
    """Stored mean embeddings, for gap correction; None if one is missing."""
    try:
        return {m: space.image_mean(m) for m in names}
    except SpaceError:
        return None


# ---- two runs --------------------------------------------------------------------------------------------------------


def compare_runs(first: Path, second: Path, everything: bool = False) -> tuple[str, list[dict[str, Any]]]:
    """The differences between two runs as text and as rows; `everything`: also metrics that did not change.

    Raises:
        ConfigError, M3BindError: one is not a finished run.
    """
    settings: list[dict[str, Any]] = []
    for folder in (first, second):
        sums.check(folder)
        if not (folder / "config.yaml").is_file():
            raise ConfigError(f"{folder} holds no run (no config.yaml); give two folders that m3bind fit wrote")
        sums.check(folder, finished=["results.json"])
        settings.append(checked(dict[str, Any], read_yaml(folder / "config.yaml"), folder / "config.yaml"))
    facts = [read_json(path) if (path := folder / "provenance.json").is_file() else {} for folder in (first, second)]
    lines = ["settings: " + ("; ".join(differences(settings[0], settings[1])) or "the same")]
    changed = differences(*facts)
    lines.append("data and versions: " + ("; ".join(changed) or ("the same" if all(facts) else "not recorded")))
    compared = compare_rows(*(ResultTable.load(folder / "results.json") for folder in (first, second)))
    shown = compared if everything else [d for d in compared if d.change]
    rows = [("metric", "first", "second", "change", "interval", "p (Holm)", "")]
    for d in sorted(shown, key=lambda d: (not d.significant, -abs(d.change))):
        row = d.row
        parts = (row.stage, row.protocol, row.modality, row.task, row.metric, row.variant, row.text_encoder)
        name = " ".join(filter(None, parts))
        verdict = (
            ("better" if d.better else "worse") if d.significant else d.why or f"not resolved (±{d.half_width:.3f})"
        )
        interval = "" if d.why else f"{number(d.low, row.metric)} to {number(d.high, row.metric)}"
        p = "" if d.why else f"{d.p:.3g}"
        values = (number(d.first, row.metric), number(d.second, row.metric), f"{d.change:+.3f}")
        rows.append((name, *values, interval, p, verdict))
    lines += aligned(rows)
    significant = sum(d.significant for d in compared)
    lines.append(
        f"{len(compared)} metrics in both, {len(shown)} shown, {significant} differ significantly (p < .05, Holm)"
    )
    lines += filter(None, [unresolved(shown)])
    return "\n".join(lines), [plain(d.row) | {"first": d.first, "second": d.second, "p": d.p} for d in shown]
