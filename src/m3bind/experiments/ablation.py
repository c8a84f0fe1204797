"""Ablations: runs that differ in one change of the settings, over seeds; everything that does not change is reused.

* `VARIANTS`: the changes, by name: the paper's Table 4 (number of modalities) and Table 5 (AMB x SESKD), and ours.
* `ablate`: runs them; stage 0 and cached features are shared between the variants of a seed.
* `headline`: the metrics of an ablation row. * `as_text`: the table. * `experiment`: a locked folder.

SESKD, the closed form and gap correction need no additional run: every run is evaluated before and after each of them.
"""

import contextlib
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from m3bind.config import RunConfig, merge, validate
from m3bind.core.files import only_one, write_json
from m3bind.errors import UnknownNameError
from m3bind.evaluate.results import ResultTable
from m3bind.pipeline.run import Run
from m3bind.report.text_table import aligned

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Variant:
    """One row of the ablation: settings that differ from the base, or fewer modalities."""

    title: str
    change: Mapping[str, Any] = field(default_factory=dict)
    modalities: int | None = None  # number of modalities, in the paper's order (Table 4)
    towers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # settings of models, with a separate stage 0
    table: str = "ours"


_AMB_OFF = {"balance": {"proportional": True, "lr": False, "weights": False}}
_PRINTED = {"reduction": "sum", "positives": "diagonal", "concept_probability": 0.0}
_PLAIN = {
    "bridge": "identity",
    "bridge_maps": "one",
    "bridge_lr": 1.0,
    "post": {"gap": "none", "iso": None},
    "consistency": 0.0,
}
LITERAL: dict[str, dict[str, Any]] = {  # stages 1 and 2 as printed, on the same towers
    "align": {
        **_PLAIN,
        "train_bridge": False,
        "lr": 2e-5,
        "mse_weight": 10.0,
        "text_contrastive": 0.0,
        "balance": {"literal": True},
        "contrastive": {**_PRINTED, "direction": "i2t"},
    },
    "distill": {"lr": 2e-5, "contrastive": {**_PRINTED, "direction": "t2i"}},
}
_READ = {"direction": "both", "reduction": "mean", "positives": "identical", "concept_probability": 0.0}
# The same equations with rates and weights normalised, both directions, identical captions as positives:
SENSIBLE: dict[str, dict[str, Any]] = {
    "align": {**_PLAIN, "mse_weight": 10.0, "text_contrastive": 0.0, "contrastive": _READ},
    "distill": {"contrastive": _READ},
}
_LORA = {"text": "lora", "steps": 60, "batch": 16, "shared_batch": 48, "lr": 1e-3, "bridge_lr": 0.3}
# Text towers of different depth and pooling, if the settings give all of them the same pretrained trunk.
_UNLIKE: dict[str, dict[str, Any]] = {
    "xray": {"text_layers": 6},
    "retina": {"text_layers": 5},
    "pathology": {"text_layers": 4},
    "ct": {"text_layers": 5, "text_pooling": "cls"},
    "ecg": {"text_layers": 3},
}


def _distill(**weights: float) -> dict[str, Any]:
    """Phase B with other terms instead of Eq. 7."""
    return {"distill": {"kd_weight": 0.0, **weights}}


