"""What a run will take, before anything is run: parameters, memory, disk and time per stage.

* `work_of`: how much there is to do, from the manifest, or from the settings while there is none.
* `make_plan`: builds the towers one at a time, times a small part of a step of each, and adds up.
* `as_text`: what `m3bind plan` prints.
* `GPUS`: published rates and memory of a few devices; times for them are estimates and marked as such.

A step is timed as training computes it: each part of a batch passes its tower once without and once with gradients
(see `training.pairs.in_parts`), then backwards. Volumes are timed at two smaller depths and extended in a line.

Shapes: n items of a part, L tokens, D slices.
"""

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from m3bind.binding import lora
from m3bind.binding.balance import sampling_probabilities
from m3bind.config import AlignConfig, RunConfig, TrainConfig
from m3bind.data.texts import concept_phrases
from m3bind.errors import M3BindError, UnknownNameError
from m3bind.models.base import DualEncoder, Tokens
from m3bind.prepare import WIDE, build_model, levels
from m3bind.progress import progress
from m3bind.training.loop import autocast

GB = 1e9
DEEP = (20, 60)  # slices at which a larger volume is timed
WORKSPACE = 1.25  # what operators need beside the activations they keep


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
class Side:
    """Cost of one item (an image, or a text of the usual length) of one tower."""

    forward: float = 0.0  # seconds, without gradients
    training: float = 0.0  # seconds: forward, forward with gradients, backward
    kept: float = 0.0  # bytes of activations kept for the backward pass
    flops: float = 0.0  # of one forward pass


@dataclass
class Tower:
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
    stage0: bool = False

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
class Stage:
    """Time and memory of one stage."""

    name: str
    steps: int
    seconds_per_step: float
    seconds: float
    memory: float  # bytes at the peak
    gpu_seconds: float | None = None  # an estimate


@dataclass
class Plan:
    """Everything `m3bind plan` says."""

    towers: list[Tower]
    stages: list[Stage]
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
    from m3bind.fit import Run

    names = list(config.modalities)
    manifest = config.data.manifest
    if config.data.phantom is None and (manifest is None or not Path(manifest).exists()):
        sizes = {m: config.plan.sizes.get(m, 0) for m in names}
        return Work(sizes, dict(sizes), {}, [], sum(sizes.values()), False), folder
    run = Run(config, folder, cache)
    train = [record for record in run.records[0] if record.split == "train"]
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
    return Work(pairs, captions, sample, pool, len(set().union(*pools.values())), True), run.assets


