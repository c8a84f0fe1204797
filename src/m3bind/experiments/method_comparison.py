"""Ways to bind, side by side: every method on the same towers and the same cached embeddings, over seeds.

* `ENTRIES`: the rows: what of `align` each one changes.
* `compare_methods`: runs and measures them, one file per method and seed, so that a killed table goes on.
* `measure_methods`: the figures of one method and seed. `summary`, `as_text`: the table.
* `paired`: difference of two rows with its interval and p value.

Significance: paired bootstrap over seeds x patients. All rows of a seed start from the same stage 0 and are measured
on the same test items, which are resampled alike (by patient), so replicate b of one row minus replicate b of another
is a draw of their difference; seeds are drawn with replacement as well, the same for both rows. The interval holds the
middle 95 %; p is twice the smaller share on either side of zero. With few seeds this is a little optimistic about them.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from m3bind.align import methods
from m3bind.align.post import GAPS, linear_projectors
from m3bind.config import PostConfig, RunConfig, merge, validate
from m3bind.core.files import only_one, sha256_text, write_json
from m3bind.core.stored import read_json
from m3bind.errors import ConfigError, UnknownNameError
from m3bind.evaluate import metrics
from m3bind.evaluate.agreement import text_agreement
from m3bind.evaluate.compare import interval
from m3bind.evaluate.metrics import Estimate, Resampling
from m3bind.evaluate.retrieval import concept_auc, concept_precision, search_stats
from m3bind.evaluate.suite import Matrix
from m3bind.evaluate.tasks import concepts_for, tasks_for
from m3bind.evaluate.zero_shot import class_embeddings
from m3bind.experiments.ablation import LITERAL, SENSIBLE
from m3bind.pipeline import stages
from m3bind.pipeline.run import Run
from m3bind.pipeline.stages import Setup, Sides, State
from m3bind.training.pairs import Pairs

log = logging.getLogger(__name__)
DEFAULT = "default"
POST: dict[str, PostConfig] = {
    "": PostConfig(),
    **{gap: PostConfig(gap=gap) for gap in GAPS[1:]},
}
ISO_SHARE = 8  # IsoCLIP drops 1/8 of the smaller joint dimension at the top and as much at the bottom
TESTED = ("zero-shot", "patient R@10", "concept AUC", "concept P@5")  # compared with the default recipe


@dataclass(frozen=True)
class MethodRow:
    """One row: what it changes in `align`; None is no binding at all."""

    title: str
    change: Mapping[str, Any] | None = field(default_factory=dict)


def _other(method: str, **options: Any) -> dict[str, Any]:
    plain = {"bridge_maps": "one", "bridge_lr": 1.0, "post": PostConfig().model_dump()}
    return {"method": method, "options": options, **plain}


ENTRIES: dict[str, MethodRow] = {
    "unbound": MethodRow("towers as they are, brought to one dimension", None),
    "procrustes": MethodRow("rotation, closed form", _other("procrustes")),
    "procrustes_fit": MethodRow("the same, fitted on centred texts", _other("procrustes", center="fit")),
    "procrustes_readd": MethodRow("the same, means replaced by a common one", _other("procrustes", center="fit+readd")),
    "relative": MethodRow("relative representations, anchors = dim", _other("relative")),
    "cmcr": MethodRow("C-MCR, soft pairs weighted by confidence", _other("cmcr")),
    "cmcr_plain": MethodRow("C-MCR, soft pairs alike (as printed)", _other("cmcr", weighted=False)),
    "exmcr": MethodRow("Ex-MCR into the Procrustes mean", _other("exmcr")),
    "textme": MethodRow("TextME onto the Procrustes mean", _other("textme")),
    "m3bind_literal": MethodRow("the paper's stage 1 as printed", {**_other("m3bind"), **LITERAL["align"]}),
    "m3bind_sensible": MethodRow("the paper's stage 1 read sensibly", {**_other("m3bind"), **SENSIBLE["align"]}),
    DEFAULT: MethodRow("the recipe of the settings"),
    "medbind_bridges": MethodRow("MedBind_BD's losses: paired upper bound", _other("medbind_bridges")),
}


def entry_config(base: RunConfig, entry: MethodRow, seed: int) -> RunConfig:
    """The settings of one row and seed: options and post steps are the row's own, all else the base's."""
    tree = base.model_dump(mode="json")
    tree["seed"] = seed
    change = dict(entry.change or {})
    if "options" in change:
        tree["align"]["options"] = {}
    tree["align"] = merge(tree["align"], change)
    return validate(tree)


def uses(config: RunConfig) -> str:
    """What the method of these settings is trained on beside the texts of the shared pool."""
    found = list(methods.get(config.align.method).uses)
    form = config.align.contrastive
    if config.align.method == "m3bind" and (form.positives == "mixed" or form.concept_probability):
        found.append("labels")
    return ", ".join(found) or "texts alone"


def compare_methods(config: RunConfig, folder: Path, seeds: Sequence[int], only: Sequence[str] = ()) -> dict[str, Any]:
    """Run and measure the rows over seeds; the summary, also written to folder/methods.json.

    Raises:
        UnknownNameError: `only` names no row.
        ConfigError: the folder holds figures of other settings.
        BusyError: another process works on the folder.
    """
    for name in only:
        if name not in ENTRIES:
            raise UnknownNameError("way to bind", name, ENTRIES)
    with only_one(folder, "comparison"):
        return _compare_methods(config, folder, seeds, only)


def _compare_methods(config: RunConfig, folder: Path, seeds: Sequence[int], only: Sequence[str]) -> dict[str, Any]:
    names = [n for n in ENTRIES if not only or n in only or n == DEFAULT]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for seed in seeds:
        towers = _Towers(
            entry_config(config, MethodRow("", None), seed), folder / f"seed{seed}", folder.parent / "cache"
        )
        for name in names:
            log.info("%s, seed %d", name, seed)
            found[name].append(_kept(config, name, seed, towers))
    table = summary(config, found, list(seeds))
    write_json(folder / "methods.json", table)
    return table


class _Towers:
    """The towers of one seed after stage 0: opened once for all methods that leave them as they are."""

    def __init__(self, settings: RunConfig, folder: Path, cache: Path) -> None:
        self.settings, self.folder, self.cache = settings, folder, cache
        self._shared: tuple[State, Setup, dict[str, Pairs], Sides] | None = None

    def open(self, settings: RunConfig, name: str) -> tuple[State, Setup]:
        """What there is after stage 0."""
        run = Run(settings, self.folder / "runs" / name, self.cache, self.folder / "pretrain")
        run.pretrain()
        return run.state, run.setup

    def shared(self) -> tuple[State, Setup, dict[str, Pairs], Sides]:
        """Towers that no method may change, with their finished pairs and training embeddings."""
        if self._shared is None:
            state, setup = self.open(self.settings, "shared")
            pairs, sides = stages.finished_pairs(state, setup), stages.training_embeddings(state, setup)
            self._shared = state, setup, pairs, sides
        return self._shared


def _kept(config: RunConfig, name: str, seed: int, towers: _Towers) -> dict[str, Any]:
    """The figures of one row and seed: read where they are, else made and written."""
    entry = ENTRIES[name]
    settings = entry_config(config, entry, seed)
    path = towers.folder / f"{name}.json"
    options = methods.get(settings.align.method).options(settings.align)
    digest = sha256_text(settings.model_dump_json(), json.dumps(options), str(entry.change is None))[:16]
    if path.exists():
        kept: dict[str, Any] = read_json(path)
        if kept["settings"] != digest:
            raise ConfigError(f"{path} was measured with other settings; use another --name, or delete {path.parent}")
        return kept
    made = {"method": name, "seed": seed, "settings": digest, **_bind_and_measure(settings, name, towers)}
    write_json(path, made)
    return made


def _bind_and_measure(settings: RunConfig, name: str, towers: _Towers) -> dict[str, Any]:
    """Bind, timed without stage 0 and without what is computed once for all, and measure; or why that is impossible."""
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


# ---------------------------------------------------------------------------------------------- figures


def measure_methods(state: State, setup: Setup, sides: Sides) -> dict[str, Any]:
    """{"figures": {post step: {figure: value, chance, n, gallery, replicates}}} of a state.

    `sides`: training embeddings that post steps are fitted on, see `stages.training_embeddings`.
    """
    resamples = min(setup.config.evaluate.bootstrap, 200)
    found: dict[str, dict[str, Any]] = {}
    for name, post in {**POST, **_iso(state)}.items():
        after = stages.with_post(state, setup, post, sides)
        images = {m: stages.embed_images(after, setup, m, "test") for m in setup.modalities}
        figures: Figures = {"zero-shot": (_zero_shot(after, setup, images, resamples), None)}
        figures |= _patients(setup, images, resamples) | _concepts(setup, images, resamples)
        if not name:
            figures |= _agreement(after, setup, resamples)
        found[name] = {key: _plain(estimate, gallery) for key, (estimate, gallery) in figures.items()}
    return {"figures": found}


def _iso(state: State) -> dict[str, PostConfig]:
    """IsoCLIP, where every tower's projectors are linear."""
    models = list(state.models.values())
    if any(linear_projectors(model) is None for model in models):
        return {}
    drop = min(model.joint_dim for model in models) // ISO_SHARE
    return {"iso": PostConfig(iso=(drop, drop))}