PAPER_ORDER = ("xray", "ecg", "retina", "pathology", "ct")  # Table 4 adds retina, pathology, CT to X-ray + ECG
VARIANTS: dict[str, Variant] = {
    "base": Variant("the recipe of the settings", table="5"),
    "amb_off": Variant(
        "AMB off: size-proportional sampling, equal rates and weights",
        {"align": _AMB_OFF, "distill": _AMB_OFF},
        table="5",
    ),
    "paper_literal": Variant("the paper's stages 1 and 2 as printed", LITERAL, table="paper"),
    "paper_sensible": Variant("the paper's stages 1 and 2, normalised", SENSIBLE, table="paper"),
    "two": Variant("X-ray + ECG", modalities=2, table="4"),
    "three": Variant("+ retina", modalities=3, table="4"),
    "four": Variant("+ pathology", modalities=4, table="4"),
    "bridge_identity": Variant("bridge initialised by identity, not Procrustes", {"align": {"bridge": "identity"}}),
    "lora": Variant("LoRA on the text trunks (60 small steps) instead of their heads alone", {"align": _LORA}),
    "lora_no_bridge": Variant(
        "the same without a bridge: identity, images frozen",
        {"align": {**_LORA, "bridge": "identity", "train_bridge": False, "image": "frozen", "consistency": 0.0}},
    ),
    "unlike_text": Variant("text towers of different depth and pooling", towers=_UNLIKE),
    "no_text_contrastive": Variant("Eq. 2 alone, no InfoNCE between text towers", {"align": {"text_contrastive": 0.0}}),
    "positives_diagonal": Variant(
        "identical captions not positives of each other", {"align": {"contrastive": {"positives": "diagonal"}}}
    ),
    "positives_identical": Variant(
        "multi-positive: identical captions", {"align": {"contrastive": {"positives": "identical"}}}
    ),
    "positives_mixed": Variant(
        "half the target weight on same-label pairs", {"align": {"contrastive": {"positives": "mixed"}}}
    ),
    "distill_contrastive": Variant("phase B without Eq. 7: Eq. 8 alone", _distill()),
    "distill_affinity": Variant("TinyCLIP's affinity mimicking instead of Eq. 7", _distill(affinity=1.0)),
    "distill_feature": Variant("CLIP-KD's feature distillation (FD) instead of Eq. 7", _distill(feature=4.0)),
    "distill_relation": Variant("CLIP-KD's relational distillation (CRD) instead of Eq. 7", _distill(relation=1.0)),
    "distill_interactive": Variant("CLIP-KD's interactive contrast (ICL) instead of Eq. 7", _distill(interactive=1.0)),
}


