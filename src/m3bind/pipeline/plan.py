"""The cost of a run before it starts: parameters, memory, disk and time per stage.

* `make_plan`: measures the dual encoders and the student (`tower_cost`) and computes the cost of each stage.
* `as_text`: the output of `m3bind plan`.
* `GPUS`: published rates and memory of a few devices; times for them are estimates and marked as such.
"""

import gc
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from m3bind.config import RunConfig, TrainConfig
from m3bind.core.progress import progress
from m3bind.errors import UnknownNameError
from m3bind.pipeline.cost import WORKSPACE, Side
from m3bind.pipeline.features import WIDE
from m3bind.pipeline.tower_cost import (
    StudentPlan,
    TowerPlan,
    Work,
    expected_captions,
    measure_student,
    measure_tower,
    update_seconds,
)
from m3bind.report.text_table import aligned

GB = 1e9
FULL, LOW_RANK = 4, 3  # cost of a step in forward passes: two forward passes, and a backward pass to all weights or to
# the activations alone


@dataclass(frozen=True)
class Gpu:
    """Published rates: dense bfloat16 (V100: float16) with float32 accumulation."""

    tflops: float
    memory: float  # GB


GPUS = {
    "v100-32gb": Gpu(125.0, 32),
    "rtx3090": Gpu(71.0, 24),
    "rtx4090": Gpu(165.2, 24),
    "l40s": Gpu(362.0, 48),
    "a100-40gb": Gpu(312.0, 40),
    "a100-80gb": Gpu(312.0, 80),
    "h100-80gb": Gpu(989.0, 80),
}


@dataclass
class StagePlan:
    """Time and memory of one stage."""

    name: str
    steps: int
    seconds_per_step: float
    seconds: float
    memory: float  # bytes at the peak
    flops: float = 0.0  # operations of a step
    gpu_seconds: float | None = None  # estimate


@dataclass
class RunPlan:
    """The output of `m3bind plan`."""

    towers: list[TowerPlan]
    stages: list[StagePlan]
    disk: dict[str, float]  # bytes in the cache, by content
    notes: list[str]
    gpu: str = ""

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return asdict(self)


def make_plan(config: RunConfig, assets: Path, work: Work, gpu: str = "") -> RunPlan:
    """Time a part of a training step of every tower and compute the cost of each stage.

    Args:
        config: the run.
        assets: folder with the tokenizer of untrained models.
        work: numbers of pairs and texts.
        gpu: a name of `GPUS`, or "".

    Raises:
        UnknownNameError: no such GPU.
    """
    if gpu and gpu not in GPUS:
        raise UnknownNameError("GPU", gpu, GPUS)
    notes: list[str] = []
    if not work.known:
        notes.append("the manifest does not exist yet: sizes are those of plan.sizes, lengths that of plan.tokens")
    towers = []
    with progress("measure towers", total=len(config.modalities) + 1) as bar:
        for m in config.modalities:
            towers.append(measure_tower(m, config, assets, work, notes))
            gc.collect()
            bar.advance(1)
        student = measure_student(config, assets, work, notes)
        bar.advance(1)
    update = update_seconds()
    stages = [
        *(_pretraining(config, t, towers, work, update) for t in towers if t.pretrains),
        _closed_form(config, towers, work),
        _alignment(config, towers, work, update),
        _embedding(towers, work),
        *_distillation(config, towers, student, work, update),
    ]
    if gpu:
        for stage in stages:
            stage.gpu_seconds = stage.flops * stage.steps / (GPUS[gpu].tflops * 1e12 * config.plan.utilisation)
            if stage.memory > GPUS[gpu].memory * GB:
                need = f"{stage.memory / GB:.0f} GB here, {gpu} has {GPUS[gpu].memory:.0f} GB"
                notes.append(f"{stage.name}: {need}; lower micro_batch and micro_tokens, or the batch")
        notes.append(
            f"{gpu}: an estimate from its published {GPUS[gpu].tflops:g} TFLOP/s at {config.plan.utilisation:.0%}"
        )
    return RunPlan(towers, stages, _disk(config, towers, work), notes, gpu)


def _weights(towers: Sequence[TowerPlan]) -> float:
    return 4.0 * sum(t.parameters for t in towers)


def _pretraining(config: RunConfig, t: TowerPlan, towers: Sequence[TowerPlan], work: Work, update: float) -> StagePlan:
    settings = config.pretrain_for(t.modality)
    batch = settings.batches.get(t.modality, settings.batch)
    texts = expected_captions(min(batch, t.pairs or batch), work, t.modality)
    step = batch * _full(t.image) + texts * _full(t.text) + update * t.parameters
    activations = sum(_activations(settings, t, batch, texts))
    memory = _weights(towers) + 12.0 * t.parameters + 2 * WORKSPACE * activations  # all weights train: twice as many
    flops = FULL * (batch * t.image.flops + texts * t.text.flops)
    return StagePlan(f"pretrain {t.modality}", settings.steps, step, settings.steps * step, memory, flops)


def _closed_form(config: RunConfig, towers: Sequence[TowerPlan], work: Work) -> StagePlan:
    texts = min(config.align.pool, work.kinds or config.align.pool)
    seconds = sum(texts * t.shared * t.text.forward for t in towers)
    flops = sum(texts * t.shared * t.text.flops for t in towers)
    return StagePlan("closed form", 1, seconds, seconds, _weights(towers), flops)