def _plain(estimate: Estimate, gallery: float | None) -> dict[str, Any]:
    drawn = [] if estimate.replicates is None else [round(float(x), 6) for x in estimate.replicates]
    numbers = {"value": estimate.value, "chance": estimate.chance}
    known = {k: float(v) if np.isfinite(v) else None for k, v in numbers.items()}
    return {**known, "n": estimate.n, "gallery": gallery, "replicates": drawn if np.isfinite(drawn).all() else []}


def _zero_shot(state: State, setup: Setup, images: Mapping[str, Matrix], resamples: int) -> Estimate:
    """Mean over single-label tasks of their own metric, texts by the modality's own tower."""
    parts = []
    test, train = _records(setup, "test"), _records(setup, "train")
    for task in tasks_for(_all(test), _all(train), setup.config.evaluate.tasks or None):
        m = task.modality
        y = np.asarray(task.labels(test[m]))
        if y.ndim > 1:
            continue
        texts, owner = task.prompts()
        inside = y >= 0
        classes = class_embeddings(stages.embed_text(state, setup, texts, m), owner)
        scores = images[m][inside].astype(np.float64) @ classes.T
        draw = Resampling([r.patient for r in test[m]], resamples).subset(inside)
        parts.append(metrics.classification(y[inside], scores, draw)[task.metric])
    return metrics.average(parts)


