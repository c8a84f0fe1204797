"""What each stage of a run asks for, and what that takes: compute, decoding, disk and memory.

* `stages_of`: the stages in order, each with its work (`StagePlan`). * `Machine`: where the run would be.
* `StagePlan.price`: time of a stage, and what it waits for.

A stage reads inputs from shards that ingest wrote, or, if a modality's inputs exceed `data.inputs_gb`, decodes the
files again in each step and pass (live). Loader processes prefetch, so on a GPU a step takes as long as the slowest of
compute, decoding and disk; on a CPU towers and decoding share the cores, and their times add up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter

from m3bind.config import RunConfig, TrainConfig
from m3bind.pipeline.plan.cost import Side
from m3bind.pipeline.plan.gpus import Gpu
from m3bind.pipeline.plan.tower_cost import StagedSides, StudentPlan, TowerPlan
from m3bind.pipeline.plan.workload import Work, distinct_draws, expected_captions

GB = 1e9
STATE = 12.0  # bytes of a trained parameter beside its value: gradient and two moments
UPDATE = 28.0  # bytes that an optimiser step moves per trained parameter


@dataclass(frozen=True)
class Machine:
    """Cores, disk and devices of one machine."""

    cores: int
    disk: float  # bytes/s, of reading and of writing
    memory: float  # bytes
    gpu: Gpu | None = None
    gpus: int = 1
    utilisation: float = 0.35


@dataclass
class StagePlan:
    """The work of a stage and its time. A step of ingest is a file; passes over all data are one step."""

    name: str
    steps: int
    compute: float = 0.0  # seconds of a step on this CPU
    decode: float = 0.0  # core-seconds of a step: hashing, decoding, preprocessing, tokenising
    start: float = 0.0  # seconds before the first step: the readers start
    augmenting: float = 0.0  # core-seconds of a step; by the loader's processes if the towers are on a GPU
    disk: float = 0.0  # bytes of a step, read and written
    memory: float = 0.0  # bytes at the peak, of weights and activations
    shared: float = 0.0  # of these, activations, which several GPUs divide
    flops: float = 0.0  # of a step
    moved: float = 0.0  # bytes that the optimiser moves in the device's memory in a step
    seconds_per_step: float = 0.0
    seconds: float = 0.0
    binds: str = ""  # what takes longest here: compute, decode, disk, or - if nothing; memory: it does not fit
    gpu_compute: float = 0.0  # seconds of a step on the GPUs, an estimate
    gpu_seconds: float = 0.0  # of the stage
    gpu_memory: float = 0.0  # bytes per device
    gpu_binds: str = ""

    def price(self, machine: Machine) -> None:
        """Fill in times and what binds."""
        decode, disk = self.decode / machine.cores, self.disk / machine.disk
        self.seconds_per_step = max(self.compute + self.augmenting + decode, disk)
        self.seconds = self.start + self.steps * self.seconds_per_step
        self.binds = (
            _largest(self.compute + self.augmenting, decode, disk) if self.memory <= machine.memory else "memory"
        )
        if machine.gpu is None:
            return
        decode += self.augmenting / machine.cores
        rate = machine.gpu.tflops * 1e12 * machine.utilisation * machine.gpus
        self.gpu_compute = compute = self.flops / rate + self.moved / (machine.gpu.bandwidth * GB)
        self.gpu_seconds = self.start + self.steps * max(compute, decode, disk)
        self.gpu_memory = self.memory - self.shared * (1 - 1 / machine.gpus)
        self.gpu_binds = _largest(compute, decode, disk) if self.gpu_memory <= machine.gpu.memory * GB else "memory"


def _largest(compute: float, decode: float, disk: float) -> str:
    return max((0.0, "-"), (compute, "compute"), (decode, "decode"), (disk, "disk"), key=itemgetter(0))[1]


@dataclass(frozen=True)
class Measured:
    """Everything that was measured."""

    towers: Sequence[TowerPlan]
    student: StudentPlan
    update: float  # seconds of an optimiser step per trained parameter
    steps: Mapping[str, float]  # stage -> seconds of a step beside the towers
    tokenising: float  # core-seconds of all texts with all tokenizers


def is_live(config: RunConfig, t: TowerPlan) -> bool:
    """Whether the inputs of a modality are too large to be stored."""
    return t.files * t.stored_bytes > config.data.inputs_gb * GB


def texts_of_stage2(config: RunConfig, work: Work) -> float:
    """Expected number of distinct shared texts that stage 2 draws."""
    distill = config.distill
    return distinct_draws(distill.shared_batch * (distill.steps + distill.steps_b), work.kinds)


def stages_of(config: RunConfig, measured: Measured, work: Work) -> list[StagePlan]:
    """The stages of the run in order, not priced yet."""
    towers = measured.towers
    return [
        *(_ingest(config, t) for t in towers),
        _texts_before(config, measured, work),
        *(_pretraining(config, t, measured) for t in towers if t.pretrain),
        _image_pass("embed before binding", config, towers, first=True),
        _closed_form(config, towers, work),
        _alignment(config, measured, work),
        _image_pass("embed after stage 1", config, towers, first=False),
        _teachers(config, towers, work),
        *_distillation(config, measured, work),
        *(_calibration(config, t, measured) for t in towers if t.pretrain and not work.valid[t.modality]),
    ]


def _ingest(config: RunConfig, t: TowerPlan) -> StagePlan:
    """Each file is read once; without room for its input it is only checked."""
    written = 0.0 if is_live(config, t) else t.stored_bytes
    disk = t.decode.file_bytes + written
    stage = StagePlan(f"ingest {t.modality}", t.files, decode=t.decode.seconds, disk=disk, memory=t.input_bytes)
    stage.start = t.decode.start
    return stage


def _texts_before(config: RunConfig, measured: Measured, work: Work) -> StagePlan:
    """Token ids of all texts by all tokenizers, and features by the frozen text trunks, each distinct one once."""
    stage = StagePlan("texts", 1, decode=measured.tokenising)
    done: set[str] = set()
    for t in measured.towers:
        frozen = t.align.text_level != "input" and (t.pretrain is None or t.pretrain.text_level != "input")
        if frozen and t.text_trunk not in done:
            done.add(t.text_trunk)
            _add_texts(stage, t.align.text, work.texts * t.shared)
    student = measured.student
    if not student.full and student.text_trunk not in done:
        _add_texts(stage, student.text, work.texts * student.shared)
    stage.memory = max(4.0 * t.parameters for t in measured.towers)
    return stage


def _add_texts(stage: StagePlan, side: Side, texts: float) -> None:
    stage.compute += texts * side.forward
    stage.flops += texts * side.flops


def _pretraining(config: RunConfig, t: TowerPlan, measured: Measured) -> StagePlan:
    settings, staged = config.pretrain_for(t.modality), t.pretrain
    assert staged is not None
    stage = StagePlan(f"pretrain {t.modality}", settings.steps, compute=measured.steps[f"pretrain {t.modality}"])
    texts = staged.captions if staged.text_level == "input" else 0.0
    _add_side(stage, config, t, staged, texts)
    stage.compute += measured.update * (staged.trained if "input" in (staged.image_level, staged.text_level) else 0)
    stage.moved = UPDATE * staged.trained
    stage.shared += sum(_activations(settings, t, staged, staged.captions))
    stage.memory = 4.0 * t.parameters + STATE * staged.trained + stage.shared
    return stage


def _calibration(config: RunConfig, t: TowerPlan, measured: Measured) -> StagePlan:
    """Stage 0 once more for the temperature, see `pipeline.calibration`."""
    return replace(_pretraining(config, t, measured), name=f"calibration {t.modality}")


def _add_side(stage: StagePlan, config: RunConfig, t: TowerPlan, staged: StagedSides, texts: float) -> None:
    """A step's images and texts of a modality, on the sides that are trained from their input."""
    if staged.image_level == "input":
        stage.compute += staged.batch * staged.image.training
        stage.augmenting += staged.batch * staged.augmenting
        stage.flops += staged.batch * staged.image.training_flops
        stage.shared += float(staged.batch * t.input_bytes)
        _add_reading(stage, config, t, staged.batch)
    if staged.text_level == "input":
        stage.compute += texts * staged.text.training
        stage.flops += texts * staged.text.training_flops