def _alignment(config: RunConfig, towers: Sequence[TowerPlan], work: Work, update: float) -> StagePlan:
    align = config.align
    trained = sum(t.trained for t in towers)
    step, flops, stored, peak = update * trained, 0.0, 0.0, 0.0
    for t in towers:
        texts = t.captions + t.shared * _distinct(align.shared_batch, work.kinds)
        step += t.batch * t.image.training + texts * t.text.training
        flops += LOW_RANK * (t.batch * t.image.flops * (t.image.training > 0) + texts * t.text.flops)
        whole, part = _activations(align, t, t.batch, texts)
        stored += whole + (t.batch * t.input_bytes if align.image == "lora" else 0.0)
        peak = max(peak, part)
    memory = _weights(towers) + 12.0 * trained + stored + WORKSPACE * peak
    return StagePlan("align", align.steps, step, align.steps * step, memory, flops)


def _embedding(towers: Sequence[TowerPlan], work: Work) -> StagePlan:
    seconds = sum(t.pairs * t.image.forward + work.kinds * t.shared * t.text.forward for t in towers)
    flops = sum(t.pairs * t.image.flops + work.kinds * t.shared * t.text.flops for t in towers)
    memory = _weights(towers) + max(t.input_bytes for t in towers)
    return StagePlan("embed for distillation", 1, seconds, seconds, memory, flops)


def _distillation(
    config: RunConfig, towers: Sequence[TowerPlan], student: StudentPlan, work: Work, update: float
) -> list[StagePlan]:
    distill = config.distill
    sizes = {m: min(distill.batches.get(m, distill.batch), work.pairs[m] or 1 << 62) for m in config.modalities}
    batches = sum(expected_captions(size, work, m) for m, size in sizes.items())
    memory = _weights(towers) + 4.0 * student.parameters + 12.0 * student.trained
    shared = student.shared * _distinct(distill.shared_batch, work.kinds)
    stages = []
    for name, steps, texts in (("distill a", distill.steps, shared), ("distill b", distill.steps_b, shared + batches)):
        activations = WORKSPACE * _texts(distill, texts, student.tokens) * student.text.kept
        seconds = texts * student.text.training + update * student.trained
        flops = FULL * texts * student.text.flops
        stages.append(StagePlan(name, steps, seconds, steps * seconds, memory + activations, flops))
    return stages


def _distinct(draws: float, kinds: int) -> float:
    """Expected number of distinct texts among `draws` of `kinds`, with replacement."""
    return kinds * (1 - (1 - 1 / kinds) ** draws) if kinds else draws


def _full(side: Side) -> float:
    """Seconds of an item if all weights train: the backward pass computes weight gradients as well."""
    return 5.0 * side.forward if side.training == 0 else side.training + side.forward


def _activations(settings: TrainConfig, t: TowerPlan, images: int, texts: float) -> tuple[float, float]:
    """Bytes of activations: those stored until the backward pass, and those of the largest recomputed part."""
    micro = settings.micro(t.modality)
    recomputed = micro and not t.recomputes
    image = (0.0, min(micro, images) * t.image.kept) if recomputed else (images * t.image.kept, 0.0)
    size = _texts(settings, texts, t.tokens) * t.text.kept
    text = (0.0, size) if settings.micro_tokens else (size, 0.0)
    return image[0] + text[0], max(image[1], text[1])


def _texts(settings: TrainConfig, count: float, tokens: int) -> float:
    return min(count, settings.micro_tokens / tokens) if settings.micro_tokens else float(count)


def _disk(config: RunConfig, towers: Sequence[TowerPlan], work: Work) -> dict[str, float]:
    """Bytes in the cache."""
    sizes: dict[str, float] = {}
    for t in towers:
        total = float(t.pairs * t.input_bytes)
        if total <= config.data.inputs_gb * GB:
            sizes[f"{t.modality} inputs"] = total
        image, text = t.widths
        sizes[f"{t.modality} image features"] = 4.0 * t.pairs * (image if image <= WIDE else t.joint_dim)
        sizes[f"{t.modality} text features"] = 4.0 * work.kinds * text
    return sizes


def as_text(plan: RunPlan) -> str:
    """The plan as tables for a terminal."""
    head = ("modality", "model", "pairs", "parameters", "trained", "dim", "input", "batch", "image s", "text s")
    rows = [
        (
            t.modality,
            t.model + ("" if t.weights_present else " *"),
            f"{t.pairs:,}",
            f"{t.parameters / 1e6:.1f} M",
            f"{t.trained / 1e6:.2f} M",
            str(t.joint_dim),
            "x".join(map(str, t.input_shape)),
            f"{t.batch} in {t.micro}s",
            f"{t.image.training or t.image.forward:.3g}",
            f"{t.text.training or t.text.forward:.3g}",
        )
        for t in plan.towers
    ]
    titles = ["stage", "steps", "s/step", "time here", "memory"] + ([f"time on {plan.gpu} *"] if plan.gpu else [])
    stages = [
        (
            s.name,
            f"{s.steps:,}",
            f"{s.seconds_per_step:.3g}",
            duration(s.seconds),
            f"{s.memory / GB:.1f} GB",
            *([duration(s.gpu_seconds or 0.0)] if plan.gpu else []),
        )
        for s in plan.stages
    ]
    disk = [f"  {name}: {size / GB:.2f} GB" for name, size in plan.disk.items() if size >= 0.005 * GB]
    lines = [
        *aligned([head, *rows]),
        "",
        *aligned([titles, *stages]),
        "",
        f"cached on disk: {sum(plan.disk.values()) / GB:.2f} GB",
    ]
    return "\n".join([*lines, *disk, *([""] if plan.notes else []), *(f"* {note}" for note in plan.notes)])


def duration(seconds: float) -> str:
    """Seconds as "3.2 s", "12 min", "5.1 h" or "210 days"."""
    for limit, unit, divisor in ((90.0, "s", 1.0), (5400.0, "min", 60.0), (172800.0, "h", 3600.0)):
        if seconds < limit:
            return f"{seconds / divisor:.3g} {unit}"
    return f"{seconds / 86400:.3g} days"