def headline(table: ResultTable, stage: str, text_encoder: str) -> dict[str, float]:
    """Mean zero-shot, cross-modal search and text agreement of one stage and text encoder; NaN if not measured."""

    def mean(**where: Any) -> float:
        return _mean([row.value for row in table.where(stage=stage, **where)])

    search: dict[str, Any] = {"protocol": "image_to_image", "modality": "mean"}
    patient = {**search, "task": "patient", "metric": "R@10"}
    towers = {"protocol": "text_agreement", "task": "towers"}
    main: dict[tuple[str, str], float] = {}
    for row in table.where(stage=stage, protocol="zero_shot", text_encoder=text_encoder):
        main.setdefault((row.modality, row.task), row.value)  # a task's own metric is its first row
    across = table.where(stage=stage, variant="", **patient)
    return {
        "zero-shot": _mean(list(main.values())),
        "patient R@10": mean(variant="", **patient),
        "R@10 / chance": _mean([row.value / row.chance for row in across if row.chance > 0]),
        "patient R@10, gap-corrected": mean(variant="gap-corrected", **patient),
        "concept AUC": mean(metric="auc", variant="", **search),
        "concept AUC, gap-corrected": mean(metric="auc", variant="gap-corrected", **search),
        "other towers' text": _other_towers(table, stage),
        "text R@1": mean(metric="R@1", **towers),
        "cos": mean(metric="cos", **towers),
        "cos'": mean(metric="cos_within", **towers),
        "ccos": mean(metric="ccos", **towers),
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _other_towers(table: ResultTable, stage: str) -> float:
    """Mean over modalities of zero-shot with another tower's text, divided by zero-shot with its own text."""
    own: dict[tuple[str, str], float] = {}
    others: dict[tuple[str, str], dict[str, float]] = {}
    for row in table.where(stage=stage, protocol="zero_shot"):
        key = (row.modality, row.task)
        if row.text_encoder == "teacher":
            own.setdefault(key, row.value)
        elif row.text_encoder.startswith("teacher:"):
            others.setdefault(key, {}).setdefault(row.text_encoder, row.value)
    return _mean([_mean(list(values.values())) / own[key] for key, values in others.items() if own.get(key)])


def variant_config(base: RunConfig, variant: Variant, seed: int) -> RunConfig:
    """The settings of one variant and seed."""
    tree = merge(base.model_dump(mode="json"), dict(variant.change))
    tree["seed"] = seed
    if tree["data"].get("phantom"):
        tree["data"]["phantom"]["seed"] = base.data.phantom.seed if base.data.phantom else 0
    if variant.modalities:
        order = sorted(tree["modalities"], key=lambda m: PAPER_ORDER.index(m) if m in PAPER_ORDER else len(PAPER_ORDER))
        tree["modalities"] = {m: tree["modalities"][m] for m in order[: variant.modalities]}
    for m, settings in variant.towers.items():
        if m in tree["modalities"]:
            tree["modalities"][m]["settings"] = merge(tree["modalities"][m]["settings"], dict(settings))
    return validate(tree)


def ablate(config: RunConfig, folder: Path, seeds: Sequence[int], only: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Run the variants over seeds; one row per variant, stage and text encoder with mean and standard deviation.

    All results are stored below `folder`, where a killed ablation resumes.

    Raises:
        UnknownNameError: `only` names an unknown variant.
        BusyError: another process works on the folder.
    """
    values: dict[tuple[str, str, str], list[dict[str, float]]] = {}
    with experiment(folder, "ablation", only, "ablation", VARIANTS):
        for seed in seeds:
            for name, variant in VARIANTS.items():
                if (only and name not in only) or not _applies(variant, config):
                    continue
                log.info("ablation %s, seed %d", name, seed)
                run = Run(
                    variant_config(config, variant, seed),
                    folder / f"seed{seed}" / name,
                    cache=folder.parent / "cache",
                    pretrain_folder=folder / f"seed{seed}" / (f"pretrain-{name}" if variant.towers else "pretrain"),
                )
                table = run.fit()
                stages = {"aligned": "teacher", "distilled": "student"}
                if name == "base" or variant.towers or variant.modalities:
                    stages = {"unbound": "teacher", "closed_form": "teacher", **stages}
                for stage, encoder in stages.items():
                    values.setdefault((name, stage, encoder), []).append(headline(table, stage, encoder))
        rows = [_row(VARIANTS[key[0]], *key, columns) for key, columns in values.items()]
        write_json(folder / "ablation.json", {"seeds": list(seeds), "rows": rows})
    return rows


@contextlib.contextmanager
def experiment(folder: Path, job: str, only: Sequence[str], kind: str, known: Collection[str]) -> Iterator[None]:
    """Check that `only` has names of `known` (of `kind`), and lock `folder` for `job`.

    Raises:
        UnknownNameError: an unknown name.
        BusyError: another process works on the folder.
    """
    for name in only:
        if name not in known:
            raise UnknownNameError(kind, name, known)
    with only_one(folder, job):
        yield


def _applies(variant: Variant, config: RunConfig) -> bool:
    if variant.towers:
        return all(m in variant.towers and model.model.startswith("compact") for m, model in config.modalities.items())
    return variant.modalities is None or variant.modalities < len(config.modalities)


def _row(variant: Variant, name: str, stage: str, encoder: str, values: list[dict[str, float]]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "variant": name,
        "title": variant.title,
        "table": variant.table,
        "stage": stage,
        "text_encoder": encoder,
        "seeds": len(values),
    }
    for key in values[0]:
        column = np.array([v[key] for v in values])
        row[key] = None if np.isnan(column).all() else float(column.mean())
        row[f"{key} sd"] = None if len(column) < 2 or np.isnan(column).any() else float(column.std(ddof=1))
    return row


def as_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as an aligned plain-text table."""
    keys = [key for key in rows[0] if f"{key} sd" in rows[0]]
    lines = [["variant", "stage", "text", *keys]]
    for row in rows:
        cells = [row["variant"], row["stage"], row["text_encoder"]]
        for key in keys:
            value, spread = row[key], row[f"{key} sd"]
            cells.append("-" if value is None else f"{value:.3f}" + (f"±{spread:.3f}" if spread is not None else ""))
        lines.append(cells)
    return "\n".join(aligned(lines))
