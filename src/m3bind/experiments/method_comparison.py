"""Comparison of binding methods on the same towers and the same cached embeddings, over seeds.

* `ENTRIES`: the rows and their changes of `align`. * `entry_config`: the settings of a row.
* `compare_methods`: runs and measures them, one file per method and seed, from which a killed comparison resumes.
* `summary`, `as_text`: the table. * `paired`: difference of two rows with its interval and p-value.

Significance: paired, over seeds and patients. All rows of a seed start from the same stage 0 and are measured on the
same test items; patients are resampled jointly in all rows, seeds, modalities, queries and galleries, so replicate b of
one row minus replicate b of another is a sample of their difference. To the error from the patients is added that from
the seeds (`evaluate.confidence.over_seeds`).
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from m3bind.align import methods
from m3bind.config import PostConfig, RunConfig, merge, validate
from m3bind.core.files import sha256_text, write_json
from m3bind.core.stored import read_json
from m3bind.errors import ConfigError
from m3bind.evaluate.compare import difference_of
from m3bind.evaluate.confidence import interval, over_seeds
from m3bind.experiments.ablation import LITERAL, SENSIBLE, experiment
from m3bind.experiments.method_metrics import measure_methods
from m3bind.pipeline import stages
from m3bind.pipeline.run import Run
from m3bind.pipeline.stages import Setup, Sides, State
from m3bind.report.text_table import aligned
from m3bind.training.pairs import Pairs

log = logging.getLogger(__name__)
DEFAULT = "default"
RESAMPLING = "patients of queries and gallery"  # part of the stored metrics' hash: other replicates cannot be paired
TESTED = ("zero-shot", "patient R@10", "concept AUC", "concept P@5")  # compared with the default recipe


@dataclass(frozen=True)
class MethodRow:
    """A row and its change of `align`; None: no binding."""

    title: str
    change: Mapping[str, Any] | None = field(default_factory=dict)


def _other(method: str, **options: Any) -> dict[str, Any]:
    plain = {"bridge_maps": "one", "bridge_lr": 1.0, "consistency": 0.0, "post": PostConfig().model_dump()}
    return {"method": method, "options": options, **plain}


ENTRIES: dict[str, MethodRow] = {
    "unbound": MethodRow("towers unbound, resized to one dimension", None),
    "procrustes": MethodRow("rotation, closed form", _other("procrustes")),
    "procrustes_fit": MethodRow("the same, fitted on centred texts", _other("procrustes", center="fit")),
    "procrustes_readd": MethodRow("the same, means replaced by a common one", _other("procrustes", center="fit+readd")),
    "relative": MethodRow("relative representations, anchors = dim", _other("relative")),
    "cmcr": MethodRow("C-MCR, soft pairs weighted by confidence", _other("cmcr")),
    "cmcr_plain": MethodRow("C-MCR, soft pairs with equal weight (as printed)", _other("cmcr", weighted=False)),
    "exmcr": MethodRow("Ex-MCR into the Procrustes mean", _other("exmcr")),
    "textme": MethodRow("TextME onto the Procrustes mean", _other("textme")),
    "m3bind_literal": MethodRow("the paper's stage 1 as printed", {**_other("m3bind"), **LITERAL["align"]}),
    "m3bind_sensible": MethodRow("the paper's stage 1, normalised", {**_other("m3bind"), **SENSIBLE["align"]}),
    DEFAULT: MethodRow("the recipe of the settings"),
    "medbind_bridges": MethodRow("MedBind_BD's losses: paired upper bound", _other("medbind_bridges")),
}


def entry_config(base: RunConfig, entry: MethodRow, seed: int) -> RunConfig:
    """The settings of one row and seed: options and post steps of the row, all others of the base."""
    tree = base.model_dump(mode="json")
    tree["seed"] = seed
    change = dict(entry.change or {})
    if "options" in change:
        tree["align"]["options"] = {}
    tree["align"] = merge(tree["align"], change)
    return validate(tree)


def uses(config: RunConfig) -> str:
    """The training data of the method besides the texts of the shared pool."""
    data = list(methods.get(config.align.method).uses)
    form = config.align.contrastive
    if config.align.method == "m3bind" and (form.positives == "mixed" or form.concept_probability):
        data.append("labels")
    return ", ".join(data) or "texts alone"


def compare_methods(config: RunConfig, folder: Path, seeds: Sequence[int], only: Sequence[str] = ()) -> dict[str, Any]:
    """Run and measure the rows over seeds; the summary, also written to folder/methods.json.

    Raises:
        UnknownNameError: `only` names an unknown row.
        ConfigError: the folder contains metrics of other settings.
        BusyError: another process works on the folder.
    """
    measured: dict[str, list[dict[str, Any]]] = {n: [] for n in ENTRIES if not only or n in only or n == DEFAULT}
    with experiment(folder, "comparison", only, "binding method", ENTRIES):
        for seed in seeds:
            settings = entry_config(config, MethodRow("", None), seed)
            towers = _Towers(settings, folder / f"seed{seed}", folder.parent / "cache")
            for name, runs in measured.items():
                log.info("%s, seed %d", name, seed)
                runs.append(_measured_once(config, name, seed, towers))
        table = summary(config, measured, list(seeds))
        write_json(folder / "methods.json", table)
    return table


class _Towers:
    """The towers of one seed after stage 0: opened once for all methods that do not change them."""

    def __init__(self, settings: RunConfig, folder: Path, cache: Path) -> None:
        self.settings, self.folder, self.cache = settings, folder, cache
        self._shared: tuple[State, Setup, dict[str, Pairs], Sides] | None = None

    def open(self, settings: RunConfig, name: str) -> tuple[State, Setup]:
        """State and setup after stage 0."""
        run = Run(settings, self.folder / "runs" / name, self.cache, self.folder / "pretrain")
        run.pretrain()
        return run.state, run.setup

    def shared(self) -> tuple[State, Setup, dict[str, Pairs], Sides]:
        """Towers that no method may change, with their embedded pairs and training embeddings."""
        if self._shared is None:
            state, setup = self.open(self.settings, "shared")
            pairs, sides = stages.finished_pairs(state, setup), stages.training_embeddings(state, setup)
            self._shared = state, setup, pairs, sides
        return self._shared


def _measured_once(config: RunConfig, name: str, seed: int, towers: _Towers) -> dict[str, Any]:
    """The metrics of one row and seed, from their file, or measured and written to it."""
    entry = ENTRIES[name]
    settings = entry_config(config, entry, seed)
    path = towers.folder / f"{name}.json"
    options = methods.get(settings.align.method).options(settings.align)
    digest = sha256_text(settings.model_dump_json(), json.dumps(options), str(entry.change is None), RESAMPLING)[:16]
    if path.exists():
        stored: dict[str, Any] = read_json(path)
        if stored["settings"] != digest:
            raise ConfigError(f"{path} was measured with other settings; use another --name, or delete {path.parent}")
        return stored
    result = {"method": name, "seed": seed, "settings": digest, **_bind_and_measure(settings, name, towers)}
    write_json(path, result)
    return result


def _bind_and_measure(settings: RunConfig, name: str, towers: _Towers) -> dict[str, Any]:
    """Bind and measure, or the reason why it is impossible; the time excludes stage 0 and shared embeddings."""
    sides: Sides | None
    if ENTRIES[name].change is None:
        state, setup, _, sides = towers.shared()
        return {"uses": "-", "seconds": 0.0, **measure_methods(state, setup, sides)}
    if methods.get(settings.align.method).towers:
        state, setup = towers.open(settings, name)
        pairs, sides = stages.training_pairs(state, setup, "align"), None
    else:
        state, setup, pairs, sides = towers.shared()
    started = time.process_time()
    try:
        state = stages.align(state, setup, towers.folder / "runs" / name, settings.align, pairs)
    except ConfigError as error:
        return {"skipped": str(error)}
    seconds = time.process_time() - started
    sides = sides or stages.training_embeddings(state, setup)
    return {"uses": uses(settings), "seconds": seconds, **measure_methods(state, setup, sides)}


Cell = Mapping[str, Any]  # one metric of one run: value, chance, n, patients, freedom, gallery, replicates


def paired(ours: Sequence[Cell], theirs: Sequence[Cell]) -> dict[str, float]:
    """Difference ours - theirs with interval and p over seeds and patients: one cell per seed."""
    values = [a["value"] - b["value"] for a, b in zip(ours, theirs, strict=True)]
    drawn = np.array([np.subtract(a["replicates"], b["replicates"]) for a, b in zip(ours, theirs, strict=True)])
    low, high, p = difference_of(values, drawn, min(cell["freedom"] for cell in (*ours, *theirs)))
    return {"difference": float(np.mean(values)), "ci_low": low, "ci_high": high, "p": p}


def summary(config: RunConfig, measured: Mapping[str, list[dict[str, Any]]], seeds: list[int]) -> dict[str, Any]:
    """The table as JSON: per row and post step mean and spread of each metric, and the difference to the default."""
    forms = [config.pretrain_for(m).contrastive for m in config.modalities]
    labelled = any(form.positives == "mixed" or form.concept_probability for form in forms)
    rows = []
    for name, runs in measured.items():
        row: dict[str, Any] = {"method": name, "title": ENTRIES[name].title}
        if "skipped" in runs[0]:
            rows.append({**row, "skipped": runs[0]["skipped"]})
            continue
        row |= {"uses": runs[0]["uses"], "seconds": float(np.mean([r["seconds"] for r in runs])), "post": {}}
        for post in runs[0]["metrics"]:
            row["post"][post] = _over_seeds(runs, measured[DEFAULT], post)
        unbound = measured.get("unbound")
        if unbound:
            ratios = [_value(r, "zero-shot") / _value(u, "zero-shot") for r, u in zip(runs, unbound, strict=True)]
            row["kept"] = float(np.mean(ratios))
        rows.append(row)
    return {"settings": config.name, "seeds": seeds, "pretrain_uses_labels": labelled, "rows": rows}


def _value(run: Mapping[str, Any], metric: str, post: str = "") -> float:
    value = run["metrics"][post][metric]["value"]
    return float("nan") if value is None else float(value)


def _over_seeds(runs: list[dict[str, Any]], base: list[dict[str, Any]], post: str) -> dict[str, Any]:
    """Mean, spread, chance and gallery of each metric, and for `TESTED` the difference to the default without post."""
    cells = {}
    for metric, first in runs[0]["metrics"][post].items():
        values = [_value(r, metric, post) for r in runs]
        cell: dict[str, Any] = {
            "mean": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "chance": first["chance"],
            "gallery": first["gallery"],
        }
        ours = [r["metrics"][post][metric] for r in runs]
        theirs = [r["metrics"][""][metric] for r in base]
        if metric in TESTED and all(len(known["replicates"]) for known in (*ours, *theirs)):
            cell |= {"n": first["n"], "patients": first["patients"], "interval": list(_interval(ours))}
            cell |= paired(ours, theirs)
        cells[metric] = cell
    return cells


def _interval(cells: Sequence[Cell]) -> tuple[float, float]:
    """95 % interval of the mean over seeds."""
    values, drawn = [cell["value"] for cell in cells], np.array([cell["replicates"] for cell in cells])
    return interval(float(np.mean(values)), *over_seeds(values, drawn, min(cell["freedom"] for cell in cells)))


COLUMNS = ("zero-shot", "cos", "cos'", "ccos", "text R@1", "patient R@1", "patient R@10", "concept AUC", "concept P@5")


def as_text(table: Mapping[str, Any]) -> str:
    """The table and, below it, the tested metrics after each post step, as aligned plain text."""
    shown = [row for row in table["rows"] if "skipped" not in row]
    columns = [c for c in COLUMNS if c in shown[0]["post"][""]]
    lines = [["method", "uses", "preserved", *columns, "CPU s"]]
    lines.append(["chance (gallery)", "", "", *(_chance(shown[0]["post"][""][c]) for c in columns), ""])
    for row in shown:
        preserved = f"{row['kept']:.3f}" if "kept" in row else "-"
        cells = [_cell(row["post"][""][c]) for c in columns]
        lines.append([row["method"], row["uses"], preserved, *cells, f"{row['seconds']:.1f}"])
    posts = [p for p in shown[0]["post"] if p]
    keys = [(p, c) for c in columns if c in TESTED for p in posts]
    second = [["method", *(f"{c}, {p}" for p, c in keys)]]
    for row in shown:
        second.append([row["method"], *(_cell(row["post"][p][c]) if p in row["post"] else "-" for p, c in keys)])
    notes = [f"{row['method']}: skipped, {row['skipped']}" for row in table["rows"] if "skipped" in row]
    notes.append("+/-: significantly above/below the default recipe (paired bootstrap over seeds x patients, 95 %)")
    notes += _unresolved(shown)
    if table["pretrain_uses_labels"]:
        notes.append("stage 0, which all rows share, used labels")
    return "\n\n".join("\n".join(part) for part in (aligned(lines), ["after post steps:"], aligned(second), notes))


def _unresolved(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Per tested metric, n and the half-widths of the differences that are not resolved."""
    notes = []
    for metric in TESTED:
        cells = [row["post"][""][metric] for row in rows if row["method"] != DEFAULT and metric in row["post"][""]]
        known = [cell for cell in cells if "p" in cell]
        widths = [(c["ci_high"] - c["ci_low"]) / 2 for c in known if c["ci_low"] <= 0 <= c["ci_high"]]
        if known and widths:
            notes.append(
                f"{metric}: {known[0]['n']} files of {known[0]['patients']} patients; {len(widths)} of {len(known)} "
                f"differences are smaller than their half-width ({min(widths):.3f} to {max(widths):.3f}), not resolved"
            )
    return notes


def _cell(cell: Mapping[str, Any]) -> str:
    spread = f"±{cell['sd']:.3f}" if cell["sd"] is not None else ""
    mark = "" if "p" not in cell or cell["ci_low"] <= 0 <= cell["ci_high"] else "+" if cell["ci_low"] > 0 else "-"
    return f"{cell['mean']:.3f}{spread}{mark}"


def _chance(cell: Mapping[str, Any]) -> str:
    if cell["chance"] is None:
        return ""
    return f"{cell['chance']:.3f}" + (f" ({cell['gallery']:.0f})" if cell["gallery"] else "")
