"""What a run will take, before anything is run: parameters, memory, disk and time per stage.

* `work_of`: how much there is to do, from the manifest, or from the settings while there is none.
* `make_plan`: builds the towers one at a time, times a small part of a step of each, and adds up.
* `as_text`: what `m3bind plan` prints.
* `GPUS`: published rates and memory of a few devices; times for them are estimates and marked as such.

What is timed and how: see `m3bind.pipeline.cost`.
"""

import contextlib
import gc
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from m3bind.align.balance import sampling_probabilities
from m3bind.align.stage import set_trainable
from m3bind.config import RunConfig, TrainConfig
from m3bind.core.progress import progress
from m3bind.data.texts import concept_phrases
from m3bind.errors import M3BindError, UnknownNameError
from m3bind.models.base import DualEncoder, Tokens
from m3bind.pipeline.cost import DEEP, WORKSPACE, Side, median_seconds, time_side, time_volumes
from m3bind.pipeline.dataset import build_model
from m3bind.pipeline.features import WIDE, levels
from m3bind.training.loop import autocast

GB = 1e9
TEXTS = 8  # timed together
FULL, LOW_RANK = 4, 3  # passes of a step in operations of one forward pass: two forwards, and backwards to all weights
# or to the activations alone


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
class Work:
    """What there is to train on."""

    pairs: dict[str, int]  # training pairs per modality
    captions: dict[str, int]  # distinct texts of them
    sample: dict[str, list[str]]  # some captions of each modality; {} while there are none
    pool: list[str]  # some texts of the shared pool, which holds short phrases, too
    kinds: int  # distinct texts of the pool
    known: bool  # from a manifest, not from the settings


@dataclass
class TowerPlan:
    """One modality's dual encoder, as planned."""

    modality: str
    model: str
    pairs: int
    weights_present: bool
    recomputes: bool  # its image trunk computes activations again by itself
    parameters: int
    trained: int  # in stage 1
    joint_dim: int
    input_shape: tuple[int, ...]
    tokens: int  # of a caption, on average
    shared: float  # length of a text of the shared pool, as a share of that
    batch: int
    captions: float  # distinct captions of a batch
    micro: int
    image: Side = field(default_factory=Side)
    text: Side = field(default_factory=Side)
    pretrains: bool = False
    widths: tuple[int, int] = (0, 0)  # of the trunks' features: image, text

    @property
    def input_bytes(self) -> int:
        """Of one model input, float32."""
        return 4 * math.prod(self.input_shape)


@dataclass
class Student:
    """The shared text encoder, as planned."""

    parameters: int
    trained: int
    tokens: int  # of a caption, on average over modalities
    shared: float  # length of a text of the shared pool, as a share of that
    text: Side


@dataclass
class StagePlan:
    """Time and memory of one stage."""

    name: str
    steps: int
    seconds_per_step: float
    seconds: float
    memory: float  # bytes at the peak
    flops: float = 0.0  # operations of a step
    gpu_seconds: float | None = None  # an estimate


@dataclass
class RunPlan:
    """Everything `m3bind plan` says."""

    towers: list[TowerPlan]
    stages: list[StagePlan]
    disk: dict[str, float]  # bytes kept in the cache, by what they are
    notes: list[str]
    gpu: str = ""

    def to_json(self) -> dict[str, Any]:
        """All figures as plain values."""
        return asdict(self)


