"""Remarks below the tables of a plan: what binds, what does not fit, and what the estimates leave out."""

import math
from collections.abc import Iterator, Sequence

from m3bind.config import RunConfig
from m3bind.pipeline.plan.stage_plans import GB, Machine, StagePlan, is_live
from m3bind.pipeline.plan.tower_cost import TowerPlan


def remarks(
    config: RunConfig, towers: Sequence[TowerPlan], stages: Sequence[StagePlan], machine: Machine, gpu: str
) -> list[str]:
    """In the order in which they matter."""
    return [
        *_live(config, towers),
        *_memory(stages, machine, gpu),
        *_calibration(stages),
        f"decoding on {machine.cores} cores, disk at {machine.disk / GB:g} GB/s (--cores, --disk); measured on "
        + "; ".join(f"{t.modality}: {t.decode.source}" for t in towers),
        *([_rates(machine, gpu)] if machine.gpu else []),
        "not in the table: metrics, plots and report after the stages",
    ]


def _live(config: RunConfig, towers: Sequence[TowerPlan]) -> Iterator[str]:
    for t in towers:
        if is_live(config, t):
            need = t.files * t.stored_bytes / GB
            yield (
                f"{t.modality}: inputs of {need:,.0f} GB exceed data.inputs_gb={config.data.inputs_gb:g}, so its files "
                "are decoded again in every step and pass that needs them; "
                f"data.inputs_gb={math.ceil(need)} stores them"
            )


def _memory(stages: Sequence[StagePlan], machine: Machine, gpu: str) -> Iterator[str]:
    advice = "lower micro_batch and micro_tokens, or the batch"
    for stage in stages:
        if stage.gpu_binds == "memory" and machine.gpu:
            yield (
                f"{stage.name}: needs {stage.gpu_memory / GB:.0f} GB, {gpu} has {machine.gpu.memory:.0f} GB; {advice}"
            )
        elif stage.binds == "memory" and not machine.gpu:
            yield (
                f"{stage.name}: needs {stage.memory / GB:.0f} GB, this machine has {machine.memory / GB:.0f} GB; "
                f"{advice}"
            )


def _calibration(stages: Sequence[StagePlan]) -> Iterator[str]:
    repeated = [stage.name.split()[1] for stage in stages if stage.name.startswith("calibration ")]
    if repeated:
        yield (
            f"{', '.join(repeated)}: stage 0 runs twice, since without valid samples the temperature needs patients "
            "that it has not seen; with data.valid_fraction=0.1 it runs once"
        )


def _rates(machine: Machine, gpu: str) -> str:
    assert machine.gpu is not None
    return (
        f"{machine.gpus} x {gpu}: an estimate from its published {machine.gpu.tflops:g} TFLOP/s at "
        f"{machine.utilisation:.0%}"
    )
