"""A plan as tables for a terminal. `as_text`: the tables; `duration`: seconds in the fitting unit."""

from collections.abc import Callable

from m3bind.pipeline.plan import RunPlan
from m3bind.pipeline.plan.stage_plans import GB, StagePlan
from m3bind.report.text_table import aligned


def as_text(plan: RunPlan) -> str:
    """Towers, stages here and on the GPU, disk, and remarks."""
    lines = [*aligned(_towers(plan)), "", *aligned(_stages(plan, "this machine", _here)), ""]
    if plan.machine.gpu:
        lines += [*aligned(_stages(plan, f"{plan.machine.gpus} x {plan.gpu} *", _on_gpu)), ""]
    lines.append(f"written to disk: {sum(plan.disk.values()) / GB:,.2f} GB")
    lines += [f"  {name}: {size / GB:,.2f} GB" for name, size in plan.disk.items() if size >= 0.005 * GB]
    return "\n".join([*lines, "", *(f"* {note}" for note in plan.notes)])


def _towers(plan: RunPlan) -> list[tuple[str, ...]]:
    head = (
        "modality", "model", "pairs", "files", "parameters", "trained", "dim", "input", "batch", "image s", "text s",
        "file s",
    )  # fmt: skip
    rows = [
        (
            t.modality,
            t.model + ("" if t.weights_present else " *"),
            f"{t.pairs:,}",
            f"{t.files:,}",
            f"{t.parameters / 1e6:.1f} M",
            f"{t.trained / 1e6:.2f} M",
            str(t.joint_dim),
            "x".join(map(str, t.input_shape)),
            f"{t.align.batch} in {t.micro}s",
            f"{t.image.training or t.image.forward:.3g}",
            f"{t.text.training or t.text.forward:.3g}",
            f"{t.decode.seconds:.3g}",
        )
        for t in plan.towers
    ]
    return [head, *rows]


def _stages(
    plan: RunPlan, where: str, row: Callable[[StagePlan], tuple[float, float, float, float, str]]
) -> list[tuple[str, ...]]:
    """`row`: seconds of compute and core-seconds of decoding of a step; seconds, bytes of memory, what binds."""
    rows: list[tuple[str, ...]] = [("on " + where, "steps", "compute", "decode", "disk", "memory", "time", "binds")]
    total = 0.0
    for stage in plan.stages:
        compute, decode, seconds, memory, binds = row(stage)
        total += seconds
        times = (compute, decode / plan.machine.cores, stage.disk / plan.machine.disk)
        rows.append(
            (
                stage.name,
                f"{stage.steps:,}",
                *(_span(stage.steps * time) for time in times),
                f"{memory / GB:.1f} GB",
                duration(seconds),
                binds,
            )
        )
    return [*rows, ("all", "", "", "", "", "", duration(total), "")]


def _here(stage: StagePlan) -> tuple[float, float, float, float, str]:
    return stage.compute + stage.augmenting, stage.decode, stage.seconds, stage.memory, stage.binds


def _on_gpu(stage: StagePlan) -> tuple[float, float, float, float, str]:
    return stage.gpu_compute, stage.decode + stage.augmenting, stage.gpu_seconds, stage.gpu_memory, stage.gpu_binds


def _span(seconds: float) -> str:
    return duration(seconds) if seconds else "-"


def duration(seconds: float) -> str:
    """Seconds as "3.2 s", "12 min", "5.1 h" or "210 days"."""
    for limit, unit, divisor in ((90.0, "s", 1.0), (5400.0, "min", 60.0), (172800.0, "h", 3600.0)):
        if seconds < limit:
            return f"{seconds / divisor:.3g} {unit}"
    return f"{seconds / 86400:.3g} days"
