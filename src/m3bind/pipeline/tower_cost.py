"""The workload of a run, and its dual encoders and student, built and timed one at a time.

* `work_of`: the numbers of pairs and texts, from the manifest, or from the settings if it does not exist yet (`Work`).
* `measure_tower`, `measure_student`: parameters, sizes and times of a dual encoder and of the student.
* `update_seconds`: time of an optimiser step. `expected_captions`: distinct captions of a batch.

What is timed and how: see `m3bind.pipeline.cost`.
"""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from m3bind.align.balance import sampling_probabilities
from m3bind.align.stage import set_trainable
from m3bind.config import RunConfig
from m3bind.core.device import pick
from m3bind.data.batching import IntArray
from m3bind.errors import M3BindError
from m3bind.modalities.base import Sample
from m3bind.models.base import DualEncoder, Tokens
from m3bind.models.layers.heads import make_head
from m3bind.models.layers.text_encoder import TextEncoder, make_text_encoder
from m3bind.models.layers.tokenizer import train_wordpiece
from m3bind.models.published import bert_trunk
from m3bind.pipeline.cost import DEEP, Side, median_seconds, time_side, time_volumes
from m3bind.pipeline.dataset import build_model, training_texts
from m3bind.pipeline.features import levels
from m3bind.pipeline.run import Run
from m3bind.training.loop import autocast

TEXTS = 8  # texts per timed batch


@dataclass
class Work:
    """Numbers of training pairs and texts of a run."""

    pairs: dict[str, int]  # training pairs per modality
    captions: dict[str, int]  # number of their distinct texts
    sample: dict[str, list[str]]  # some captions of each modality; {} if unknown
    pool: list[str]  # some texts of the shared pool, including short phrases
    kinds: int  # number of distinct texts of the pool
    known: bool  # from a manifest, not from the settings


@dataclass
class TowerPlan:
    """The dual encoder of one modality."""

    modality: str
    model: str
    pairs: int
    weights_present: bool
    recomputes: bool  # its image trunk recomputes activations itself
    parameters: int
    trained: int  # in stage 1
    joint_dim: int
    input_shape: tuple[int, ...]
    tokens: int  # mean of a caption
    shared: float  # mean length of a text of the shared pool, as a fraction of that
    batch: int
    captions: float  # distinct captions of a batch
    micro: int
    image: Side = field(default_factory=Side)
    text: Side = field(default_factory=Side)
    pretrains: bool = False
    widths: tuple[int, int] = (0, 0)  # of the trunks' features: image, text

    @property
    def input_bytes(self) -> int:
        """Size of one model input, float32."""
        return 4 * math.prod(self.input_shape)


@dataclass
class StudentPlan:
    """The shared text encoder."""

    parameters: int
    trained: int
    tokens: int  # mean of a caption, over modalities
    shared: float  # mean length of a text of the shared pool, as a fraction of that
    text: Side


def work_of(config: RunConfig, folder: Path, cache: Path) -> tuple[Work, Path]:
    """The numbers of the run's training pairs and texts, and the folder with the tokenizer of untrained models.

    Args:
        config: the run.
        folder: for intermediate files; may be temporary.
        cache: the runs' shared cache (virtual patients are generated there).
    """
    names = list(config.modalities)
    manifest = config.data.manifest
    if config.data.phantom is None and (manifest is None or not Path(manifest).exists()):
        sizes = {m: config.plan.sizes.get(m, 0) for m in names}
        return Work(sizes, dict(sizes), {}, [], sum(sizes.values()), False), folder
    run = Run(config, folder, cache)
    records, _ = run.read_records()
    work = Work({}, {}, {}, [], 0, True)
    texts = records.texts
    pools: dict[str, IntArray] = {}
    for m in names:
        own = records.where(m, "train")
        captions = texts.sorted(np.unique(own.captions.values))
        work.pairs[m], work.captions[m], work.sample[m] = len(own), len(captions), texts.take(_some(captions))
        pools[m] = texts.sorted(training_texts(own))
    shares = sampling_probabilities({m: max(work.pairs[m], 1) for m in names}, config.align.balance.beta)
    for m in names:
        work.pool += texts.take(_some(pools[m], round(200 * shares[m])))  # as sampled by Eq. 3
    work.kinds = len(np.unique(np.concatenate(list(pools.values()))))
    return work, run.make_assets(records)