def _add_reading(stage: StagePlan, config: RunConfig, t: TowerPlan, images: float) -> None:
    """`images` inputs, decoded live or read from shards."""
    if is_live(config, t):
        stage.decode += images * (t.decode.decoding + t.decode.preprocessing)
        stage.disk += images * t.decode.file_bytes
    else:
        stage.disk += images * t.stored_bytes


def _image_pass(name: str, config: RunConfig, towers: Sequence[TowerPlan], first: bool) -> StagePlan:
    """Embeddings of all images for the evaluation and for stage 2: before binding, and again if stage 1 trains trunks.

    The features of trunks that are frozen in stage 0 are computed before it, in all views.
    """
    stage = StagePlan(name, 1)
    for t in towers:
        if not first and t.align.image_level != "input":
            continue
        images = t.viewed(config) if first else t.files
        stage.compute += images * t.align.image.forward
        stage.flops += images * t.align.image.flops
        _add_reading(stage, config, t, t.files)
    stage.memory = max(4.0 * t.parameters for t in towers) + max(t.input_bytes for t in towers)
    return stage


def _closed_form(config: RunConfig, towers: Sequence[TowerPlan], work: Work) -> StagePlan:
    """The texts on which Procrustes is fitted, unless their features are there."""
    stage = StagePlan("closed form", 1, memory=_weights(towers))
    for t in towers:
        if t.align.text_level == "input" or (t.pretrain and t.pretrain.text_level == "input"):
            _add_texts(stage, t.align.text, min(config.align.pool, work.kinds) * t.shared)
    return stage


