"""Ablations: the same run with one thing changed, over seeds, with everything that does not change reused.

* `VARIANTS`: what is changed, by name: the paper's Table 4 (number of modalities) and Table 5 (AMB x SESKD), and ours.
* `ablate`: runs them; stage 0 and cached features are shared between the variants of a seed.
* `headline`: the few figures an ablation row shows.

SESKD needs no run of its own: every run is measured before and after distillation. Nor does the closed form or the gap
correction: each run measures them on its way.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from m3bind.config import RunConfig, merge, validate
from m3bind.core.files import only_one, write_json
from m3bind.core.stored import read_json
from m3bind.errors import UnknownNameError
from m3bind.evaluate.results import ResultTable
from m3bind.pipeline.run import Run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Variant:
    """One row of the ablation: settings that differ from the base, or fewer modalities."""

    title: str
    change: Mapping[str, Any] = field(default_factory=dict)
    modalities: int | None = None  # keep the first so many, in the paper's order (Table 4)
    towers: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict
    )  # settings of models, for a stage 0 of its own
    table: str = "ours"


_AMB_OFF = {"balance": {"proportional": True, "lr": False, "weights": False}}
_PRINTED = {"reduction": "sum", "positives": "diagonal", "concept_probability": 0.0}
_PLAIN = {"bridge": "identity", "bridge_maps": "one", "bridge_lr": 1.0, "post": {"gap": "none", "iso": None}}
LITERAL: dict[str, dict[str, Any]] = {  # stages 1 and 2 exactly as printed, on the same towers
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
# Text towers of other depth and pooling, where the settings give all of them one pretrained trunk.
_UNLIKE: dict[str, dict[str, Any]] = {
    "xray": {"text_layers": 6},
    "retina": {"text_layers": 5},
    "pathology": {"text_layers": 4},
    "ct": {"text_layers": 5, "text_pooling": "cls"},
    "ecg": {"text_layers": 3},
}


def _distill(**weights: float) -> dict[str, Any]:
    """Phase B with other terms in place of Eq. 7."""
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
    "paper_sensible": Variant("the paper's stages 1 and 2 read sensibly", SENSIBLE, table="paper"),
    "two": Variant("X-ray + ECG", modalities=2, table="4"),
    "three": Variant("+ retina", modalities=3, table="4"),
    "four": Variant("+ pathology", modalities=4, table="4"),
    "bridge_identity": Variant("bridge starts from identity, not Procrustes", {"align": {"bridge": "identity"}}),
    "lora": Variant("LoRA on the text trunks (60 small steps) instead of their heads alone", {"align": _LORA}),
    "lora_no_bridge": Variant(
        "the same without a bridge: identity, images frozen",
        {"align": {**_LORA, "bridge": "identity", "train_bridge": False, "image": "frozen"}},
    ),
    "unlike_text": Variant("text towers of unlike depth and pooling", towers=_UNLIKE),
    "no_text_contrastive": Variant("Eq. 2 alone, no InfoNCE between text towers", {"align": {"text_contrastive": 0.0}}),
    "positives_diagonal": Variant(
        "identical captions not positives of each other", {"align": {"contrastive": {"positives": "diagonal"}}}
    ),
    "positives_identical": Variant(
        "multi-positive: identical captions", {"align": {"contrastive": {"positives": "identical"}}}
    ),
    "positives_mixed": Variant(
        "half the target mass on same-label pairs", {"align": {"contrastive": {"positives": "mixed"}}}
    ),
    "distill_contrastive": Variant("phase B without Eq. 7: Eq. 8 alone", _distill()),
    "distill_affinity": Variant("TinyCLIP's affinity mimicking in place of Eq. 7", _distill(affinity=1.0)),
    "distill_feature": Variant("CLIP-KD's feature distillation (FD) in its place", _distill(feature=4.0)),
    "distill_relation": Variant("CLIP-KD's relational distillation (CRD) in its place", _distill(relation=1.0)),
    "distill_interactive": Variant("CLIP-KD's interactive contrast (ICL) in its place", _distill(interactive=1.0)),
}


def headline(table: ResultTable, stage: str, text_encoder: str) -> dict[str, float]:
    """Mean zero-shot, cross-modal search and text agreement of one stage by one text path; NaN where not measured."""

    def mean(**where: Any) -> float:
        values = [row.value for row in table.where(stage=stage, **where)]
        return float(np.mean(values)) if values else float("nan")

    main: dict[tuple[str, str], float] = {}
    for row in table.where(stage=stage, protocol="zero_shot", text_encoder=text_encoder):
        main.setdefault((row.modality, row.task), row.value)  # a task's own metric is its first row
    across = table.where(
        stage=stage, protocol="image_to_image", modality="mean", task="patient", metric="R@10", variant=""
    )
    lift = [row.value / row.chance for row in across if row.chance > 0]
    return {
        "zero-shot": float(np.mean(list(main.values()))) if main else float("nan"),
        "patient R@10": mean(protocol="image_to_image", modality="mean", task="patient", metric="R@10", variant=""),
        "R@10 / chance": float(np.mean(lift)) if lift else float("nan"),
        "patient R@10, gap-corrected": mean(
            protocol="image_to_image", modality="mean", task="patient", metric="R@10", variant="gap-corrected"
        ),
        "concept AUC": _concept_mean(table, stage, ""),
        "concept AUC, gap-corrected": _concept_mean(table, stage, "gap-corrected"),
        "other towers' text": _other_towers(table, stage),
        "text R@1": mean(protocol="text_agreement", metric="R@1", task="towers"),
        "cos": mean(protocol="text_agreement", metric="cos", task="towers"),
        "cos'": mean(protocol="text_agreement", metric="cos_within", task="towers"),
        "ccos": mean(protocol="text_agreement", metric="ccos", task="towers"),
    }


def _other_towers(table: ResultTable, stage: str) -> float:
    """Mean over modalities of zero-shot with another tower's text, each divided by the one with its own text."""
    own: dict[tuple[str, str], float] = {}
    others: dict[tuple[str, str], dict[str, float]] = {}
    for row in table.where(stage=stage, protocol="zero_shot"):
        key = (row.modality, row.task)
        if row.text_encoder == "teacher":
            own.setdefault(key, row.value)
        elif row.text_encoder.startswith("teacher:"):
            others.setdefault(key, {}).setdefault(row.text_encoder, row.value)
    ratios = [float(np.mean(list(found.values()))) / own[key] for key, found in others.items() if own.get(key)]
    return float(np.mean(ratios)) if ratios else float("nan")