def work_of(config: RunConfig, folder: Path, cache: Path) -> tuple[Work, Path]:
    """The run's training pairs and texts, and the folder with the tokenizer of models that start from nothing.

    Args:
        config: the run.
        folder: for what is made on the way; may be temporary.
        cache: the runs' shared cache (virtual patients are made there).
    """
    from m3bind.pipeline.run import Run

    names = list(config.modalities)
    manifest = config.data.manifest
    if config.data.phantom is None and (manifest is None or not Path(manifest).exists()):
        sizes = {m: config.plan.sizes.get(m, 0) for m in names}
        return Work(sizes, dict(sizes), {}, [], sum(sizes.values()), False), folder
    run = Run(config, folder, cache)
    records, _ = run.read_records()
    train = [record for record in records if record.split == "train"]
    texts = {m: {c for r in train if r.modality == m for c in r.captions} for m in names}
    pools = {
        m: sorted(texts[m].union(*(concept_phrases(c) for r in train if r.modality == m for c in r.concepts)))
        for m in names
    }
    pairs = {m: sum(r.modality == m for r in train) for m in names}
    captions = {m: len(texts[m]) for m in names}
    sample = {m: _some(sorted(texts[m])) for m in names}
    shares = sampling_probabilities({m: max(pairs[m], 1) for m in names}, config.align.balance.beta)
    pool = [text for m in names for text in _some(pools[m], round(200 * shares[m]))]  # as Eq. 3 draws them
    return Work(pairs, captions, sample, pool, len(set().union(*pools.values())), True), run.make_assets(records)