def _alignment(config: RunConfig, measured: Measured, work: Work) -> StagePlan:
    align, towers = config.align, measured.towers
    stage = StagePlan("align", align.steps, compute=measured.steps["align"])
    trained, stored, peak = sum(t.trained for t in towers), 0.0, 0.0
    for t in towers:
        texts = t.align.captions + t.shared * distinct_draws(align.shared_batch, work.kinds)
        _add_side(stage, config, t, t.align, texts)
        own = t.trained if "input" in (t.align.image_level, t.align.text_level) else 0
        stage.compute += measured.update * own
        whole, part = _activations(align, t, t.align, texts)
        stored, peak = stored + whole, max(peak, part)
    stage.moved = UPDATE * trained
    stage.shared += stored
    stage.memory = _weights(towers) + STATE * trained + stage.shared + peak
    return stage


def _teachers(config: RunConfig, towers: Sequence[TowerPlan], work: Work) -> StagePlan:
    """Embeddings of the texts that stage 2 draws by the aligned towers, unless their features are there."""
    stage = StagePlan("teachers' texts", 1, memory=_weights(towers))
    for t in towers:
        if t.align.text_level == "input":
            _add_texts(stage, t.align.text, texts_of_stage2(config, work) * t.shared)
    return stage


def _distillation(config: RunConfig, measured: Measured, work: Work) -> list[StagePlan]:
    distill, student, towers = config.distill, measured.student, measured.towers
    sizes = {t.modality: min(distill.batches.get(t.modality, distill.batch), t.pairs) for t in towers}
    batches = sum(expected_captions(size, work, m) for m, size in sizes.items())
    memory = _weights(towers) + 4.0 * student.parameters + STATE * student.trained
    shared = student.shared * distinct_draws(distill.shared_batch, work.kinds)
    stages = []
    for name, steps, texts in (("distill a", distill.steps, shared), ("distill b", distill.steps_b, shared + batches)):
        stage = StagePlan(name, steps, compute=measured.steps[name], moved=UPDATE * student.trained)
        if student.full:
            stage.compute += texts * student.text.training + measured.update * student.trained
            stage.flops = texts * student.text.training_flops
            stage.shared = _texts(distill, texts, student.tokens) * student.text.peak
        stage.memory = memory + stage.shared
        stages.append(stage)
    return stages


def _weights(towers: Sequence[TowerPlan]) -> float:
    return 4.0 * sum(t.parameters for t in towers)


def _activations(settings: TrainConfig, t: TowerPlan, staged: StagedSides, texts: float) -> tuple[float, float]:
    """Bytes of activations: those stored until the backward pass, and those in addition during the largest part."""
    image, text = staged.image, staged.text
    micro, images = settings.micro(t.modality), staged.batch
    part = min(micro or images, images)
    if micro and not t.recomputes:
        stored, during = 0.0, part * image.peak
    else:
        stored, during = images * image.stored, part * (image.peak - image.stored)
    size = _texts(settings, texts, t.tokens)
    if settings.micro_tokens:
        return stored, max(during, size * text.peak)
    return stored + size * text.stored, max(during, size * (text.peak - text.stored))


def _texts(settings: TrainConfig, count: float, tokens: int) -> float:
    return min(count, settings.micro_tokens / tokens) if settings.micro_tokens else float(count)