def _some(ids: IntArray, count: int = 60) -> IntArray:
    """`count` texts at equal distances, repeated if there are fewer."""
    return ids[np.arange(count) * len(ids) // count] if len(ids) else ids


def expected_captions(batch: float, work: Work, m: str) -> float:
    """Expected number of distinct captions of `batch` pairs, drawn without replacement."""
    pairs, kinds = work.pairs[m], work.captions[m]
    if not pairs or not kinds:
        return batch
    return float(kinds * (1 - (1 - min(batch / pairs, 1.0)) ** (pairs / kinds)))


def measure_tower(m: str, config: RunConfig, assets: Path, work: Work, notes: list[str]) -> TowerPlan:
    """Build the dual encoder of modality `m` and time it; `notes` receives the assumptions."""
    settings, align = config.modalities[m], config.align
    present = settings.checkpoint is None or Path(settings.checkpoint).exists()
    if not present:
        notes.append(f"{m}: {settings.checkpoint} does not exist yet; measured with random weights")
        settings = settings.model_copy(update={"checkpoint": None})
    model = build_model(m, settings, assets)
    batch = min(align.batches.get(m, align.batch), work.pairs[m] or 1 << 62)
    tokens, shared = _lengths(model, work.sample.get(m, []), work.pool, config)
    image_level, text_level = levels(config, model, "align")
    parameters = sum(p.numel() for p in model.parameters())
    set_trainable(model, align)
    tower = TowerPlan(
        modality=m,
        model=settings.model,
        pairs=work.pairs[m],
        weights_present=present,
        recomputes=bool(getattr(model.image_trunk, "recomputes", False)),
        parameters=parameters,
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        joint_dim=model.joint_dim,
        input_shape=_input_shape(model, m),
        tokens=tokens,
        shared=shared,
        batch=batch,
        captions=expected_captions(batch, work, m),
        micro=min(align.micro(m) or batch, batch),
        pretrains=config.modalities[m].pretrain,
        widths=(_width(model.image_head, model.joint_dim), _width(model.text_head, model.joint_dim)),
    )
    shape, encode, trains = tower.input_shape, model.encode_image, image_level == "input"
    again = align.micro(m) > 0 and not tower.recomputes
    with autocast(align, pick("cpu")):
        if len(shape) == 4 and shape[1] > DEEP[1]:
            tower.image = time_volumes(model, encode, shape, trains=trains, again=again)
        else:
            rows = min(tower.micro, 8)
            tower.image = time_side(model, encode, torch.zeros(rows, *shape), rows, trains, again)
        texts, trains = _tokens(model, tokens), text_level == "input"
        tower.text = time_side(model, model.encode_text, texts, TEXTS, trains, align.micro_tokens > 0)
    return tower


def _lengths(
    model: DualEncoder | TextEncoder, captions: Sequence[str], pool: Sequence[str], config: RunConfig
) -> tuple[int, float]:
    """Mean tokens of a caption, and those of a text of the shared pool as a fraction of that, without padding."""
    own, shared = (_length(model, texts, config) for texts in (captions, pool))
    return round(own), shared / own


def _length(model: DualEncoder | TextEncoder, texts: Sequence[str], config: RunConfig) -> float:
    with contextlib.suppress(M3BindError):
        if texts:
            return max(2.0, float(model.tokenize(texts)["attention_mask"].sum(1).float().mean()))
    return float(min(config.plan.tokens, int(model.max_tokens)))


def _input_shape(model: DualEncoder, modality: str) -> tuple[int, ...]:
    """Shape of one model input, by preprocessing a blank sample, first one of the modality itself."""
    blanks = [
        Sample("ct", np.zeros((8, 64, 64), np.float32), spacing=(3.0, 1.5, 1.5)),
        Sample("ecg", np.zeros((12, 5000), np.float32), rate=500.0),
        Sample("retina", np.zeros((64, 64, 3), np.float32)),
        Sample("xray", np.zeros((64, 64), np.float32)),
    ]
    for sample in sorted(blanks, key=lambda s: s.modality != modality):
        with contextlib.suppress(M3BindError):
            return tuple(model.preprocess(sample).shape)
    raise M3BindError(f"{model.registered_name}: takes none of the known kinds of data")


def _tokens(model: DualEncoder | TextEncoder, length: int) -> Tokens:
    """`TEXTS` texts of `length` equal tokens each, with an end-of-text token if the model (CLIP) needs it."""
    length = min(length, model.max_tokens)
    word = model.tokenize(["a"])["input_ids"][0]
    ids = word[min(1, len(word) - 1)].repeat(TEXTS, length).long()
    ids[:, -1] = getattr(model, "end_of_text", ids[0, -1])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _width(head: nn.Module, otherwise: int) -> int:
    """Input width of a head: that of its first linear layer."""
    linear = next((part for part in head.modules() if isinstance(part, nn.Linear)), None)
    return otherwise if linear is None else linear.in_features


def measure_student(config: RunConfig, assets: Path, work: Work, notes: list[str]) -> StudentPlan:
    """Build the student and time it; `notes` receives the assumptions."""
    distill, settings = config.distill, config.distill.student
    try:
        student = make_text_encoder(settings.text, dim=config.align.dim, assets=assets, **settings.settings)
    except M3BindError:
        notes.append(f"student: {settings.text} does not exist yet; measured as a BERT-base with random weights")
        plain = train_wordpiece(["a text"], minimum=1)
        student = TextEncoder(bert_trunk(28996, "mean"), make_head("linear", 768, config.align.dim), plain, 256)
    student.requires_grad_(settings.train == "full")
    student.head.requires_grad_(True)
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    captions = [text for texts in work.sample.values() for text in texts]
    length, shared = _lengths(student, captions, work.pool, config)
    with autocast(distill, pick("cpu")):
        side = time_side(student, student.encode, _tokens(student, length), TEXTS, True, distill.micro_tokens > 0)
    return StudentPlan(sum(p.numel() for p in student.parameters()), trained, length, shared, side)


def update_seconds(parameters: int = 10_000_000) -> float:
    """Seconds of AdamW and gradient clipping per trained parameter."""
    weights = nn.Parameter(torch.zeros(parameters))
    weights.grad = torch.ones(parameters)
    optimizer = torch.optim.AdamW([weights])

    def update() -> None:
        torch.nn.utils.clip_grad_norm_([weights], 1.0)
        optimizer.step()

    update()
    return median_seconds(update) / parameters