def _records(setup: Setup, split: str) -> dict[str, list[Any]]:
    return {m: list(setup.dataset.records[m][split]) for m in setup.modalities}


def _all(records: Mapping[str, list[Any]]) -> list[Any]:
    return [r for rows in records.values() for r in rows]


Figures = dict[str, tuple[Estimate, float | None]]


def _patients(setup: Setup, images: Mapping[str, Matrix], resamples: int) -> Figures:
    """Image -> image of the same patient, mean over ordered pairs of modalities; nothing where none is shared."""
    test = _records(setup, "test")
    found: dict[str, list[Estimate]] = {"patient R@1": [], "patient R@10": []}
    sizes = []
    for a, b in permutations(images, 2):
        keys, gallery = (np.array([r.patient for r in test[m]]) for m in (a, b))
        asked = np.isin(keys, gallery)
        if not asked.any():
            continue
        stats = search_stats(images[a][asked], images[b], keys[asked], gallery)
        draw = Resampling(keys[asked], resamples)
        for k in (1, 10):
            found[f"patient R@{k}"].append(metrics.recall_at_k(stats, k, draw))
        sizes.append(len(gallery))
    return {name: (metrics.average(parts), float(np.mean(sizes))) for name, parts in found.items() if parts}


def _concepts(setup: Setup, images: Mapping[str, Matrix], resamples: int) -> Figures:
    """Image -> image of the same concept, mean over concepts and ordered pairs of the modalities that know it."""
    test, train = _records(setup, "test"), _records(setup, "train")
    found: dict[str, list[Estimate]] = {"concept AUC": [], "concept P@5": []}
    sizes = []
    for concept in concepts_for(_all(test), _all(train), setup.config.evaluate.tasks or None):
        classes = {m: concept.labels(test[m], m) for m in concept.modalities}
        for a, b in permutations(concept.modalities, 2):
            ask, given = classes[a] >= 0, classes[b] >= 0
            draw = Resampling([r.patient for r in test[a]], resamples).subset(ask)
            sides = (images[a][ask], images[b][given], classes[a][ask], classes[b][given])
            found["concept AUC"].append(concept_auc(*sides, draw))
            found["concept P@5"].append(concept_precision(*sides, 5, draw))
            sizes.append(int(given.sum()))
    return {name: (metrics.average(parts), float(np.mean(sizes))) for name, parts in found.items() if parts}


def _agreement(state: State, setup: Setup, resamples: int) -> Figures:
    """Do the towers agree on held-out texts: cos, cos' (other texts, same tower), ccos and R@1."""
    texts = [setup.dataset.table.texts[i] for i in setup.dataset.held_out]
    names = {"cos": "cos", "cos_within": "cos'", "ccos": "ccos", "R@1": "text R@1"}
    found = text_agreement([stages.embed_text(state, setup, texts, m) for m in setup.modalities], min(resamples, 50))
    return {shown: (found[name], float(len(texts)) if name == "R@1" else None) for name, shown in names.items()}


# ---------------------------------------------------------------------------------------------- table


def paired(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> dict[str, float]:
    """Interval and p of ours - theirs over seeds and patients: replicates (seeds, b) of both."""
    low, high, p = interval(np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64))
    return {"ci_low": low, "ci_high": high, "p": p}