def _some(texts: Sequence[str], count: int = 60) -> list[str]:
    """`count` texts at even distances, fewer texts several times."""
    return [texts[i * len(texts) // count] for i in range(count)] if texts else []


def make_plan(config: RunConfig, assets: Path, work: Work, gpu: str = "") -> Plan:
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
        flops = _step_flops(config, towers, student)
        for stage in stages:
            rate = GPUS[gpu].tflops * 1e12 * config.plan.utilisation
            stage.gpu_seconds = flops.get(stage.name, 0.0) * stage.steps / rate
        notes.append(
            f"{gpu}: an estimate from its published {GPUS[gpu].tflops:g} TFLOP/s at {config.plan.utilisation:.0%}"
        )
    return Plan(towers, stages, _disk(config, towers, work), notes, gpu)


# ---- one tower -------------------------------------------------------------------------------------------------------


def _measure(m: str, config: RunConfig, assets: Path, work: Work, notes: list[str]) -> Tower:
    settings, align = config.modalities[m], config.align
    present = settings.checkpoint is None or Path(settings.checkpoint).exists()
    if not present:
        notes.append(f"{m}: {settings.checkpoint} is not there yet; measured with random weights")
        settings = settings.model_copy(update={"checkpoint": None})
    model = build_model(m, settings, assets)
    shape = input_shape(model, m)
    batch = min(align.batches.get(m, align.batch), work.pairs[m] or 1 << 62)
    tower = Tower(
        m,
        settings.model,
        work.pairs[m],
        present,
        bool(getattr(model.image_trunk, "recomputes", False)),
        sum(p.numel() for p in model.parameters()),
        0,
        model.joint_dim,
        shape,
        round(_length(model, work.sample.get(m, []), config)),
        _length(model, work.pool, config) / _length(model, work.sample.get(m, []), config),
        batch,
        _distinct(batch, work.captions[m]),
        min(align.micro(m) or batch, batch),
        stage0=config.modalities[m].pretrain,
    )
    image_level, text_level = levels(config, model, "align")
    _open(model, align, tower)
    rows = min(tower.micro, 8)
    trains_image, trains_text = image_level == "input", text_level == "input"
    with autocast(align, torch.device("cpu")):
        tower.image = _image_side(model, shape, rows, trains_image, align.micro(m) > 0)
        tower.text = _text_side(model.encode_text, _tokens(model, tower.tokens), trains_text, align.micro_tokens > 0)
    return tower


def _length(model: Any, texts: Sequence[str], config: RunConfig) -> float:
    """Mean number of tokens of some texts."""
    with contextlib.suppress(M3BindError):
        if texts:
            return max(2.0, float(model.tokenize(texts)["attention_mask"].sum(1).float().mean()))
    return float(min(config.plan.tokens, int(model.max_tokens)))


def _distinct(draws: float, kinds: int) -> float:
    """Expected number of different texts among `draws` of `kinds`."""
    return kinds * (1 - (1 - 1 / kinds) ** draws) if kinds else draws


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


def _open(model: DualEncoder, align: AlignConfig, tower: Tower) -> None:
    """Adapters as stage 1 puts them in."""
    model.requires_grad_(False)
    if align.text == "lora":
        lora.inject(model, "text", align.lora)
    elif align.text == "head":
        model.text_head.requires_grad_(True)
    if align.image == "lora":
        lora.inject(model, "image", align.lora)
    elif align.image == "head":
        model.image_head.requires_grad_(True)
    lora.freeze_drifting(model)
    tower.trained = sum(p.numel() for p in model.parameters() if p.requires_grad)


def _tokens(model: Any, length: int) -> Tokens:
    """Eight texts of ids every vocabulary has, `length` tokens each, an end-of-text token where CLIP wants one."""
    length = min(length, model.max_tokens)
    ids = torch.randint(1000, 2000, (8, length), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = getattr(model, "end_of_text", ids[0, -1])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _image_side(model: DualEncoder, shape: tuple[int, ...], rows: int, trains: bool, again: bool) -> Side:
    depth = shape[1] if len(shape) == 4 else 0
    again = again and not getattr(model.image_trunk, "recomputes", False)
    if depth <= DEEP[1]:
        return _time(model.encode_image, torch.zeros(rows, *shape), rows, trains, again)
    low, high = (
        _time(model.encode_image, torch.zeros(1, shape[0], slices, *shape[2:]), 1, trains, again) for slices in DEEP
    )
    share = (depth - DEEP[1]) / (DEEP[1] - DEEP[0])
    figures = {key: value + (value - getattr(low, key)) * share for key, value in asdict(high).items()}
    return Side(**figures)


def _text_side(encode: Callable[[Tokens], Tensor], tokens: Tokens, trains: bool, again: bool) -> Side:
    return _time(encode, tokens, len(tokens["input_ids"]), trains, again)


def _time(encode: Callable[[Any], Tensor], batch: Any, rows: int, trains: bool, again: bool = True) -> Side:
    """Seconds, kept bytes and operations of one of `rows` items; `again`: the forward pass runs twice in training."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encode(batch)  # also the warm-up

    def forward() -> None:
        with torch.no_grad():
            encode(batch)

    seconds = _median_seconds(forward)
    side = Side(seconds / rows, 0.0, 0.0, counter.get_total_flops() / rows)
    if trains:
        with _kept_bytes() as kept:
            encode(batch)
        grown = _growth(lambda: _forward_and_back(encode, batch, again)) / WORKSPACE
        side.kept = max(kept[0], grown) / rows
        side.training = _median_seconds(lambda: _forward_and_back(encode, batch, again)) / rows
    return side


def _forward_and_back(encode: Callable[[Any], Tensor], batch: Any, again: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    torch.manual_seed(0)
    out: Tensor = checkpoint(encode, batch, use_reentrant=False) if again else encode(batch)
    if out.requires_grad:
        out.sum().backward()  # type: ignore[no-untyped-call]


def _median_seconds(call: Callable[[], None], budget: float = 4.0) -> float:
    """Median of up to three calls, as long as they fit into `budget` seconds."""
    found: list[float] = []
    while not found or (len(found) < 3 and sum(found) + found[-1] < budget):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return median(found)


def _growth(call: Callable[[], None]) -> float:
    """Bytes by which this process grew at most during `call`; 0 where the system does not tell (not Linux)."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        clear.write_text("5", encoding="ascii")  # the peak starts at what is used now
        before = _status(status, "VmRSS")
        call()
        return max(0.0, _status(status, "VmHWM") - before)
    except OSError:
        return 0.0


def _status(path: Path, name: str) -> float:
    line = next(line for line in path.read_text(encoding="ascii").splitlines() if line.startswith(name))
    return 1024.0 * float(line.split()[1])


@contextmanager
def _kept_bytes() -> Iterator[list[float]]:
    """Counts the bytes that the graph built inside keeps for its backward pass, parameters excluded."""
    seen: dict[int, int] = {}
    total = [0.0]

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total
    total[0] = float(sum(seen.values()))


def _measure_student(config: RunConfig, assets: Path, work: Work, notes: list[str]) -> Student:
    from m3bind.models.text_encoder import TextEncoder, make_text_encoder

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
    length, micro = _length(student, captions, config), config.distill.micro_tokens
    with autocast(config.distill, torch.device("cpu")):
        side = _text_side(student.encode, _tokens(student, round(length)), True, micro > 0)
    count = sum(p.numel() for p in student.parameters())
    return Student(count, trained, round(length), _length(student, work.pool, config) / length, side)


def _update_seconds(parameters: int = 10_000_000) -> float:
    """Seconds AdamW and the clipping of gradients take for one trained parameter."""
    weights = nn.Parameter(torch.zeros(parameters))
    weights.grad = torch.ones(parameters)
    optimizer = torch.optim.AdamW([weights])

    def update() -> None:
        torch.nn.utils.clip_grad_norm_([weights], 1.0)
        optimizer.step()

    update()
    return _median_seconds(update) / parameters


def _bert_base(dim: int) -> Any:
    from m3bind.models.heads import make_head
    from m3bind.models.published import bert_trunk
    from m3bind.models.text_encoder import TextEncoder
    from m3bind.models.tokenizer import train_wordpiece

    plain = train_wordpiece(["a text"], minimum=1)
    return TextEncoder(bert_trunk(28996, "mean"), make_head("linear", 768, dim), plain, 256)


# ---- adding up -------------------------------------------------------------------------------------------------------


def _stages(config: RunConfig, towers: Sequence[Tower], student: Student, work: Work) -> list[Stage]:
    stages = []
    kinds, update = work.kinds, _update_seconds()
    weights = 4.0 * sum(t.parameters for t in towers)
    for t in (t for t in towers if t.stage0):
        settings = config.pretrain_for(t.modality)
        batch = settings.batches.get(t.modality, settings.batch)
        different = _distinct(batch, work.captions[t.modality])
        step = batch * _full(t.image) + different * _full(t.text) + update * t.parameters
        kept = _kept(settings, t, batch, different)
        memory = weights + 12.0 * t.parameters + 2 * WORKSPACE * sum(kept)  # all weights train: twice the activations
        stages.append(Stage(f"pretrain {t.modality}", settings.steps, step, settings.steps * step, memory))
    texts = min(config.align.pool, kinds or config.align.pool)
    seconds = sum(texts * t.shared * t.text.forward for t in towers)
    stages.append(Stage("closed form", 1, seconds, seconds, weights))
    align = config.align
    step, held, peak = 0.0, 0.0, 0.0
    for t in towers:
        count = t.captions + t.shared * _distinct(align.shared_batch, kinds)
        step += t.batch * t.image.training + count * t.text.training
        always, part = _kept(align, t, t.batch, count)
        held += always + (t.batch * t.input_bytes if align.image == "lora" else 0.0)
        peak = max(peak, part)
    peak = held + WORKSPACE * peak
    trained = sum(t.trained for t in towers)
    step += update * trained
    stages.append(Stage("align", align.steps, step, align.steps * step, weights + 12.0 * trained + peak))
    prepared = sum(t.pairs * t.image.forward + kinds * t.shared * t.text.forward for t in towers)
    stages.append(Stage("embed for distillation", 1, prepared, prepared, weights + max(t.input_bytes for t in towers)))
    distill = config.distill
    batches = sum(
        _distinct(min(distill.batches.get(t.modality, distill.batch), t.pairs or 1 << 62), work.captions[t.modality])
        for t in towers
    )
    memory = weights + 4.0 * student.parameters + 12.0 * student.trained
    shared = student.shared * _distinct(distill.shared_batch, kinds)
    for name, steps, count in (("distill a", distill.steps, shared), ("distill b", distill.steps_b, shared + batches)):
        grown = WORKSPACE * _texts(distill, count, student.tokens) * student.text.kept
        seconds = count * student.text.training + update * student.trained
        stages.append(Stage(name, steps, seconds, steps * seconds, memory + grown))
    return stages


def _full(side: Side) -> float:
    """Seconds of an item where all weights train: the backward pass computes weight gradients as well."""
    return 5.0 * side.forward if side.training == 0 else side.training + side.forward


def _kept(settings: TrainConfig, t: Tower, images: int, texts: float) -> tuple[float, float]:
    """Bytes of activations: kept until the backward pass, and of the largest part that is computed again."""
    micro, kept = settings.micro(t.modality), images * t.image.kept
    image = (kept, 0.0) if t.recomputes or not micro else (0.0, min(micro, images) * t.image.kept)
    few = _texts(settings, texts, t.tokens) * t.text.kept
    text = (0.0, few) if settings.micro_tokens else (few, 0.0)
    return image[0] + text[0], max(image[1], text[1])


def _texts(settings: TrainConfig, count: float, tokens: int) -> float:
    return min(count, settings.micro_tokens / tokens) if settings.micro_tokens else float(count)


def _step_flops(config: RunConfig, towers: Sequence[Tower], student: Student) -> dict[str, float]:
    """Operations of one step of each stage; backward passes count as twice (LoRA: once) a forward pass."""
    align, distill = config.align, config.distill
    flops = {}
    for t in towers:
        settings = config.pretrain_for(t.modality)
        batch = settings.batches.get(t.modality, settings.batch)
        flops[f"pretrain {t.modality}"] = 3 * batch * (t.image.flops + t.text.flops)
    images = sum(t.batch * t.image.flops for t in towers) if align.image == "lora" else 0.0
    flops["align"] = 3 * (images + sum((t.batch + align.shared_batch) * t.text.flops for t in towers))
    flops["closed form"] = sum(align.pool * t.text.flops for t in towers)
    flops["embed for distillation"] = sum(t.pairs * (t.image.flops + t.text.flops) for t in towers)
    batches = sum(distill.batches.get(t.modality, distill.batch) for t in towers)
    flops["distill a"] = 4 * distill.shared_batch * student.text.flops
    flops["distill b"] = 4 * (distill.shared_batch + batches) * student.text.flops
    return flops


def _disk(config: RunConfig, towers: Sequence[Tower], work: Work) -> dict[str, float]:
    """Bytes the cache will hold."""
    found: dict[str, float] = {}
    texts = work.kinds
    for t in towers:
        total = float(t.pairs * t.input_bytes)
        if total <= config.data.inputs_gb * GB:
            found[f"{t.modality} inputs"] = total
        width = t.joint_dim if math.prod(t.input_shape) > WIDE * 1000 else 2048
        found[f"{t.modality} image features"] = 4.0 * t.pairs * width
        found[f"{t.modality} text features"] = 4.0 * texts * 768
    return found


# ---- in words --------------------------------------------------------------------------------------------------------


def as_text(plan: Plan) -> str:
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
