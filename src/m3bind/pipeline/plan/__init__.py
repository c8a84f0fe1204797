"""The cost of a run before it starts: time, memory and disk per stage, and what binds each of them.

* `make_plan`: measures the dual encoders, the student, reading and the stages' steps on this machine (`RunPlan`).
* `work_of`, `machine_of`: its arguments. `table.as_text`: the output of `m3bind plan`.

Parts: `workload` (how much there is), `stand_ins` (what is assumed for missing files), `decode_cost`, `tower_cost` and
`step_cost` (measurements), `stage_plans` and `written` (from them to stages and disk), `gpus` (published rates).
"""

import gc
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from m3bind.config import RunConfig
from m3bind.core.children import usable_cores
from m3bind.core.progress import progress
from m3bind.errors import ConfigError, M3BindError, UnknownNameError
from m3bind.models.base import DualEncoder
from m3bind.models.layers.text_encoder import TextEncoder
from m3bind.pipeline.plan import step_cost
from m3bind.pipeline.plan.cost import median_seconds
from m3bind.pipeline.plan.gpus import GPUS
from m3bind.pipeline.plan.remarks import remarks
from m3bind.pipeline.plan.stage_plans import GB, Machine, Measured, StagePlan, stages_of
from m3bind.pipeline.plan.tower_cost import TowerPlan, measure_student, measure_tower, update_seconds
from m3bind.pipeline.plan.workload import Work, work_of
from m3bind.pipeline.plan.written import written_of

__all__ = ["GPUS", "Machine", "RunPlan", "StagePlan", "TowerPlan", "Work", "machine_of", "make_plan", "work_of"]
TOKENISING = 1e-4  # core-seconds of a text whose tokenizer is missing


@dataclass
class RunPlan:
    """The output of `m3bind plan`."""

    towers: list[TowerPlan]
    stages: list[StagePlan]
    disk: dict[str, float]  # bytes by content
    notes: list[str]
    machine: Machine
    gpu: str = ""

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return asdict(self)


def machine_of(config: RunConfig, gpu: str = "", gpus: int = 1, cores: int | None = None, disk: float = 1.0) -> Machine:
    """The machine to plan for.

    Args:
        config: gives the utilisation of a GPU.
        gpu: a name of `GPUS`, or "".
        gpus: their number; each takes a share of every batch.
        cores: that decode; None: those this process may use.
        disk: GB/s.

    Raises:
        UnknownNameError: no such GPU.
        ConfigError: several GPUs, but not which.
    """
    if gpus > 1 and not gpu:
        raise ConfigError(f"--gpus {gpus} needs the kind of GPU too; add --gpu, one of {', '.join(GPUS)}")
    if gpu and gpu not in GPUS:
        raise UnknownNameError("GPU", gpu, GPUS)
    memory = float(psutil.virtual_memory().total)
    return Machine(cores or usable_cores(), disk * GB, memory, GPUS.get(gpu), gpus, config.plan.utilisation)


def make_plan(
    config: RunConfig, assets: Path, work: Work, machine: Machine, notes: list[str], gpu: str = ""
) -> RunPlan:
    """Measure what a run consists of and compute the cost of each stage.

    Args:
        config: the run.
        assets: folder with the tokenizer of untrained models.
        work: numbers of pairs, files and texts.
        machine: see `machine_of`.
        notes: what has been assumed so far.
        gpu: name of the machine's GPU, or "".
    """
    towers: list[tuple[TowerPlan, DualEncoder]] = []
    steps: dict[str, float] = {}
    tokenising: dict[str, float] = {}
    with progress("measure", total=len(config.modalities) + 3) as bar:
        for m in config.modalities:
            tower, model = measure_tower(m, config, assets, work, notes)
            tokenising |= _tokenising(model, work)
            if tower.pretrain:
                steps[f"pretrain {m}"] = step_cost.pretrain_step(tower, model, config)
            step_cost.strip(model, tower.align.image_level, tower.align.text_level)
            towers.append((tower, model))
            gc.collect()
            bar.advance(1)
        student, encoder = measure_student(config, assets, work, notes)
        tokenising |= _tokenising(encoder, work)
        bar.advance(1)
        steps["align"] = step_cost.align_step(towers, config, notes)
        bar.advance(1)
        for phase in ("a", "b"):
            steps[f"distill {phase}"] = step_cost.distill_step(phase, towers, encoder, config)
        bar.advance(1)
    plans = [tower for tower, _ in towers]
    measured = Measured(plans, student, update_seconds(), steps, sum(tokenising.values()))
    stages = stages_of(config, measured, work)
    for stage in stages:
        stage.price(machine)
    notes += remarks(config, plans, stages, machine, gpu)
    return RunPlan(plans, stages, written_of(config, plans, student, work, len(tokenising)), notes, machine, gpu)


def _tokenising(model: DualEncoder | TextEncoder, work: Work) -> dict[str, float]:
    """Core-seconds of tokenising all texts, by the key of the tokenizer."""
    texts = [*work.pool, *(text for rows in work.sample.values() for text in rows)]
    try:
        key = model.tokenizer_key()
        seconds = median_seconds(lambda: model.tokenize(texts), 0.5) / len(texts) if texts else TOKENISING
    except M3BindError:
        return {type(model).__name__: work.texts * TOKENISING}
    return {key: work.texts * seconds}