def _concept_mean(table: ResultTable, stage: str, variant: str) -> float:
    rows = table.where(stage=stage, protocol="image_to_image", modality="mean", metric="auc", variant=variant)
    return float(np.mean([row.value for row in rows])) if len(rows) else float("nan")


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
    """Run the variants over seeds; one row per variant, stage and text path with mean and standard deviation.

    Everything is kept below `folder`, so that a killed ablation goes on where it stopped.

    Raises:
        UnknownNameError: `only` names no variant.
        BusyError: another process works on the folder.
    """
    for name in only:
        if name not in VARIANTS:
            raise UnknownNameError("ablation", name, VARIANTS)
    with only_one(folder, "ablation"):
        return _ablate(config, folder, seeds, only)


def _ablate(config: RunConfig, folder: Path, seeds: Sequence[int], only: Sequence[str]) -> list[dict[str, Any]]:
    names = [n for n in VARIANTS if (not only or n in only) and _applies(VARIANTS[n], config)]
    figures: dict[tuple[str, str, str], list[dict[str, float]]] = {}
    for seed in seeds:
        for name in names:
            log.info("ablation %s, seed %d", name, seed)
            run = Run(
                variant_config(config, VARIANTS[name], seed),
                folder / f"seed{seed}" / name,
                cache=folder.parent / "cache",
                pretrain_folder=folder / f"seed{seed}" / (f"pretrain-{name}" if VARIANTS[name].towers else "pretrain"),
            )
            table = run.fit()
            stages = {"aligned": "teacher", "distilled": "student"}
            if name == "base" or VARIANTS[name].towers or VARIANTS[name].modalities:
                stages = {"unbound": "teacher", "closed_form": "teacher", **stages}
            for stage, path in stages.items():
                figures.setdefault((name, stage, path), []).append(headline(table, stage, path))
    rows = [_row(VARIANTS[name], name, stage, path, values) for (name, stage, path), values in figures.items()]
    write_json(folder / "ablation.json", {"seeds": list(seeds), "rows": rows})
    return rows


def _applies(variant: Variant, config: RunConfig) -> bool:
    if variant.towers:
        return all(m in variant.towers and model.model.startswith("compact") for m, model in config.modalities.items())
    return variant.modalities is None or variant.modalities < len(config.modalities)


def _row(variant: Variant, name: str, stage: str, path: str, values: list[dict[str, float]]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "variant": name,
        "title": variant.title,
        "table": variant.table,
        "stage": stage,
        "text_encoder": path,
        "seeds": len(values),
    }
    for key in values[0]:
        column = np.array([v[key] for v in values])
        row[key] = None if np.isnan(column).all() else float(column.mean())
        row[f"{key} sd"] = None if len(column) < 2 or np.isnan(column).any() else float(column.std(ddof=1))
    return row


def as_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as an aligned plain-text table."""
    keys = [
        k
        for k in rows[0]
        if k not in ("variant", "title", "table", "stage", "text_encoder", "seeds") and not k.endswith(" sd")
    ]
    lines = [["variant", "stage", "text", *keys]]
    for row in rows:
        cells = [row["variant"], row["stage"], row["text_encoder"]]
        for key in keys:
            value, spread = row[key], row[f"{key} sd"]
            cells.append("-" if value is None else f"{value:.3f}" + (f"±{spread:.3f}" if spread is not None else ""))
        lines.append(cells)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def load(folder: Path) -> list[dict[str, Any]]:
    """Rows written by `ablate`."""
    return list(read_json(folder / "ablation.json")["rows"])