def _some(texts: Sequence[str], count: int = 60) -> list[str]:
    """`count` texts at even distances, fewer texts several times."""
    return [texts[i * len(texts) // count] for i in range(count)] if texts else []


def make_plan(config: RunConfig, assets: Path, work: Work, gpu: str = "") -> RunPlan:
    """Time a part of a step of every tower and add up.

    Args:
        config: the run.
        assets: folder with the tokenizer of models that start from nothing.
        work: what there is to train on.
        gpu: a name of `GPUS`, or "".

    Raises:
        UnknownNameError: no such GPU.
    """
    if gpu and gpu not in GPUS:
        raise UnknownNameError("GPU", gpu, GPUS)
    notes: list[str] = []
    if not work.known:
        notes.append("the manifest is not there yet: sizes are those of plan.sizes, lengths that of plan.tokens")
    towers = []
    with progress("measure towers", total=len(config.modalities) + 1) as bar:
        for m in config.modalities:
            towers.append(_measure(m, config, assets, work, notes))
            gc.collect()
            bar.advance(1)
        student = _measure_student(config, assets, work, notes)
        bar.advance(1)
    stages = _stages(config, towers, student, work)
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


# ---- one tower -------------------------------------------------------------------------------------------------------


def _measure(m: str, config: RunConfig, assets: Path, work: Work, notes: list[str]) -> TowerPlan:
    settings, align = config.modalities[m], config.align
    present = settings.checkpoint is None or Path(settings.checkpoint).exists()
    if not present:
        notes.append(f"{m}: {settings.checkpoint} is not there yet; measured with random weights")
        settings = settings.model_copy(update={"checkpoint": None})
    model = build_model(m, settings, assets)
    shape = input_shape(model, m)
    batch = min(align.batches.get(m, align.batch), work.pairs[m] or 1 << 62)
    tower = TowerPlan(
        m,
        settings.model,
        work.pairs[m],
        present,
        bool(getattr(model.image_trunk, "recomputes", False)),
        sum(p.numel() for p in model.parameters()),
        0,
        model.joint_dim,
        shape,
        0,
        1.0,
        batch,
        _captions(batch, work, m),
        min(align.micro(m) or batch, batch),
        pretrains=config.modalities[m].pretrain,
    )
    tower.tokens, tower.shared = _lengths(model, work.sample.get(m, []), work.pool, config)
    image_level, text_level = levels(config, model, "align")
    set_trainable(model, align)
    tower.trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    tower.widths = _width(model.image_head, model.joint_dim), _width(model.text_head, model.joint_dim)
    rows = min(tower.micro, 8)
    trains_image, trains_text = image_level == "input", text_level == "input"
    with autocast(align, torch.device("cpu")):
        tower.image = _image_side(model, shape, rows, trains_image, align.micro(m) > 0)
        tokens = _tokens(model, tower.tokens)
        tower.text = time_side(model, model.encode_text, tokens, TEXTS, trains_text, align.micro_tokens > 0)
    return tower


def _lengths(model: Any, captions: Sequence[str], pool: Sequence[str], config: RunConfig) -> tuple[int, float]:
    """Mean tokens of a caption, and those of a text of the shared pool as a share of that; padding costs nothing."""
    own, shared = (_length(model, texts, config) for texts in (captions, pool))
    return round(own), shared / own


def _length(model: Any, texts: Sequence[str], config: RunConfig) -> float:
    with contextlib.suppress(M3BindError):
        if texts:
            return max(2.0, float(model.tokenize(texts)["attention_mask"].sum(1).float().mean()))
    return float(min(config.plan.tokens, int(model.max_tokens)))


def _distinct(draws: float, kinds: int) -> float:
    """Expected number of different texts among `draws` of `kinds`, with replacement."""
    return kinds * (1 - (1 - 1 / kinds) ** draws) if kinds else draws


def _captions(batch: float, work: Work, m: str) -> float:
    """Expected number of different captions of `batch` pairs, drawn without replacement."""
    pairs, kinds = work.pairs[m], work.captions[m]
    if not pairs or not kinds:
        return batch
    return float(kinds * (1 - (1 - min(batch / pairs, 1.0)) ** (pairs / kinds)))


def input_shape(model: DualEncoder, modality: str) -> tuple[int, ...]:
    """Shape of one model input, found by preprocessing a blank sample, first of the modality's own kind."""
    import numpy as np

    from m3bind.modalities.base import Sample

    blanks = [
        Sample("ct", np.zeros((8, 64, 64), np.float32), spacing=(3.0, 1.5, 1.5)),
        Sample("ecg", np.zeros((12, 5000), np.float32), rate=500.0),
        Sample("retina", np.zeros((64, 64, 3), np.float32)),
        Sample("xray", np.zeros((64, 64), np.float32)),
    ]
    for sample in sorted(blanks, key=lambda s: s.modality != modality):
        try:
            return tuple(model.preprocess(sample).shape)
        except M3BindError:
            continue
    raise M3BindError(f"{model.registered_name}: takes none of the known kinds of data")


def _tokens(model: Any, length: int) -> Tokens:
    """A few texts of one word's first token, `length` tokens each, an end-of-text token where CLIP wants one."""
    length = min(length, model.max_tokens)
    word = model.tokenize(["a"])["input_ids"][0]
    ids = word[min(1, len(word) - 1)].repeat(TEXTS, length).long()
    ids[:, -1] = getattr(model, "end_of_text", ids[0, -1])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _image_side(model: DualEncoder, shape: tuple[int, ...], rows: int, trains: bool, again: bool) -> Side:
    again = again and not getattr(model.image_trunk, "recomputes", False)
    if len(shape) == 4 and shape[1] > DEEP[1]:
        return time_volumes(model, model.encode_image, shape, trains=trains, again=again)
    return time_side(model, model.encode_image, torch.zeros(rows, *shape), rows, trains, again)


def _measure_student(config: RunConfig, assets: Path, work: Work, notes: list[str]) -> Student:
    from m3bind.models.layers.text_encoder import TextEncoder, make_text_encoder

    settings = config.distill.student
    try:
        student = make_text_encoder(settings.text, dim=config.align.dim, assets=assets, **settings.settings)
    except M3BindError:
        notes.append(f"student: {settings.text} is not there yet; measured as a BERT-base with random weights")
        student = _bert_base(config.align.dim)
    student.requires_grad_(settings.train == "full")
    student.head.requires_grad_(True)
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    assert isinstance(student, TextEncoder)
    captions = [text for texts in work.sample.values() for text in texts]
    distill, count = config.distill, sum(p.numel() for p in student.parameters())
    length, shared = _lengths(student, captions, work.pool, config)
    with autocast(distill, torch.device("cpu")):
        side = time_side(student, student.encode, _tokens(student, length), TEXTS, True, distill.micro_tokens > 0)
    return Student(count, trained, length, shared, side)


def _batches(config: RunConfig, work: Work) -> float:
    """Different captions of the batches of all modalities in phase B."""
    distill = config.distill
    sizes = {m: min(distill.batches.get(m, distill.batch), work.pairs[m] or 1 << 62) for m in config.modalities}
    return sum(_captions(size, work, m) for m, size in sizes.items())


def _update_seconds(parameters: int = 10_000_000) -> float:
    """Seconds AdamW and the clipping of gradients take for one trained parameter."""
    weights = nn.Parameter(torch.zeros(parameters))
    weights.grad = torch.ones(parameters)
    optimizer = torch.optim.AdamW([weights])

    def update() -> None:
        torch.nn.utils.clip_grad_norm_([weights], 1.0)
        optimizer.step()

    update()
    return median_seconds(update) / parameters


def _bert_base(dim: int) -> Any:
    from m3bind.models.layers.heads import make_head
    from m3bind.models.layers.text_encoder import TextEncoder
    from m3bind.models.layers.tokenizer import train_wordpiece
    from m3bind.models.published import bert_trunk

    plain = train_wordpiece(["a text"], minimum=1)
    return TextEncoder(bert_trunk(28996, "mean"), make_head("linear", 768, dim), plain, 256)


# ---- adding up -------------------------------------------------------------------------------------------------------


def _stages(config: RunConfig, towers: Sequence[TowerPlan], student: Student, work: Work) -> list[StagePlan]:
    update = _update_seconds()
    return [
        *(_pretraining(config, t, towers, work, update) for t in towers if t.pretrains),
        _closed_form(config, towers, work),
        _alignment(config, towers, work, update),
        _embedding(towers, work),
        *_distillation(config, towers, student, work, update),
    ]


def _weights(towers: Sequence[TowerPlan]) -> float:
    return 4.0 * sum(t.parameters for t in towers)


def _pretraining(config: RunConfig, t: TowerPlan, towers: Sequence[TowerPlan], work: Work, update: float) -> StagePlan:
    settings = config.pretrain_for(t.modality)
    batch = settings.batches.get(t.modality, settings.batch)
    texts = _captions(min(batch, t.pairs or batch), work, t.modality)
    step = batch * _full(t.image) + texts * _full(t.text) + update * t.parameters
    kept = _kept(settings, t, batch, texts)
    memory = _weights(towers) + 12.0 * t.parameters + 2 * WORKSPACE * sum(kept)  # all train: twice the activations
    flops = FULL * (batch * t.image.flops + texts * t.text.flops)
    return StagePlan(f"pretrain {t.modality}", settings.steps, step, settings.steps * step, memory, flops)


def _closed_form(config: RunConfig, towers: Sequence[TowerPlan], work: Work) -> StagePlan:
    texts = min(config.align.pool, work.kinds or config.align.pool)
    seconds, flops = (
        sum(texts * t.shared * getattr(t.text, figure) for t in towers) for figure in ("forward", "flops")
    )
    return StagePlan("closed form", 1, seconds, seconds, _weights(towers), flops)


def _alignment(config: RunConfig, towers: Sequence[TowerPlan], work: Work, update: float) -> StagePlan:
    align = config.align
    trained = sum(t.trained for t in towers)
    step, flops, held, peak = update * trained, 0.0, 0.0, 0.0
    for t in towers:
        texts = t.captions + t.shared * _distinct(align.shared_batch, work.kinds)
        step += t.batch * t.image.training + texts * t.text.training
        flops += LOW_RANK * (t.batch * t.image.flops * (t.image.training > 0) + texts * t.text.flops)
        always, part = _kept(align, t, t.batch, texts)
        held += always + (t.batch * t.input_bytes if align.image == "lora" else 0.0)
        peak = max(peak, part)
    memory = _weights(towers) + 12.0 * trained + held + WORKSPACE * peak
    return StagePlan("align", align.steps, step, align.steps * step, memory, flops)


def _embedding(towers: Sequence[TowerPlan], work: Work) -> StagePlan:
    seconds, flops = (
        sum(t.pairs * getattr(t.image, figure) + work.kinds * t.shared * getattr(t.text, figure) for t in towers)
        for figure in ("forward", "flops")
    )
    memory = _weights(towers) + max(t.input_bytes for t in towers)
    return StagePlan("embed for distillation", 1, seconds, seconds, memory, flops)


def _distillation(
    config: RunConfig, towers: Sequence[TowerPlan], student: Student, work: Work, update: float
) -> list[StagePlan]:
    distill = config.distill
    batches = _batches(config, work)
    memory = _weights(towers) + 4.0 * student.parameters + 12.0 * student.trained
    shared = student.shared * _distinct(distill.shared_batch, work.kinds)
    stages = []
    for name, steps, texts in (("distill a", distill.steps, shared), ("distill b", distill.steps_b, shared + batches)):
        grown = WORKSPACE * _texts(distill, texts, student.tokens) * student.text.kept
        seconds = texts * student.text.training + update * student.trained
        flops = FULL * texts * student.text.flops
        stages.append(StagePlan(name, steps, seconds, steps * seconds, memory + grown, flops))
    return stages


def _full(side: Side) -> float:
    """Seconds of an item where all weights train: the backward pass computes weight gradients as well."""
    return 5.0 * side.forward if side.training == 0 else side.training + side.forward


def _kept(settings: TrainConfig, t: TowerPlan, images: int, texts: float) -> tuple[float, float]:
    """Bytes of activations: kept until the backward pass, and of the largest part that is computed again."""
    micro, kept = settings.micro(t.modality), images * t.image.kept
    image = (kept, 0.0) if t.recomputes or not micro else (0.0, min(micro, images) * t.image.kept)
    few = _texts(settings, texts, t.tokens) * t.text.kept
    text = (0.0, few) if settings.micro_tokens else (few, 0.0)
    return image[0] + text[0], max(image[1], text[1])


def _texts(settings: TrainConfig, count: float, tokens: int) -> float:
    return min(count, settings.micro_tokens / tokens) if settings.micro_tokens else float(count)


def _disk(config: RunConfig, towers: Sequence[TowerPlan], work: Work) -> dict[str, float]:
    """Bytes the cache will hold."""
    found: dict[str, float] = {}
    for t in towers:
        total = float(t.pairs * t.input_bytes)
        if total <= config.data.inputs_gb * GB:
            found[f"{t.modality} inputs"] = total
        image, text = t.widths
        found[f"{t.modality} image features"] = 4.0 * t.pairs * (image if image <= WIDE else t.joint_dim)
        found[f"{t.modality} text features"] = 4.0 * work.kinds * text
    return found


def _width(head: nn.Module, otherwise: int) -> int:
    """Width of what a head takes: that of its first linear layer."""
    linear = next((part for part in head.modules() if isinstance(part, nn.Linear)), None)
    return otherwise if linear is None else linear.in_features


# ---- in words --------------------------------------------------------------------------------------------------------


def as_text(plan: RunPlan) -> str:
    """Tables for people."""
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
        *_table(head, rows),
        "",
        *_table(titles, stages),
        "",
        f"kept on disk: {sum(plan.disk.values()) / GB:.2f} GB",
    ]
    return "\n".join([*lines, *disk, *([""] if plan.notes else []), *(f"* {note}" for note in plan.notes)])


def duration(seconds: float) -> str:
    """Seconds as "3.2 s", "12 min", "5.1 h" or "210 days"."""
    for limit, unit, divisor in ((90.0, "s", 1.0), (5400.0, "min", 60.0), (172800.0, "h", 3600.0)):
        if seconds < limit:
            return f"{seconds / divisor:.3g} {unit}"
    return f"{seconds / 86400:.3g} days"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in (head, *rows)]