def summary(config: RunConfig, found: Mapping[str, list[dict[str, Any]]], seeds: list[int]) -> dict[str, Any]:
    """The table as JSON: per row and post step mean and spread of each figure, and the difference to the default."""
    forms = [config.pretrain_for(m).contrastive for m in config.modalities]
    labelled = any(form.positives == "mixed" or form.concept_probability for form in forms)
    rows = []
    for name, runs in found.items():
        row: dict[str, Any] = {"method": name, "title": ENTRIES[name].title}
        if "skipped" in runs[0]:
            rows.append({**row, "skipped": runs[0]["skipped"]})
            continue
        row |= {"uses": runs[0]["uses"], "seconds": float(np.mean([r["seconds"] for r in runs])), "post": {}}
        for post in runs[0]["figures"]:
            row["post"][post] = _over_seeds(runs, found[DEFAULT], post)
        unbound = found.get("unbound")
        if unbound:
            kept = [_value(r, "zero-shot") / _value(u, "zero-shot") for r, u in zip(runs, unbound, strict=True)]
            row["kept"] = float(np.mean(kept))
        rows.append(row)
    return {"settings": config.name, "seeds": seeds, "pretrain_uses_labels": labelled, "rows": rows}


def _value(run: Mapping[str, Any], figure: str, post: str = "") -> float:
    value = run["figures"][post][figure]["value"]
    return float("nan") if value is None else float(value)


def _over_seeds(runs: list[dict[str, Any]], base: list[dict[str, Any]], post: str) -> dict[str, Any]:
    """Of each figure: mean, spread, chance, gallery; where it is tested, the difference to the default without post."""
    cells = {}
    for figure, first in runs[0]["figures"][post].items():
        values = [_value(r, figure, post) for r in runs]
        cell: dict[str, Any] = {
            "mean": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "chance": first["chance"],
            "gallery": first["gallery"],
        }
        ours = [r["figures"][post][figure]["replicates"] for r in runs]
        theirs = [r["figures"][""][figure]["replicates"] for r in base]
        if figure in TESTED and all(map(len, [*ours, *theirs])):
            cell["difference"] = cell["mean"] - float(np.mean([_value(r, figure) for r in base]))
            cell |= paired(ours, theirs)
        cells[figure] = cell
    return cells


COLUMNS = ("zero-shot", "cos", "cos'", "ccos", "text R@1", "patient R@1", "patient R@10", "concept AUC", "concept P@5")


def as_text(table: Mapping[str, Any]) -> str:
    """The table and, below it, cross-modal search after each post step, as aligned plain text."""
    shown = [row for row in table["rows"] if "skipped" not in row]
    columns = [c for c in COLUMNS if c in shown[0]["post"][""]]
    lines = [["method", "uses", "kept", *columns, "CPU s"]]
    lines.append(["chance (gallery)", "", "", *(_chance(shown[0]["post"][""][c]) for c in columns), ""])
    for row in shown:
        kept = f"{row['kept']:.3f}" if "kept" in row else "-"
        cells = [_cell(row["post"][""][c]) for c in columns]
        lines.append([row["method"], row["uses"], kept, *cells, f"{row['seconds']:.1f}"])
    posts = [p for p in shown[0]["post"] if p]
    wanted = [c for c in columns if c in TESTED]
    second = [["method", *(f"{c}, {p}" for c in wanted for p in posts)]]
    for row in shown:
        second.append(
            [row["method"], *(_cell(row["post"][p][c]) if p in row["post"] else "-" for c in wanted for p in posts)]
        )
    notes = [f"{row['method']}: left out, {row['skipped']}" for row in table["rows"] if "skipped" in row]
    notes.append("+/-: significantly above/below the default recipe (paired bootstrap over seeds x patients, 95 %)")
    if table["pretrain_uses_labels"]:
        notes.append("labels took part in stage 0, which all rows share")
    return "\n\n".join([_aligned(lines), "after post steps:", _aligned(second), "\n".join(notes)])


def _cell(cell: Mapping[str, Any]) -> str:
    spread = f"±{cell['sd']:.3f}" if cell["sd"] is not None else ""
    mark = "" if "p" not in cell or cell["ci_low"] <= 0 <= cell["ci_high"] else "+" if cell["ci_low"] > 0 else "-"
    return f"{cell['mean']:.3f}{spread}{mark}"


def _chance(cell: Mapping[str, Any]) -> str:
    if cell["chance"] is None:
        return ""
    return f"{cell['chance']:.3f}" + (f" ({cell['gallery']:.0f})" if cell["gallery"] else "")


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def load(folder: Path) -> dict[str, Any]:
    """The table written by `compare_methods`."""
    found: dict[str, Any] = read_json(folder / "methods.json")
    return found
